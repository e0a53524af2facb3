#include "model/expected_tensors.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "ops/packed.h"

namespace longcat {

namespace {

constexpr size_t kListed = 8;  // number of names in a message before "and N more"

std::string shape_string(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t d = 0; d < shape.size(); ++d) text += (d ? ", " : "") + std::to_string(shape[d]);
  return text + "]";
}

std::string join_some(const std::vector<std::string>& items) {
  std::string text;
  for (size_t i = 0; i < std::min(items.size(), kListed); ++i) text += (i ? "; " : "") + items[i];
  if (items.size() > kListed) text += str_cat("; and ", items.size() - kListed, " more");
  return text;
}

bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }

std::vector<int64_t> scale_shape(const std::vector<int64_t>& shape) {
  return {(shape[0] + kFp8Block - 1) / kFp8Block, (shape[1] + kFp8Block - 1) / kFp8Block};
}

// Appends tensors to a list, some in groups.
class TensorList {
 public:
  explicit TensorList(const ModelConfig& config) : c_(config) {}

  void linear(const std::string& name, int64_t out, int64_t in, TensorUse use = TensorUse::matrix,
              bool may_be_fp8 = true) {
    expected_.push_back({name + ".weight", {out, in}, use, may_be_fp8});
  }
  void plain(const std::string& name, std::vector<int64_t> shape, TensorUse use = TensorUse::values) {
    expected_.push_back({name, std::move(shape), use});
  }
  void norm(const std::string& name) { plain(name + ".weight", {c_.hidden_size}); }
  void ffn(const std::string& name, int64_t width) {
    linear(name + ".gate_proj", width, c_.hidden_size);
    linear(name + ".up_proj", width, c_.hidden_size);
    linear(name + ".down_proj", c_.hidden_size, width);
  }
  void attention(const std::string& name) {
    linear(name + ".q_a_proj", c_.q_lora_rank, c_.hidden_size);
    plain(name + ".q_a_layernorm.weight", {c_.q_lora_rank});
    linear(name + ".q_b_proj", c_.num_attention_heads * c_.qk_head_dim(), c_.q_lora_rank);
    linear(name + ".kv_a_proj_with_mqa", c_.latent_dim(), c_.hidden_size);
    plain(name + ".kv_a_layernorm.weight", {c_.kv_lora_rank});
    linear(name + ".kv_b_proj", c_.num_attention_heads * (c_.qk_nope_head_dim + c_.v_head_dim), c_.kv_lora_rank,
           TensorUse::values);
    linear(name + ".o_proj", c_.hidden_size, c_.num_attention_heads * c_.v_head_dim);
  }
  // Never packed or fp8: rounding it would choose other positions.
  void indexer(const std::string& name) {
    const SparseConfig& sparse = *c_.sparse;
    const int64_t dim = sparse.index_head_dim;
    plain(name + ".wq_b.weight", {sparse.index_n_heads * dim, c_.q_lora_rank});
    plain(name + ".wk.weight", {dim, c_.hidden_size});
    plain(name + ".k_norm.weight", {dim});
    plain(name + ".weights_proj.weight", {sparse.index_n_heads, c_.hidden_size});
  }
  std::vector<ExpectedTensor> take() { return std::move(expected_); }

 private:
  const ModelConfig& c_;
  std::vector<ExpectedTensor> expected_;
};

}  // namespace

std::vector<ExpectedTensor> expected_tensors(const ModelConfig& c) {
  TensorList list(c);
  list.plain("model.embed_tokens.weight", {c.vocab_size, c.hidden_size},
             c.tie_word_embeddings ? TensorUse::matrix : TensorUse::table);
  if (c.ngram)
    for (int64_t t = 0; t < c.ngram->num_tables(); ++t) {
      const int64_t table_dim = c.hidden_size / c.ngram->num_tables();
      const bool lite = !c.sparse;
      list.plain(str_cat(lite ? "model.ngram_embeddings.embedders." : "model.oe_embed_tokens", t, ".weight"),
                 {c.ngram->rows_of(t), table_dim}, TensorUse::table);
      list.plain(str_cat(lite ? "model.ngram_embeddings.post_projs." : "model.oe_embed_proj", t, ".weight"),
                 {c.hidden_size, table_dim});
    }
  for (int64_t l = 0; l < c.num_layers; ++l) {
    const std::string layer = str_cat("model.layers.", l, ".");
    for (int i = 0; i < 2; ++i) {
      list.attention(str_cat(layer, "self_attn.", i));
      if (c.sparse && c.sparse->is_owner[static_cast<size_t>(2 * l + i)])
        list.indexer(str_cat(layer, "self_attn.", i, ".indexer"));
      list.norm(str_cat(layer, "input_layernorm.", i));
      list.norm(str_cat(layer, "post_attention_layernorm.", i));
      list.ffn(str_cat(layer, "mlps.", i), c.ffn_hidden_size);
    }
    list.plain(layer + "mlp.router.classifier.weight", {c.num_router_outputs(), c.hidden_size});
    list.plain(layer + "mlp.router.e_score_correction_bias", {c.num_router_outputs()});
    for (int64_t e = 0; e < c.n_routed_experts; ++e)
      list.ffn(str_cat(layer, "mlp.experts.", e), c.expert_ffn_hidden_size);
  }
  list.norm("model.norm");
  if (!c.tie_word_embeddings) list.plain("lm_head.weight", {c.vocab_size, c.hidden_size}, TensorUse::matrix);
  return list.take();
}

std::vector<ExpectedTensor> expected_mtp_tensors(const ModelConfig& c) {
  TensorList list(c);
  const std::string layer = "model.mtp.layers.0.";
  if (!c.mtp_shares_embed_tokens)
    list.plain("model.mtp.embed_tokens.weight", {c.vocab_size, c.hidden_size}, TensorUse::table);
  list.norm("model.mtp.norm");
  list.norm(layer + "enorm.m");
  list.norm(layer + "hnorm.m");
  // eh_proj is used as two halves, so no block of a format may span both.
  list.linear(layer + "eh_proj", c.hidden_size, 2 * c.hidden_size,
              c.hidden_size % kQuantBlock == 0 ? TensorUse::matrix : TensorUse::values, c.hidden_size % kFp8Block == 0);
  list.norm(layer + "input_layernorm");
  list.norm(layer + "post_attention_layernorm");
  list.attention(layer + "self_attn");
  if (c.sparse) list.indexer(layer + "self_attn.indexer");
  list.ffn(layer + "transformer_layer.mlp", c.ffn_hidden_size);
  return list.take();
}

bool is_mtp_tensor(const std::string& name) { return name.starts_with("model.mtp."); }

bool may_be_packed(const ExpectedTensor& tensor, WeightFormat format) {
  return tensor.use == TensorUse::matrix ? is_x8(format)
                                         : tensor.use == TensorUse::table && is_packed(format) && !is_x8(format);
}

std::string packed_name(const std::string& name, WeightFormat format) { return str_cat(name, ".", name_of(format)); }

namespace {

// An indexer beside a config without sparse attention: dense attention would compute something else.
void refuse_indexers(const Checkpoint& checkpoint, const ModelConfig& config) {
  if (config.sparse) return;
  for (const auto& [name, tensor] : checkpoint.tensors())
    if (name.find(".indexer.") != std::string::npos)
      throw Error(str_cat("[weights] ", checkpoint.folder().string(), ": has \"", name,
                          "\", but config.json describes dense attention; expected attention_method \"LSA\" and "
                          "index_topk: use the config.json that belongs to the files"));
}

}  // namespace

std::vector<std::string> check_tensors(const Checkpoint& checkpoint, const ModelConfig& config, bool with_mtp) {
  refuse_indexers(checkpoint, config);
  std::vector<std::string> problems;
  std::set<std::string> known;
  const auto check_one = [&](const std::string& name, const std::vector<int64_t>& shape, auto&& dtype_fits,
                             const char* dtypes) {
    known.insert(checkpoint.tensors().contains(name) ? name : other_spelling(name));
    const StoredTensor* tensor = checkpoint.find(name);
    if (!tensor) {
      problems.push_back(str_cat("\"", name, "\" ", shape_string(shape), " is missing"));
    } else if (tensor->shape != shape) {
      problems.push_back(
          str_cat("\"", name, "\" is ", shape_string(tensor->shape), ", expected ", shape_string(shape)));
    } else if (!dtype_fits(tensor->dtype)) {
      problems.push_back(str_cat("\"", name, "\" is ", name_of(tensor->dtype), ", expected ", dtypes));
    }
    return tensor;
  };
  const auto check_packed = [&](const ExpectedTensor& expected) {
    for (const WeightFormat format : kAllWeightFormats)
      if (may_be_packed(expected, format) && checkpoint.find(packed_name(expected.name, format))) {
        const int64_t stride = packed_stride(format, expected.shape[1]);
        check_one(
            packed_name(expected.name, format),
            {packed_bytes(format, expected.shape[0], expected.shape[1]) / stride, stride},
            [](DType d) { return d == DType::u8; }, "U8");
        return true;
      }
    return false;
  };
  const auto check_expected = [&](const ExpectedTensor& expected) {
    if (!checkpoint.find(expected.name) && check_packed(expected)) return;
    const bool fp8 = expected.is_linear && config.fp8_blocks;
    const StoredTensor* tensor = check_one(
        expected.name, expected.shape, [&](DType d) { return is_float(d) || (fp8 && d == DType::f8_e4m3); },
        fp8 ? "F32, BF16, F16 or F8_E4M3" : "F32, BF16 or F16");
    if (tensor && fp8 && tensor->dtype == DType::f8_e4m3)
      check_one(
          expected.name + "_scale_inv", scale_shape(expected.shape), [](DType d) { return d == DType::f32; }, "F32");
  };
  for (const ExpectedTensor& expected : expected_tensors(config)) check_expected(expected);
  if (with_mtp) {
    if (std::ranges::none_of(checkpoint.tensors(), [](const auto& entry) { return is_mtp_tensor(entry.first); }))
      throw Error(str_cat("[weights] ", checkpoint.folder().string(),
                          ": has no MTP layer (model.mtp.*), which speculative method \"mtp\" needs: download "
                          "model-auxiliary.safetensors, too, or use method \"ngram\""));
    for (const ExpectedTensor& expected : expected_mtp_tensors(config)) check_expected(expected);
  }
  if (!problems.empty())
    throw Error(str_cat("[weights] ", checkpoint.folder().string(), ": ", problems.size(),
                        problems.size() == 1 ? " tensor does" : " tensors do", " not fit config.json: ",
                        join_some(problems), " (is the download complete, and the config.json its own?)"));

  std::vector<std::string> unknown;
  for (const auto& [name, tensor] : checkpoint.tensors())
    if (!known.contains(name) && !is_mtp_tensor(name)) unknown.push_back(name);
  if (unknown.empty()) return {};
  return {str_cat("[weights] ", checkpoint.folder().string(), ": ", unknown.size(), " unknown ",
                  unknown.size() == 1 ? "tensor is" : "tensors are", " not used: ", join_some(unknown))};
}

}  // namespace longcat
