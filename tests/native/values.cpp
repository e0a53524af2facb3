// Parsers and number formats, for tests: the value or the error for a text, a file or a number.
#include <regex>

#include "base/available_memory.h"
#include "base/available_threads.h"
#include "bindings/bindings.h"
#include "io/model_config.h"
#include "io/safetensors.h"
#include "model/rope_scaling.h"
#include "ops/ops.h"
#include "ops/philox.h"
#include "tests/native/native.h"

namespace py = pybind11;

namespace longcat {

namespace {

py::dict to_dict(const ModelConfig& c) {
  py::dict d;
  d["architecture"] = c.architecture;
  d["vocab_size"] = c.vocab_size;
  d["hidden_size"] = c.hidden_size;
  d["num_layers"] = c.num_layers;
  d["num_attention_heads"] = c.num_attention_heads;
  d["q_lora_rank"] = c.q_lora_rank;
  d["kv_lora_rank"] = c.kv_lora_rank;
  d["qk_nope_head_dim"] = c.qk_nope_head_dim;
  d["qk_rope_head_dim"] = c.qk_rope_head_dim;
  d["v_head_dim"] = c.v_head_dim;
  d["ffn_hidden_size"] = c.ffn_hidden_size;
  d["expert_ffn_hidden_size"] = c.expert_ffn_hidden_size;
  d["n_routed_experts"] = c.n_routed_experts;
  d["zero_expert_num"] = c.zero_expert_num;
  d["moe_topk"] = c.moe_topk;
  d["routed_scaling_factor"] = c.routed_scaling_factor;
  d["mla_scale_q_lora"] = c.mla_scale_q_lora;
  d["mla_scale_kv_lora"] = c.mla_scale_kv_lora;
  d["tie_word_embeddings"] = c.tie_word_embeddings;
  d["rms_norm_eps"] = c.rms_norm_eps;
  d["rope_theta"] = c.rope_theta;
  d["max_position_embeddings"] = c.max_position_embeddings;
  d["bos_token_id"] = c.bos_token_id;
  d["eos_token_id"] = c.eos_token_id;
  d["torch_dtype"] = name_of(c.torch_dtype);
  d["fp8_blocks"] = c.fp8_blocks;
  d["warnings"] = c.warnings;
  d["yarn"] = py::none();
  if (c.yarn) {
    py::dict yarn;
    yarn["factor"] = c.yarn->factor;
    yarn["original_max_position_embeddings"] = c.yarn->original_max_position_embeddings;
    yarn["beta_fast"] = c.yarn->beta_fast;
    yarn["beta_slow"] = c.yarn->beta_slow;
    yarn["mscale"] = c.yarn->mscale;
    yarn["mscale_all_dim"] = c.yarn->mscale_all_dim;
    yarn["attention_factor"] = c.yarn->attention_factor;
    yarn["truncate"] = c.yarn->truncate;
    d["yarn"] = yarn;
  }
  d["ngram"] = py::none();
  if (c.ngram) {
    py::dict ngram;
    ngram["table_rows"] = c.ngram->table_rows;
    ngram["emb_neighbor_num"] = c.ngram->emb_neighbor_num;
    ngram["emb_split_num"] = c.ngram->emb_split_num;
    d["ngram"] = ngram;
  }
  d["sparse"] = py::none();
  if (c.sparse) {
    py::dict sparse;
    sparse["index_n_heads"] = c.sparse->index_n_heads;
    sparse["index_head_dim"] = c.sparse->index_head_dim;
    sparse["index_topk"] = c.sparse->index_topk;
    sparse["index_init_tokens"] = c.sparse->index_init_tokens;
    sparse["index_local_tokens"] = c.sparse->index_local_tokens;
    sparse["is_owner"] = c.sparse->is_owner;
    d["sparse"] = sparse;
  }
  return d;
}

}  // namespace

void register_values(py::module_& testing) {
  testing.def("available_memory", [](const std::string& root) { return available_memory(root); }, py::arg("root"));
  testing.def("available_threads", [](const std::string& root) { return available_threads(root); }, py::arg("root"));
  testing.def(
      "cached_bytes",  // of the tensors in whose names the pattern is found
      [](const std::string& folder, const std::string& pattern) {
        const std::regex wanted(pattern);
        const Checkpoint checkpoint(folder);
        int64_t bytes = 0;
        for (const auto& [name, tensor] : checkpoint.tensors())
          if (std::regex_search(name, wanted))
            bytes += cached_bytes(tensor.data, static_cast<int64_t>(tensor.num_bytes));
        return bytes;
      },
      py::arg("folder"), py::arg("pattern"));
  testing.def("parse_safetensors_header", [](const py::bytes& header, uint64_t data_bytes) {
    std::map<std::string, py::tuple> entries;
    for (const auto& [name, entry] : parse_safetensors_header(std::string_view(header), data_bytes, "header"))
      entries[name] = py::make_tuple(name_of(entry.dtype), entry.shape, entry.begin, entry.end);
    return entries;
  });
  testing.def("parse_model_config",
              [](const std::string& text) { return to_dict(parse_model_config(text, "config.json")); });
  testing.def("open_checkpoint", [](const std::string& folder) {
    const Checkpoint checkpoint(folder);
    std::map<std::string, py::tuple> tensors;
    for (const auto& [name, tensor] : checkpoint.tensors())
      tensors[name] = py::make_tuple(name_of(tensor.dtype), tensor.shape);
    return tensors;
  });
  testing.def("rope_scaling", [](const std::string& config_text) {
    const RopeScaling rope = make_rope_scaling(parse_model_config(config_text, "config.json"));
    return py::make_tuple(rope.inv_freq, rope.cos_sin_factor, rope.softmax_factor);
  });
  testing.def("philox4x32", [](std::array<uint32_t, 4> counter, uint64_t key) { return philox4x32(counter, key); });
  testing.def("sampling_uniform", &sampling_uniform);
  testing.def("kv_piece_end", &kv_piece_end);
  testing.def("to_e4m3", &to_e4m3);
  testing.def("to_bf16", [](float x) { return to_bf16(x).bits; });
  testing.def("half_to_float", &half_to_float);
  testing.def("to_half", &to_half);
  testing.def("e4m3_to_float", &e4m3_to_float);
}

}  // namespace longcat
