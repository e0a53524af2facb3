// The requests that are made on a follower rank. Each has the same id on rank 0. Its queue gets the outputs that rank 0
// sends.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/output_queue.h"

namespace longcat {

// Only one thread may use it at a time.
class RequestMirror {
 public:
  // Adds a request. `queue` gets at once the outputs that rank 0 has sent already.
  void add(int64_t request_id, std::shared_ptr<OutputQueue> queue, std::shared_ptr<OutputQueue> mask_queue);

  // Takes an output from rank 0. next_request_id: the first id that no request has yet on this rank.
  void take(StepOutput output, int64_t next_request_id);

  // Ends a request on this rank with `last`; only rank 0 can end it there. Returns false when the id is not known.
  bool forget(StepOutput last);

  // Tells the mirror that no more requests will be made on this rank.
  void expect_no_more();

  // Ends all requests, because rank 0 sends no more outputs. failure: the reason, if it is an error.
  void end(const std::string& failure);

 private:
  struct Mirrored {
    std::shared_ptr<OutputQueue> queue, mask_queue;
  };
  std::map<int64_t, Mirrored> requests_;
  std::map<int64_t, std::vector<StepOutput>> early_;  // outputs of requests that are not yet made on this rank
  bool only_follows_ = false;
};

}  // namespace longcat
