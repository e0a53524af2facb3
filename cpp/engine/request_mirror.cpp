#include "engine/request_mirror.h"

#include <utility>

namespace longcat {

void RequestMirror::add(int64_t request_id, std::shared_ptr<OutputQueue> queue,
                        std::shared_ptr<OutputQueue> mask_queue) {
  bool ended = false;
  if (auto early = early_.extract(request_id)) {
    ended = early.mapped().back().finish_reason != FinishReason::none;
    for (StepOutput& output : early.mapped()) queue->push(std::move(output));
  }
  if (!ended) requests_[request_id] = {std::move(queue), std::move(mask_queue)};
}

void RequestMirror::take(StepOutput output, int64_t next_request_id) {
  const auto it = requests_.find(output.request_id);
  if (it == requests_.end()) {  // the request has ended on this rank, or is not made yet
    if (output.request_id >= next_request_id && !only_follows_) early_[output.request_id].push_back(std::move(output));
    return;
  }
  const Mirrored mirrored = it->second;
  if (output.finish_reason != FinishReason::none) {
    requests_.erase(it);
    if (mirrored.mask_queue)
      mirrored.mask_queue->push({.request_id = output.request_id, .finish_reason = output.finish_reason});
  }
  mirrored.queue->push(std::move(output));
}

bool RequestMirror::forget(StepOutput last) {
  const auto mirrored = requests_.extract(last.request_id);
  if (!mirrored) return false;
  mirrored.mapped().queue->push(std::move(last));
  return true;
}

void RequestMirror::expect_no_more() {
  only_follows_ = true;
  early_.clear();
}

void RequestMirror::end(const std::string& failure) {
  for (const auto& [request_id, mirrored] : std::exchange(requests_, {})) {
    if (!failure.empty())
      mirrored.queue->push({.request_id = request_id, .finish_reason = FinishReason::error, .error = failure});
    mirrored.queue->close();
  }
}

}  // namespace longcat
