#include "engine/drafter.h"

#include <algorithm>

#include "engine/model_runner.h"

namespace longcat {

namespace {

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
      max_num_seqs_(max_num_seqs),
      num_tokens_(num_tokens),
      batch_buffers_(device_, max_num_seqs, max_num_seqs, max_blocks_per_sequence),
      next_ids_(device_, max_num_tokens * 4),
      sources_(device_, max_num_tokens * 4),
      rows_(device_, max_num_seqs * 4),
      logits_(device_, model.own_logits_capacity(max_num_seqs) * model.config().vocab_size * 4),
      draft_ids_(device_, num_tokens * max_num_seqs * 4),
      zeros_(static_cast<size_t>(max_num_seqs), 0) {}

Tensor Drafter::upload(const Buffer& buffer, const std::vector<int32_t>& values) {
  const Tensor out = buffer.tensor(DType::i32, {static_cast<int64_t>(values.size())});
  device_.upload(out.raw(), values.data(), out.num_bytes());
  return out;
}

Tensor Drafter::ids_of(int64_t depth, int64_t count) const {
  return draft_ids_.tensor(DType::i32, {num_tokens_, max_num_seqs_}).index(0, depth).first(count);
}

void Drafter::draft(StepInFlight& step, const ForwardBatch& batch, Tensor hidden, Tensor sampled_ids) {
  const ForwardBatch next = next_tokens(step, batch, sampled_ids);
  step.drafts.assign(step.plan.chunks.size(), {});
  if (std::ranges::none_of(step.plan.chunks, [](const PlannedChunk& chunk) { return chunk.num_next_drafts > 0; }))
    return model_.store_mtp(next, cache_, hidden);
  hidden = model_.forward_mtp(next, cache_, hidden);
  std::vector<Draft> drafts = begin(step, sampled_ids);
  ForwardBatch last = batch;
  for (int64_t depth = 0; !drafts.empty(); ++depth) {
    if (depth > 0) last = read_drafts(step, drafts, depth, hidden);
    for (const Draft& draft : drafts) write_history(step, draft, depth);
    draw(step, drafts, last, hidden, depth);
    std::vector<int32_t> ids(drafts.size());
    device_.copy_to_host(ids.data(), ids_of(depth, static_cast<int64_t>(ids.size())).raw(),
                         static_cast<int64_t>(ids.size()) * 4);
    for (size_t i = 0; i < drafts.size(); ++i) {
      if (ids[i] < 0) drafts[i].num_wanted = 0;  // the logits are not finite, or all ids are forbidden
      if (ids[i] >= 0) step.drafts[drafts[i].chunk].push_back(ids[i]);
    }
    std::erase_if(drafts, [&](const Draft& draft) { return draft.num_wanted <= depth + 1; });
  }
}

// Returns the batch with the token that follows each row: the next token of the chunk, or the token drawn from the row.
// The MTP layer combines it with the row's hidden state.
ForwardBatch Drafter::next_tokens(const StepInFlight& step, const ForwardBatch& batch, Tensor sampled_ids) {
  const StepPlan& plan = step.plan;
  const std::vector<int32_t> first_draw = first_draws(plan);
  std::vector<int32_t> next_ids, sources;
  for (size_t c = 0; c < plan.chunks.size(); ++c) {
    const PlannedChunk& chunk = plan.chunks[c];
    const int64_t num_drawn = chunk.is_drawn_from ? chunk.num_draft_tokens + 1 : 0;
    for (int64_t i = 1; i <= chunk.count; ++i) {
      const int64_t drawn = i - 1 - (chunk.count - num_drawn);
      const bool is_known = drawn < 0 && i < chunk.count;
      next_ids.push_back(is_known ? chunk.token_ids[static_cast<size_t>(i)] : chunk.next_token_id);
      sources.push_back(drawn < 0 ? -1 : first_draw[c] + static_cast<int32_t>(drawn));
    }
  }
  next_ids.resize(static_cast<size_t>(batch.num_tokens()), 0);  // padding
  sources.resize(next_ids.size(), -1);
  ForwardBatch next = batch;
  next.token_ids = upload(next_ids_, next_ids);
  ops_.select_token_ids(next.token_ids, sampled_ids, upload(sources_, sources));
  return next;
}

// Each sequence goes on from its last accepted draft token. The layer stores the draft tokens in the block of the
// newest token. Where the newest token begins a block, the sequence does not have that block yet, and gets one draft
// token only.
std::vector<Drafter::Draft> Drafter::begin(const StepInFlight& step, Tensor sampled_ids) {
  const StepPlan& plan = step.plan;
  std::vector<Draft> drafts;
  std::vector<int32_t> drawn(plan.draws.size());
  device_.copy_to_host(drawn.data(), sampled_ids.raw(), static_cast<int64_t>(drawn.size()) * 4);
  std::vector<int64_t> num_accepted(plan.chunks.size(), 0);
  const std::vector<int32_t> first_draw = first_draws(plan);
  for (size_t i = 0; i < plan.draws.size(); ++i) {
    const PlannedDraw& draw = plan.draws[i];
    const PlannedChunk& chunk = plan.chunks[draw.chunk];
    if (draw.num_drafts < chunk.num_draft_tokens && draw.num_drafts == num_accepted[draw.chunk] &&
        drawn[i] ==
            chunk.token_ids[chunk.token_ids.size() - static_cast<size_t>(chunk.num_draft_tokens - draw.num_drafts)])
      ++num_accepted[draw.chunk];
  }
  int64_t end_row = 0;
  for (size_t c = 0; c < plan.chunks.size(); ++c) {
    const PlannedChunk& chunk = plan.chunks[c];
    end_row += chunk.count;
    const int64_t num_rejected = chunk.num_draft_tokens - num_accepted[c];
    const int64_t next_position = chunk.start + chunk.count - num_rejected, place = next_position % kBlockSize;
    const int64_t num_wanted = std::min(chunk.num_next_drafts, place == 0 ? 1 : kBlockSize - 1 - place);
    if (num_wanted > 0)
      drafts.push_back({.chunk = c,
                        .next_position = next_position,
                        .num_wanted = num_wanted,
                        .newest = drawn[static_cast<size_t>(first_draw[c] + num_accepted[c])],
                        .row = static_cast<int32_t>(end_row - 1 - num_rejected)});
  }
  LC_CHECK(static_cast<int64_t>(drafts.size()) <= max_num_seqs_);
  return drafts;
}

// Makes a batch of one row for each sequence: its newest draft token, at the slot of the token before it.
ForwardBatch Drafter::read_drafts(const StepInFlight& step, std::vector<Draft>& drafts, int64_t depth, Tensor& hidden) {
  std::vector<Chunk> chunks;
  std::vector<std::vector<int32_t>> token_ids;
  for (const Draft& draft : drafts) token_ids.push_back({step.drafts[draft.chunk].back()});
  std::vector<int32_t> rows;
  for (size_t i = 0; i < drafts.size(); ++i) {
    Draft& draft = drafts[i];
    chunks.push_back({.token_ids = token_ids[i],
                      .start = draft.next_position + depth - 1,
                      .blocks = step.plan.chunks[draft.chunk].blocks,
                      .generated = true});
    rows.push_back(draft.row);
    draft.row = static_cast<int32_t>(i);
  }
  const ForwardBatch batch = batch_buffers_.upload(chunks);  // free: draft() has waited for its last upload
  hidden = model_.forward_mtp(batch, cache_, hidden, upload(rows_, rows));
  return batch;
}

// Writes the newest token, drawn or draft, to the token lane behind the tokens of the step. The next step overwrites a
// draft token with the accepted one.
void Drafter::write_history(const StepInFlight& step, const Draft& draft, int64_t depth) {
  if (!has_slot(draft)) return;
  const int32_t token_id = depth == 0 ? draft.newest : step.drafts[draft.chunk].back();
  const int64_t slot = slot_of(step.plan.chunks[draft.chunk].blocks.data(), draft.next_position + depth);
  device_.upload(cache_.token_lane().data<int32_t>() + slot, &token_id, 4);
}

// Draws the draft tokens with the parameters and random numbers of the real draws: equal distributions then give equal
// tokens.
void Drafter::draw(const StepInFlight& step, const std::vector<Draft>& drafts, const ForwardBatch& batch, Tensor hidden,
                   int64_t depth) {
  const int64_t count = static_cast<int64_t>(drafts.size());
  std::vector<int32_t> logit_rows;
  for (const Draft& draft : drafts) logit_rows.push_back(draft.row);
  const Range own = model_.own_logits(count);
  const Tensor logits = logits_.tensor(DType::f32, {own.size(), model_.config().vocab_size});
  model_.draft_logits(logits, hidden, upload(rows_, logit_rows));

  std::vector<SamplingRow> rows;
  for (int64_t i = own.begin; i < own.end; ++i) {
    const Draft& draft = drafts[static_cast<size_t>(i)];
    const Sequence& sequence = *step.plan.chunks[draft.chunk].sequence;
    SamplingRow& row =
        rows.emplace_back(sampling_row(sequence.params, sequence.num_prompt_tokens, draft.next_position + depth + 1));
    row.logits_row = static_cast<int32_t>(i - own.begin);
    row.sequence = static_cast<int32_t>(depth == 0 ? static_cast<int64_t>(draft.chunk) : i);
    if (!has_slot(draft)) {  // its newest token is not in the token lane
      row.repetition_penalty = 1;
      row.presence_penalty = row.frequency_penalty = 0;
      row.bad_words = {};
    }
  }
  const Tensor ids = ids_of(depth, count);
  if (model_.shard().world() > 1) device_.upload(ids.raw(), zeros_.data(), ids.num_bytes());
  if (!rows.empty()) {
    ops_.set_sampling_rows(rows);
    ops_.sample(ids.slice(0, own.begin, own.end), logits, cache_.token_lane(), batch.block_tables);
  }
  model_.world().all_reduce(ids);
}

}  // namespace longcat
