#include "engine/step_loop.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "engine/output_queue.h"
#include "engine/step_results.h"

namespace longcat {

namespace {

// The host had no memory while a step was prepared or its results were handled.
const std::string kNoMemory =
    "[engine] the host has no memory left for this step; expected room for its plan. Free some memory on this machine";

std::vector<std::shared_ptr<Sequence>> sequences_of(const StepPlan& plan) {
  std::vector<std::shared_ptr<Sequence>> sequences;
  for (const PlannedChunk& chunk : plan.chunks) sequences.push_back(chunk.sequence);
  return sequences;
}

}  // namespace

StepLoop::StepLoop(LoadedModel& loaded, KvCache& cache, ModelRunner& runner, Scheduler& scheduler, EngineStatus& status,
                   bool overlap, double mask_timeout_ms, std::function<void(const std::string& reason)> abort_ranks)
    : loaded_(loaded),
      lockstep_(loaded.lockstep),
      cache_(cache),
      runner_(runner),
      scheduler_(scheduler),
      status_(status),
      overlap_(overlap),
      mask_timeout_ms_(mask_timeout_ms),
      abort_ranks_(std::move(abort_ranks)) {}

// --- requests ------------------------------------------------------------------------------------------------------

int64_t StepLoop::add(std::vector<std::shared_ptr<Sequence>> sequences) {
  int64_t request_id;
  {
    const std::lock_guard lock(status_.mutex);
    status_.require_sound();
    request_id = next_request_id_;
    for (const auto& sequence : sequences) sequence->request_id = next_request_id_++;
    scheduler_.add(sequences);
    for (const auto& sequence : sequences)
      if (sequence->mask_queue) sequence->mask_queue->push({.request_id = sequence->request_id});
  }
  wake();
  return request_id;
}

bool StepLoop::end(StepOutput last) {
  std::vector<StepOutput> unread;
  {
    const std::lock_guard lock(status_.mutex);
    const std::shared_ptr<Sequence> sequence = scheduler_.find(last.request_id);
    if (!sequence) return false;
    end(*sequence, std::move(last), unread);
  }
  wake();
  return true;
}

// Sends the last output of a sequence and frees its blocks.
void StepLoop::end(Sequence& sequence, StepOutput output, std::vector<StepOutput>& outputs) {
  output.stats = stats_of(sequence, Clock::now());
  if (observer_) observer_->before_release(sequence, cache_);
  scheduler_.finish(sequence, output.finish_reason);
  deliver(sequence, std::move(output), outputs);
}

void StepLoop::deliver(const Sequence& sequence, StepOutput output, std::vector<StepOutput>& outputs) {
  if (lockstep_.has_peers()) outbox_.push_back(output);
  if (sequence.mask_queue)
    sequence.mask_queue->push(
        {.request_id = output.request_id, .token_id = output.token_id, .finish_reason = output.finish_reason});
  if (sequence.queue) {
    sequence.queue->push(std::move(output));
  } else {
    outputs.push_back(std::move(output));
  }
}

// --- a step --------------------------------------------------------------------------------------------------------

bool StepLoop::step(std::vector<StepOutput>& outputs) {
  std::ranges::move(std::exchange(left_over_, {}), std::back_inserter(outputs));
  NextStep next;
  if (!plan(next, outputs)) return true;
  if (!next.message.empty())
    lockstep_.send(std::move(next.message));  // before the launch, because a device may wait for the other ranks
  const bool is_launched = !next.plan.empty();
  if (is_launched && !launch(next, outputs)) return true;
  const size_t most_in_flight = is_launched && overlap_ ? 1 : 0;
  bool is_finished = false;
  while (in_flight_.size() > most_in_flight) is_finished = finish_oldest(outputs) || is_finished;
  return is_launched || is_finished;
}

// Fills `next` with a plan, which is empty when nothing can be computed. Returns false when the host has no memory; the
// step has then failed.
bool StepLoop::plan(NextStep& next, std::vector<StepOutput>& outputs) {
  try {
    const std::lock_guard lock(status_.mutex);
    status_.require_sound();
    const Clock::time_point now = Clock::now();
    for (const auto& sequence : scheduler_.overdue(now))
      end(*sequence,
          {.request_id = sequence->request_id,
           .finish_reason = FinishReason::error,
           .error = str_cat("the mask for its next token did not come within ", mask_timeout_ms_, " ms")},
          outputs);
    scheduler_.schedule(now, next.plan);
    if (observer_) observer_->at("schedule");
    next.sequences = sequences_of(next.plan);
    if (lockstep_.has_peers() && (!next.plan.empty() || !outbox_.empty()))
      next.message = encode(std::exchange(outbox_, {}), next.plan);
    return true;
  } catch (const std::bad_alloc&) {
    if (!can_start_over()) throw;
  }
  next.sequences = sequences_of(next.plan);
  if (next.sequences.empty()) {
    const std::lock_guard lock(status_.mutex);
    next.sequences = scheduler_.running();
  }
  finish_all(outputs);
  fail_step(std::move(next.sequences), kNoMemory, outputs);
  return false;
}

// Returns false when the host has no memory; the step has then failed.
bool StepLoop::launch(NextStep& next, std::vector<StepOutput>& outputs) {
  const size_t num_in_flight = in_flight_.size();
  try {
    {
      const std::lock_guard lock(status_.mutex);
      if (observer_) observer_->at("stage");
      in_flight_.push_back(runner_.stage(std::move(next.plan)));
    }
    in_flight_.back()->launched = Clock::now();
    runner_.submit(*in_flight_.back());  // without the lock, so that other threads can add requests meanwhile
    return true;
  } catch (const std::bad_alloc&) {
    if (!can_start_over()) throw;
    in_flight_.resize(num_in_flight);  // drop a step that was not submitted
  }
  finish_all(outputs);
  fail_step(std::move(next.sequences), kNoMemory, outputs);
  return false;
}

// Throws Error when a file of the checkpoint in use became shorter, or its disk failed: results since then may be
// wrong.
void StepLoop::check_files() const {
  for (const MappedFile& shard : loaded_.checkpoint.shards()) shard.check();
}

void StepLoop::finish_all(std::vector<StepOutput>& outputs) {
  while (finish_oldest(outputs)) {
  }
}

// Waits for the oldest step in flight and handles its results. Returns false when there is none.
bool StepLoop::finish_oldest(std::vector<StepOutput>& outputs) {
  if (in_flight_.empty()) return false;
  const std::unique_ptr<StepInFlight> step = std::move(in_flight_.front());
  in_flight_.pop_front();
  try {
    runner_.wait(*step);
  } catch (const DeviceFailure& error) {  // every later call on this device fails, too
    const std::lock_guard lock(status_.mutex);
    status_.failure = error.what();
    throw;
  } catch (const std::exception& error) {
    if (!can_start_over()) throw;
    fail_step(sequences_of(step->plan), error.what(), outputs);
    return true;
  }
  check_files();
  try {
    const std::lock_guard lock(status_.mutex);
    status_.require_ranks();
    if (observer_) observer_->at("commit");
    commit(*step, outputs);
  } catch (const std::bad_alloc&) {
    if (!can_start_over()) throw;
    fail_step(sequences_of(step->plan), kNoMemory, outputs);
  }
  return true;
}

void StepLoop::commit(StepInFlight& step, std::vector<StepOutput>& outputs) {
  const Clock::time_point now = Clock::now();
  const auto has_ended = [](const Sequence& s) { return s.state == Sequence::State::finished; };
  for (size_t c = 0; c < step.plan.chunks.size(); ++c) {
    Sequence& s = *step.plan.chunks[c].sequence;
    if (has_ended(s)) continue;
    for (TokenLogprobs& one : step.prompt_logprobs[c]) s.prompt_logprobs.push_back(std::move(one));
    if (const std::string& error = step.chunk_errors[c]; !error.empty())
      end(s, {.request_id = s.request_id, .finish_reason = FinishReason::error, .error = error}, outputs);
  }
  for (size_t i = 0; i < step.plan.draws.size(); ++i) {
    Sequence& s = *step.plan.draws[i].sequence;
    if (has_ended(s) || !is_accepted(step, i)) continue;
    StepOutput output = output_of(step, i);
    output.prompt_logprobs = std::exchange(s.prompt_logprobs, {});
    if (output.token_id >= 0) {
      if (step.plan.draws[i].num_drafts == 0) {
        scheduler_.commit(s, output.token_id, now);
      } else {
        scheduler_.commit_accepted(s, output.token_id, now);
      }
      if (s.first_token == Clock::time_point{}) s.first_token = now;
      output.logprobs = std::move(step.logprobs[i]);
      output.finish_reason = finish_reason(s, output.token_id);
    }
    if (output.finish_reason != FinishReason::none) {
      end(s, std::move(output), outputs);
    } else {
      output.stats = stats_of(s, now);
      deliver(s, std::move(output), outputs);
    }
  }
  if (loaded_.model->weights().mtp) record_drafts(step, now);
  for (size_t c = 0; c < step.drafts.size(); ++c) step.plan.chunks[c].sequence->drafts = std::move(step.drafts[c]);
}

void StepLoop::record_drafts(const StepInFlight& step, Clock::time_point now) {
  std::vector<int64_t> accepted;
  for (size_t c = 0; c < step.plan.chunks.size(); ++c) accepted.push_back(num_accepted(step, c));
  int64_t num_made = 0;
  for (const auto& drafts : step.drafts) num_made += static_cast<int64_t>(drafts.size());
  scheduler_.record_drafts(step.plan, accepted, num_made,
                           std::chrono::duration<double, std::milli>(now - step.launched).count());
}

// Handles the failure of a whole step: the requests in it end. All others start over, because the content of the cache
// is unknown. The steps launched after it are lost, too.
void StepLoop::fail_step(std::vector<std::shared_ptr<Sequence>> lost, const std::string& error,
                         std::vector<StepOutput>& outputs) {
  for (const auto& step : in_flight_) {
    std::ranges::move(sequences_of(step->plan), std::back_inserter(lost));
    try {
      runner_.wait(*step);
    } catch (const std::exception&) {  // its requests end with the same error
    }
  }
  const std::lock_guard lock(status_.mutex);
  for (const auto& sequence : lost)
    if (Sequence& s = *sequence; s.state != Sequence::State::finished)
      end(s, {.request_id = s.request_id, .finish_reason = FinishReason::error, .error = error}, outputs);
  scheduler_.start_over();
  in_flight_.clear();
}

// --- the engine's thread -------------------------------------------------------------------------------------------

void StepLoop::wake() {
  {
    const std::lock_guard lock(status_.mutex);
    woken_ = true;
  }
  wakeup_.notify_one();
}

void StepLoop::run() {
  std::vector<StepOutput> unread;  // outputs of requests without a queue
  while (turn(unread)) unread.clear();
  finish_all(unread);
  if (!lockstep_.has_peers()) return;
  std::vector<StepOutput> last;
  {
    const std::lock_guard lock(status_.mutex);
    last.swap(outbox_);
  }
  lockstep_.send(encode(last, {}));
  lockstep_.send_stop();
}

// Runs the tasks that wait for a moment between steps, then makes a step or waits for work. Returns false when the
// thread is to end.
bool StepLoop::turn(std::vector<StepOutput>& outputs) {
  std::deque<std::packaged_task<void()>> tasks;
  {
    const std::lock_guard lock(status_.mutex);
    if (status_.stop) return false;
    status_.require_ranks();
    woken_ = false;
    tasks.swap(tasks_);
  }
  if (!tasks.empty()) finish_all(outputs);
  for (auto& task : tasks) task();
  if (step(outputs)) return true;
  std::unique_lock lock(status_.mutex);
  const auto is_woken = [&] { return woken_; };
  if (const auto due = scheduler_.next_due()) {
    wakeup_.wait_until(lock, *due, is_woken);
  } else {
    wakeup_.wait(lock, is_woken);
  }
  return true;
}

void StepLoop::close(const std::string& failure) {
  std::vector<StepOutput> unread;
  std::unique_lock lock(status_.mutex);
  if (!failure.empty()) {
    std::vector<std::shared_ptr<Sequence>> left;
    scheduler_.for_each([&](const Sequence& s) { left.push_back(scheduler_.find(s.request_id)); });
    for (const auto& s : left)
      deliver(*s, {.request_id = s->request_id, .finish_reason = FinishReason::error, .error = failure}, unread);
  }
  while (!tasks_.empty()) {
    std::deque<std::packaged_task<void()>> tasks;
    tasks.swap(tasks_);
    lock.unlock();
    for (auto& task : tasks) task();
    lock.lock();
  }
  status_.thread = EngineStatus::Thread::ended;
  status_.thread_changed.notify_all();
}

void StepLoop::between_steps(std::function<void()> function, const std::function<void()>& while_waiting) {
  constexpr std::chrono::milliseconds kLookUp{20};
  std::packaged_task<void()> task(std::move(function));
  std::future<void> done = task.get_future();
  {
    std::unique_lock lock(status_.mutex);
    if (status_.thread == EngineStatus::Thread::running) {
      tasks_.push_back(std::move(task));
    } else {
      // A failed engine has no sound results, and no thread on which calls take turns.
      if (status_.thread == EngineStatus::Thread::ended) status_.require_sound();
      lock.unlock();
      finish_all(left_over_);
      task();
    }
  }
  wake();
  if (while_waiting)
    while (done.wait_for(kLookUp) != std::future_status::ready) while_waiting();
  done.get();
}

// --- logits of one sequence ----------------------------------------------------------------------------------------

void StepLoop::forward(std::span<const int32_t> token_ids, float* out, int64_t chunk_size,
                       const std::function<bool()>& is_stopped, const std::function<void()>& look_up) {
  between_steps([&] { compute_logits(token_ids, out, chunk_size, is_stopped); }, look_up);
}

void StepLoop::compute_logits(std::span<const int32_t> token_ids, float* out, int64_t chunk_size,
                              const std::function<bool()>& is_stopped) {
  const int64_t num_tokens = static_cast<int64_t>(token_ids.size());
  std::vector<int32_t> blocks;
  {
    const std::lock_guard lock(status_.mutex);
    blocks = scheduler_.borrow((num_tokens + kBlockSize - 1) / kBlockSize);
  }
  const auto give_back = [&] {
    const std::lock_guard lock(status_.mutex);
    scheduler_.give_back(blocks);
  };
  try {
    for (int64_t start = 0; start < num_tokens && !is_stopped(); start += chunk_size) {
      const int64_t count = std::min(chunk_size, num_tokens - start);
      const Chunk chunk{.token_ids = token_ids.subspan(static_cast<size_t>(start), static_cast<size_t>(count)),
                        .start = start,
                        .blocks = blocks};
      if (lockstep_.has_peers()) lockstep_.send_forward(chunk);
      runner_.forward(chunk, out + start * loaded_.config.vocab_size);
    }
  } catch (const std::exception& error) {
    give_back();
    if (lockstep_.has_peers())  // the other ranks are in the middle of the pass
      abort_ranks_(str_cat("[parallel] rank 0 failed: ", error.what()));
    throw;
  }
  give_back();
  check_files();
}

}  // namespace longcat
