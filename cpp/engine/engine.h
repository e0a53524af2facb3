// From requests to tokens: owns the model and the cache, schedules steps, samples.
//
// Scheduling is first come, first served: a request is admitted when a slot and all the blocks it can ever need are
// free, so a running request never has to give any back. Decodes of running requests and chunks of prompts share a
// step, up to max_num_batched_tokens.
#pragma once

#include <deque>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/batch_buffers.h"
#include "engine/sampling_params.h"
#include "model/model.h"

namespace longcat {

struct EngineOptions {
  std::string device = "auto";           // "auto", "cpu", "cuda", "cuda:N"
  std::string dtype = "auto";            // "auto" (config.json), "f32", "bf16"
  std::string kv_cache_dtype = "auto";   // "auto" (dtype), "f32", "bf16"
  int64_t max_model_len = 0;             // [tokens] 0: max_position_embeddings
  int64_t max_num_seqs = 16;             // requests running at once
  int64_t max_num_batched_tokens = 512;  // tokens of a step
  int64_t kv_cache_memory = 0;           // [bytes] 0: min(a quarter of the free memory, what the two limits can use)
  int num_threads = 0;                   // 0: one per available core
};

enum class FinishReason : uint8_t { none, stop, length, error };
const char* name_of(FinishReason reason);

// A token's log-probability under the model's own logits, and those of the most likely ones.
struct TokenLogprobs {
  int32_t rank = 0;             // 1: the token is the most likely
  std::vector<int32_t> ids;     // the token, then the most likely ones, best first
  std::vector<float> logprobs;  // of ids
};

// One new token of one request, or its end.
struct StepOutput {
  int64_t request_id = 0;
  int32_t token_id = -1;  // -1: no token (error, or max_tokens is 0)
  FinishReason finish_reason = FinishReason::none;
  std::optional<TokenLogprobs> logprobs;
  std::vector<TokenLogprobs> prompt_logprobs;  // of prompt tokens 1.., with the first output
};

// Everything needed to run forward passes. Members in the order of their lifetimes.
struct LoadedModel {
  LoadedModel(const std::filesystem::path& folder, const EngineOptions& options, const LoadProgress& progress);

  ModelConfig config;
  DType dtype, kv_cache_dtype;
  Checkpoint checkpoint;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Model> model;
};

class Engine {
 public:
  Engine(const std::filesystem::path& folder, const EngineOptions& options, const LoadProgress& progress = {});

  const ModelConfig& config() const { return loaded_.config; }
  DType dtype() const { return loaded_.dtype; }
  DType kv_cache_dtype() const { return loaded_.kv_cache_dtype; }
  std::string device_name() const { return loaded_.ops->device().name(); }
  int num_threads() const { return loaded_.ops->num_threads(); }
  std::vector<std::string> warnings() const;
  int64_t max_model_len() const { return max_model_len_; }
  int64_t num_kv_blocks() const { return cache_->num_blocks() - 1; }
  int64_t num_free_blocks() const { return static_cast<int64_t>(free_blocks_.size()); }
  int64_t kv_cache_bytes() const { return cache_->num_blocks() * KvCache::block_bytes(config(), kv_cache_dtype()); }

  // Queues a request. Throws std::invalid_argument for a prompt or parameters that cannot run.
  int64_t add_request(std::vector<int32_t> prompt_token_ids, const SamplingParams& params);

  // Ends a request now; its blocks are free on return. False when it is not known (any more).
  bool abort(int64_t request_id);

  // Restricts the next token of a request: [ceil(vocab_size / 32)] words, a bit an id; empty lifts the restriction.
  // Holds until the next call. False when the request is not known. Throws std::invalid_argument for another length.
  bool set_mask(int64_t request_id, std::vector<uint32_t> mask);

  bool has_work() const { return !waiting_.empty() || !running_.empty(); }

  // One forward pass over what is admitted; returns the new tokens. Does nothing without work.
  std::vector<StepOutput> step();

  // Throws what forward would throw for these ids.
  void check_forward(std::span<const int32_t> token_ids) const;

  // Logits of every position of one sequence, in steps of at most `chunk_size` tokens (0: max_num_batched_tokens).
  // out: [num_tokens, vocab_size] floats on the host.
  void forward(std::span<const int32_t> token_ids, float* out, int64_t chunk_size = 0);

 private:
  struct Sequence {
    int64_t request_id = -1;
    SamplingParams params;
    std::vector<int32_t> token_ids;  // prompt, then output
    int64_t num_prompt_tokens = 0;
    int64_t max_tokens = 0;       // of output, after max_model_len
    int64_t num_computed = 0;     // tokens whose latents are in the cache
    std::vector<int32_t> blocks;  // owned
    std::vector<uint32_t> mask;   // see set_mask
    std::vector<TokenLogprobs> prompt_logprobs;
  };

  void check_tokens(std::span<const int32_t> token_ids) const;
  int64_t blocks_for(int64_t num_tokens) const { return (num_tokens + kBlockSize - 1) / kBlockSize; }
  std::vector<int32_t> take_blocks(int64_t count);
  void give_back(std::span<const int32_t> blocks);
  void admit();
  Sequence* find(int64_t request_id);
  Tensor compute_logits(std::span<const int32_t> rows);
  std::vector<TokenLogprobs> compute_logprobs(Tensor logits, std::span<const int32_t> token_ids, int64_t top);
  bool score_prompt(Sequence& sequence, int64_t first_row, const Chunk& chunk);
  void sample(std::span<Sequence* const> sequences, Tensor logits, const ForwardBatch& batch,
              std::span<const int32_t> batch_rows, std::vector<int32_t>& tokens);
  FinishReason finish_reason(const Sequence& sequence, int32_t token_id) const;

  LoadedModel loaded_;
  EngineOptions options_;
  int64_t max_model_len_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<BatchBuffers> batch_buffers_;
  Buffer logits_;       // [max_num_seqs, vocab_size] f32
  Buffer logit_rows_;   // [max_num_seqs] i32
  Buffer sampled_ids_;  // [max_num_seqs] i32
  std::vector<int32_t> free_blocks_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;
  int64_t next_request_id_ = 0;
};

}  // namespace longcat
