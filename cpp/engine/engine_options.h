// The options of an engine, with their defaults. Where 0 or -1 stands for an automatic choice, the comment of the field
// says which.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "engine/speculation.h"

namespace longcat {

struct EngineOptions {
  std::string device = "auto";             // "auto", "cpu", "cuda", "cuda:N"
  std::string dtype = "auto";              // "auto" (config.json), "f32", "bf16"
  std::string quantization = "";           // made while loading: "fp8" (core and experts), "fp8-experts"; "": nothing
  std::string kv_cache_dtype = "auto";     // "auto" (as dtype), "f32", "bf16", "fp8", "int8"
  std::string index_cache_dtype = "auto";  // "auto" (f32 beside f32 latents, else bf16), "f32", "bf16", "int8"
  std::string ngram_placement = "auto";  // place of the N-gram tables: "auto", "disk" (CPU), "host" or "device" (CUDA)
  int64_t max_model_len = 0;             // [tokens] 0: max_position_embeddings
  int64_t max_num_seqs = 16;             // sequences running at once
  int64_t max_num_batched_tokens = 512;  // tokens of a step, at most
  int64_t max_num_queued = 4096;         // sequences that wait, at most
  int64_t kv_cache_memory = 0;           // [bytes] 0: a quarter of the free memory, or what the limits need
  int64_t swap_memory = -1;              // [bytes] host memory for preempted requests; -1: as much as the cache
  double gpu_memory_utilization = 0;     // share of a GPU's free memory to use; 0: all but 1.5 GiB
  bool enable_prefix_caching = true;
  double mask_timeout_ms = 10000;                              // a constrained request fails when its mask takes longer
  Speculation speculation = {};                                // speculative decoding; by default none
  int num_threads = 0;                                         // 0: one for each available core
  int64_t tensor_parallel_size = 1, expert_parallel_size = 1;  // the number of ranks is the larger of both
  int64_t ranks_per_machine = 0;                               // ranks on this machine, which share its memory; 0: all
  std::optional<bool> overlap{};  // plan a step before the results of the last are known; default: on devices that
                                  // leave the host free

  int64_t world_size() const { return std::max(tensor_parallel_size, expert_parallel_size); }
  int64_t max_draws() const { return max_num_seqs + speculation.most_in_a_step(); }  // draws of a step, at most
};

}  // namespace longcat
