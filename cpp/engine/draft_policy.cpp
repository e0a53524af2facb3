#include "engine/draft_policy.h"

#include <algorithm>

namespace longcat {

namespace {

// Weight of the past at each verification, and of the mean of all sequences in that of one.
constexpr double kForgetOfSequence = 0.95, kForgetOfAll = 0.99, kDraftsOfAll = 4;
constexpr double kFirstAcceptance = 0.8, kFirstDrafts = 2;  // before anything was verified
constexpr double kFirstCost = 0.2;                          // of a draft token, in steps, before it was measured
constexpr double kLeastCost = 0.03;  // of a draft token, in steps: less is an error of measurement
constexpr double kLeastGain = 1.02;
constexpr int64_t kFewTimes = 3;             // times that make a typical one
constexpr int64_t kStepsBetweenPlain = 128;  // the time of a step without draft tokens changes with the context
// Plans from one single draft token to the next while none pay: after an accepted one, and after rejected ones.
constexpr int64_t kPlansAfterSuccess = 2, kPlansAfterFailure = 16, kMostPlansAfterFailure = 128;

}  // namespace

void DraftAcceptance::add(int64_t num_drafts, int64_t num_accepted, double forget) {
  accepted = forget * accepted + static_cast<double>(num_accepted);
  rejected = forget * rejected + (num_accepted < num_drafts ? 1 : 0);
}

double DraftAcceptance::share(double prior, double weight) const {
  return (accepted + prior * weight) / (accepted + rejected + weight);
}

void DraftPolicy::RecentTime::add(double value) { values_[static_cast<size_t>(count_++) % values_.size()] = value; }

double DraftPolicy::RecentTime::value() const {
  const auto size = std::min<int64_t>(count_, static_cast<int64_t>(values_.size()));
  std::array<double, std::tuple_size_v<decltype(values_)>> sorted = values_;
  std::sort(sorted.begin(), sorted.begin() + size);
  return sorted[static_cast<size_t>(size / 3)];
}

double DraftPolicy::acceptance() const { return all_.share(kFirstAcceptance, kFirstDrafts); }

// Of one sequence. Before it was measured, any number: then all costs are relative to it.
double DraftPolicy::plain_ms() const {
  return now_->plain_ms.count() > 0 ? now_->plain_ms.value() / static_cast<double>(num_sequences_) : 1;
}

double DraftPolicy::draft_ms() const {
  const double plain_ms = this->plain_ms();
  if (now_->draft_ms.count() < kFewTimes) return kFirstCost * plain_ms;
  return std::max(now_->draft_ms.value(), kLeastCost * plain_ms);
}

double DraftPolicy::cost() const {
  if (!now_ || now_->plain_ms.count() == 0) return kFirstCost;
  return draft_ms() / now_->plain_ms.value();
}

// The number of draft tokens of a sequence with the most tokens in a unit of time.
int64_t DraftPolicy::best(double acceptance) const {
  const double plain_ms = this->plain_ms();
  double tokens = 1, power = 1, best_rate = kLeastGain / plain_ms;
  int64_t best = 0;
  for (int64_t k = 1; k <= speculation_.num_tokens; ++k) {
    tokens += power *= acceptance;
    const double rate = tokens / (plain_ms + static_cast<double>(k) * draft_ms());
    if (rate > best_rate) {
      best_rate = rate;
      best = k;
    }
  }
  return best;
}

void DraftPolicy::begin_plan(int64_t num_sequences, bool decodes_only) {
  num_sequences_ = std::max<int64_t>(num_sequences, 1);
  now_ = &costs_[num_sequences_];
  measures_plain_ = decodes_only && (now_->plain_ms.count() < kFewTimes || now_->num_steps >= kStepsBetweenPlain);
  sequence_idx_ = -1;
  num_drafts_now_ = 0;
  // The sequence whose turn it was got no draft tokens, as a constrained one: it is another's turn.
  if (++num_plans_off_ > num_plans_to_probe_) ++num_probes_;
}

int64_t DraftPolicy::num_drafts(const DraftAcceptance& sequence) {
  if (!speculation_.adaptive) return num_drafts_now_ = speculation_.num_tokens;
  ++sequence_idx_;
  if (measures_plain_) return 0;
  int64_t count = best(sequence.share(acceptance(), kDraftsOfAll));
  if (count > 0) {
    num_plans_off_ = 0;
    num_plans_to_probe_ = num_plans_after_failure_ = kPlansAfterFailure;
  } else if (num_plans_off_ >= num_plans_to_probe_ && sequence_idx_ == num_probes_ % num_sequences_) {
    num_plans_off_ = 0;
    ++num_probes_;
    count = 1;
  }
  num_drafts_now_ = std::max(num_drafts_now_, count);
  return count;
}

void DraftPolicy::record_verified(DraftAcceptance& sequence, int64_t num_drafts, int64_t num_accepted) {
  if (now_ && num_drafts == 1 && best(sequence.share(acceptance(), kDraftsOfAll)) == 0) {
    if (num_accepted == 0) num_plans_after_failure_ = std::min(2 * num_plans_after_failure_, kMostPlansAfterFailure);
    num_plans_to_probe_ = num_accepted > 0 ? kPlansAfterSuccess : num_plans_after_failure_;
  }
  sequence.add(num_drafts, num_accepted, kForgetOfSequence);
  all_.add(num_drafts, num_accepted, kForgetOfAll);
}

void DraftPolicy::record_step(int64_t num_sequences, int64_t num_verified, int64_t num_made, double ms) {
  Costs& costs = costs_[num_sequences];
  if (num_verified + num_made == 0) {
    costs.plain_ms.add(ms);
    costs.num_steps = 0;
    return;
  }
  ++costs.num_steps;
  if (costs.plain_ms.count() > 0)
    costs.draft_ms.add((ms - costs.plain_ms.value()) / (0.5 * static_cast<double>(num_verified + num_made)));
}

}  // namespace longcat
