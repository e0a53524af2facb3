// A step between its launch and its results.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/step_plan.h"

namespace longcat {

class KvCache;
class Model;

// A launched plan and, once its ticket is done, its results.
struct StepInFlight {
  StepPlan plan;
  int64_t ticket = 0;
  int slot = 0;               // of the staging buffers
  int64_t recorded_rows = 0;  // of a step that is recorded, with padding; 0: it is not

  // By sample of the plan.
  std::vector<int32_t> sampled_ids;  // -1: nothing could be drawn
  std::vector<std::optional<TokenLogprobs>> logprobs;
  std::vector<std::string> errors;  // not empty: that sample failed, and why
  // By chunk of the plan.
  std::vector<std::vector<TokenLogprobs>> prompt_logprobs;
  std::vector<std::string> chunk_errors;
  std::vector<std::vector<int32_t>> drafts;  // guesses at what comes behind the drawn tokens (Drafter)

  std::vector<std::vector<uint32_t>> masks;  // by sample, as they were when it was launched
};

// For tests: sees every step on the device's thread, after its forward pass.
class StepObserver {
 public:
  virtual ~StepObserver() = default;
  virtual void after_forward(const StepPlan& plan, Model& model) = 0;
  virtual void before_release(const Sequence& sequence, const KvCache& cache) = 0;
  // On the engine's thread: a part of a step begins, "stage" or "commit", or a plan is made, "schedule".
  virtual void at(const char* /*part*/) {}
};

}  // namespace longcat
