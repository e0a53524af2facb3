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
      batch_buffers_(device_, limits.max_num_batched_tokens, limits.max_samples, limits.max_blocks_per_sequence,
                     kSlots),
      logits_(device_, model.own_logits_capacity(limits.max_samples) * vocab_size_ * 4),
      logit_rows_(device_, limits.max_samples * 4),
      all_rows_(device_, limits.max_samples * 4),
      sampled_ids_(device_, limits.max_samples * 4),
      zeros_(static_cast<size_t>(limits.max_samples), 0),
      host_slab_blocks_(std::max<int64_t>(kHostSlabBytes / limits.block_bytes, 1)) {
  std::vector<int32_t> rows(static_cast<size_t>(limits.max_samples));
  std::iota(rows.begin(), rows.end(), 0);
  device_.copy_from_host(all_rows_.data(), rows.data(), all_rows_.bytes());
  if (limits.num_drafts > 0)  // each sequence that guesses are made for takes one of the samples beyond max_num_seqs
    drafter_ = std::make_unique<Drafter>(ops, model, cache, limits.max_num_batched_tokens,
                                         std::min(limits.max_num_seqs, limits.max_samples - limits.max_num_seqs),
                                         limits.max_blocks_per_sequence, limits.num_drafts);
  if (device_.warms_recordings()) warm_up();
}

// Records the steps of short contexts before the first request: a kernel's first launch and a graph's instantiation
// take 10 to 20 ms. All rows are padding, which writes to the null block.
void ModelRunner::warm_up() {
  const int64_t most = std::min(limits_.max_samples, limits_.max_num_batched_tokens);
  for (int64_t rows = 1; rows <= most;) {
    const int64_t padded = padded_rows(rows);
    batch_buffers_.stage({}, 0, padded);
    device_.wait(device_.submit([&] {
      const ForwardBatch batch = batch_buffers_.upload(0);
      const Tensor logit_rows = all_rows_.tensor(DType::i32, {padded});
      if (rows == 1) compute(batch, logit_rows);  // kernels are loaded outside a capture
      model_.launch(recording_of(batch, logit_rows));
    }));
    rows = padded + 1;
  }
}

// Work under way reads what this object owns.
ModelRunner::~ModelRunner() {
  try {
    device_.wait(device_.submit([] {}));
  } catch (const std::exception&) {  // told to whoever waited for it
  }
}

int64_t ModelRunner::padded_rows(int64_t rows) const {
  return std::min({device_.padded_rows(rows), limits_.max_samples, limits_.max_num_batched_tokens});
}

std::unique_ptr<StepInFlight> ModelRunner::stage(StepPlan plan) {
  auto flight = std::make_unique<StepInFlight>();
  flight->plan = std::move(plan);
  flight->slot = next_slot_;
  next_slot_ = 1 - next_slot_;
  const StepPlan& p = flight->plan;
  std::vector<Chunk> chunks;
  for (const PlannedChunk& chunk : p.chunks)
    chunks.push_back({.token_ids = chunk.token_ids,
                      .start = chunk.start,
                      .blocks = chunk.blocks,
                      .generated = chunk.generated,
                      .source = chunk.source});
  // Steps of generated tokens, each of them sampled from, come again and again: they are recorded.
  const bool decodes_only = !p.chunks.empty() && std::ranges::all_of(p.chunks, [](const PlannedChunk& c) {
    return c.generated && c.samples && c.count == 1 + c.num_guesses;
  });
  flight->recorded_rows = decodes_only ? padded_rows(p.num_tokens()) : 0;
  if (!chunks.empty()) batch_buffers_.stage(chunks, flight->slot, flight->recorded_rows);

  flight->sampled_ids.resize(p.samples.size(), -1);
  flight->logprobs.resize(p.samples.size());
  flight->errors.resize(p.samples.size());
  flight->prompt_logprobs.resize(p.chunks.size());
  flight->chunk_errors.resize(p.chunks.size());
  for (const PlannedSample& sample : p.samples) flight->masks.push_back(sample.sequence->mask);
  return flight;
}

void ModelRunner::submit(StepInFlight& flight) {
  flight.ticket = device_.submit([this, &flight] {
    try {
      run(flight);
    } catch (const std::exception& error) {  // the other ranks wait for this one before anybody waits for the step
      model_.abort_ranks(str_cat("[parallel] rank ", model_.shard().rank, " failed: ", error.what()));
      throw;
    }
  });
}

void ModelRunner::wait(StepInFlight& flight) { device_.wait(flight.ticket); }

void ModelRunner::move_blocks(const StepPlan& plan) {
  for (const BlockMove& move : plan.moves) switch (move.kind) {
      case BlockMove::Kind::copy:
        cache_.copy_block(move.other_block, move.block);
        break;
      case BlockMove::Kind::save:
        cache_.save_block(host_block(move.other_block), move.block);
        break;
      case BlockMove::Kind::load:
        cache_.load_block(move.block, host_block(move.other_block));
        break;
      case BlockMove::Kind::drop:  // the scheduler gives its place to another block
        break;
    }
}

// Pinning memory takes about a millisecond a call, and unpinning waits for the device. So places for saved blocks are
// pinned by slabs, which stay. The scheduler hands out the lowest places first.
void* ModelRunner::host_block(int32_t host_block_idx) {
  const int64_t slab = host_block_idx / host_slab_blocks_, in_slab = host_block_idx % host_slab_blocks_;
  if (slab >= static_cast<int64_t>(host_slabs_.size())) host_slabs_.resize(static_cast<size_t>(slab) + 1);
  HostBuffer& memory = host_slabs_[static_cast<size_t>(slab)];
  if (!memory.data()) memory = HostBuffer(device_, host_slab_blocks_ * limits_.block_bytes);
  return static_cast<char*>(memory.data()) + in_slab * limits_.block_bytes;
}

// What a recording holds: everything that has the same shape in every step of so many rows.
void ModelRunner::compute(const ForwardBatch& batch, Tensor logit_rows) {
  ops_.select_token_ids(batch.token_ids, sampled_ids_.tensor(DType::i32, {limits_.max_samples}),
                        batch_buffers_.sources());
  model_.forward(batch, cache_);
  if (!logit_rows.empty()) model_.logits(logits(model_.own_logits(logit_rows.size(0)).size()), logit_rows);
}

Recording& ModelRunner::recording_of(const ForwardBatch& batch, Tensor logit_rows) {
  std::unique_ptr<Recording>& recording = recordings_[{batch.num_tokens(), batch.decode_context}];
  if (!recording) recording = device_.record([this, batch, logit_rows] { compute(batch, logit_rows); });
  return *recording;
}

void ModelRunner::run(StepInFlight& flight) {
  const StepPlan& plan = flight.plan;
  const int64_t recorded_rows = flight.recorded_rows;
  move_blocks(plan);
  if (plan.chunks.empty()) return;
  const ForwardBatch batch = batch_buffers_.upload(flight.slot);
  std::vector<int32_t> logit_rows;                      // rows of the step whose logits are computed
  std::vector<int32_t> logits_row(plan.chunks.size());  // where a chunk finds its first logits
  Range own;                                            // of logit_rows
  int64_t first_row = 0;
  if (recorded_rows > 0) {
    for (size_t c = 0; c < plan.chunks.size(); ++c) {
      logits_row[c] = static_cast<int32_t>(first_row);
      first_row += plan.chunks[c].count;
    }
    model_.launch(recording_of(batch, all_rows_.tensor(DType::i32, {recorded_rows})));
    own = model_.own_logits(recorded_rows);
    if (observer_) observer_->after_forward(plan, model_);
  } else {
    compute(batch, {});
    if (observer_) observer_->after_forward(plan, model_);
    for (size_t c = 0; c < plan.chunks.size(); ++c) {
      score_prompt(flight, c, first_row);
      first_row += plan.chunks[c].count;
      if (!plan.chunks[c].samples) continue;
      logits_row[c] = static_cast<int32_t>(logit_rows.size());
      for (int64_t guess = plan.chunks[c].num_guesses; guess >= 0; --guess)
        logit_rows.push_back(static_cast<int32_t>(first_row - 1 - guess));
    }
    if (!logit_rows.empty()) own = compute_logits(logit_rows);
  }
  if (!plan.samples.empty()) sample(flight, batch, logits_row, own);
  if (drafter_) drafter_->draft(flight, batch, sampled_ids_.tensor(DType::i32, {limits_.max_samples}));
}

// Logits of rows of the last forward pass, at most max_samples of them; which of them this rank has now.
Range ModelRunner::compute_logits(const std::vector<int32_t>& rows) {
  const Tensor device_rows = logit_rows_.tensor(DType::i32, {static_cast<int64_t>(rows.size())});
  device_.upload(device_rows.raw(), rows.data(), device_rows.num_bytes());
  const Range own = model_.own_logits(device_rows.size(0));
  model_.logits(logits(own.size()), device_rows);
  return own;
}

// For token_ids, of which this rank has the logits of those in `own`; the others come as sums with zeros.
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

// The prompt tokens that rows of a chunk predict, when they are wanted. The chunk begins at row `first_row`.
void ModelRunner::score_prompt(StepInFlight& flight, size_t chunk_idx, int64_t first_row) try {
  const PlannedChunk& chunk = flight.plan.chunks[chunk_idx];
  for (int64_t start = chunk.score_begin; start < chunk.score_end; start += limits_.max_samples) {
    const int64_t count = std::min(limits_.max_samples, chunk.score_end - start);
    std::vector<int32_t> rows(static_cast<size_t>(count));
    std::iota(rows.begin(), rows.end(), static_cast<int32_t>(first_row + start - chunk.start));
    const auto predicted =
        std::span(chunk.score_ids).subspan(static_cast<size_t>(start - chunk.score_begin), static_cast<size_t>(count));
    const Range own = compute_logits(rows);
    for (TokenLogprobs& one :
         compute_logprobs(logits(own.size()), own, predicted, chunk.sequence->params.prompt_logprobs)) {
      if (std::isnan(one.logprobs[0])) {
        flight.chunk_errors[chunk_idx] = "the logits of the prompt are not finite";
        return;
      }
      flight.prompt_logprobs[chunk_idx].push_back(std::move(one));
    }
  }
} catch (const DeviceFailure&) {
  throw;
} catch (const std::exception& error) {  // ends this request alone
  if (has_peers()) throw;                // who did not see it
  flight.chunk_errors[chunk_idx] = error.what();
}

// Each rank draws from the rows of logits it owns; the draws of the others come as sums with zeros.
void ModelRunner::sample(StepInFlight& flight, const ForwardBatch& batch, std::span<const int32_t> logits_rows,
                         Range own) {
  const StepPlan& plan = flight.plan;
  std::vector<SamplingRow> rows;
  Range mine;  // of the samples: in the order of the rows
  for (size_t i = 0; i < plan.samples.size(); ++i) {
    const PlannedSample& planned = plan.samples[i];
    const int32_t logits_row = logits_rows[planned.chunk] + static_cast<int32_t>(planned.guess);
    if (logits_row < own.begin) ++mine.begin;
    if (logits_row < own.begin || logits_row >= own.end) continue;
    const Sequence& sequence = *planned.sequence;
    SamplingRow& row = rows.emplace_back(sampling_row(sequence.params, sequence.num_prompt_tokens, planned.num_tokens));
    row.logits_row = logits_row - static_cast<int32_t>(own.begin);
    row.sequence = static_cast<int32_t>(planned.chunk);
    row.mask = flight.masks[i];
  }
  mine.end = mine.begin + static_cast<int64_t>(rows.size());
  const Tensor ids = sampled_ids_.tensor(DType::i32, {static_cast<int64_t>(plan.samples.size())});
  if (has_peers()) device_.upload(ids.raw(), zeros_.data(), ids.num_bytes());
  if (!rows.empty())
    ops_.sample(ids.slice(0, mine.begin, mine.end), logits(own.size()), rows, cache_.lane(), batch.block_tables);
  model_.world().all_reduce(ids);
  device_.download(flight.sampled_ids.data(), ids.raw(), ids.num_bytes());
  for (size_t i = 0; i < plan.samples.size(); ++i) try {
      const SamplingParams& p = plan.samples[i].sequence->params;
      if (p.logprobs < 0) continue;
      int32_t token_id;
      device_.copy_to_host(&token_id, ids.data<int32_t>() + i, 4);
      if (token_id < 0) continue;
      const int64_t sample_idx = static_cast<int64_t>(i);
      const bool is_mine = mine.begin <= sample_idx && sample_idx < mine.end;
      const int64_t row = is_mine ? rows[static_cast<size_t>(sample_idx - mine.begin)].logits_row : 0;
      flight.logprobs[i] = compute_logprobs(is_mine ? logits(own.size()).slice(0, row, row + 1) : Tensor{},
                                            is_mine ? Range{0, 1} : Range{}, {&token_id, 1}, p.logprobs)[0];
    } catch (const DeviceFailure&) {
      throw;
    } catch (const std::exception& error) {  // ends this request alone
      if (has_peers()) throw;
      flight.errors[i] = error.what();
    }
}

void ModelRunner::forward(const Chunk& chunk, float* out) {
  constexpr int kSlot = kSlots - 1;
  batch_buffers_.stage({&chunk, 1}, kSlot);
  const int64_t count = static_cast<int64_t>(chunk.token_ids.size());
  device_.wait(device_.submit([&] {
    compute(batch_buffers_.upload(kSlot), {});
    for (int64_t first = 0; first < count; first += limits_.max_samples) {
      std::vector<int32_t> rows(static_cast<size_t>(std::min(limits_.max_samples, count - first)));
      std::iota(rows.begin(), rows.end(), static_cast<int32_t>(first));
      const Range own = compute_logits(rows);
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
