// From requests to tokens: owns the model and the cache, plans steps, runs them, hands out what they bring.
//
// Requests may come from any thread. Steps are made by one: the caller of step(), or a thread of the engine's own
// between start() and stop(). A step is planned and launched while the device still computes the one before.
//
// With several ranks, each has an engine. That of rank 0 is as above; the others' threads carry out, between start()
// and stop(), what rank 0 plans, until it stops. A request that is made there is one that is made of rank 0, too, as
// the one of the same number: its queue gets what rank 0's gets. A failure of any rank ends them all.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/load_model.h"
#include "engine/model_runner.h"
#include "engine/output_queue.h"
#include "engine/request_mirror.h"
#include "engine/scheduler.h"

namespace longcat {

// Counters since the start, and what is under way.
struct EngineMetrics {
  SchedulerStats counts;
  int64_t num_running = 0, num_waiting = 0;
  int64_t num_kv_blocks = 0, num_free_blocks = 0, num_published_blocks = 0;
};

class Engine {
 public:
  // `world`: this rank's communicator, with several ranks.
  Engine(const std::filesystem::path& folder, const EngineOptions& options, const LoadProgress& progress = {},
         std::unique_ptr<Communicator> world = nullptr, Backend backend = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const ModelConfig& config() const { return loaded_.config; }
  DType dtype() const { return loaded_.dtype; }
  DType kv_cache_dtype() const { return loaded_.kv_cache_dtype; }
  std::string device_name() const { return loaded_.ops->device().name(); }
  int num_threads() const { return loaded_.ops->num_threads(); }
  std::vector<std::string> warnings() const;
  int64_t max_model_len() const { return max_model_len_; }
  int64_t num_kv_blocks() const { return cache_->num_blocks() - 1; }
  int64_t weight_bytes() const { return loaded_.model->weights().num_bytes(); }  // of this rank
  int64_t table_bytes() const { return loaded_.model->weights().table_bytes(); }
  int64_t rank() const { return loaded_.model->shard().rank; }
  int64_t world_size() const { return loaded_.model->shard().world(); }
  int64_t kv_cache_bytes() const { return cache_->num_blocks() * KvCache::block_bytes(config(), kv_cache_dtype()); }
  EngineMetrics metrics() const;
  std::string failure() const;  // why the engine's thread ended by itself; empty while it has not

  // Throws std::invalid_argument for a prompt or parameters that cannot run.
  void check_request(std::span<const int32_t> prompt_token_ids, const SamplingParams& params) const;

  // Queues `num_samples` answers to one prompt; their ids are consecutive, the first is returned. The outputs go to
  // `queue`, or without one come from step(); what a constrained request needs masks for, and its end, to mask_queue.
  // group: the id that was returned for the first request of the same call; -1: this one is the first. The scheduler
  // weighs groups against each other. Throws as check_request, and QueueFull.
  int64_t add_request(std::vector<int32_t> prompt_token_ids, const SamplingParams& params, int64_t num_samples = 1,
                      std::shared_ptr<OutputQueue> queue = nullptr, std::shared_ptr<OutputQueue> mask_queue = nullptr,
                      int64_t group = -1);

  // Ends a request now: its blocks are free on return, and its queue gets a last output with FinishReason::abort.
  // False when it is not known (any more).
  bool abort(int64_t request_id);

  // What may follow the first `num_output_tokens` tokens of a constrained request: [ceil(vocab_size / 32)] words, a
  // bit an id; empty: all ids. False when the request is not known (any more). Throws std::invalid_argument for another
  // length.
  bool set_mask(int64_t request_id, int64_t num_output_tokens, std::vector<uint32_t> mask);

  // Ends a request with an error of the caller's.
  bool fail(int64_t request_id, const std::string& error);

  void reset_prefix_cache();
  bool preempt(int64_t request_id, bool may_swap);  // for tests
  bool has_work() const;

  // Plans and launches a step, and takes in the results of the one before (without `overlap`: its own). Appends outputs
  // that have no queue. False when there was nothing to do: no work, or all of it waits for masks.
  bool step(std::vector<StepOutput>& outputs);

  // The engine's own thread calls step() while there is work, and sleeps else; on other ranks than 0 it follows. There
  // stop() waits for rank 0 to stop.
  void start();
  void stop();

  // Ends what waits for other ranks, with an error, as when one of them has died. From any thread.
  void abort_ranks(const std::string& reason) noexcept;

  // Waits for the thread to end: until rank 0 stops. Nobody makes requests here any more. Throws Error when it ended by
  // one.
  void join();

  // Throws what forward would throw for these ids.
  void check_forward(std::span<const int32_t> token_ids) const;

  // Logits of every position of one sequence, in steps of at most `chunk_size` tokens (0: max_num_batched_tokens).
  // out: [num_tokens, vocab_size] floats on the host. Runs between two steps. `stops` is asked by the calling thread
  // every few milliseconds: true ends the work after the chunk at hand, with an Error. So does give_up().
  void forward(std::span<const int32_t> token_ids, float* out, int64_t chunk_size = 0,
               const std::function<bool()>& stops = {});

  // The engine is about to be destroyed: calls of forward() end soon, with an Error. From any thread.
  void give_up() { given_up_ = true; }

  // Calls `function` between two steps, with nothing under way.
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
  int64_t blocks_for(int64_t num_tokens) const { return (num_tokens + kBlockSize - 1) / kBlockSize; }
  void allocate();
  void check_leads() const;
  void run();
  void follow();
  int64_t mirror_request(int64_t num_samples, std::shared_ptr<OutputQueue> queue,
                         std::shared_ptr<OutputQueue> mask_queue);
  bool work(std::vector<StepOutput>& outputs);
  void wake();
  bool finish_oldest(std::vector<StepOutput>& outputs);
  void commit(StepInFlight& flight, std::vector<StepOutput>& outputs);
  bool launch(StepPlan plan, const std::vector<std::shared_ptr<Sequence>>& planned, std::vector<StepOutput>& outputs);
  void fail_step(std::vector<std::shared_ptr<Sequence>> lost, const std::string& error,
                 std::vector<StepOutput>& outputs);
  void check_files() const;
  bool end_for_caller(StepOutput last);
  void end(Sequence& sequence, StepOutput output, std::vector<StepOutput>& outputs);
  void deliver(const Sequence& sequence, StepOutput output, std::vector<StepOutput>& outputs);
  FinishReason finish_reason(const Sequence& sequence, int32_t token_id) const;

  LoadedModel loaded_;
  EngineOptions options_;
  bool overlap_;
  int64_t max_model_len_;
  std::unique_ptr<KvCache> cache_;
  std::deque<std::unique_ptr<StepInFlight>> flights_;  // launched, oldest first; of the thread that steps
  std::unique_ptr<ModelRunner> runner_;                // after what it may still be computing
  StepObserver* observer_ = nullptr;

  mutable std::mutex mutex_;  // of the scheduler and the sequences
  std::unique_ptr<Scheduler> scheduler_;
  int64_t next_request_id_ = 0;

  std::vector<StepOutput> left_over_;  // for the next step() to return

  // With several ranks. On rank 0: what the others have not heard of yet.
  std::vector<StepOutput> outbox_;
  RequestMirror mirror_;  // on the others

  std::thread thread_;
  std::condition_variable wakeup_;
  std::condition_variable ended_changed_;
  bool woken_ = false, stop_ = false, ended_ = false;
  std::atomic<bool> given_up_ = false;
  std::string failure_;                           // why the thread ended by itself
  std::string broken_;                            // why the other ranks are lost
  std::deque<std::packaged_task<void()>> tasks_;  // to run between steps
};

}  // namespace longcat
