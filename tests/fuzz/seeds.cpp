#include "seeds.h"

#include <algorithm>
#include <utility>

#include "base/dtype.h"

namespace longcat::fuzz {
namespace {

constexpr const char* kSizes = R"("vocab_size": 128, "hidden_size": 96, "num_layers": 2, "num_attention_heads": 2,
  "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
  "n_routed_experts": 6, "zero_expert_num": 3, "moe_topk": 3, "routed_scaling_factor": 6.0, "rms_norm_eps": 1e-05,
  "max_position_embeddings": 512, "bos_token_id": 1, "mla_scale_q_lora": true, "attention_dropout": 0.0)";

std::string config(const std::string& fields) { return std::string("{") + kSizes + ", " + fields + "}"; }

const std::string kLite = config(R"("architectures": ["LongcatFlashNgramForCausalLM"], "ffn_hidden_size": 64,
  "expert_ffn_hidden_size": 32, "eos_token_id": 2, "zero_expert_type": "identity", "rope_theta": 5000000.0,
  "rope_scaling": {"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 64, "beta_fast": 32,
  "beta_slow": 1, "mscale": 1, "mscale_all_dim": 1}, "ngram_vocab_size_ratio": 78, "emb_neighbor_num": 4,
  "emb_split_num": 4, "torch_dtype": "bfloat16", "num_hidden_layers": 4, "tie_word_embeddings": false)");

const std::string kAliases = config(R"("model_type": "longcat_flash_ngram", "intermediate_size": 64,
  "moe_intermediate_size": 32, "eos_token_id": [2], "oe_vocab_size_ratio": 3.5, "oe_neighbor_num": 3, "oe_split_num": 2,
  "dtype": "float16", "norm_topk_prob": true, "auto_map": {"AutoConfig": "configuration.Config"},
  "rope_parameters": {"rope_theta": 1e6, "rope_type": "deepseek_yarn", "factor": 2.5, "attention_factor": 1.5,
  "truncate": false, "original_max_position_embeddings": 128})");

const std::string kFp8Chat = config(R"("architectures": ["LongcatFlashForCausalLM"], "model_type": "longcat_flash",
  "ffn_hidden_size": 64, "expert_ffn_hidden_size": 32, "eos_token_id": [2, 3], "rope_theta": 1e7, "rope_scaling": null,
  "hidden_act": "silu", "attention_method": "MLA", "attention_bias": false, "router_bias": false,
  "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
  "weight_block_size": [128, 128], "ignored_layers": ["lm_head", "model.embed_tokens"]})");

constexpr const char* kIndex =
    R"({"metadata": {"total_size": 16088576, "more": [{"a": [1.5, null, true]}]}, "weight_map": {
  "lm_head.weight": "model-00002-of-00002.safetensors", "model.norm.weight": "model-00001-of-00002.safetensors",
  "model.embed_tokens.weight": "model-00001-of-00002.safetensors", "\u00e9": "model-auxiliary.safetensors"}})";

constexpr DType kDTypes[] = {DType::bf16, DType::f16, DType::f32, DType::f8_e4m3,
                             DType::i8,   DType::u8,  DType::i32, DType::i64};

}  // namespace

std::vector<Seed> fixed_seeds() {
  return {{Parser::config, 0, kLite},
          {Parser::config, 0, kAliases},
          {Parser::config, 0, kFp8Chat},
          {Parser::index, 0, kIndex},
          {Parser::index, 0, R"({"weight_map": {"a": "b.safetensors"}})"},
          {Parser::header, 0, "{}   "}};
}

Seed random_header(Random& random) {
  struct Entry {
    std::string name, dtype, shape;
    uint64_t begin, bytes;
  };
  const bool large = below(random, 20'000) == 0;
  const uint64_t num_tensors = large ? 1 + below(random, 5'000) : 1 + below(random, 8);
  Seed seed{.parser = Parser::header, .text = "{"};
  std::vector<Entry> entries;
  for (uint64_t i = 0; i < num_tensors; ++i) {
    const DType dtype = kDTypes[below(random, std::size(kDTypes))];
    uint64_t bytes = static_cast<uint64_t>(size_of(dtype));
    std::string shape;
    for (uint64_t d = below(random, 5); d > 0; --d) {
      // Mostly small, now and then zero or beyond 32 bits, and never a product beyond 2^61.
      uint64_t extent = below(random, 16) ? 1 + below(random, 300) : below(random, 2) << below(random, 40);
      if (extent && bytes > (uint64_t{1} << 61) / extent) extent = 1;
      shape += (shape.empty() ? "" : ",") + std::to_string(extent);
      bytes *= extent;
    }
    if (seed.data_bytes + bytes > uint64_t{1} << 62) break;
    entries.push_back({"model.layers." + std::to_string(i), name_of(dtype), shape, seed.data_bytes, bytes});
    seed.data_bytes += bytes;
  }

  if (below(random, 3) == 0) {
    Entry& entry = entries[below(random, entries.size())];
    const Entry& other = entries[below(random, entries.size())];
    switch (below(random, 4)) {
      case 0:
        entry.begin = other.begin;
        break;
      case 1:
        entry.begin = other.begin + below(random, other.bytes + 1);
        break;
      case 2:
        entry.begin += 1 + below(random, 64);
        break;
      case 3:
        entry.begin -= std::min(entry.begin, 1 + below(random, 64));
        break;
    }
    if (below(random, 2)) seed.data_bytes = entry.begin + entry.bytes;
  }
  if (below(random, 2)) std::swap(entries.front(), entries[below(random, entries.size())]);

  if (below(random, 2)) seed.text += R"("__metadata__": {"format": "pt", "note": "a \"quoted\" word"},)";
  for (const Entry& entry : entries) {
    seed.text += (&entry == entries.data() ? "\"" : ",\"") + entry.name + "\":{\"dtype\":\"" + entry.dtype +
                 "\",\"shape\":[" + entry.shape + "],\"data_offsets\":[" + std::to_string(entry.begin) + "," +
                 std::to_string(entry.begin + entry.bytes) + "]}";
  }
  seed.text += "}";
  seed.text.append(below(random, 8), ' ');
  return seed;
}

}  // namespace longcat::fuzz
