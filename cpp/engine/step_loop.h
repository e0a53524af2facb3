// The steps of rank 0. A step is planned and launched while the device still computes the step before.
//
// Requests come from any thread. Steps are made by one thread: the caller of step(), or the engine's own in run().
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine_role.h"
#include "engine/engine_status.h"
#include "engine/load_model.h"
#include "engine/model_runner.h"
#include "engine/scheduler.h"

namespace longcat {

class StepLoop final : public EngineRole {
 public:
  // overlap: whether one step may be in flight while the next is planned.
  // abort_ranks: ends all waits of the other ranks with an error.
  StepLoop(LoadedModel& loaded, KvCache& cache, ModelRunner& runner, Scheduler& scheduler, EngineStatus& status,
           bool overlap, double mask_timeout_ms, std::function<void(const std::string& reason)> abort_ranks);

  int64_t add(std::vector<std::shared_ptr<Sequence>> sequences) override;
  bool end(StepOutput last) override;
  bool step(std::vector<StepOutput>& outputs) override;
  void forward(std::span<const int32_t> token_ids, float* out, int64_t chunk_size,
               const std::function<bool()>& is_stopped, const std::function<void()>& look_up) override;
  void run() override;
  void wake() override;
  void close(const std::string& failure) override;
  void between_steps(std::function<void()> function, const std::function<void()>& while_waiting) override;

  void set_observer(StepObserver* observer) override { observer_ = observer; }

 private:
  struct NextStep {
    StepPlan plan;
    std::vector<std::shared_ptr<Sequence>> sequences;
    std::vector<std::byte> message;  // sends plans to the other ranks; empty: there are none
  };

  bool plan(NextStep& next, std::vector<StepOutput>& outputs);
  bool launch(NextStep& next, std::vector<StepOutput>& outputs);
  bool finish_oldest(std::vector<StepOutput>& outputs);
  void finish_all(std::vector<StepOutput>& outputs);
  void commit(StepInFlight& step, std::vector<StepOutput>& outputs);
  void record_drafts(const StepInFlight& step, Clock::time_point now);
  void fail_step(std::vector<std::shared_ptr<Sequence>> lost, const std::string& error,
                 std::vector<StepOutput>& outputs);
  void end(Sequence& sequence, StepOutput output, std::vector<StepOutput>& outputs);
  void deliver(const Sequence& sequence, StepOutput output, std::vector<StepOutput>& outputs);
  bool turn(std::vector<StepOutput>& outputs);
  // With several ranks a failed step ends the engine, because the other ranks have computed it.
  bool can_start_over() const { return !lockstep_.has_peers(); }
  void check_files() const;
  void compute_logits(std::span<const int32_t> token_ids, float* out, int64_t chunk_size,
                      const std::function<bool()>& is_stopped);

  LoadedModel& loaded_;
  Lockstep& lockstep_;
  KvCache& cache_;
  ModelRunner& runner_;
  Scheduler& scheduler_;
  EngineStatus& status_;
  bool overlap_;
  double mask_timeout_ms_;
  std::function<void(const std::string& reason)> abort_ranks_;
  StepObserver* observer_ = nullptr;

  std::deque<std::unique_ptr<StepInFlight>> in_flight_;  // oldest first; for the thread that makes steps only
  std::vector<StepOutput> left_over_;                    // outputs that the next step() returns

  // Guarded by the status's mutex:
  int64_t next_request_id_ = 0;
  std::vector<StepOutput> outbox_;  // outputs that are not yet sent to the other ranks
  std::condition_variable wakeup_;
  bool woken_ = false;
  std::deque<std::packaged_task<void()>> tasks_;  // functions to call between steps
};

}  // namespace longcat
