#include "engine/engine.h"

#include <algorithm>
#include <utility>

#include "base/available_memory.h"
#include "engine/follower.h"
#include "engine/memory_plan.h"
#include "engine/step_loop.h"

namespace longcat {

Engine::Engine(const std::filesystem::path& folder, const EngineOptions& options, const LoadProgress& progress,
               std::unique_ptr<Communicator> world, Backend backend)
    : loaded_(load_model(folder, options, progress, std::move(world), std::move(backend))), options_(options) {
  try {
    allocate();
  } catch (const std::exception& error) {
    abort_ranks(str_cat("[parallel] rank ", rank(), " failed: ", error.what()));
    throw;
  }
}

// The cache, the scheduler and the runner: everything beside the weights.
void Engine::allocate() {
  Device& device = loaded_.ops->device();
  const int64_t ranks_here = options_.ranks_per_machine > 0 ? options_.ranks_per_machine : world_size();
  CachePlan plan = plan_cache(config(), options_, cache_dtypes(), device.default_cache_bytes(ranks_here));
  plan.num_blocks = loaded_.lockstep.least(plan.num_blocks);
  max_model_len_ = plan.max_model_len;
  const int64_t num_blocks = plan.num_blocks, block_bytes = plan.block_bytes;
  cache_ = std::make_unique<KvCache>(device, config(), num_blocks, cache_dtypes());
  loaded_.model->fit_into((available_memory() - num_blocks * block_bytes) / ranks_here);
  runner_ = std::make_unique<ModelRunner>(*loaded_.ops, *loaded_.model, *cache_, runner_limits(options_, plan));
  // Of a larger size, no block would ever be used.
  const int64_t most_host_blocks = 2 * options_.max_num_seqs * blocks_for(max_model_len_);
  const int64_t num_host_blocks =
      options_.swap_memory >= 0 ? std::min(options_.swap_memory / block_bytes, most_host_blocks) : num_blocks;
  scheduler_ = std::make_unique<Scheduler>(SchedulerOptions{.max_num_seqs = options_.max_num_seqs,
                                                            .max_num_batched_tokens = options_.max_num_batched_tokens,
                                                            .max_num_queued = options_.max_num_queued,
                                                            .num_blocks = num_blocks,
                                                            .num_host_blocks = num_host_blocks,
                                                            .enable_prefix_caching = options_.enable_prefix_caching,
                                                            .mask_timeout_ms = options_.mask_timeout_ms,
                                                            .speculation = options_.speculation});
  role_ = make_role();
}

std::unique_ptr<EngineRole> Engine::make_role() {
  // Without overlap where tokens are drafted: the next plan depends on the accepted ones.
  const bool overlap =
      options_.overlap.value_or(loaded_.ops->device().leaves_host_free()) && options_.speculation.num_tokens == 0;
  if (loaded_.lockstep.leads())
    return std::make_unique<StepLoop>(loaded_, *cache_, *runner_, *scheduler_, status_, overlap,
                                      options_.mask_timeout_ms,
                                      [this](const std::string& reason) { abort_ranks(reason); });
  return std::make_unique<Follower>(loaded_, *runner_, status_, overlap);
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
  const std::lock_guard lock(status_.mutex);
  return status_.failure;
}

EngineMetrics Engine::metrics() const {
  const std::lock_guard lock(status_.mutex);
  const DraftPolicy& policy = scheduler_->draft_policy();
  return {.counts = scheduler_->stats(),
          .num_running = scheduler_->num_running(),
          .num_waiting = scheduler_->num_waiting(),
          .num_kv_blocks = num_kv_blocks(),
          .num_free_blocks = scheduler_->blocks().num_free(),
          .num_cached_blocks = scheduler_->blocks().num_cached(),
          .num_drafts_now = policy.num_drafts_now(),
          .draft_acceptance = policy.acceptance(),
          .draft_cost = policy.cost()};
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

int64_t Engine::add_request(std::vector<int32_t> prompt_token_ids, const SamplingParams& params, int64_t num_sequences,
                            std::shared_ptr<OutputQueue> queue, std::shared_ptr<OutputQueue> mask_queue,
                            int64_t group) {
  if (num_sequences < 1) throw std::invalid_argument(str_cat("n=", num_sequences, "; expected at least 1"));
  check_request(prompt_token_ids, params);
  const int64_t num_prompt_tokens = static_cast<int64_t>(prompt_token_ids.size());
  std::vector<std::shared_ptr<Sequence>> sequences;
  for (int64_t i = 0; i < num_sequences; ++i) {
    Sequence& sequence = *sequences.emplace_back(std::make_shared<Sequence>());
    sequence.group = group;
    sequence.params = params;
    sequence.params.sample_idx = params.sample_idx + static_cast<int32_t>(i);
    if (i > 0) sequence.params.prompt_logprobs = -1;  // the first sequence reports them
    sequence.num_prompt_tokens = num_prompt_tokens;
    sequence.max_tokens = std::min(params.max_tokens, max_model_len_ - num_prompt_tokens);
    sequence.queue = queue;
    sequence.mask_queue = mask_queue;
    // Other threads read the prompt while tokens are appended, so the memory must not move.
    sequence.token_ids.reserve(static_cast<size_t>(num_prompt_tokens + sequence.max_tokens));
    sequence.token_ids.assign(prompt_token_ids.begin(), prompt_token_ids.end());
    sequence.arrival = Clock::now();
  }
  return role_->add(std::move(sequences));
}

bool Engine::abort(int64_t request_id) {
  return role_->end({.request_id = request_id, .finish_reason = FinishReason::abort});
}

bool Engine::fail(int64_t request_id, const std::string& error) {
  return role_->end({.request_id = request_id, .finish_reason = FinishReason::error, .error = error});
}

bool Engine::set_mask(int64_t request_id, int64_t num_output_tokens, std::vector<uint32_t> mask) {
  const int64_t words = (config().vocab_size + 31) / 32;
  if (!mask.empty() && static_cast<int64_t>(mask.size()) != words)
    throw std::invalid_argument(
        str_cat("the mask has ", mask.size(), " words of 32 bits, the vocabulary needs ", words));
  {
    const std::lock_guard lock(status_.mutex);
    const std::shared_ptr<Sequence> sequence = scheduler_->find(request_id);
    if (!sequence) return false;
    sequence->mask = std::move(mask);
    sequence->masked_tokens = num_output_tokens;
  }
  role_->wake();
  return true;
}

void Engine::reset_prefix_cache() {
  const std::lock_guard lock(status_.mutex);
  scheduler_->reset_prefix_cache();
}

bool Engine::preempt(int64_t request_id, bool may_swap) {
  const std::lock_guard lock(status_.mutex);
  return scheduler_->preempt(request_id, may_swap);
}

bool Engine::has_work() const {
  const std::lock_guard lock(status_.mutex);
  return scheduler_->has_work();
}

void Engine::set_observer(StepObserver* observer) {
  role_->set_observer(observer);
  runner_->set_observer(observer);
}

// --- steps and the engine's thread ---------------------------------------------------------------------------------

bool Engine::step(std::vector<StepOutput>& outputs) { return role_->step(outputs); }

void Engine::between_steps(std::function<void()> function, const std::function<void()>& while_waiting) {
  role_->between_steps(std::move(function), while_waiting);
}

void Engine::start() {
  if (thread_.joinable()) return;
  {
    const std::lock_guard lock(status_.mutex);
    status_.stop = false;
    status_.thread = EngineStatus::Thread::running;
  }
  thread_ = std::thread([this] { run(); });
}

void Engine::stop() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(status_.mutex);
    status_.stop = true;
  }
  role_->wake();
  thread_.join();
}

void Engine::run() {
  std::string failure;
  try {
    role_->run();
  } catch (const std::exception& error) {  // A bug, or a failure of another rank. No request may wait for ever.
    failure = error.what();
    abort_ranks(str_cat("[parallel] rank ", rank(), " failed: ", failure));
    const std::lock_guard lock(status_.mutex);
    status_.failure = failure;
  }
  role_->close(failure);
}

void Engine::abort_ranks(const std::string& reason) noexcept {
  {
    const std::lock_guard lock(status_.mutex);
    // Set this first: after an all-reduce was given up, the values on the device are no results.
    if (status_.lost_rank.empty()) status_.lost_rank = reason;
  }
  loaded_.lockstep.abort(reason);
  loaded_.model->abort_ranks(reason);
  if (role_) role_->wake();  // rank 0 may be waiting for requests and not for a rank
}

void Engine::join() {
  role_->expect_no_requests();
  std::unique_lock lock(status_.mutex);
  status_.thread_changed.wait(lock, [&] { return status_.thread == EngineStatus::Thread::ended; });
  if (!status_.failure.empty()) throw Error(status_.failure);
}

// --- logits of one sequence ----------------------------------------------------------------------------------------

void Engine::check_forward(std::span<const int32_t> token_ids) const {
  check_tokens(token_ids);
  const int64_t num_tokens = static_cast<int64_t>(token_ids.size());
  if (num_tokens > max_model_len_)
    throw std::invalid_argument(str_cat("forward of ", num_tokens, " tokens: max_model_len is ", max_model_len_));
}

void Engine::forward(std::span<const int32_t> token_ids, float* out, int64_t chunk_size,
                     const std::function<bool()>& stops) {
  check_forward(token_ids);
  if (chunk_size <= 0 || chunk_size > options_.max_num_batched_tokens) chunk_size = options_.max_num_batched_tokens;
  std::atomic<bool> stopped = false;
  std::function<void()> look_up;
  if (stops) look_up = [&] { stopped = stopped || stops(); };
  role_->forward(token_ids, out, chunk_size, [&] { return stopped || given_up_; }, look_up);
  if (given_up_) throw Error("[engine] this engine was closed while it computed logits");
  if (stopped) throw Error("[engine] the computation of logits was interrupted");
}

}  // namespace longcat
