// An engine: the model, its cache, and the calls of users. It checks requests, hands them to the role of its rank, and
// runs the thread that makes steps.
//
// Any thread may make requests. One thread makes steps: the caller of step(), or the engine's own thread between
// start() and stop().
//
// With several ranks each rank has an engine. The engine of rank 0 plans steps and computes them (StepLoop). Between
// start() and the stop of rank 0, the engines of the other ranks compute the same plans (Follower). A failure of any
// rank ends them all.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine_role.h"
#include "engine/engine_status.h"
#include "engine/load_model.h"
#include "engine/model_runner.h"
#include "engine/output_queue.h"
#include "engine/scheduler.h"

namespace longcat {

// Counters since the start, and the numbers of requests and blocks at this moment.
struct EngineMetrics {
  SchedulerStats counts;
  int64_t num_running = 0, num_waiting = 0;
  int64_t num_kv_blocks = 0, num_free_blocks = 0, num_cached_blocks = 0;
  // Draft tokens of the MTP layer (DraftPolicy): the most that a sequence gets now, the share that is accepted, and the
  // time that each adds [steps without draft tokens].
  int64_t num_drafts_now = 0;
  double draft_acceptance = 0, draft_cost = 0;
};

class Engine {
 public:
  // world: the communicator of this rank; null: there is one rank. Throws as load_model, and OutOfMemory when the
  // memory for the cache holds no block.
  Engine(const std::filesystem::path& folder, const EngineOptions& options, const LoadProgress& progress = {},
         std::unique_ptr<Communicator> world = nullptr, Backend backend = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const ModelConfig& config() const { return loaded_.config; }
  DType dtype() const { return loaded_.dtype; }
  DType kv_cache_dtype() const { return loaded_.kv_cache_dtype; }
  CacheDTypes cache_dtypes() const { return {loaded_.kv_cache_dtype, loaded_.index_cache_dtype}; }
  std::string device_name() const { return loaded_.ops->device().name(); }
  std::string way_of_sums() const { return loaded_.model->way_of_sums(); }
  int num_threads() const { return loaded_.ops->num_threads(); }
  std::vector<std::string> warnings() const;
  int64_t max_model_len() const { return max_model_len_; }
  int64_t num_kv_blocks() const { return cache_->num_blocks() - 1; }
  int64_t weight_bytes() const { return loaded_.model->weights().num_bytes(); }  // on this rank
  int64_t table_bytes() const { return loaded_.model->weights().table_bytes(); }
  int64_t rank() const { return loaded_.model->shard().rank; }
  int64_t world_size() const { return loaded_.model->shard().world(); }
  int64_t kv_cache_bytes() const { return cache_->num_blocks() * KvCache::block_bytes(config(), cache_dtypes()); }
  EngineMetrics metrics() const;
  std::string failure() const;  // why the engine can make no more steps; empty: it can

  // Throws std::invalid_argument when the prompt or the parameters are wrong.
  void check_request(std::span<const int32_t> prompt_token_ids, const SamplingParams& params) const;

  // Queues `num_sequences` sequences of one prompt, one for each completion. Their ids are consecutive; returns the
  // first.
  // queue: gets the outputs; null: the caller of step() gets them.
  // mask_queue: gets an output whenever a constrained sequence needs a mask.
  // group: the id of the first request of the same call; -1: this is the first one. The scheduler weighs groups against
  // each other.
  // Throws as check_request does, and QueueFull.
  int64_t add_request(std::vector<int32_t> prompt_token_ids, const SamplingParams& params, int64_t num_sequences = 1,
                      std::shared_ptr<OutputQueue> queue = nullptr, std::shared_ptr<OutputQueue> mask_queue = nullptr,
                      int64_t group = -1);

  // Ends a request now. Its blocks are free on return; its last output has FinishReason::abort. Returns false when no
  // request with this id runs.
  bool abort(int64_t request_id);

  // Sets the ids that may follow the first `num_output_tokens` tokens of a constrained request. mask: [ceil(vocab_size
  // / 32)], a bit for each id; empty: all ids. Returns false when no request with this id runs. Throws
  // std::invalid_argument for another length.
  bool set_mask(int64_t request_id, int64_t num_output_tokens, std::vector<uint32_t> mask);

  // Ends a request with FinishReason::error. Returns false when no request with this id runs.
  bool fail(int64_t request_id, const std::string& error);

  void reset_prefix_cache();
  bool preempt(int64_t request_id, bool may_swap);  // for tests
  bool has_work() const;

  // Plans and launches a step, and handles the results of the step before (without `overlap`: of this one). Appends the
  // outputs of requests without a queue. Returns false when there is no work, or all requests wait for masks.
  bool step(std::vector<StepOutput>& outputs);

  // Starts and ends the engine's own thread, which makes steps while there is work. On a follower rank the thread
  // computes the plans of rank 0, and stop() waits for rank 0 to stop.
  void start();
  void stop();

  // Ends all waits for other ranks with an error, as the death of a rank does. Any thread may call it.
  void abort_ranks(const std::string& reason) noexcept;

  // Waits until the thread ends; on a follower, until rank 0 stops. Make no requests after it. Throws the thread's
  // Error, if it had one.
  void join();

  // Throws std::invalid_argument when forward() would refuse these ids.
  void check_forward(std::span<const int32_t> token_ids) const;

  // Writes the logits of every position of one sequence to out [num_tokens, vocab_size] on the host, in passes of at
  // most `chunk_size` tokens (0: max_num_batched_tokens). Runs between two steps. The calling thread calls `stops`
  // every 20 ms. When it returns true, or after give_up(), the work ends with an Error at the end of the current pass.
  void forward(std::span<const int32_t> token_ids, float* out, int64_t chunk_size = 0,
               const std::function<bool()>& stops = {});

  // Makes calls of forward() end soon, with an Error: the engine is about to be destroyed. Any thread may call it.
  void give_up() { given_up_ = true; }

  // Calls `function` between two steps, with no step in flight.
  void between_steps(std::function<void()> function, const std::function<void()>& while_waiting = {});

  // --- for tests and benchmarks, between steps ---------------------------------------------------------------------
  void set_observer(StepObserver* observer);
  KvCache& cache() { return *cache_; }
  Model& model() { return *loaded_.model; }
  Ops& ops() { return *loaded_.ops; }
  const ModelRunner& runner() const { return *runner_; }
  const Scheduler& scheduler() const { return *scheduler_; }

 private:
  void check_tokens(std::span<const int32_t> token_ids) const;
  void allocate();
  std::unique_ptr<EngineRole> make_role();
  void run();

  LoadedModel loaded_;
  EngineOptions options_;
  int64_t max_model_len_;
  std::unique_ptr<KvCache> cache_;
  EngineStatus status_;
  std::unique_ptr<Scheduler> scheduler_;  // always empty on a follower
  std::unique_ptr<EngineRole> role_;      // owns the steps in flight, so it outlives the runner that computes them
  std::unique_ptr<ModelRunner> runner_;
  std::thread thread_;
  std::atomic<bool> given_up_ = false;
};

}  // namespace longcat
