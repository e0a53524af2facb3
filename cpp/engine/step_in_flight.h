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

// How the MTP layer makes the draft tokens of a step (Drafter).
struct DraftingStep {
  std::vector<size_t> chunks;        // that get draft tokens: their rows among the sequences that do
  std::vector<int64_t> rows_at;      // rows of each pass, with padding; empty: there are none
  std::vector<SamplingRow> choices;  // of Ops::sample
  std::vector<int32_t> ids;          // [passes, most sequences] drawn; -1: none
};

// A launched plan and, once the device has done its ticket, the results.
struct StepInFlight {
  StepPlan plan;
  int64_t ticket = 0;
  Clock::time_point launched;
  int slot = 0;               // index of its slot among the staging buffers
  int64_t recorded_rows = 0;  // rows of its recorded graph, with padding; 0: it has none

  // One entry for each draw of the plan.
  std::vector<int32_t> sampled_ids;  // -1: no token could be drawn
  std::vector<std::optional<TokenLogprobs>> logprobs;
  std::vector<std::string> errors;  // why the draw failed; empty: it did not
  // One entry for each chunk of the plan.
  std::vector<std::vector<TokenLogprobs>> prompt_logprobs;
  std::vector<std::string> chunk_errors;
  DraftingStep drafting;
  std::vector<std::vector<int32_t>> drafts;  // draft tokens behind the drawn ones

  std::vector<std::vector<uint32_t>> masks;  // one for each draw, as it was at the launch
};

// For tests: sees every step on the device's thread, after its forward pass.
class StepObserver {
 public:
  virtual ~StepObserver() = default;
  virtual void after_forward(const StepPlan& plan, Model& model, Tensor hidden) = 0;
  virtual void before_release(const Sequence& sequence, const KvCache& cache) = 0;
  // Called on the engine's thread: "schedule" after a plan is made, "stage" and "commit" before these parts of a step.
  virtual void at(const char* /*part*/) {}
};

}  // namespace longcat
