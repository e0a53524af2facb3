// From a folder and options to a model that is ready for forward passes, on every rank.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "comm/device_communicator.h"
#include "engine/lockstep.h"
#include "engine/speculation.h"
#include "model/model.h"

namespace longcat {

struct EngineOptions {
  std::string device = "auto";           // "auto", "cpu", "cuda", "cuda:N"
  std::string dtype = "auto";            // "auto" (config.json), "f32", "bf16"
  bool quantize_experts = false;         // keep them as fp8 blocks where they are not
  std::string kv_cache_dtype = "auto";   // "auto" (dtype), "f32", "bf16", "fp8", "int8"
  std::string ngram_placement = "auto";  // of the N-gram tables: "auto", "disk" (CPU), "host" or "device" (CUDA)
  int64_t max_model_len = 0;             // [tokens] 0: max_position_embeddings
  int64_t max_num_seqs = 16;             // requests running at once
  int64_t max_num_batched_tokens = 512;  // tokens of a step
  int64_t max_num_queued = 4096;         // requests that wait
  int64_t kv_cache_memory = 0;           // [bytes] 0: min(a quarter of the free memory, what the two limits can use)
  int64_t swap_memory = -1;              // [bytes] of the host, for preempted requests; -1: as much as the cache
  double gpu_memory_utilization = 0;     // share of a GPU's free memory that is taken; 0: all but 1.5 GiB
  bool enable_prefix_caching = true;
  double mask_timeout_ms = 10000;                              // a constrained request ends when its mask takes longer
  Speculation speculation = {};                                // guesses at the next tokens; by default none
  int num_threads = 0;                                         // 0: one per available core
  int64_t tensor_parallel_size = 1, expert_parallel_size = 1;  // ranks: the larger of both
  int64_t ranks_per_machine = 0;                               // that share its memory; 0: all
  std::optional<bool> overlap{};  // plan a step before the results of the last are known; default: on devices that
                                  // leave the host free

  int64_t max_samples() const { return max_num_seqs + speculation.most_in_a_step(); }  // of a step
};

// The operations an engine computes with, and the communicators between their devices. Without ops,
// EngineOptions::device names them.
struct Backend {
  std::unique_ptr<Ops> ops = nullptr;
  CommunicatorFactory communicator = on_device;
};

// Everything needed to run forward passes. Members in the order of their lifetimes.
struct LoadedModel {
  ModelConfig config;
  DType dtype, kv_cache_dtype;
  Checkpoint checkpoint;
  Lockstep lockstep;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Model> model;
};

// `world`: this rank's communicator; null with one rank. Other ranks hear of a failure.
LoadedModel load_model(const std::filesystem::path& folder, const EngineOptions& options,
                       const LoadProgress& progress = {}, std::unique_ptr<Communicator> world = nullptr,
                       Backend backend = {});

}  // namespace longcat
