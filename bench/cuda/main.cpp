// Benchmarks of the CUDA backend at the shapes of LongCat-Flash-Lite. No checkpoint is needed.
//
//   cuda_bench parity | ops | model | gather [--table-rows N] [--check]
//
// --table-rows: of each of the 12 N-gram tables, where the host has no 63 GB for them. --check: tiny shapes on the
// emulated device, which needs no GPU and shows only that the program works. parity: a small model on the GPU against
// the emulated device, where there is no Python for the tests.
#include <cstdio>
#include <exception>
#include <string>

#include "suites.h"

namespace longcat {

namespace {

ModelConfig lite_config() {
  ModelConfig c;
  c.architecture = "LongcatFlashNgramForCausalLM";
  c.vocab_size = 131072;
  c.hidden_size = 3072;
  c.num_layers = 14;
  c.num_attention_heads = 32;
  c.q_lora_rank = 1536;
  c.kv_lora_rank = 512;
  c.qk_nope_head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.v_head_dim = 128;
  c.ffn_hidden_size = 6144;
  c.expert_ffn_hidden_size = 1024;
  c.n_routed_experts = 256;
  c.zero_expert_num = 128;
  c.moe_topk = 12;
  c.routed_scaling_factor = 6;
  c.rope_theta = 5e6;
  c.max_position_embeddings = 327680;
  c.ngram = NgramConfig{.table_rows = 78 * c.vocab_size, .emb_neighbor_num = 4, .emb_split_num = 4};
  return c;
}

ModelConfig tiny_config() {
  ModelConfig c = lite_config();
  c.vocab_size = 256;
  c.hidden_size = 96;
  c.num_layers = 2;
  c.num_attention_heads = 2;
  c.q_lora_rank = 24;
  c.kv_lora_rank = 16;
  c.qk_nope_head_dim = c.qk_rope_head_dim = c.v_head_dim = 8;
  c.ffn_hidden_size = 64;
  c.expert_ffn_hidden_size = 32;
  c.n_routed_experts = 6;
  c.zero_expert_num = 3;
  c.moe_topk = 3;
  c.ngram->table_rows = 500;
  return c;
}

// Small, but of widths that the tensor cores take.
ModelConfig parity_config() {
  ModelConfig c = lite_config();
  c.vocab_size = 1024;
  c.hidden_size = 768;
  c.num_layers = 2;
  c.num_attention_heads = 4;
  c.q_lora_rank = 256;
  c.ffn_hidden_size = 512;
  c.expert_ffn_hidden_size = 256;
  c.n_routed_experts = 16;
  c.zero_expert_num = 8;
  c.moe_topk = 4;
  c.ngram->table_rows = 500;
  return c;
}

}  // namespace

}  // namespace longcat

int main(int argc, char** argv) try {
  using namespace longcat;
  bool check = false;
  int64_t table_rows = 0;
  std::string what;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--check") {
      check = true;
    } else if (word == "--table-rows" && i + 1 < argc) {
      table_rows = std::stoll(argv[++i]);
    } else if (what.empty() && (word == "parity" || word == "ops" || word == "model" || word == "gather")) {
      what = word;
    } else {
      what.clear();
      break;
    }
  }
  if (what.empty()) {
    std::fprintf(stderr, "usage: cuda_bench parity | ops | model | gather [--table-rows N] [--check]\n");
    return 2;
  }
  if (what == "parity") {
    Bench gpu(parity_config(), check, check);
    Bench emulated(parity_config(), true, gpu.device().multiplies_fp8());
    return check_parity(gpu, emulated) ? 0 : 1;
  }
  ModelConfig config = check ? tiny_config() : lite_config();
  if (table_rows > 0) config.ngram->table_rows = table_rows;
  Bench bench(config, check);
  if (what == "model") return bench_model(bench) ? 0 : 1;
  what == "ops" ? bench_ops(bench) : bench_gather(bench);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "cuda_bench: %s\n", error.what());
  return 1;
}
