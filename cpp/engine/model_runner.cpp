#include "engine/model_runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace longcat {

namespace {

constexpr int64_t kHostSlabBytes = int64_t{64} << 20;

}  // namespace

ModelRunner::ModelRunner(Ops& ops, Model& model, KvCache& cache, const RunnerLimits& limits)
    : ops_(ops),
      device_(ops.device()),
      model_(model),
      cache_(cache),
      limits_(limits),
      vocab_size_(model.config().vocab_size),
      batch_buffers_(device_, limits.max_num_batched_tokens, limits.max_draws, limits.max_blocks_per_sequence, kSlots,
                     limits.max_beside()),
      logits_(device_, model.own_logits_capacity(limits.max_draws) * vocab_size_ * 4),
      logit_rows_(device_, limits.max_draws * 4),
      all_rows_(device_, limits.max_draws * 4),
      sampled_ids_(device_, limits.max_draws * 4),
      zeros_(static_cast<size_t>(limits.max_draws), 0),
      host_slab_blocks_(std::max<int64_t>(kHostSlabBytes / limits.block_bytes, 1)) {
  std::vector<int32_t> rows(static_cast<size_t>(limits.max_draws));
  std::iota(rows.begin(), rows.end(), 0);
  device_.copy_from_host(all_rows_.data(), rows.data(), all_rows_.bytes());
  if (limits.num_drafts > 0)
    drafter_ = std::make_unique<Drafter>(ops, model, cache, limits.max_num_batched_tokens, limits.max_drafting(),
                                         limits.max_blocks_per_sequence, limits.num_drafts);
  if (device_.warms_recordings()) warm_up();
}

// Records the graphs of short contexts before the first request: the first launch of a kernel, and making a graph, take
// 10 to 20 ms. All rows are padding, which writes to the null block. Of the graphs that make draft tokens, it records
// those with the most of them for every sequence. The step then verifies none or all.
void ModelRunner::warm_up() {
  const int64_t most = std::min(limits_.max_draws, limits_.max_num_batched_tokens);
  const std::vector<int32_t> beside(static_cast<size_t>(limits_.max_beside()), 0);
  const auto record = [&](int64_t rows, int64_t num_drafting) {
    const int64_t padded = padded_rows(rows);
    batch_buffers_.stage({}, 0, padded, beside);
    std::vector<int64_t> rows_at;
    if (num_drafting > 0) rows_at = drafter_->recorded_rows(num_drafting, limits_.num_drafts, padded);
    device_.wait(device_.submit([&] {
      const ForwardBatch batch = batch_buffers_.upload(0);
      const Tensor logit_rows = all_rows_.tensor(DType::i32, {padded});
      ops_.set_sampling_rows({});
      if (recordings_.empty()) compute(batch, logit_rows, rows_at);  // kernels are loaded outside a capture
      model_.launch(*recording_of(batch, logit_rows, rows_at).graph);
    }));
  };
  if (records_drafts())
    for (int64_t num = 1; num <= std::min(limits_.max_drafting(), most); num = device_.padded_rows(num) + 1) {
      record(num, num);
      record(std::min(num * (1 + limits_.num_drafts), most), num);
    }
  for (int64_t rows = 1; rows <= most; rows = padded_rows(rows) + 1) record(rows, 0);
}

// Steps in flight read what this object owns.
ModelRunner::~ModelRunner() {
  try {
    device_.wait(device_.submit([] {}));
  } catch (const std::exception&) {  // the thread that waited for the step has the error
  }
}

int64_t ModelRunner::padded_rows(int64_t rows) const {
  return std::min({device_.padded_rows(rows), limits_.max_draws, limits_.max_num_batched_tokens});
}

std::unique_ptr<StepInFlight> ModelRunner::stage(StepPlan plan) {
  auto step = std::make_unique<StepInFlight>();
  step->plan = std::move(plan);
  step->slot = next_slot_;
  next_slot_ = 1 - next_slot_;
  const StepPlan& p = step->plan;
  std::vector<Chunk> chunks;
  for (const PlannedChunk& chunk : p.chunks)
    chunks.push_back({.token_ids = chunk.token_ids,
                      .start = chunk.start,
                      .blocks = chunk.blocks,
                      .generated = chunk.generated,
                      .source = chunk.source});
  // Steps that only decode repeat a few shapes, so they are recorded as graphs.
  const bool decodes_only = !p.chunks.empty() && std::ranges::all_of(p.chunks, [](const PlannedChunk& c) {
    return c.generated && c.is_drawn_from && c.count == 1 + c.num_draft_tokens;
  });
  step->recorded_rows = decodes_only ? padded_rows(p.num_tokens()) : 0;
  std::vector<int32_t> beside;
  if (drafter_) beside = drafter_->stage(*step, std::max(p.num_tokens(), step->recorded_rows), decodes_only);
  if (!chunks.empty()) batch_buffers_.stage(chunks, step->slot, step->recorded_rows, beside);

  step->sampled_ids.resize(p.draws.size(), -1);
  step->logprobs.resize(p.draws.size());
  step->errors.resize(p.draws.size());
  step->prompt_logprobs.resize(p.chunks.size());
  step->chunk_errors.resize(p.chunks.size());
  for (const PlannedDraw& draw : p.draws) step->masks.push_back(draw.sequence->mask);
  return step;
}

void ModelRunner::submit(StepInFlight& step) {
  step.ticket = device_.submit([this, &step] {
    try {
      run(step);
    } catch (const std::exception& error) {  // the other ranks wait for this one already
      model_.abort_ranks(str_cat("[parallel] rank ", model_.shard().rank, " failed: ", error.what()));
      throw;
    }
  });
}

void ModelRunner::wait(StepInFlight& step) {
  device_.wait(step.ticket);
  if (drafter_) Drafter::finish(step);
}

void ModelRunner::move_blocks(const StepPlan& plan) {
  for (const BlockMove& move : plan.moves) switch (move.kind) {
      case BlockMove::Kind::copy:
        cache_.copy_block(move.other_block, move.block);
        break;
      case BlockMove::Kind::swap_out:
        cache_.swap_out_block(host_block(move.other_block), move.block);
        break;
      case BlockMove::Kind::swap_in:
        cache_.swap_in_block(move.block, host_block(move.other_block));
        break;
      case BlockMove::Kind::drop:  // the scheduler has freed the host block
        break;
    }
}

// Host memory for swapped-out blocks is pinned by slabs, which stay pinned: pinning takes about a millisecond a call,
// and unpinning waits for the device. The scheduler hands out the lowest host blocks first.
void* ModelRunner::host_block(int32_t host_block_idx) {
  const int64_t slab = host_block_idx / host_slab_blocks_, in_slab = host_block_idx % host_slab_blocks_;
  if (slab >= static_cast<int64_t>(host_slabs_.size())) host_slabs_.resize(static_cast<size_t>(slab) + 1);
  HostBuffer& memory = host_slabs_[static_cast<size_t>(slab)];
  if (!memory.data()) memory = HostBuffer(device_, host_slab_blocks_ * limits_.block_bytes);
  return static_cast<char*>(memory.data()) + in_slab * limits_.block_bytes;
}

// The work of a recorded graph: everything that has the same shape in all steps with this number of rows. With peers,
// the draws come behind the graph: their place among all draws depends on the step. rows_at: of the draft tokens
// (Drafter), where records_drafts().
Tensor ModelRunner::compute(const ForwardBatch& batch, Tensor logit_rows, const std::vector<int64_t>& rows_at) {
  ops_.select_token_ids(batch.token_ids, sampled_ids_.tensor(DType::i32, {limits_.max_draws}),
                        batch_buffers_.sources());
  const Tensor hidden = model_.forward(batch, cache_);
  if (logit_rows.empty()) return hidden;
  const int64_t rows = logit_rows.size(0);
  const Tensor own_logits = logits(model_.own_logits(rows).size());
  model_.logits(own_logits, hidden, logit_rows);
  if (!has_peers())
    ops_.sample(sampled_ids_.tensor(DType::i32, {rows}), own_logits, cache_.token_lane(), batch.block_tables);
  if (records_drafts()) make_drafts(batch, hidden, rows_at);
  return hidden;
}

void ModelRunner::make_drafts(const ForwardBatch& batch, Tensor hidden, const std::vector<int64_t>& rows_at) {
  drafter_->draft(rows_at, batch, batch_buffers_.beside(), hidden,
                  sampled_ids_.tensor(DType::i32, {limits_.max_draws}));
}

ModelRunner::RecordedStep& ModelRunner::recording_of(const ForwardBatch& batch, Tensor logit_rows,
                                                     const std::vector<int64_t>& rows_at) {
  const bool drafts = records_drafts();
  RecordedStep& step = recordings_[{.num_tokens = batch.num_tokens(),
                                    .context = batch.decode_context,
                                    .with_mtp = drafts,
                                    .num_drafts = drafts ? static_cast<int64_t>(rows_at.size()) : 0,
                                    .num_drafting = drafts && !rows_at.empty() ? rows_at[0] : 0}];
  if (!step.graph)
    step.graph = device_.record(
        [this, &step, batch, logit_rows, rows_at] { step.hidden = compute(batch, logit_rows, rows_at); });
  return step;
}

int64_t ModelRunner::num_recorded_nodes() const {
  int64_t nodes = 0;
  for (const auto& [shape, step] : recordings_) nodes += step.graph ? step.graph->num_nodes() : 0;
  return nodes;
}

void ModelRunner::run(StepInFlight& step) {
  const StepPlan& plan = step.plan;
  const int64_t recorded_rows = step.recorded_rows;
  move_blocks(plan);
  if (plan.chunks.empty()) return;
  const ForwardBatch batch = batch_buffers_.upload(step.slot);
  std::vector<int32_t> logit_rows;                      // rows whose logits are computed
  std::vector<int32_t> logits_row(plan.chunks.size());  // for each chunk, the row of its first logits among `rows`
  Range own;                                            // the part of logit_rows that this rank owns
  OwnDraws draws;
  Tensor hidden;
  int64_t first_row = 0;
  if (recorded_rows > 0) {
    for (size_t c = 0; c < plan.chunks.size(); ++c) {
      logits_row[c] = static_cast<int32_t>(first_row);
      first_row += plan.chunks[c].count;
    }
    own = model_.own_logits(recorded_rows);
    draws = own_draws(step, logits_row, own);
    ops_.set_sampling_rows(draws.rows, step.drafting.choices);
    const RecordedStep& recorded =
        recording_of(batch, all_rows_.tensor(DType::i32, {recorded_rows}), step.drafting.rows_at);
    model_.launch(*recorded.graph);
    hidden = recorded.hidden;
    if (observer_) observer_->after_forward(plan, model_, hidden);
  } else {
    hidden = compute(batch, {}, {});
    if (observer_) observer_->after_forward(plan, model_, hidden);
    for (size_t c = 0; c < plan.chunks.size(); ++c) {
      score_prompt(step, c, hidden, first_row);
      first_row += plan.chunks[c].count;
      if (!plan.chunks[c].is_drawn_from) continue;
      logits_row[c] = static_cast<int32_t>(logit_rows.size());
      for (int64_t behind = plan.chunks[c].num_draft_tokens; behind >= 0; --behind)
        logit_rows.push_back(static_cast<int32_t>(first_row - 1 - behind));
    }
    if (!logit_rows.empty()) own = compute_logits(hidden, logit_rows);
    draws = own_draws(step, logits_row, own);
    if (!draws.rows.empty() || !step.drafting.choices.empty())
      ops_.set_sampling_rows(draws.rows, step.drafting.choices);
  }
  if (!plan.draws.empty()) sample(step, batch, draws, own);
  if (!drafter_) return;
  if (recorded_rows == 0 || !records_drafts()) make_drafts(batch, hidden, step.drafting.rows_at);
  drafter_->download(step);
}

// Computes the logits of `rows` of `hidden`, at most max_draws. Returns the range that this rank owns.
Range ModelRunner::compute_logits(Tensor hidden, const std::vector<int32_t>& rows) {
  const Tensor device_rows = logit_rows_.tensor(DType::i32, {static_cast<int64_t>(rows.size())});
  device_.upload(device_rows.raw(), rows.data(), device_rows.num_bytes());
  const Range own = model_.own_logits(device_rows.size(0));
  model_.logits(logits(own.size()), hidden, device_rows);
  return own;
}

// Returns the log-probabilities of token_ids. This rank has the logits of `own`. Each rank contributes zeros for the
// other rows to an all-reduce, so that all ranks get all of them.
std::vector<TokenLogprobs> ModelRunner::compute_logprobs(Tensor logits, Range own, std::span<const int32_t> token_ids,
                                                         int64_t top) {
  const int64_t count = static_cast<int64_t>(token_ids.size()), width = 1 + top;
  const Buffer values_buffer(device_, count * width * 4), ids_buffer(device_, count * width * 4),
      ranks_buffer(device_, count * 4), chosen_buffer(device_, count * 4);
  const Tensor values = values_buffer.tensor(DType::f32, {count, width}),
               ids = ids_buffer.tensor(DType::i32, {count, width});
  const Tensor ranks = ranks_buffer.tensor(DType::i32, {count}), chosen = chosen_buffer.tensor(DType::i32, {count});
  device_.copy_from_host(chosen.raw(), token_ids.data(), chosen.num_bytes());
  const auto mine = [&](const Tensor& all) { return all.slice(0, own.begin, own.end); };
  if (own.size() > 0) ops_.token_logprobs(mine(values), mine(ids), mine(ranks), logits, mine(chosen));
  for (const Tensor& part : {values, ids, ranks}) model_.world().all_reduce(part);

  std::vector<int32_t> host_ranks(static_cast<size_t>(count));
  device_.copy_to_host(host_ranks.data(), ranks.raw(), ranks.num_bytes());
  std::vector<TokenLogprobs> result;
  for (int64_t i = 0; i < count; ++i) {
    TokenLogprobs& one = result.emplace_back();
    one.rank = host_ranks[static_cast<size_t>(i)];
    one.ids.resize(static_cast<size_t>(width));
    one.logprobs.resize(static_cast<size_t>(width));
    device_.copy_to_host(one.ids.data(), ids.row<int32_t>(i), width * 4);
    device_.copy_to_host(one.logprobs.data(), values.row<float>(i), width * 4);
  }
  return result;
}

// Returns the log-probabilities of the prompt tokens that a chunk predicts. The chunk begins at row `first_row` of the
// batch.
void ModelRunner::score_prompt(StepInFlight& step, size_t chunk_idx, Tensor hidden, int64_t first_row) try {
  const PlannedChunk& chunk = step.plan.chunks[chunk_idx];
  for (int64_t start = chunk.score_begin; start < chunk.score_end; start += limits_.max_draws) {
    const int64_t count = std::min(limits_.max_draws, chunk.score_end - start);
    std::vector<int32_t> rows(static_cast<size_t>(count));
    std::iota(rows.begin(), rows.end(), static_cast<int32_t>(first_row + start - chunk.start));
    const auto predicted =
        std::span(chunk.score_ids).subspan(static_cast<size_t>(start - chunk.score_begin), static_cast<size_t>(count));
    const Range own = compute_logits(hidden, rows);
    for (TokenLogprobs& one :
         compute_logprobs(logits(own.size()), own, predicted, chunk.sequence->params.prompt_logprobs)) {
      if (std::isnan(one.logprobs[0])) {
        step.chunk_errors[chunk_idx] = "the logits of the prompt are not finite";
        return;
      }
      step.prompt_logprobs[chunk_idx].push_back(std::move(one));
    }
  }
} catch (const DeviceFailure&) {
  throw;
} catch (const std::exception& error) {  // the error ends this request alone
  if (has_peers()) throw;                // the other ranks did not see the error
  step.chunk_errors[chunk_idx] = error.what();
}

ModelRunner::OwnDraws ModelRunner::own_draws(const StepInFlight& step, std::span<const int32_t> logits_rows,
                                             Range own) const {
  OwnDraws draws;
  for (size_t i = 0; i < step.plan.draws.size(); ++i) {
    const PlannedDraw& planned = step.plan.draws[i];
    const int32_t logits_row = logits_rows[planned.chunk] + static_cast<int32_t>(planned.num_drafts);
    if (logits_row < own.begin) ++draws.mine.begin;
    if (logits_row < own.begin || logits_row >= own.end) continue;
    const Sequence& sequence = *planned.sequence;
    SamplingRow& row =
        draws.rows.emplace_back(sampling_row(sequence.params, sequence.num_prompt_tokens, planned.num_tokens));
    row.logits_row = logits_row - static_cast<int32_t>(own.begin);
    row.sequence = static_cast<int32_t>(planned.chunk);
    row.mask = step.masks[i];
  }
  draws.mine.end = draws.mine.begin + static_cast<int64_t>(draws.rows.size());
  return draws;
}

// Each rank draws from the rows of logits that it owns. An all-reduce, with zeros for the other rows, gives every rank
// all draws.
void ModelRunner::sample(StepInFlight& step, const ForwardBatch& batch, const OwnDraws& draws, Range own) {
  const StepPlan& plan = step.plan;
  const auto& [rows, mine] = draws;
  const Tensor ids = sampled_ids_.tensor(DType::i32, {static_cast<int64_t>(plan.draws.size())});
  if (has_peers()) device_.upload(ids.raw(), zeros_.data(), ids.num_bytes());
  const bool is_sampled = step.recorded_rows > 0 && !has_peers();  // see compute()
  if (!rows.empty() && !is_sampled)
    ops_.sample(ids.slice(0, mine.begin, mine.end), logits(own.size()), cache_.token_lane(), batch.block_tables);
  model_.world().all_reduce(ids);
  device_.download(step.sampled_ids.data(), ids.raw(), ids.num_bytes());
  for (size_t i = 0; i < plan.draws.size(); ++i) try {
      const SamplingParams& p = plan.draws[i].sequence->params;
      if (p.logprobs < 0) continue;
      int32_t token_id;
      device_.copy_to_host(&token_id, ids.data<int32_t>() + i, 4);
      if (token_id < 0) continue;
      const int64_t draw_idx = static_cast<int64_t>(i);
      const bool is_mine = mine.begin <= draw_idx && draw_idx < mine.end;
      const int64_t row = is_mine ? rows[static_cast<size_t>(draw_idx - mine.begin)].logits_row : 0;
      step.logprobs[i] = compute_logprobs(is_mine ? logits(own.size()).slice(0, row, row + 1) : Tensor{},
                                          is_mine ? Range{0, 1} : Range{}, {&token_id, 1}, p.logprobs)[0];
    } catch (const DeviceFailure&) {
      throw;
    } catch (const std::exception& error) {  // the error ends this request alone
      if (has_peers()) throw;
      step.errors[i] = error.what();
    }
}

void ModelRunner::forward(const Chunk& chunk, float* out) {
  constexpr int kSlot = kSlots - 1;
  batch_buffers_.stage({&chunk, 1}, kSlot);
  const int64_t count = static_cast<int64_t>(chunk.token_ids.size());
  device_.wait(device_.submit([&] {
    const Tensor hidden = compute(batch_buffers_.upload(kSlot), {}, {});
    for (int64_t first = 0; first < count; first += limits_.max_draws) {
      std::vector<int32_t> rows(static_cast<size_t>(std::min(limits_.max_draws, count - first)));
      std::iota(rows.begin(), rows.end(), static_cast<int32_t>(first));
      const Range own = compute_logits(hidden, rows);
      Tensor all = logits(own.size());
      Buffer gathered;
      if (has_peers()) {
        const int64_t rows_of_a_rank = model_.own_logits_capacity(static_cast<int64_t>(rows.size()));
        const int64_t world = model_.shard().world();
        gathered = Buffer(device_, world * rows_of_a_rank * vocab_size_ * 4);
        all = gathered.tensor(DType::f32, {world * rows_of_a_rank, vocab_size_});
        model_.world().all_gather(all, logits(rows_of_a_rank));
        all = all.first(static_cast<int64_t>(rows.size()));
      }
      if (out) device_.copy_to_host(out + first * vocab_size_, all.raw(), all.num_bytes());
    }
  }));
}

}  // namespace longcat
