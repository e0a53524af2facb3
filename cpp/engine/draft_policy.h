// Decides how many draft tokens the MTP layer makes, by what they gained and cost while the engine ran.
//
// Drafting never changes a text, only the number of steps and their cost. A step that makes and verifies k draft tokens
// of a sequence gives 1 + p + ... + p^k tokens on average, where p is the share of draft tokens that are accepted. It
// takes the time of a step without draft tokens and k times the extra time of one draft token. The policy takes the k
// with the most tokens in a unit of time. Where that is 0, it drafts a single token now and then, to notice a change.
//
// Times are those of recent steps that decode only, for each number of decoding sequences. p is a running mean of the
// sequence, which begins with that of all sequences.
#pragma once

#include <array>
#include <cstdint>
#include <map>

#include "engine/speculation.h"

namespace longcat {

// A running mean of accepted draft tokens. Older ones weigh less.
struct DraftAcceptance {
  double accepted = 0, rejected = 0;

  // num_accepted of num_drafts draft tokens were right; those behind the first wrong one tell nothing.
  void add(int64_t num_drafts, int64_t num_accepted, double forget);
  // The mean, with `weight` draft tokens of the share `prior`.
  double share(double prior, double weight) const;
};

class DraftPolicy {
 public:
  explicit DraftPolicy(const Speculation& speculation) : speculation_(speculation) {}

  // Begins the plan of a step with `num_sequences` decoding sequences. decodes_only: it does nothing else, so that its
  // time can be recorded.
  void begin_plan(int64_t num_sequences, bool decodes_only);

  // The most draft tokens to make for a sequence of that plan.
  int64_t num_drafts(const DraftAcceptance& sequence);

  // Records that a step verified num_drafts > 0 draft tokens of a sequence.
  void record_verified(DraftAcceptance& sequence, int64_t num_drafts, int64_t num_accepted);

  // Records the time of a step of `num_sequences` sequences that decoded only.
  void record_step(int64_t num_sequences, int64_t num_verified, int64_t num_made, double ms);

  double acceptance() const;  // p of all sequences
  double cost() const;        // extra time of a draft token, in steps without draft tokens, in the last plan
  int64_t num_drafts_now() const { return num_drafts_now_; }  // the most that a sequence of the last plan got

 private:
  // A time that a third of the recent ones are below: other programs only ever make a step longer.
  class RecentTime {
   public:
    void add(double value);
    double value() const;
    int64_t count() const { return count_; }

   private:
    std::array<double, 15> values_{};
    int64_t count_ = 0;  // of all values so far
  };
  struct Costs {
    RecentTime plain_ms;    // of a step without draft tokens
    RecentTime draft_ms;    // that a draft token adds
    int64_t num_steps = 0;  // since the last step without draft tokens
  };

  int64_t best(double acceptance) const;
  double plain_ms() const;
  double draft_ms() const;

  Speculation speculation_;
  std::map<int64_t, Costs> costs_;  // by the number of decoding sequences
  DraftAcceptance all_;
  // The plan in progress:
  Costs* now_ = nullptr;
  int64_t num_sequences_ = 1, sequence_idx_ = 0, num_drafts_now_ = 0;
  bool measures_plain_ = false;
  // While no draft token pays: plans since the last single one, those until the next, and those after a rejected one.
  int64_t num_plans_off_ = 0, num_plans_to_probe_ = 0, num_plans_after_failure_ = 0;
  int64_t num_probes_ = 0;
};

}  // namespace longcat
