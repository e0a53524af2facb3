// The role of a rank other than 0: it computes the steps that rank 0 sends, until rank 0 stops. Callers make the same
// requests on all ranks, where each gets the same id. The queue of a request gets the outputs that rank 0 sends.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine_role.h"
#include "engine/engine_status.h"
#include "engine/load_model.h"
#include "engine/model_runner.h"
#include "engine/request_mirror.h"

namespace longcat {

class Follower final : public EngineRole {
 public:
  // overlap: as on rank 0 (StepLoop).
  Follower(LoadedModel& loaded, ModelRunner& runner, EngineStatus& status, bool overlap);

  int64_t add(std::vector<std::shared_ptr<Sequence>> sequences) override;
  bool end(StepOutput last) override;
  [[noreturn]] bool step(std::vector<StepOutput>& outputs) override;
  [[noreturn]] void forward(std::span<const int32_t> token_ids, float* out, int64_t chunk_size,
                            const std::function<bool()>& is_stopped, const std::function<void()>& look_up) override;
  void run() override;
  void wake() override {}
  void close(const std::string& failure) override;
  void between_steps(std::function<void()> function, const std::function<void()>& while_waiting) override;
  void expect_no_requests() override;

 private:
  [[noreturn]] void refuse() const;
  void finish_oldest();

  Lockstep& lockstep_;
  ModelRunner& runner_;
  EngineStatus& status_;
  bool overlap_;
  std::deque<std::unique_ptr<StepInFlight>> in_flight_;  // oldest first

  // Guarded by the status's mutex:
  int64_t next_request_id_ = 0;
  RequestMirror mirror_;
};

}  // namespace longcat
