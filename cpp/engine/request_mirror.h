// Requests as another rank than 0 knows them: of the same numbers as rank 0's, whose outputs come here.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/output_queue.h"

namespace longcat {

// Not for several threads at once.
class RequestMirror {
 public:
  // A request is made here, too: its outputs go to `queue`, those that came before at once.
  void add(int64_t request_id, std::shared_ptr<OutputQueue> queue, std::shared_ptr<OutputQueue> mask_queue);

  // What rank 0 has for a request; next_request_id: of those that are not made here yet, the first.
  void take(StepOutput output, int64_t next_request_id);

  // The caller here wants no more of it; whether it goes on is rank 0's business. False when it is not known.
  bool forget(StepOutput last);

  // Nobody here makes requests any more.
  void expect_no_more();

  // No more outputs come; `failure`: why, when it is none of the callers' doing.
  void end(const std::string& failure);

 private:
  struct Mirrored {
    std::shared_ptr<OutputQueue> queue, mask_queue;
  };
  std::map<int64_t, Mirrored> requests_;
  std::map<int64_t, std::vector<StepOutput>> early_;  // of requests that are still to be made here
  bool only_follows_ = false;
};

}  // namespace longcat
