#include "engine/engine.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace longcat {

namespace {

// An allocation of the host failed while a step was prepared or taken in.
const std::string kNoMemory =
    "[engine] the host has no memory left for this step; expected room for its plan. Free some memory on this machine";

std::vector<std::shared_ptr<Sequence>> sequences_of(const StepPlan& plan) {
  std::vector<std::shared_ptr<Sequence>> sequences;
  for (const PlannedChunk& chunk : plan.chunks) sequences.push_back(chunk.sequence);
  return sequences;
}

// A mask that allows stop tokens alone: its grammar is at an end.
bool allows_stops_alone(const Sequence& sequence, const std::vector<uint32_t>& mask) {
  if (!sequence.params.constrained) return false;
  std::vector<uint32_t> left = mask;
  bool allows_stop = false;
  for (const int32_t id : sequence.params.stop_token_ids) {
    uint32_t& word = left.at(static_cast<size_t>(id / 32));
    allows_stop = allows_stop || (word >> (id % 32) & 1) != 0;
    word &= ~(uint32_t{1} << (id % 32));
  }
  return allows_stop && std::ranges::all_of(left, [](uint32_t word) { return word == 0; });
}

double ms_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - begin).count();
}

// Whether the guesses that a draw's history holds are what was drawn before it.
bool guessed_right(const StepInFlight& flight, size_t sample_idx) {
  const PlannedSample& sample = flight.plan.samples[sample_idx];
  const PlannedChunk& chunk = flight.plan.chunks[sample.chunk];
  const auto guesses = chunk.token_ids.end() - chunk.num_guesses;
  const auto drawn = flight.sampled_ids.begin() + static_cast<int64_t>(sample_idx) - sample.guess;
  return std::equal(guesses, guesses + sample.guess, drawn);
}

RequestStats stats_of(const Sequence& sequence, Clock::time_point now) {
  constexpr Clock::time_point kNever{};
  RequestStats stats = sequence.stats;
  const Clock::time_point first_step = sequence.first_step == kNever ? now : sequence.first_step;
  const Clock::time_point first_token = sequence.first_token == kNever ? now : sequence.first_token;
  stats.queue_ms = ms_between(sequence.arrival, first_step);
  stats.prefill_ms = ms_between(first_step, first_token);
  stats.decode_ms = ms_between(first_token, now);
  return stats;
}

}  // namespace

Engine::Engine(const std::filesystem::path& folder, const EngineOptions& options, const LoadProgress& progress,
               std::unique_ptr<Communicator> world, Backend backend)
    : loaded_(load_model(folder, options, progress, std::move(world), std::move(backend))),
      options_(options),
      overlap_(options.overlap.value_or(loaded_.ops->device().leaves_host_free()) &&
               options.speculation.num_tokens == 0) {
  try {
    allocate();
  } catch (const std::exception& error) {
    abort_ranks(str_cat("[parallel] rank ", rank(), " failed: ", error.what()));
    throw;
  }
}

// Everything beside the weights.
void Engine::allocate() {
  const ModelConfig& c = config();
  max_model_len_ = options_.max_model_len > 0 ? options_.max_model_len : c.max_position_embeddings;
  if (max_model_len_ > c.max_position_embeddings)
    throw std::invalid_argument(
        str_cat("max_model_len=", max_model_len_,
                " is more than the checkpoint's max_position_embeddings=", c.max_position_embeddings));
  const int64_t block_bytes = KvCache::block_bytes(c, kv_cache_dtype());
  const int64_t useful = options_.max_num_seqs * blocks_for(max_model_len_) + 1;  // and the null block
  const int64_t ranks_here = options_.ranks_per_machine > 0 ? options_.ranks_per_machine : world_size();
  const int64_t budget =
      options_.kv_cache_memory > 0 ? options_.kv_cache_memory : loaded_.ops->device().default_cache_bytes(ranks_here);
  const int64_t num_blocks = loaded_.lockstep.least(std::min(useful, budget / block_bytes));
  if (num_blocks < 2)
    throw OutOfMemory(str_cat("[kv cache] ", budget, " bytes hold ", num_blocks, " blocks of ", kBlockSize, " tokens (",
                              block_bytes, " bytes each), at least 2 are needed: raise kv_cache_memory"));
  cache_ = std::make_unique<KvCache>(loaded_.ops->device(), c, num_blocks, kv_cache_dtype());
  runner_ = std::make_unique<ModelRunner>(
      *loaded_.ops, *loaded_.model, *cache_,
      RunnerLimits{.max_num_seqs = options_.max_num_seqs,
                   .max_samples = options_.max_samples(),
                   .max_num_batched_tokens = options_.max_num_batched_tokens,
                   .max_blocks_per_sequence = blocks_for(max_model_len_),
                   .block_bytes = block_bytes,
                   .num_drafts = options_.speculation.by_mtp() ? options_.speculation.num_tokens : 0});
  const int64_t swap_memory = options_.swap_memory >= 0 ? options_.swap_memory : num_blocks * block_bytes;
  scheduler_ = std::make_unique<Scheduler>(SchedulerOptions{.max_num_seqs = options_.max_num_seqs,
                                                            .max_num_batched_tokens = options_.max_num_batched_tokens,
                                                            .max_num_queued = options_.max_num_queued,
                                                            .num_blocks = num_blocks,
                                                            .num_host_blocks = swap_memory / block_bytes,
                                                            .enable_prefix_caching = options_.enable_prefix_caching,
                                                            .mask_timeout_ms = options_.mask_timeout_ms,
                                                            .speculation = options_.speculation});
}

Engine::~Engine() {
  stop();
  scheduler_->for_each([](const Sequence& sequence) {
    if (sequence.queue) sequence.queue->close();
    if (sequence.mask_queue) sequence.mask_queue->close();
  });
}

std::vector<std::string> Engine::warnings() const {
  std::vector<std::string> all = config().warnings;
  const std::vector<std::string>& of_weights = loaded_.model->weights().warnings;
  all.insert(all.end(), of_weights.begin(), of_weights.end());
  return all;
}

std::string Engine::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

EngineMetrics Engine::metrics() const {
  const std::lock_guard lock(mutex_);
  return {.counts = scheduler_->stats(),
          .num_running = scheduler_->num_running(),
          .num_waiting = scheduler_->num_waiting(),
          .num_kv_blocks = num_kv_blocks(),
          .num_free_blocks = scheduler_->blocks().num_free(),
          .num_published_blocks = scheduler_->blocks().num_published()};
}

// --- requests ------------------------------------------------------------------------------------------------------

void Engine::check_tokens(std::span<const int32_t> token_ids) const {
  if (token_ids.empty()) throw std::invalid_argument("the prompt has no tokens: expected at least one");
  for (size_t i = 0; i < token_ids.size(); ++i)
    if (token_ids[i] < 0 || token_ids[i] >= config().vocab_size)
      throw std::invalid_argument(str_cat("token id ", token_ids[i], " at index ", i,
                                          " is not in the vocabulary: expected 0 to ", config().vocab_size - 1));
}

void Engine::check_request(std::span<const int32_t> prompt_token_ids, const SamplingParams& params) const {
  check_tokens(prompt_token_ids);
  check(params, config().vocab_size);
  const int64_t num_prompt_tokens = static_cast<int64_t>(prompt_token_ids.size());
  if (num_prompt_tokens + std::min<int64_t>(params.max_tokens, 1) > max_model_len_)
    throw std::invalid_argument(str_cat("the prompt has ", num_prompt_tokens,
                                        " tokens, and max_model_len=", max_model_len_,
                                        " leaves no room for an answer: shorten the prompt or raise max_model_len"));
  const int64_t max_tokens = std::min(params.max_tokens, max_model_len_ - num_prompt_tokens);
  if (blocks_for(num_prompt_tokens + max_tokens) > num_kv_blocks())
    throw std::invalid_argument(str_cat("prompt and max_tokens make ", num_prompt_tokens + max_tokens,
                                        " tokens, the KV cache holds ", num_kv_blocks() * kBlockSize,
                                        ": lower max_tokens or raise kv_cache_memory"));
}

void Engine::check_leads() const {
  if (rank() != 0) throw Error(str_cat("[parallel] this is rank ", rank(), ", which follows rank 0: ask that one"));
}

int64_t Engine::add_request(std::vector<int32_t> prompt_token_ids, const SamplingParams& params, int64_t num_samples,
                            std::shared_ptr<OutputQueue> queue, std::shared_ptr<OutputQueue> mask_queue,
                            int64_t group) {
  if (num_samples < 1) throw std::invalid_argument(str_cat("n=", num_samples, " is not possible: expected at least 1"));
  check_request(prompt_token_ids, params);
  if (rank() != 0) return mirror_request(num_samples, std::move(queue), std::move(mask_queue));
  const int64_t num_prompt_tokens = static_cast<int64_t>(prompt_token_ids.size());
  std::vector<std::shared_ptr<Sequence>> samples;
  for (int64_t i = 0; i < num_samples; ++i) {
    Sequence& sequence = *samples.emplace_back(std::make_shared<Sequence>());
    sequence.group = group;
    sequence.params = params;
    sequence.params.sample_idx = params.sample_idx + static_cast<int32_t>(i);
    if (i > 0) sequence.params.prompt_logprobs = -1;  // the first sample brings them
    sequence.num_prompt_tokens = num_prompt_tokens;
    sequence.max_tokens = std::min(params.max_tokens, max_model_len_ - num_prompt_tokens);
    sequence.queue = queue;
    sequence.mask_queue = mask_queue;
    // Other threads read the prompt while tokens are appended: the memory must not move.
    sequence.token_ids.reserve(static_cast<size_t>(num_prompt_tokens + sequence.max_tokens));
    sequence.token_ids.assign(prompt_token_ids.begin(), prompt_token_ids.end());
    sequence.arrival = Clock::now();
  }
  int64_t request_id;
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) throw Error(str_cat("[engine] this engine has failed: ", failure_));
    request_id = next_request_id_;
    for (const auto& sequence : samples) sequence->request_id = next_request_id_++;
    scheduler_->add(samples);
    if (mask_queue)
      for (const auto& sequence : samples) mask_queue->push({.request_id = sequence->request_id});
  }
  wake();
  return request_id;
}

bool Engine::abort(int64_t request_id) {
  return end_for_caller({.request_id = request_id, .finish_reason = FinishReason::abort});
}

bool Engine::fail(int64_t request_id, const std::string& error) {
  return end_for_caller({.request_id = request_id, .finish_reason = FinishReason::error, .error = error});
}

bool Engine::end_for_caller(StepOutput last) {
  std::vector<StepOutput> unread;
  {
    const std::lock_guard lock(mutex_);
    if (rank() != 0) return mirror_.forget(std::move(last));
    const std::shared_ptr<Sequence> sequence = scheduler_->find(last.request_id);
    if (!sequence) return false;
    end(*sequence, std::move(last), unread);
  }
  wake();
  return true;
}

bool Engine::set_mask(int64_t request_id, int64_t num_output_tokens, std::vector<uint32_t> mask) {
  const int64_t words = (config().vocab_size + 31) / 32;
  if (!mask.empty() && static_cast<int64_t>(mask.size()) != words)
    throw std::invalid_argument(
        str_cat("the mask has ", mask.size(), " words of 32 bits, the vocabulary needs ", words));
  {
    const std::lock_guard lock(mutex_);
    const std::shared_ptr<Sequence> sequence = scheduler_->find(request_id);
    if (!sequence) return false;
    sequence->mask = std::move(mask);
    sequence->masked_tokens = num_output_tokens;
  }
  wake();
  return true;
}

void Engine::reset_prefix_cache() {
  const std::lock_guard lock(mutex_);
  scheduler_->reset_prefix_cache();
}

bool Engine::preempt(int64_t request_id, bool may_swap) {
  const std::lock_guard lock(mutex_);
  return scheduler_->preempt(request_id, may_swap);
}

bool Engine::has_work() const {
  const std::lock_guard lock(mutex_);
  return scheduler_->has_work();
}

void Engine::set_observer(StepObserver* observer) {
  observer_ = observer;
  runner_->set_observer(observer);
}

// --- steps ---------------------------------------------------------------------------------------------------------

bool Engine::step(std::vector<StepOutput>& outputs) {
  check_leads();
  bool launched = false;
  StepPlan plan;
  std::vector<std::shared_ptr<Sequence>> planned;
  std::vector<std::byte> message;
  std::ranges::move(std::exchange(left_over_, {}), std::back_inserter(outputs));
  try {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) throw Error(str_cat("[engine] this engine has failed: ", failure_));
    const Clock::time_point now = Clock::now();
    for (const auto& sequence : scheduler_->overdue(now))
      end(*sequence,
          {.request_id = sequence->request_id,
           .finish_reason = FinishReason::error,
           .error = str_cat("the mask for its next token did not come within ", options_.mask_timeout_ms, " ms")},
          outputs);
    scheduler_->schedule(now, plan);
    if (observer_) observer_->at("schedule");
    launched = !plan.empty();
    planned = sequences_of(plan);
    if (loaded_.lockstep.has_peers() && (launched || !outbox_.empty()))
      message = encode(std::exchange(outbox_, {}), plan);
  } catch (const std::bad_alloc&) {
    if (loaded_.lockstep.has_peers()) throw;  // the other ranks may have missed a part of it
    planned = sequences_of(plan);
    if (planned.empty()) {
      const std::lock_guard lock(mutex_);
      planned = scheduler_->running();
    }
    while (finish_oldest(outputs)) {
    }
    fail_step(std::move(planned), kNoMemory, outputs);
    return true;
  }
  if (!message.empty())
    loaded_.lockstep.send(std::move(message));  // before the launch: a device may wait for the others
  if (launched && !launch(std::move(plan), planned, outputs)) return true;
  const size_t may_fly = launched && overlap_ ? 1 : 0;
  bool finished = false;
  while (flights_.size() > may_fly) finished = finish_oldest(outputs) || finished;
  return launched || finished;
}

// False when the step found no memory: it has failed.
bool Engine::launch(StepPlan plan, const std::vector<std::shared_ptr<Sequence>>& planned,
                    std::vector<StepOutput>& outputs) {
  const size_t num_flights = flights_.size();
  try {
    {
      const std::lock_guard lock(mutex_);
      if (observer_) observer_->at("stage");
      flights_.push_back(runner_->stage(std::move(plan)));
    }
    runner_->submit(*flights_.back());  // without the lock: others make requests meanwhile
    return true;
  } catch (const std::bad_alloc&) {
    if (loaded_.lockstep.has_peers()) throw;
    flights_.resize(num_flights);  // one that was not submitted
  }
  while (finish_oldest(outputs)) {
  }
  fail_step(planned, kNoMemory, outputs);
  return false;
}

// Throws Error when a file of the checkpoint became shorter, or its disk failed, while it is in use: what was computed
// since may be wrong.
void Engine::check_files() const {
  for (const MappedFile& shard : loaded_.checkpoint.shards()) shard.check();
}

// Waits for the oldest step under way and takes in its results.
bool Engine::finish_oldest(std::vector<StepOutput>& outputs) {
  if (flights_.empty()) return false;
  std::unique_ptr<StepInFlight> flight = std::move(flights_.front());
  flights_.pop_front();
  try {
    runner_->wait(*flight);
  } catch (const DeviceFailure& error) {  // every later call on this device fails too
    const std::lock_guard lock(mutex_);
    failure_ = error.what();
    throw;
  } catch (const std::exception& error) {
    if (loaded_.lockstep.has_peers()) throw;  // the other ranks cannot start over
    fail_step(sequences_of(flight->plan), error.what(), outputs);
    return true;
  }
  check_files();
  try {
    const std::lock_guard lock(mutex_);
    if (!broken_.empty()) throw Error(broken_);
    if (observer_) observer_->at("commit");
    commit(*flight, outputs);
  } catch (const std::bad_alloc&) {
    if (loaded_.lockstep.has_peers()) throw;
    fail_step(sequences_of(flight->plan), kNoMemory, outputs);
  }
  return true;
}

FinishReason Engine::finish_reason(const Sequence& sequence, int32_t token_id) const {
  const std::vector<int32_t>& stops = sequence.params.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), token_id) != stops.end()) return FinishReason::stop;
  const int64_t num_seen = static_cast<int64_t>(sequence.token_ids.size()) - sequence.num_prompt_tokens;
  return num_seen >= sequence.max_tokens ? FinishReason::length : FinishReason::none;
}

void Engine::deliver(const Sequence& sequence, StepOutput output, std::vector<StepOutput>& outputs) {
  if (loaded_.lockstep.has_peers()) outbox_.push_back(output);
  if (sequence.mask_queue)
    sequence.mask_queue->push(
        {.request_id = output.request_id, .token_id = output.token_id, .finish_reason = output.finish_reason});
  if (sequence.queue) {
    sequence.queue->push(std::move(output));
  } else {
    outputs.push_back(std::move(output));
  }
}

// The last output of a sequence; its blocks are free afterwards.
void Engine::end(Sequence& sequence, StepOutput output, std::vector<StepOutput>& outputs) {
  output.stats = stats_of(sequence, Clock::now());
  if (observer_) observer_->before_release(sequence, *cache_);
  scheduler_->finish(sequence, output.finish_reason);
  deliver(sequence, std::move(output), outputs);
}

void Engine::commit(StepInFlight& flight, std::vector<StepOutput>& outputs) {
  const Clock::time_point now = Clock::now();
  const auto ended = [](const Sequence& s) { return s.state == Sequence::State::finished; };
  for (size_t c = 0; c < flight.plan.chunks.size(); ++c) {
    Sequence& s = *flight.plan.chunks[c].sequence;
    if (ended(s)) continue;
    for (TokenLogprobs& one : flight.prompt_logprobs[c]) s.prompt_logprobs.push_back(std::move(one));
    if (const std::string& error = flight.chunk_errors[c]; !error.empty())
      end(s, {.request_id = s.request_id, .finish_reason = FinishReason::error, .error = error}, outputs);
  }
  for (size_t i = 0; i < flight.plan.samples.size(); ++i) {
    const PlannedSample& sample = flight.plan.samples[i];
    Sequence& s = *sample.sequence;
    if (ended(s) || !guessed_right(flight, i)) continue;
    StepOutput output{.request_id = s.request_id, .prompt_logprobs = std::exchange(s.prompt_logprobs, {})};
    const int32_t token_id = flight.sampled_ids[i];
    if (sample.ends) {
      output.finish_reason = FinishReason::length;
    } else if (flight.errors[i].empty() && token_id < 0 && allows_stops_alone(s, flight.masks[i])) {
      output.finish_reason = FinishReason::stop;  // the text is complete, and min_tokens forbids to say so by a token
    } else if (!flight.errors[i].empty() || token_id < 0) {
      output.finish_reason = FinishReason::error;
      output.error = flight.errors[i].empty() ? "no token can follow: its logits are not finite, or all are forbidden"
                                              : flight.errors[i];
    } else {
      if (sample.guess == 0) {
        scheduler_->commit(s, token_id, now);
      } else {
        scheduler_->commit_guessed(s, token_id, now);
      }
      if (s.first_token == Clock::time_point{}) s.first_token = now;
      output.token_id = token_id;
      output.logprobs = std::move(flight.logprobs[i]);
      output.finish_reason = finish_reason(s, token_id);
    }
    if (output.finish_reason != FinishReason::none) {
      end(s, std::move(output), outputs);
    } else {
      output.stats = stats_of(s, now);
      deliver(s, std::move(output), outputs);
    }
  }
  for (size_t c = 0; c < flight.drafts.size(); ++c)
    flight.plan.chunks[c].sequence->drafts = std::move(flight.drafts[c]);
}

// A step failed as a whole: those it computed end, everybody else starts over, since what the cache holds is unknown.
// The step after it, launched already, is lost with it.
void Engine::fail_step(std::vector<std::shared_ptr<Sequence>> lost, const std::string& error,
                       std::vector<StepOutput>& outputs) {
  for (const auto& flight : flights_) {
    std::ranges::move(sequences_of(flight->plan), std::back_inserter(lost));
    try {
      runner_->wait(*flight);
    } catch (const std::exception&) {  // ends with the same requests
    }
  }
  const std::lock_guard lock(mutex_);
  for (const auto& sequence : lost)
    if (Sequence& s = *sequence; s.state != Sequence::State::finished)
      end(s, {.request_id = s.request_id, .finish_reason = FinishReason::error, .error = error}, outputs);
  scheduler_->start_over();
  flights_.clear();
}

// --- the engine's thread -------------------------------------------------------------------------------------------

void Engine::wake() {
  {
    const std::lock_guard lock(mutex_);
    woken_ = true;
  }
  wakeup_.notify_one();
}

void Engine::start() {
  if (thread_.joinable()) return;
  stop_ = ended_ = false;
  thread_ = std::thread([this] { run(); });
}

void Engine::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = woken_ = true;
  }
  wakeup_.notify_one();
  thread_.join();
}

void Engine::run() {
  std::vector<StepOutput> unread;  // of requests without a queue
  try {
    if (rank() == 0) {
      while (work(unread)) unread.clear();
      while (finish_oldest(unread)) {
      }
      if (loaded_.lockstep.has_peers()) {
        std::vector<StepOutput> last;
        {
          const std::lock_guard lock(mutex_);
          last.swap(outbox_);
        }
        loaded_.lockstep.send(encode(last, {}));
        loaded_.lockstep.send_stop();
      }
    } else {
      follow();
    }
  } catch (const std::exception& error) {  // a bug of ours, or another rank: nobody waits for ever, nobody may begin
    abort_ranks(str_cat("[parallel] rank ", rank(), " failed: ", error.what()));
    const std::lock_guard lock(mutex_);
    failure_ = error.what();
    std::vector<std::shared_ptr<Sequence>> left;
    scheduler_->for_each([&](const Sequence& s) { left.push_back(scheduler_->find(s.request_id)); });
    for (const auto& s : left)
      deliver(*s, {.request_id = s->request_id, .finish_reason = FinishReason::error, .error = failure_}, unread);
  }
  std::deque<std::packaged_task<void()>> tasks;
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    tasks.swap(tasks_);
    mirror_.end(failure_);
  }
  ended_changed_.notify_all();
  for (auto& task : tasks) task();
}

// What rank 0 sends, until it stops. Results are not looked at: what the next step needs of them is on the device.
void Engine::follow() {
  const auto wait_for_oldest = [&] {
    const std::unique_ptr<StepInFlight> flight = std::move(flights_.front());
    flights_.pop_front();
    runner_->wait(*flight);
  };
  for (bool stopped = false; !stopped;) {
    Lockstep::Message message = loaded_.lockstep.receive();
    size_t may_fly = 0;
    switch (message.kind) {
      case Lockstep::Message::Kind::stop:
        stopped = true;
        break;
      case Lockstep::Message::Kind::step: {
        const std::lock_guard lock(mutex_);
        for (StepOutput& output : message.outputs) mirror_.take(std::move(output), next_request_id_);
      }
        if (message.plan.empty()) break;
        flights_.push_back(runner_->stage(std::move(message.plan)));
        runner_->submit(*flights_.back());
        may_fly = overlap_ ? 1 : 0;
        break;
      case Lockstep::Message::Kind::forward:
        runner_->forward({.token_ids = message.token_ids, .start = message.start, .blocks = message.blocks}, nullptr);
        break;
    }
    while (flights_.size() > may_fly) wait_for_oldest();
  }
}

void Engine::abort_ranks(const std::string& reason) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (broken_.empty()) broken_ = reason;  // first: what a device has when its sums were given up is no result
  }
  loaded_.lockstep.abort(reason);
  loaded_.model->abort_ranks(reason);
  wake();  // rank 0 may be waiting for requests, and for no other rank
}

// Another rank's request has the number of rank 0's: all make the same ones in the same order.
int64_t Engine::mirror_request(int64_t num_samples, std::shared_ptr<OutputQueue> queue,
                               std::shared_ptr<OutputQueue> mask_queue) {
  if (!queue) check_leads();
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw Error(str_cat("[engine] this engine has failed: ", failure_));
  const int64_t first = next_request_id_;
  next_request_id_ += num_samples;
  for (int64_t id = first; id < next_request_id_; ++id) mirror_.add(id, queue, mask_queue);
  if (ended_) queue->close();
  return first;
}

void Engine::join() {
  std::unique_lock lock(mutex_);
  mirror_.expect_no_more();
  ended_changed_.wait(lock, [&] { return ended_; });
  if (!failure_.empty()) throw Error(failure_);
}

// One turn of the engine's thread; false when it is to end.
bool Engine::work(std::vector<StepOutput>& outputs) {
  std::deque<std::packaged_task<void()>> tasks;
  {
    const std::lock_guard lock(mutex_);
    if (stop_) return false;
    if (!broken_.empty()) throw Error(broken_);
    woken_ = false;
    tasks.swap(tasks_);
  }
  if (!tasks.empty())
    while (finish_oldest(outputs)) {
    }
  for (auto& task : tasks) task();
  if (step(outputs)) return true;
  std::unique_lock lock(mutex_);
  const auto ready = [&] { return woken_; };
  if (const auto due = scheduler_->next_due()) {
    wakeup_.wait_until(lock, *due, ready);
  } else {
    wakeup_.wait(lock, ready);
  }
  return true;
}

void Engine::between_steps(std::function<void()> function, const std::function<void()>& while_waiting) {
  constexpr std::chrono::milliseconds kLookUp{20};
  std::packaged_task<void()> task(std::move(function));
  std::future<void> done = task.get_future();
  {
    std::unique_lock lock(mutex_);
    if (thread_.joinable() && !ended_) {
      tasks_.push_back(std::move(task));
    } else {
      lock.unlock();
      while (finish_oldest(left_over_)) {
      }
      task();
    }
  }
  wake();
  if (while_waiting)
    while (done.wait_for(kLookUp) != std::future_status::ready) while_waiting();
  done.get();
}

// --- forward -------------------------------------------------------------------------------------------------------

void Engine::check_forward(std::span<const int32_t> token_ids) const {
  check_tokens(token_ids);
  const int64_t num_tokens = static_cast<int64_t>(token_ids.size());
  if (num_tokens > max_model_len_)
    throw std::invalid_argument(str_cat("forward of ", num_tokens, " tokens: max_model_len is ", max_model_len_));
}

void Engine::forward(std::span<const int32_t> token_ids, float* out, int64_t chunk_size,
                     const std::function<bool()>& stops) {
  check_leads();
  check_forward(token_ids);
  const int64_t num_tokens = static_cast<int64_t>(token_ids.size());
  if (chunk_size <= 0 || chunk_size > options_.max_num_batched_tokens) chunk_size = options_.max_num_batched_tokens;
  std::atomic<bool> stopped = false;
  const auto compute = [&] {
    std::vector<int32_t> blocks;
    {
      const std::lock_guard lock(mutex_);
      blocks = scheduler_->borrow(blocks_for(num_tokens));
    }
    const auto give_back = [&] {
      const std::lock_guard lock(mutex_);
      scheduler_->give_back(blocks);
    };
    try {
      for (int64_t start = 0; start < num_tokens && !stopped && !given_up_; start += chunk_size) {
        const int64_t count = std::min(chunk_size, num_tokens - start);
        const Chunk chunk{.token_ids = token_ids.subspan(static_cast<size_t>(start), static_cast<size_t>(count)),
                          .start = start,
                          .blocks = blocks};
        if (loaded_.lockstep.has_peers()) loaded_.lockstep.send_forward(chunk);
        runner_->forward(chunk, out + start * config().vocab_size);
      }
    } catch (const std::exception& error) {
      give_back();
      if (loaded_.lockstep.has_peers())  // they are in the middle of it
        abort_ranks(str_cat("[parallel] rank ", rank(), " failed: ", error.what()));
      throw;
    }
    give_back();
    check_files();
    if (given_up_) throw Error("[engine] this engine was closed while it computed logits");
    if (stopped) throw Error("[engine] the computation of logits was interrupted");
  };
  std::function<void()> look_up;
  if (stops) look_up = [&] { stopped = stopped || stops(); };
  between_steps(compute, look_up);
}

}  // namespace longcat
