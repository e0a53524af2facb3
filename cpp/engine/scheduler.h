// The scheduler plans steps: which tokens of which sequences to compute, in which cache blocks. It knows no model and
// no device.
//
// The order of arrival is the order of priority. Every step walks the running sequences in that order and gives each
// decoding one its next token. A sequence that needs a block while none is free takes it from the sequence of the
// lowest priority: that one is preempted. Its blocks are swapped out to host memory, or dropped and recomputed later.
// So the oldest sequence always advances, and every sequence ends. The rest of the token budget goes to prompts
// (share_budget).
//
// Short requests do not wait for a burst. The size of a group of requests (one call of a client) is the number of
// tokens that it asks for: its prompts and the limits of its completions. A waiting group is short beside a running one
// that is at least four times as large. Its request then runs ahead of its turn, in a slot that the larger group gives
// up. Large requests end, too. At most a quarter of the slots is taken this way, and the oldest running sequence keeps
// its slot. A sequence gives its slot up again only after it has advanced beyond where it was. The oldest waiting
// sequence is passed a limited number of times while it waits for blocks. Slots change the order of work, never
// results.
//
// A step is planned before the results of the step before are known. `commit` reports them later.
//
// Speculative decoding: the chunk of a sequence holds draft tokens behind its next token, and a token is drawn from
// each of these rows. A draft token is accepted when it equals the draw before it, so the tokens are those that would
// have been drawn one by one. The next tokens overwrite the latents of rejected ones. A step then waits for the step
// before.
#pragma once

#include <map>
#include <set>
#include <span>
#include <unordered_map>

#include "base/error.h"
#include "engine/block_manager.h"
#include "engine/speculation.h"
#include "engine/step_plan.h"

namespace longcat {

struct SchedulerOptions {
  int64_t max_num_seqs = 16;
  int64_t max_num_batched_tokens = 512;
  int64_t max_num_queued = 4096;
  int64_t num_blocks = 2;       // of the cache, the null block included
  int64_t num_host_blocks = 0;  // host blocks, for swapped-out sequences
  bool enable_prefix_caching = true;
  double mask_timeout_ms = 10000;
  Speculation speculation = {};  // with draft tokens, a step is planned after the step before is committed
};

// The queue is full. Python: longcat.QueueFullError.
class QueueFull : public Error {
 public:
  using Error::Error;
};

struct SchedulerStats {
  int64_t num_requests = 0, num_finished[5] = {};  // by FinishReason
  int64_t num_prompt_tokens = 0, num_generated_tokens = 0;
  int64_t num_prefix_queries = 0, num_prefix_hits = 0;  // [tokens]
  int64_t num_swaps = 0, num_recomputes = 0;
  int64_t num_steps = 0;
  int64_t num_draft_tokens = 0, num_accepted_tokens = 0;  // [tokens]
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  const SchedulerStats& stats() const { return stats_; }
  const DraftPolicy& draft_policy() const { return draft_policy_; }
  const BlockManager& blocks() const { return blocks_; }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  std::vector<std::shared_ptr<Sequence>> running() const;
  int64_t num_free_host_blocks() const { return static_cast<int64_t>(free_host_blocks_.size()); }
  bool has_work() const { return !sequences_.empty(); }

  // Queues sequences that share a prompt: the first computes it, the others fork from it. All of them count towards
  // max_num_queued, of which one group gets half. Throws QueueFull.
  void add(const std::vector<std::shared_ptr<Sequence>>& sequences);
  std::shared_ptr<Sequence> find(int64_t request_id) const;  // null: no such sequence, or it has ended
  template <class Function>
  void for_each(Function&& function) const {
    for (const auto& [id, sequence] : sequences_) function(*sequence);
  }

  // Ends a sequence now. Its blocks are free on return. Results of steps in flight are dropped.
  void finish(Sequence& sequence, FinishReason reason);

  // Plans the next step. The plan is empty when nothing can be computed now; it may also hold nothing but moves of
  // blocks.
  StepPlan schedule(Clock::time_point now);
  void schedule(Clock::time_point now, StepPlan& plan);  // `plan` must be empty; when this throws, it is partly filled

  // Returns the constrained sequences whose mask is overdue, and the time when the next one will be.
  std::vector<std::shared_ptr<Sequence>> overdue(Clock::time_point now) const;
  std::optional<Clock::time_point> next_due() const;

  // Appends a drawn token to its sequence. Commit plans in their order. Draws of sequences that have ended are skipped.
  void commit(Sequence& sequence, int32_t token_id, Clock::time_point now);

  // Commits the draw behind an accepted draft token, of the same plan. That draft token is the token committed last.
  void commit_accepted(Sequence& sequence, int32_t token_id, Clock::time_point now);

  // Records what a committed step did with draft tokens of the MTP layer. num_accepted: [chunks]; num_made: draft
  // tokens behind the drawn ones; ms: time from its launch to its results.
  void record_drafts(const StepPlan& plan, std::span<const int64_t> num_accepted, int64_t num_made, double ms);

  // Preempts a running sequence, as a lack of blocks would. Returns false when it is not running.
  bool preempt(int64_t request_id, bool may_swap);

  // Drops the whole cache, after a failed step left its content unknown: every sequence is recomputed from its start.
  void start_over();

  void reset_prefix_cache() { blocks_.reset(); }

  // Takes free blocks out of the cache for the caller, who may write to them at once. Throws OutOfMemory.
  std::vector<int32_t> borrow(int64_t num_blocks);
  void give_back(std::span<const int32_t> blocks) { blocks_.release(blocks); }

 private:
  using Queue = std::map<int64_t, std::shared_ptr<Sequence>>;  // by request id: the order of arrival
  struct Group {
    int64_t size = 0;  // [tokens] that its sequences ask for together
    int64_t num_sequences = 0;
    std::set<int64_t> waiting;  // request ids of waiting sequences
  };

  void cache_filled_blocks();
  void enqueue(const std::shared_ptr<Sequence>& sequence);
  void dequeue(const Sequence& sequence);
  void run(const std::shared_ptr<Sequence>& sequence, Clock::time_point now);
  void leave_short_slot(Sequence& sequence);
  void preempt(Sequence& sequence, bool may_swap, StepPlan& plan);
  Sequence& gives_way_to(const Sequence& sequence) const;
  bool grow(Sequence& sequence, StepPlan& plan);
  void admit(Clock::time_point now, StepPlan& plan);
  bool admit(Sequence& sequence, StepPlan& plan);
  bool admit_short(Clock::time_point now, StepPlan& plan);
  std::shared_ptr<Sequence> shortest_waiting() const;
  bool is_larger(const Sequence& other, const Sequence& s) const;
  std::vector<Sequence*> larger_than(const Sequence& sequence) const;
  int64_t most_blocks(const Sequence& sequence) const;
  int64_t reserve() const;
  void add_chunk(const std::shared_ptr<Sequence>& sequence, int64_t count, StepPlan& plan,
                 std::span<const int32_t> drafts = {});
  void add_long_chunks(int64_t budget, StepPlan& plan);
  void plan_draws(const std::shared_ptr<Sequence>& sequence, StepPlan& plan);
  bool waits_for_mask(const Sequence& sequence) const;
  void release(Sequence& sequence);

  SchedulerOptions options_;
  Clock::duration mask_timeout_;
  BlockManager blocks_;
  std::vector<int32_t> free_host_blocks_;
  Queue waiting_, running_;
  std::unordered_map<int64_t, Group> groups_;  // groups with sequences that have not ended
  int64_t num_short_ = 0;                      // sequences running ahead of their turn
  bool is_blocked_ = false;                    // there were too few blocks for the first in the queue
  std::unordered_map<int64_t, std::shared_ptr<Sequence>> sequences_;  // all sequences that have not ended
  std::vector<std::shared_ptr<Sequence>> filling_;  // sequences with a chunk of their prompt in the last plan
  std::vector<BlockMove> pending_moves_;            // moves to send with the next plan: swaps out and drops
  SchedulerStats stats_;
  DraftPolicy draft_policy_;
};

}  // namespace longcat
