// What a rank does for its engine: rank 0 plans and computes steps (StepLoop), the other ranks repeat them (Follower).
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

  // Queues sequences that share a prompt. Returns the request id of the first; the others follow it.
  virtual int64_t add(std::vector<std::shared_ptr<Sequence>> sequences) = 0;
  // Ends a request with `last` as its last output. False: the id is not known, or no more.
  virtual bool end(StepOutput last) = 0;

  // One step. Appends outputs of requests without a queue. False: there was nothing to do.
  virtual bool step(std::vector<StepOutput>& outputs) = 0;
  // Logits of one sequence, to out [num_tokens, vocab_size] on the host, in passes of `chunk_size` tokens. is_stopped
  // is asked before each pass, `look_up` (may be empty) called every 20 ms by the caller's thread.
  virtual void forward(std::span<const int32_t> token_ids, float* out, int64_t chunk_size,
                       const std::function<bool()>& is_stopped, const std::function<void()>& look_up) = 0;

  // The engine's thread: returns once the status says `stop`, on a follower once rank 0 has stopped.
  virtual void run() = 0;
  virtual void wake() = 0;  // requests, masks or `stop` have come
  // run() has returned, or thrown `failure` if that is not empty: ends all requests and runs the tasks that wait for a
  // moment between steps. Sets the status's thread to `ended`.
  virtual void close(const std::string& failure) = 0;
  // The caller only waits for the end: outputs of requests that are not made here need no memory.
  virtual void expect_no_requests() {}

  virtual void set_observer(StepObserver*) {}  // for tests

  // Calls `function` with no step in flight; `while_waiting`, if any, every 20 ms until then.
  virtual void between_steps(std::function<void()> function, const std::function<void()>& while_waiting) = 0;
};

}  // namespace longcat
