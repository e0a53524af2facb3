// How the ranks of a job keep step: rank 0 takes requests, plans, and sends each plan; the others carry it out.
//
// A plan says all there is to do (tokens, blocks, how to draw), so nothing else has to be decided alike elsewhere. What
// comes of it is sent, too, for callers on other ranks who made the same requests.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "engine/batch_buffers.h"
#include "engine/step_plan.h"

namespace longcat {

class Lockstep {
 public:
  // Every rank calls it, and the checks below, in the same order.
  explicit Lockstep(Communicator& world) : control_(world.split(0)) {}

  bool leads() const { return control_->rank() == 0; }
  bool has_peers() const { return control_->size() > 1; }
  int rank() const { return control_->rank(); }

  // Throws Error on every rank, with `what` rank r has that differs from rank 0's, unless all bring the same.
  void require_same(uint64_t fingerprint, const char* what);
  int64_t least(int64_t value);  // of all ranks

  // --- of rank 0, from the thread that steps -------------------------------------------------------------------------
  void send(std::vector<std::byte> step);  // encoded, as the sequences may change by now
  void send_forward(const Chunk& chunk);
  void send_stop();

  // --- of the others -------------------------------------------------------------------------------------------------
  // What rank 0 sent next. Of the sequences of a plan only params, num_prompt_tokens and mask are there.
  struct Message {
    enum class Kind : uint8_t { stop, step, forward } kind = Kind::stop;
    std::vector<StepOutput> outputs;         // since the last step
    StepPlan plan;                           // empty: nothing to compute
    std::vector<int32_t> token_ids, blocks;  // of a forward's chunk
    int64_t start = 0;
  };
  Message receive();

  void abort(const std::string& reason) noexcept { control_->abort(reason); }

 private:
  void broadcast(std::vector<std::byte>& bytes);

  std::unique_ptr<Communicator> control_;  // beside the one that computes: another thread waits on it
};

// A step: what came of those before, and what to compute now.
std::vector<std::byte> encode(const std::vector<StepOutput>& outputs, const StepPlan& plan);

}  // namespace longcat
