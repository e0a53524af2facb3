#include "engine/drafter.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "engine/model_runner.h"

namespace longcat {

namespace {

constexpr int64_t kStates = 6;  // of DraftRows: four lists, token ids and positions

// For each chunk, the index of its first draw.
std::vector<int32_t> first_draws(const StepPlan& plan) {
  std::vector<int32_t> first(plan.chunks.size(), -1);
  for (size_t i = plan.draws.size(); i-- > 0;) first[plan.draws[i].chunk] = static_cast<int32_t>(i);
  return first;
}

}  // namespace

Drafter::Drafter(Ops& ops, Model& model, KvCache& cache, int64_t max_num_tokens, int64_t max_num_seqs,
                 int64_t max_blocks_per_sequence, int64_t num_tokens)
    : ops_(ops),
      device_(ops.device()),
      model_(model),
      cache_(cache),
      max_num_seqs_(std::min(max_num_seqs, max_num_tokens)),
      num_tokens_(num_tokens),
      state_(device_, kStates * max_num_seqs * 4),
      numbers_(device_, (max_num_seqs + 1) * 4),
      block_tables_(device_, max_num_seqs * max_blocks_per_sequence * 4),
      logits_(device_, model.own_logits_capacity(max_num_seqs) * model.config().vocab_size * 4),
      draft_ids_(device_, num_tokens * max_num_seqs * 4),
      zeros_(static_cast<size_t>(max_num_seqs), 0) {
  std::vector<int32_t> numbers(static_cast<size_t>(max_num_seqs) + 1);
  std::iota(numbers.begin(), numbers.end(), 0);
  device_.copy_from_host(numbers_.data(), numbers.data(), numbers_.bytes());
}

Tensor Drafter::ids_of(int64_t depth, int64_t count) const {
  return draft_ids_.tensor(DType::i32, {num_tokens_, max_num_seqs_}).index(0, depth).first(count);
}

std::vector<int64_t> Drafter::recorded_rows(int64_t num_sequences, int64_t depth, int64_t num_tokens) const {
  if (num_sequences == 0) return {};
  const int64_t rows = std::min({device_.padded_rows(num_sequences), max_num_seqs_, num_tokens});
  return std::vector<int64_t>(static_cast<size_t>(depth), rows);
}

// The values are, for each row of the batch, the token that follows it, or the index of the draw that is that token.
// The MTP layer combines it with the row's hidden state. Behind them lie the planned draft tokens.
std::vector<int32_t> Drafter::stage(StepInFlight& step, int64_t num_tokens, bool is_recorded) const {
  const StepPlan& plan = step.plan;
  const std::vector<int32_t> first_draw = first_draws(plan);
  const size_t rows = static_cast<size_t>(num_tokens);
  std::vector<int32_t> beside(2 * rows, 0);
  std::fill(beside.begin() + static_cast<int64_t>(rows), beside.end(), -1);
  DraftingStep& drafting = step.drafting;
  std::vector<PlannedDrafts> planned;
  size_t row = 0;
  for (size_t c = 0; c < plan.chunks.size(); ++c) {
    const PlannedChunk& chunk = plan.chunks[c];
    const int64_t num_drawn = chunk.is_drawn_from ? chunk.num_draft_tokens + 1 : 0;
    for (int64_t i = 1; i <= chunk.count; ++i, ++row) {
      const int64_t drawn = i - 1 - (chunk.count - num_drawn);
      if (drawn >= 0) {
        beside[rows + row] = first_draw[c] + static_cast<int32_t>(drawn);
      } else {
        beside[row] = i < chunk.count ? chunk.token_ids[static_cast<size_t>(i)] : chunk.next_token_id;
      }
    }
    if (chunk.num_next_drafts <= 0) continue;
    drafting.chunks.push_back(c);
    planned.push_back({.first_row = static_cast<int32_t>(row) - 1 - static_cast<int32_t>(chunk.num_draft_tokens),
                       .first_draw = first_draw[c],
                       .num_verified = static_cast<int32_t>(chunk.num_draft_tokens),
                       .num_wanted = static_cast<int32_t>(chunk.num_next_drafts),
                       .first_choice = 0});
    // A pass takes the sequences up to the last that goes on so far: few passes have rows that do not.
    drafting.rows_at.resize(std::max(drafting.rows_at.size(), static_cast<size_t>(chunk.num_next_drafts)));
    std::fill_n(drafting.rows_at.begin(), chunk.num_next_drafts, static_cast<int64_t>(planned.size()));
  }
  if (planned.empty()) return beside;

  const int64_t num_sequences = static_cast<int64_t>(planned.size()),
                depth = static_cast<int64_t>(drafting.rows_at.size());
  LC_CHECK(num_sequences <= max_num_seqs_ && depth <= num_tokens_);
  if (is_recorded) drafting.rows_at = recorded_rows(num_sequences, depth, num_tokens);
  drafting.ids.assign(static_cast<size_t>(depth * max_num_seqs_), -1);
  // Draft tokens are drawn with the parameters and random numbers of the real draws: equal distributions then give
  // equal tokens.
  for (int64_t i = 0; i < num_sequences; ++i) {
    PlannedDrafts& p = planned[static_cast<size_t>(i)];
    p.first_choice = static_cast<int32_t>(drafting.choices.size());
    const PlannedChunk& chunk = plan.chunks[drafting.chunks[static_cast<size_t>(i)]];
    const Sequence& sequence = *chunk.sequence;
    for (int64_t accepted = 0; accepted <= p.num_verified; ++accepted)
      for (int64_t made = 0; made < p.num_wanted; ++made) {
        const int64_t next_position = chunk.start + chunk.count - p.num_verified + accepted;
        SamplingRow& draw = drafting.choices.emplace_back(
            sampling_row(sequence.params, sequence.num_prompt_tokens, next_position + made + 1));
        const Range own = model_.own_logits(drafting.rows_at[static_cast<size_t>(made)]);
        draw.logits_row = static_cast<int32_t>(i - own.begin);  // of the rank that owns it
        draw.sequence = static_cast<int32_t>(i);
        if (!has_draft_slot(next_position)) {  // its newest token is not in the token lane
          draw.repetition_penalty = 1;
          draw.presence_penalty = draw.frequency_penalty = 0;
          draw.bad_words = {};
        }
      }
  }
  while (static_cast<int64_t>(planned.size()) < drafting.rows_at[0])
    planned.push_back({.first_row = static_cast<int32_t>(planned.size()),
                       .first_draw = 0,
                       .num_verified = 0,
                       .num_wanted = 0,
                       .first_choice = 0});
  const size_t at = beside.size();
  beside.resize(at + planned.size() * kPlannedDraftsSize);
  std::memcpy(beside.data() + at, planned.data(), planned.size() * sizeof(PlannedDrafts));
  return beside;
}

// The lists of draft tokens, with a batch of their own. Its tables are as wide as those of the step.
DraftRows Drafter::rows_of(Tensor plan, const ForwardBatch& batch) const {
  const int64_t count = plan.size(0), width = batch.block_tables.size(1);
  const auto state = [&](int64_t which) {
    return state_.tensor(DType::i32, {kStates, max_num_seqs_}).index(0, which).first(count);
  };
  const Tensor numbers = numbers_.tensor(DType::i32, {max_num_seqs_ + 1});
  return {.plan = plan,
          .rows = state(0),
          .next_positions = state(1),
          .num_wanted = state(2),
          .choice = state(3),
          .batch = {.token_ids = state(4),
                    .positions = state(5),
                    .sequence_idx = numbers.first(count),
                    .query_starts = numbers.first(count + 1),
                    .block_tables = block_tables_.tensor(DType::i32, {count, width}),
                    .num_real_tokens = batch.num_real_tokens,
                    .num_decode_tokens = count,
                    .num_decode_sequences = count,
                    .decode_context = width * kBlockSize,
                    .prompt_chunks = {}}};
}

void Drafter::draft(const std::vector<int64_t>& rows_at, const ForwardBatch& batch, Tensor beside, Tensor hidden,
                    Tensor sampled_ids) {
  const int64_t num_tokens = batch.num_tokens();
  ForwardBatch next = batch;
  next.token_ids = beside.first(num_tokens);
  ops_.select_token_ids(next.token_ids, sampled_ids, beside.slice(0, num_tokens, 2 * num_tokens));
  if (rows_at.empty()) return model_.store_mtp(next, cache_, hidden);

  hidden = model_.forward_mtp(next, cache_, hidden);
  DraftRows all = rows_of(beside.slice(0, 2 * num_tokens, 2 * num_tokens + kPlannedDraftsSize * rows_at[0])
                              .reshape({rows_at[0], kPlannedDraftsSize}),
                          batch);
  ops_.accept_drafts(all, ids_of(0, rows_at[0]), sampled_ids, cache_.token_lane(), batch);
  for (size_t depth = 0; depth < rows_at.size(); ++depth) {
    const int64_t count = rows_at[depth], made = static_cast<int64_t>(depth);
    DraftRows drafts = all.first(count);
    const Tensor ids = ids_of(made, count), numbers = drafts.batch.sequence_idx;
    if (made > 0) {
      ops_.extend_drafts(drafts, ids, ids_of(made - 1, count), cache_.token_lane(), made);
      hidden = model_.forward_mtp(drafts.batch, cache_, hidden, made == 1 ? drafts.rows : numbers);
    }
    const Range own = model_.own_logits(count);
    const Tensor logits = logits_.tensor(DType::f32, {own.size(), model_.draft_vocab()});
    model_.draft_logits(logits, hidden, made == 0 ? drafts.rows : numbers);
    if (model_.shard().world() > 1)  // an all-reduce adds the ids of all ranks
      for (const Tensor& others : {ids.slice(0, 0, own.begin), ids.slice(0, own.end, count)})
        device_.upload(others.raw(), zeros_.data(), others.num_bytes());
    if (own.size() > 0)
      ops_.sample(ids.slice(0, own.begin, own.end), logits, cache_.token_lane(), drafts.batch.block_tables,
                  drafts.choice.slice(0, own.begin, own.end));
    model_.world().all_reduce(ids);
  }
}

void Drafter::download(StepInFlight& step) const {
  DraftingStep& drafting = step.drafting;
  if (drafting.ids.empty()) return;
  device_.download(drafting.ids.data(), draft_ids_.data(), static_cast<int64_t>(drafting.ids.size()) * 4);
}

// The draft tokens of a sequence end where none could be made.
void Drafter::finish(StepInFlight& step) {
  const DraftingStep& drafting = step.drafting;
  step.drafts.assign(step.plan.chunks.size(), {});
  const size_t depth = drafting.rows_at.size(), width = depth > 0 ? drafting.ids.size() / depth : 0;
  for (size_t i = 0; i < drafting.chunks.size(); ++i) {
    const auto most = static_cast<size_t>(step.plan.chunks[drafting.chunks[i]].num_next_drafts);
    for (size_t made = 0; made < most && drafting.ids[made * width + i] >= 0; ++made)
      step.drafts[drafting.chunks[i]].push_back(drafting.ids[made * width + i]);
  }
}

}  // namespace longcat
