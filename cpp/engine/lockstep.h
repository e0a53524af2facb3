// Messages from rank 0 to the other ranks. Rank 0 takes requests, plans steps and sends each plan; the others carry it
// out.
//
// A plan holds all that a step needs (tokens, blocks, sampling parameters), so the other ranks decide nothing. Rank 0
// also sends the outputs of requests, for callers that made the same requests on other ranks.
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
  // Every rank makes this call, and the checks below, in the same order.
  explicit Lockstep(Communicator& world) : control_(world.split(0)) {}

  bool leads() const { return control_->rank() == 0; }
  bool has_peers() const { return control_->size() > 1; }
  int rank() const { return control_->rank(); }

  // Throws Error on every rank unless all fingerprints are equal. It names `what`, and a rank that differs from rank 0.
  void require_same(uint64_t fingerprint, const char* what);
  int64_t least(int64_t value);  // Returns the minimum over all ranks.

  // --- of rank 0, from the thread that steps -------------------------------------------------------------------------
  void send(std::vector<std::byte> step);  // of encode(): the sequences may change before the message is sent
  void send_forward(const Chunk& chunk);
  void send_stop();

  // --- of the others -------------------------------------------------------------------------------------------------
  // The next message of rank 0. Sequences of its plan have params, num_prompt_tokens and mask alone.
  struct Message {
    enum class Kind : uint8_t { stop, step, forward } kind = Kind::stop;
    std::vector<StepOutput> outputs;         // since the last message
    StepPlan plan;                           // empty: there is nothing to compute
    std::vector<int32_t> token_ids, blocks;  // for a chunk of forward()
    int64_t start = 0;
  };
  Message receive();

  void abort(const std::string& reason) noexcept { control_->abort(reason); }

 private:
  void broadcast(std::vector<std::byte>& bytes);

  std::unique_ptr<Communicator>
      control_;  // separate from the communicator of the computation, on which another thread waits
};

// Encodes a step: the outputs of the steps before, and the plan.
std::vector<std::byte> encode(const std::vector<StepOutput>& outputs, const StepPlan& plan);

}  // namespace longcat
