#include "engine/scheduler.h"

#include <algorithm>

#include "base/error.h"
#include "engine/chunk_planner.h"
#include "ops/batch.h"

namespace longcat {

namespace {

constexpr double kForeverMs = 1e12;  // 30 years: a clock can still add it
constexpr int64_t kShortSlots = 4;   // one slot in four is open to short requests
constexpr int64_t kShortRatio = 4;   // a short group asks for at most a quarter of the tokens
constexpr int64_t kMostPassed = 32;

int64_t blocks_for(int64_t num_tokens) { return (num_tokens + kBlockSize - 1) / kBlockSize; }

int64_t size_of(const std::vector<int32_t>& blocks) { return static_cast<int64_t>(blocks.size()); }

// The tokens that a sequence adds to its group. The prompt counts once, because the other sequences fork from the
// first.
int64_t tokens_of(const Sequence& s) { return s.max_tokens + (s.params.sample_idx == 0 ? s.num_prompt_tokens : 0); }

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options),
      mask_timeout_(std::chrono::duration_cast<Clock::duration>(
          std::chrono::duration<double, std::milli>(std::min(options.mask_timeout_ms, kForeverMs)))),
      blocks_(options.num_blocks, options.enable_prefix_caching),
      draft_policy_(options.speculation) {
  for (int64_t host = options.num_host_blocks - 1; host >= 0; --host)
    free_host_blocks_.push_back(static_cast<int32_t>(host));
}

void Scheduler::add(const std::vector<std::shared_ptr<Sequence>>& sequences) {
  const int64_t num_queued = static_cast<int64_t>(sequences_.size()) - num_running();  // with forks that have not begun
  if (num_queued >= options_.max_num_queued)
    throw QueueFull(str_cat("[engine] ", num_queued, " requests are waiting, max_num_queued=", options_.max_num_queued,
                            ": try again later"));
  const std::shared_ptr<Sequence>& first = sequences.front();
  if (const auto group = groups_.find(first->group); group != groups_.end()) {  // leave room for other calls
    const int64_t most = (options_.max_num_queued + 1) / 2;
    const int64_t num_of_group = group->second.num_sequences - std::ranges::count_if(running_, [&](const auto& entry) {
                                   return entry.second->group == first->group;
                                 });
    if (num_of_group >= most)
      throw QueueFull(str_cat("[engine] ", num_of_group, " requests of this call are waiting, half of max_num_queued=",
                              options_.max_num_queued, ": try again later"));
  }
  for (const auto& sequence : sequences) {
    if (sequence->group < 0) sequence->group = first->request_id;
    sequences_[sequence->request_id] = sequence;
    Group& group = groups_[sequence->group];
    group.size += tokens_of(*sequence);
    ++group.num_sequences;
  }
  first->forks.assign(sequences.begin() + 1, sequences.end());
  enqueue(first);
  stats_.num_requests += static_cast<int64_t>(sequences.size());
}

void Scheduler::enqueue(const std::shared_ptr<Sequence>& sequence) {
  groups_.at(sequence->group).waiting.insert(sequence->request_id);
  waiting_[sequence->request_id] = sequence;
}

void Scheduler::dequeue(const Sequence& sequence) {
  groups_.at(sequence.group).waiting.erase(sequence.request_id);
  waiting_.erase(sequence.request_id);
}

void Scheduler::run(const std::shared_ptr<Sequence>& sequence, Clock::time_point now) {
  dequeue(*sequence);
  sequence->state = Sequence::State::running;
  sequence->num_passed = 0;
  sequence->mask_due = now + mask_timeout_;
  if (sequence->first_step == Clock::time_point{}) sequence->first_step = now;
  running_[sequence->request_id] = sequence;
}

void Scheduler::leave_short_slot(Sequence& sequence) {
  if (sequence.is_short) --num_short_;
  sequence.is_short = false;
}

std::shared_ptr<Sequence> Scheduler::find(int64_t request_id) const {
  const auto it = sequences_.find(request_id);
  return it == sequences_.end() ? nullptr : it->second;
}

std::vector<std::shared_ptr<Sequence>> Scheduler::running() const {
  std::vector<std::shared_ptr<Sequence>> all;
  for (const auto& [id, sequence] : running_) all.push_back(sequence);
  return all;
}

void Scheduler::release(Sequence& sequence) {
  blocks_.release(sequence.blocks);
  sequence.blocks.clear();
  for (const int32_t host : sequence.swapped) {
    pending_moves_.push_back({.kind = BlockMove::Kind::drop, .other_block = host});
    free_host_blocks_.push_back(host);
  }
  sequence.swapped.clear();
}

void Scheduler::finish(Sequence& sequence, FinishReason reason) {
  if (sequence.state == Sequence::State::finished) return;
  const std::shared_ptr<Sequence> keep = find(sequence.request_id);
  release(sequence);
  dequeue(sequence);
  leave_short_slot(sequence);
  running_.erase(sequence.request_id);
  sequences_.erase(sequence.request_id);
  sequence.state = Sequence::State::finished;
  // Sequences that would have forked from this one compute the prompt themselves.
  for (const auto& fork : sequence.forks)
    if (fork->state == Sequence::State::waiting) enqueue(fork);
  sequence.forks.clear();
  Group& group = groups_.at(sequence.group);
  group.size -= tokens_of(sequence);
  if (--group.num_sequences == 0) groups_.erase(sequence.group);
  ++stats_.num_finished[static_cast<int>(reason)];
}

void Scheduler::commit(Sequence& sequence, int32_t token_id, Clock::time_point now) {
  if (sequence.state == Sequence::State::finished) return;
  LC_CHECK(sequence.num_pending > 0);
  --sequence.num_pending;
  sequence.token_ids.push_back(token_id);
  sequence.drafts.clear();  // the draft tokens were made behind another token
  sequence.mask_due = now + mask_timeout_;
  ++stats_.num_generated_tokens;
}

void Scheduler::commit_accepted(Sequence& sequence, int32_t token_id, Clock::time_point now) {
  if (sequence.state == Sequence::State::finished) return;
  ++sequence.num_scheduled;  // the cache has the latents of the accepted draft token
  ++sequence.num_pending;
  ++stats_.num_accepted_tokens;
  commit(sequence, token_id, now);
}

void Scheduler::record_drafts(const StepPlan& plan, std::span<const int64_t> num_accepted, int64_t num_made,
                              double ms) {
  int64_t num_verified = 0;
  for (size_t c = 0; c < plan.chunks.size(); ++c) {
    const PlannedChunk& chunk = plan.chunks[c];
    num_verified += chunk.num_draft_tokens;
    if (chunk.num_draft_tokens > 0)
      draft_policy_.record_verified(chunk.sequence->acceptance, chunk.num_draft_tokens, num_accepted[c]);
  }
  if (plan.decodes_only() && plan.moves.empty())
    draft_policy_.record_step(static_cast<int64_t>(plan.chunks.size()), num_verified, num_made, ms);
}

bool Scheduler::waits_for_mask(const Sequence& sequence) const {
  return sequence.params.constrained &&
         (sequence.num_pending > 0 || sequence.masked_tokens != sequence.num_output_tokens());
}

std::vector<std::shared_ptr<Sequence>> Scheduler::overdue(Clock::time_point now) const {
  std::vector<std::shared_ptr<Sequence>> late;
  for (const auto& [id, sequence] : running_)
    if (sequence->params.constrained && sequence->num_pending == 0 && waits_for_mask(*sequence) &&
        sequence->num_uncomputed() == 1 && sequence->mask_due <= now)
      late.push_back(sequence);
  return late;
}

std::optional<Clock::time_point> Scheduler::next_due() const {
  std::optional<Clock::time_point> next;
  for (const auto& [id, sequence] : running_)
    if (sequence->params.constrained && waits_for_mask(*sequence))
      next = std::min(next.value_or(sequence->mask_due), sequence->mask_due);
  return next;
}

// Adds to the prefix cache the prompt blocks that the last plan filled. The device writes them before a later step
// reads them.
void Scheduler::cache_filled_blocks() {
  for (const auto& sequence : filling_) {
    Sequence& s = *sequence;
    if (s.state != Sequence::State::running) continue;
    const int64_t full = std::min(s.num_scheduled, s.num_prompt_tokens) / kBlockSize;
    for (; s.num_cached_blocks < full; ++s.num_cached_blocks) {
      const std::span<const int32_t> ids(s.token_ids.data() + s.num_cached_blocks * kBlockSize, kBlockSize);
      s.prefix_uid = blocks_.cache_block(s.blocks[static_cast<size_t>(s.num_cached_blocks)], s.prefix_uid, ids);
    }
  }
  filling_.clear();
}

// Takes the blocks of a sequence away. They are swapped out to host memory while there is room, else recomputed later.
void Scheduler::preempt(Sequence& s, bool may_swap, StepPlan& plan) {
  const std::shared_ptr<Sequence> self = running_.at(s.request_id);
  const int64_t used = blocks_for(s.num_scheduled);
  s.num_scheduled_once = std::max(s.num_scheduled_once, s.num_scheduled);
  if (may_swap && used <= num_free_host_blocks()) {
    for (int64_t i = 0; i < used; ++i) {
      const int32_t host = free_host_blocks_.back();
      free_host_blocks_.pop_back();
      plan.moves.push_back(
          {.kind = BlockMove::Kind::swap_out, .block = s.blocks[static_cast<size_t>(i)], .other_block = host});
      s.swapped.push_back(host);
    }
    ++stats_.num_swaps;
  } else {
    s.num_scheduled = 0;
    s.num_cached_blocks = 0;
    s.prefix_uid = 0;
    ++stats_.num_recomputes;
  }
  blocks_.release(s.blocks);
  s.blocks.clear();
  s.state = Sequence::State::waiting;
  ++s.stats.num_preemptions;
  leave_short_slot(s);
  running_.erase(s.request_id);
  enqueue(self);
}

bool Scheduler::preempt(int64_t request_id, bool may_swap) {
  const auto it = running_.find(request_id);
  if (it == running_.end()) return false;
  StepPlan moves;
  cache_filled_blocks();
  preempt(*it->second, may_swap, moves);
  pending_moves_.insert(pending_moves_.end(), moves.moves.begin(), moves.moves.end());
  return true;
}

// Returns the running sequence to preempt when `s` needs a block: the one of the lowest priority; sequences of short
// groups come last. Only the oldest sequence may preempt the oldest.
Sequence& Scheduler::gives_way_to(const Sequence& s) const {
  const Sequence& first = *running_.begin()->second;
  for (auto it = running_.rbegin(); it != running_.rend(); ++it)
    if (Sequence& candidate = *it->second; !candidate.is_short && &candidate != &first) return candidate;
  if (first.is_short && &s != &first) return *running_.find(s.request_id)->second;
  return *running_.rbegin()->second;
}

// Gives a sequence a block of its own for its next token. While none is free, running sequences are preempted, the
// lowest priority first. Returns false when `s` itself was preempted.
bool Scheduler::grow(Sequence& s, StepPlan& plan) {
  const size_t block_idx = static_cast<size_t>(s.num_scheduled / kBlockSize);
  const auto has_block = [&] { return block_idx < s.blocks.size() && blocks_.may_write(s.blocks[block_idx]); };
  while (!has_block() && blocks_.num_free() == 0) {
    Sequence& lowest = gives_way_to(s);
    preempt(lowest, true, plan);
    if (&lowest == &s) return false;
  }
  if (has_block()) return true;
  const int32_t own = blocks_.take();
  if (block_idx == s.blocks.size()) {
    s.blocks.push_back(own);
  } else {  // other sequences share the block, or it is in the prefix cache
    plan.moves.push_back({.kind = BlockMove::Kind::copy, .block = s.blocks[block_idx], .other_block = own});
    blocks_.release(s.blocks[block_idx]);
    s.blocks[block_idx] = own;
  }
  return true;
}

// The blocks to keep free for running sequences, so that they do not preempt a newly admitted one at once.
int64_t Scheduler::reserve() const { return std::min(num_running(), blocks_.num_blocks() / 100); }

// The blocks for all tokens of a sequence and one more. The cache never stores the last token of a completion.
int64_t Scheduler::most_blocks(const Sequence& s) const {
  const int64_t most_stored = s.num_prompt_tokens + std::max<int64_t>(s.max_tokens - 1, 0);
  return blocks_for(std::min(s.num_tokens() + 1, most_stored));
}

// Gives a waiting sequence the blocks for all of its tokens and one more. The prefix cache provides the first ones.
// Returns false when too few blocks are free; the sequence then has none.
bool Scheduler::admit(Sequence& s, StepPlan& plan) {
  const int64_t needed = most_blocks(s), spare = reserve();
  if (!s.swapped.empty()) {
    if (blocks_.num_free() < needed + spare) return false;
    for (const int32_t host : s.swapped) {
      s.blocks.push_back(blocks_.take());
      plan.moves.push_back({.kind = BlockMove::Kind::swap_in, .block = s.blocks.back(), .other_block = host});
      plan.moves.push_back({.kind = BlockMove::Kind::drop, .other_block = host});
      free_host_blocks_.push_back(host);
    }
    s.swapped.clear();
    s.num_cached_blocks = blocks_for(s.num_prompt_tokens);  // their copies are in the prefix cache already
  } else {
    const std::span<const int32_t> prompt(s.token_ids.data(), static_cast<size_t>(s.num_prompt_tokens));
    // Log-probabilities of the prompt need the logits of every position.
    const bool scores = s.params.prompt_logprobs >= 0 && s.num_scored < s.num_prompt_tokens - 1;
    BlockManager::Match match = scores ? BlockManager::Match{} : blocks_.match(prompt);
    // The last token is always computed, for its logits. Where other sequences share its block, it is computed in a
    // copy of the block.
    const auto copies = [&] { return size_of(match.blocks) * kBlockSize >= s.num_tokens(); };
    const auto fits = [&] { return blocks_.num_free() >= needed - size_of(match.blocks) + (copies() ? 1 : 0) + spare; };
    if (copies() && !fits()) {  // no block is free for the copy; releasing the shared block may free one
      blocks_.release(match.blocks.back());
      match.blocks.pop_back();
      match.uids.pop_back();
    }
    if (!fits()) {
      blocks_.release(match.blocks);
      return false;
    }
    const bool copy = copies();
    const int64_t cached = std::min(size_of(match.blocks) * kBlockSize, s.num_tokens() - 1);
    s.num_cached_blocks = size_of(match.blocks);
    s.prefix_uid = match.uids.empty() ? 0 : match.uids.back();
    s.blocks = std::move(match.blocks);
    s.num_scheduled = cached;
    if (copy) {
      const int32_t own = blocks_.take();
      plan.moves.push_back({.kind = BlockMove::Kind::copy, .block = s.blocks.back(), .other_block = own});
      blocks_.release(s.blocks.back());
      s.blocks.back() = own;
    }
    if (s.stats.num_preemptions == 0) {
      s.stats.num_cached_tokens = cached;
      stats_.num_prefix_queries += s.num_prompt_tokens;
      stats_.num_prefix_hits += cached;
      stats_.num_prompt_tokens += s.num_prompt_tokens;
    }
  }
  while (size_of(s.blocks) < blocks_for(s.num_tokens())) s.blocks.push_back(blocks_.take());
  return true;
}

// Admits waiting sequences in the order of arrival. The first one without room keeps those behind it waiting.
void Scheduler::admit(Clock::time_point now, StepPlan& plan) {
  is_blocked_ = false;
  while (!waiting_.empty() && num_running() < options_.max_num_seqs) {
    const std::shared_ptr<Sequence> next = waiting_.begin()->second;
    if (next->num_pending > 0 || !admit(*next, plan)) {
      is_blocked_ = true;
      return;
    }
    run(next, now);
  }
}

// Returns the oldest sequence of the smallest waiting group. Null: no group waits, or a step in flight draws for that
// sequence.
std::shared_ptr<Sequence> Scheduler::shortest_waiting() const {
  const Group* smallest = nullptr;
  for (const auto& [id, group] : groups_) {
    if (group.waiting.empty()) continue;
    const auto key = [](const Group& g) { return std::pair(g.size, *g.waiting.begin()); };
    if (!smallest || key(group) < key(*smallest)) smallest = &group;
  }
  if (!smallest) return nullptr;
  const std::shared_ptr<Sequence>& oldest = waiting_.at(*smallest->waiting.begin());
  return oldest->num_pending > 0 ? nullptr : oldest;
}

// Returns whether the group of `s` is short beside the group of `other`.
bool Scheduler::is_larger(const Sequence& other, const Sequence& s) const {
  return groups_.at(other.group).size >= kShortRatio * groups_.at(s.group).size;
}

// Returns the running sequences that `s` of a short group may preempt: the largest group first, in a group the newest
// sequence first. Sequences that would take more than a step to recompute are not among them, nor those that have not
// advanced since they were preempted: a stream of short requests would keep them from ever advancing.
std::vector<Sequence*> Scheduler::larger_than(const Sequence& s) const {
  std::vector<Sequence*> larger;
  for (auto it = running_.rbegin(); it != running_.rend() && it->second != running_.begin()->second; ++it) {
    Sequence& other = *it->second;
    const bool is_cheap = blocks_for(other.num_scheduled) <= num_free_host_blocks() ||
                          other.num_scheduled <= options_.max_num_batched_tokens;
    const bool has_advanced = other.num_scheduled > other.num_scheduled_once;
    if (!other.is_short && is_cheap && has_advanced && is_larger(other, s)) larger.push_back(&other);
  }
  std::ranges::stable_sort(larger, std::greater{}, [&](const Sequence* one) { return groups_.at(one->group).size; });
  return larger;
}

// Admits sequences of short groups ahead of their turn. Returns true when running sequences were preempted for them.
bool Scheduler::admit_short(Clock::time_point now, StepPlan& plan) {
  if (running_.empty()) return false;  // the first in the queue runs next anyway
  const bool has_to_wait = num_running() >= options_.max_num_seqs || is_blocked_;
  const int64_t most = options_.max_num_seqs > 1 ? std::max<int64_t>(1, options_.max_num_seqs / kShortSlots) : 0;
  bool room_was_made = false;
  while (has_to_wait && num_short_ < most && !waiting_.empty()) {
    const std::shared_ptr<Sequence> head = waiting_.begin()->second;
    const std::shared_ptr<Sequence> next = shortest_waiting();
    if (!next || head->num_passed >= kMostPassed) return room_was_made;
    const bool is_short = is_larger(*head, *next) || std::ranges::any_of(running_, [&](const auto& entry) {
                            return is_larger(*entry.second, *next);
                          });
    const std::vector<Sequence*> larger = larger_than(*next);
    if (!is_short || (larger.empty() && num_running() >= options_.max_num_seqs)) return room_was_made;
    int64_t num_free = blocks_.num_free();
    for (const Sequence* one : larger)
      num_free += std::ranges::count_if(one->blocks, [&](int32_t block) { return blocks_.references(block) == 1; });
    if (num_free < most_blocks(*next) + reserve()) return room_was_made;
    auto victim = larger.begin();
    while (num_running() >= options_.max_num_seqs || !admit(*next, plan)) {
      if (victim == larger.end()) return room_was_made;
      preempt(**victim++, true, plan);
      room_was_made = true;
    }
    run(next, now);
    next->is_short = true;
    ++num_short_;
    // Without free blocks, a short sequence takes those that the head waits for. A slot that it takes from a running
    // sequence delays the head by nothing: the next slot that becomes free is the head's.
    if (next != head && is_blocked_) ++head->num_passed;
  }
  return room_was_made;
}

// Plans the draws from the last row of a sequence's chunk: the sequence's own and, at the end of its prompt, those of
// its forks. One more draw follows for each draft token; it counts only if the draft tokens before it are accepted.
void Scheduler::plan_draws(const std::shared_ptr<Sequence>& sequence, StepPlan& plan) {
  const auto draw = [&](const std::shared_ptr<Sequence>& from) {
    plan.draws.push_back({.sequence = from,
                          .chunk = plan.chunks.size() - 1,
                          .num_tokens = from->num_tokens(),
                          .ends = from->max_tokens == 0});
    if (from->max_tokens == 0) return;
    ++from->num_pending;
    from->pending_row = static_cast<int32_t>(plan.draws.size()) - 1;
  };
  Sequence& s = *sequence;
  const bool first = s.num_tokens() == s.num_prompt_tokens;
  draw(sequence);
  for (int64_t i = 1; i <= plan.chunks.back().num_draft_tokens; ++i) {
    PlannedDraw next = plan.draws.back();
    next.num_drafts = i;
    ++next.num_tokens;
    plan.draws.push_back(std::move(next));
  }
  if (!first) return;
  for (const auto& fork : s.forks) {
    if (fork->state != Sequence::State::waiting) continue;
    if (num_running() >= options_.max_num_seqs || waits_for_mask(*fork)) {
      enqueue(fork);  // the fork begins later, by itself
      continue;
    }
    fork->blocks = s.blocks;
    for (const int32_t block : fork->blocks) blocks_.share(block);
    fork->num_scheduled = s.num_scheduled;
    fork->num_cached_blocks = blocks_for(s.num_prompt_tokens);  // the first sequence adds them to the prefix cache
    fork->stats.num_cached_tokens = s.stats.num_cached_tokens;
    fork->first_step = s.first_step;
    fork->state = Sequence::State::running;
    running_[fork->request_id] = fork;
    draw(fork);
  }
  s.forks.clear();
}

void Scheduler::add_chunk(const std::shared_ptr<Sequence>& sequence, int64_t count, StepPlan& plan,
                          std::span<const int32_t> drafts) {
  PlannedChunk& chunk = plan.chunks.emplace_back();
  chunk.sequence = sequence;  // first: if memory runs out below, the plan names the sequence that is lost
  chunk = plan_chunk(sequence, count, drafts);
  stats_.num_draft_tokens += chunk.num_draft_tokens;
  if (!chunk.generated) filling_.push_back(sequence);
  if (chunk.is_drawn_from) plan_draws(sequence, plan);
}

// Adds chunks of prompts, and of tokens to recompute, within the rest of the budget.
void Scheduler::add_long_chunks(int64_t budget, StepPlan& plan) {
  std::vector<std::shared_ptr<Sequence>> sequences;
  std::vector<int64_t> wanted;
  for (const auto& [id, sequence] : running_) {
    const Sequence& s = *sequence;
    const bool known_prompt = s.num_scheduled < s.num_prompt_tokens;
    int64_t count = (known_prompt ? s.num_prompt_tokens : s.num_tokens()) - s.num_scheduled;
    if (!known_prompt && s.num_pending > 0) continue;  // the host does not know its newest token yet
    // A sequence that waits for its mask computes all tokens but the one whose row gives the draw.
    if (waits_for_mask(s) && s.num_scheduled + count == s.num_tokens()) --count;
    if (count <= 0) continue;
    sequences.push_back(sequence);
    wanted.push_back(count);
  }
  const std::vector<int64_t> counts = share_budget(wanted, budget);
  for (const bool generated : {true, false})
    for (size_t i = 0; i < counts.size(); ++i)
      if (const Sequence& s = *sequences[i]; counts[i] > 0 && (s.num_scheduled >= s.num_prompt_tokens) == generated)
        add_chunk(sequences[i], counts[i], plan);
}

StepPlan Scheduler::schedule(Clock::time_point now) {
  StepPlan plan;
  schedule(now, plan);
  return plan;
}

void Scheduler::schedule(Clock::time_point now, StepPlan& plan) {
  cache_filled_blocks();
  plan.moves = std::move(pending_moves_);
  pending_moves_.clear();

  bool room_was_made = admit_short(now, plan);

  // Gives each decoding sequence one token, in the order of arrival. Preemptions may remove sequences from `running_`
  // meanwhile.
  std::vector<std::shared_ptr<Sequence>> generating;
  for (const auto& [id, sequence] : running_)
    if (sequence->num_scheduled >= sequence->num_prompt_tokens && sequence->num_uncomputed() == 1 &&
        sequence->num_output_tokens() < sequence->max_tokens && !waits_for_mask(*sequence))
      generating.push_back(sequence);
  int64_t budget = options_.max_num_batched_tokens;
  std::vector<std::shared_ptr<Sequence>> growing;
  for (const auto& sequence : generating) {
    if (sequence->state != Sequence::State::running || budget == 0) continue;
    const int64_t running_before = num_running();
    if (grow(*sequence, plan)) {
      growing.push_back(sequence);
      --budget;
    }
    room_was_made = room_was_made || num_running() < running_before;
  }
  // A sequence that had its block already may have been preempted for a later one.
  budget +=
      static_cast<int64_t>(std::erase_if(growing, [](const auto& s) { return s->state != Sequence::State::running; }));
  int64_t room = std::min(budget, options_.speculation.most_in_a_step());
  for (const auto& sequence : growing) {
    add_chunk(sequence, 1, plan, draft_tokens(*sequence, room, options_.speculation));
    room -= plan.chunks.back().num_draft_tokens;
    budget -= plan.chunks.back().num_draft_tokens;
  }

  if (!room_was_made) admit(now, plan);
  if (budget > 0) add_long_chunks(budget, plan);
  if (options_.speculation.by_mtp()) plan_drafts(options_.speculation, draft_policy_, plan);
  if (!plan.chunks.empty()) ++stats_.num_steps;
}

void Scheduler::start_over() {
  filling_.clear();
  blocks_.reset();
  StepPlan nothing;
  while (!running_.empty()) preempt(*running_.begin()->second, false, nothing);
  for (const auto& [id, sequence] : waiting_) {
    release(*sequence);
    sequence->num_scheduled = sequence->num_pending = 0;
  }
}

std::vector<int32_t> Scheduler::borrow(int64_t num_blocks) {
  // The caller writes at once. So it must not get blocks that the next step is still to swap out.
  std::set<int32_t> swapping_out;
  for (const BlockMove& move : pending_moves_)
    if (move.kind == BlockMove::Kind::swap_out && blocks_.references(move.block) == 0) swapping_out.insert(move.block);
  const int64_t num_free = blocks_.num_free() - static_cast<int64_t>(swapping_out.size());
  if (num_blocks > num_free)
    throw OutOfMemory(str_cat("[kv cache] ", num_blocks, " blocks of ", kBlockSize, " tokens are needed, ", num_free,
                              " are free: raise kv_cache_memory"));
  std::vector<int32_t> taken, passed_over;
  while (size_of(taken) < num_blocks) {
    const int32_t block = blocks_.take();
    (swapping_out.contains(block) ? passed_over : taken).push_back(block);
  }
  blocks_.release(passed_over);
  return taken;
}

}  // namespace longcat
