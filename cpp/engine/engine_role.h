// The part of a rank in the work of its engine: rank 0 plans and computes steps (StepLoop), the other ranks repeat them
// (Follower).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/step_in_flight.h"

namespace longcat {

class EngineRole {
 public:
  virtual ~EngineRole() = default;

  // Queues sequences that share a prompt. Returns the request id of the first; the ids of the others follow it.
  virtual int64_t add(std::vector<std::shared_ptr<Sequence>> sequences) = 0;
  // Ends a request with `last` as its last output. Returns false when no request with this id runs.
  virtual bool end(StepOutput last) = 0;

  // Makes one step. Appends the outputs of requests without a queue. Returns false when there was nothing to do.
  virtual bool step(std::vector<StepOutput>& outputs) = 0;
  // Writes the logits of one sequence to out [num_tokens, vocab_size] on the host, in passes of `chunk_size` tokens.
  // Calls is_stopped before each pass. The caller's thread calls `look_up`, which may be empty, every 20 ms.
  virtual void forward(std::span<const int32_t> token_ids, float* out, int64_t chunk_size,
                       const std::function<bool()>& is_stopped, const std::function<void()>& look_up) = 0;

  // Runs the engine's thread. Returns once the status says `stop`; on a follower, once rank 0 has stopped.
  virtual void run() = 0;
  virtual void wake() = 0;  // Wakes the thread: there are new requests or masks, or `stop` is set.
  // Called when run() has returned, or has thrown `failure` (empty: it has not). Ends all requests, and runs the tasks
  // that wait for a moment between steps. Sets the status's thread to `ended`.
  virtual void close(const std::string& failure) = 0;
  // Tells the role that the caller only waits for the end, so it need not keep outputs of requests that are not made
  // here.
  virtual void expect_no_requests() {}

  virtual void set_observer(StepObserver*) {}  // for tests

  // Calls `function` with no step in flight. Until then, calls `while_waiting` (if not empty) every 20 ms.
  virtual void between_steps(std::function<void()> function, const std::function<void()>& while_waiting) = 0;
};

}  // namespace longcat
