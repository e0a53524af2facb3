// The requests of a follower rank. Each has the id that it has on rank 0, whose outputs go to its queue.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/output_queue.h"

namespace longcat {

// Not safe for several threads at once.
class RequestMirror {
 public:
  // Adds a request. Outputs that rank 0 has sent already go to `queue` at once.
  void add(int64_t request_id, std::shared_ptr<OutputQueue> queue, std::shared_ptr<OutputQueue> mask_queue);

  // Takes an output of rank 0. next_request_id: the first id that no request here has yet.
  void take(StepOutput output, int64_t next_request_id);

  // Ends a request here with `last`; rank 0 alone decides whether it goes on there. False: the id is not known.
  bool forget(StepOutput last);

  // No more requests are made here.
  void expect_no_more();

  // Ends all requests: rank 0 sends no more. failure: the reason, if it is an error.
  void end(const std::string& failure);

 private:
  struct Mirrored {
    std::shared_ptr<OutputQueue> queue, mask_queue;
  };
  std::map<int64_t, Mirrored> requests_;
  std::map<int64_t, std::vector<StepOutput>> early_;  // outputs of requests that are not made here yet
  bool only_follows_ = false;
};

}  // namespace longcat
