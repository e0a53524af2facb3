#include "engine/follower.h"

#include <utility>

namespace longcat {

Follower::Follower(LoadedModel& loaded, ModelRunner& runner, EngineStatus& status, bool overlap)
    : lockstep_(loaded.lockstep), runner_(runner), status_(status), overlap_(overlap) {}

void Follower::refuse() const {
  throw Error(str_cat("[parallel] this is rank ", lockstep_.rank(), ", which follows rank 0: ask that one"));
}

bool Follower::step(std::vector<StepOutput>&) { refuse(); }

void Follower::forward(std::span<const int32_t>, float*, int64_t, const std::function<bool()>&,
                       const std::function<void()>&) {
  refuse();
}

// All ranks make the same requests in the same order, so a request has the same id everywhere.
int64_t Follower::add(std::vector<std::shared_ptr<Sequence>> sequences) {
  const std::shared_ptr<OutputQueue> queue = sequences.front()->queue;
  if (!queue) refuse();
  const std::lock_guard lock(status_.mutex);
  status_.require_sound();
  const int64_t first = next_request_id_;
  for (const auto& sequence : sequences) mirror_.add(next_request_id_++, queue, sequence->mask_queue);
  if (status_.thread == EngineStatus::Thread::ended) queue->close();
  return first;
}

bool Follower::end(StepOutput last) {
  const std::lock_guard lock(status_.mutex);
  return mirror_.forget(std::move(last));
}

void Follower::finish_oldest() {
  const std::unique_ptr<StepInFlight> step = std::move(in_flight_.front());
  in_flight_.pop_front();
  runner_.wait(*step);  // its results are on the device, where the next step reads them
}

void Follower::run() {
  using Kind = Lockstep::Message::Kind;
  while (true) {
    Lockstep::Message message = lockstep_.receive();
    size_t most_in_flight = 0;
    if (message.kind == Kind::step) {
      {
        const std::lock_guard lock(status_.mutex);
        for (StepOutput& output : message.outputs) mirror_.take(std::move(output), next_request_id_);
      }
      if (!message.plan.empty()) {
        in_flight_.push_back(runner_.stage(std::move(message.plan)));
        runner_.submit(*in_flight_.back());
        most_in_flight = overlap_ ? 1 : 0;
      }
    } else if (message.kind == Kind::forward) {
      runner_.forward({.token_ids = message.token_ids, .start = message.start, .blocks = message.blocks}, nullptr);
    }
    while (in_flight_.size() > most_in_flight) finish_oldest();
    if (message.kind == Kind::stop) return;
  }
}

void Follower::close(const std::string& failure) {
  const std::lock_guard lock(status_.mutex);
  mirror_.end(failure);
  status_.thread = EngineStatus::Thread::ended;
  status_.thread_changed.notify_all();
}

// A follower has no moment between steps until rank 0 stops, so the function waits for that.
void Follower::between_steps(std::function<void()> function, const std::function<void()>&) {
  {
    std::unique_lock lock(status_.mutex);
    status_.thread_changed.wait(lock, [&] { return status_.thread != EngineStatus::Thread::running; });
  }
  while (!in_flight_.empty()) finish_oldest();
  function();
}

void Follower::expect_no_requests() {
  const std::lock_guard lock(status_.mutex);
  mirror_.expect_no_more();
}

}  // namespace longcat
