#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>
#include <utility>

#include "ops/backend.h"

namespace longcat {

namespace {

DType parse_dtype(const char* option, const std::string& name, DType automatic) {
  if (name == "auto") return automatic;
  if (name == "f32" || name == "float32" || name == "float") return DType::f32;
  if (name == "bf16" || name == "bfloat16") return DType::bf16;
  throw std::invalid_argument(str_cat(option, "=\"", name, "\" is not known: use \"auto\", \"f32\" or \"bf16\""));
}

void require_positive(const char* option, int64_t value) {
  if (value < 1) throw std::invalid_argument(str_cat(option, "=", value, " is not possible: expected at least 1"));
}

// MemAvailable of /proc/meminfo [bytes]; 4 GiB where it is not told.
int64_t available_memory() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (meminfo >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    std::getline(meminfo, unit);
  }
  return int64_t{4} << 30;
}

const EngineOptions& checked(const EngineOptions& options) {
  require_positive("max_num_seqs", options.max_num_seqs);
  require_positive("max_num_batched_tokens", options.max_num_batched_tokens);
  if (options.max_num_seqs > options.max_num_batched_tokens)
    throw std::invalid_argument(str_cat("max_num_seqs=", options.max_num_seqs,
                                        " is more than max_num_batched_tokens=", options.max_num_batched_tokens,
                                        ": a step could not hold one token of each request"));
  if (options.num_threads < 0 || options.num_threads > 1024)
    throw std::invalid_argument(
        str_cat("num_threads=", options.num_threads, " is not possible: expected 1 to 1024, or 0 for one per core"));
  if (options.max_model_len < 0 || options.kv_cache_memory < 0)
    throw std::invalid_argument("max_model_len and kv_cache_memory must not be negative");
  return options;
}

}  // namespace

const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      return "";
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::error:
      return "error";
  }
  return "";
}

LoadedModel::LoadedModel(const std::filesystem::path& folder, const EngineOptions& options,
                         const LoadProgress& progress)
    : config(load_model_config(folder)),
      dtype(parse_dtype("dtype", options.dtype, config.torch_dtype == DType::bf16 ? DType::bf16 : DType::f32)),
      kv_cache_dtype(parse_dtype("kv_cache_dtype", options.kv_cache_dtype, dtype)),
      checkpoint(folder),
      ops(make_ops(options.device, options.num_threads)) {
  ModelWeights weights = load_weights(checkpoint, config, dtype, *ops, progress);
  model = std::make_unique<Model>(*ops, config, std::move(weights), options.max_num_batched_tokens);
}

Engine::Engine(const std::filesystem::path& folder, const EngineOptions& options, const LoadProgress& progress)
    : loaded_(folder, checked(options), progress), options_(options) {
  const ModelConfig& c = config();
  max_model_len_ = options.max_model_len > 0 ? options.max_model_len : c.max_position_embeddings;
  if (max_model_len_ > c.max_position_embeddings)
    throw std::invalid_argument(
        str_cat("max_model_len=", max_model_len_,
                " is more than the checkpoint's max_position_embeddings=", c.max_position_embeddings));
  const int64_t block_bytes = KvCache::block_bytes(c, kv_cache_dtype());
  const int64_t useful = options.max_num_seqs * blocks_for(max_model_len_) + 1;  // and the null block
  const int64_t budget = options.kv_cache_memory > 0 ? options.kv_cache_memory : available_memory() / 4;
  const int64_t num_blocks = std::min(useful, budget / block_bytes);
  if (num_blocks < 2)
    throw OutOfMemory(str_cat("[kv cache] ", budget, " bytes hold ", num_blocks, " blocks of ", kBlockSize, " tokens (",
                              block_bytes, " bytes each), at least 2 are needed: raise kv_cache_memory"));
  Device& device = loaded_.ops->device();
  cache_ = std::make_unique<KvCache>(device, c, num_blocks, kv_cache_dtype());
  batch_buffers_ = std::make_unique<BatchBuffers>(device, options.max_num_batched_tokens, options.max_num_seqs,
                                                  blocks_for(max_model_len_));
  logits_ = Buffer(device, options.max_num_seqs * c.vocab_size * size_of(DType::f32));
  logit_rows_ = Buffer(device, options.max_num_seqs * size_of(DType::i32));
  sampled_ids_ = Buffer(device, options.max_num_seqs * size_of(DType::i32));
  running_.reserve(static_cast<size_t>(options.max_num_seqs));
  for (int64_t block = num_blocks - 1; block >= 1; --block) free_blocks_.push_back(static_cast<int32_t>(block));
}

std::vector<std::string> Engine::warnings() const {
  std::vector<std::string> all = config().warnings;
  const std::vector<std::string>& of_weights = loaded_.model->weights().warnings;
  all.insert(all.end(), of_weights.begin(), of_weights.end());
  return all;
}

void Engine::check_tokens(std::span<const int32_t> token_ids) const {
  if (token_ids.empty()) throw std::invalid_argument("the prompt has no tokens: expected at least one");
  for (size_t i = 0; i < token_ids.size(); ++i)
    if (token_ids[i] < 0 || token_ids[i] >= config().vocab_size)
      throw std::invalid_argument(str_cat("token id ", token_ids[i], " at index ", i,
                                          " is not in the vocabulary: expected 0 to ", config().vocab_size - 1));
}

std::vector<int32_t> Engine::take_blocks(int64_t count) {
  std::vector<int32_t> blocks(free_blocks_.end() - count, free_blocks_.end());
  free_blocks_.resize(free_blocks_.size() - static_cast<size_t>(count));
  return blocks;
}

void Engine::give_back(std::span<const int32_t> blocks) {
  free_blocks_.insert(free_blocks_.end(), blocks.begin(), blocks.end());
}

int64_t Engine::add_request(std::vector<int32_t> prompt_token_ids, const SamplingParams& params) {
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
  auto sequence = std::make_unique<Sequence>();
  sequence->request_id = next_request_id_++;
  sequence->params = params;
  sequence->token_ids = std::move(prompt_token_ids);
  sequence->token_ids.reserve(static_cast<size_t>(num_prompt_tokens + max_tokens));
  sequence->num_prompt_tokens = num_prompt_tokens;
  sequence->max_tokens = max_tokens;
  waiting_.push_back(std::move(sequence));
  return waiting_.back()->request_id;
}

bool Engine::abort(int64_t request_id) {
  const auto is_it = [&](const auto& sequence) { return sequence->request_id == request_id; };
  if (const auto it = std::find_if(running_.begin(), running_.end(), is_it); it != running_.end()) {
    give_back((*it)->blocks);
    running_.erase(it);
    return true;
  }
  return std::erase_if(waiting_, is_it) > 0;
}

Engine::Sequence* Engine::find(int64_t request_id) {
  for (const auto& sequence : running_)
    if (sequence->request_id == request_id) return sequence.get();
  for (const auto& sequence : waiting_)
    if (sequence->request_id == request_id) return sequence.get();
  return nullptr;
}

bool Engine::set_mask(int64_t request_id, std::vector<uint32_t> mask) {
  const int64_t words = (config().vocab_size + 31) / 32;
  if (!mask.empty() && static_cast<int64_t>(mask.size()) != words)
    throw std::invalid_argument(
        str_cat("the mask has ", mask.size(), " words of 32 bits, the vocabulary needs ", words));
  Sequence* sequence = find(request_id);
  if (sequence) sequence->mask = std::move(mask);
  return sequence != nullptr;
}

void Engine::admit() {
  while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < options_.max_num_seqs) {
    Sequence& next = *waiting_.front();
    const int64_t needed = blocks_for(next.num_prompt_tokens + next.max_tokens);
    if (needed > num_free_blocks()) return;
    next.blocks = take_blocks(needed);
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

FinishReason Engine::finish_reason(const Sequence& sequence, int32_t token_id) const {
  if (token_id < 0) return FinishReason::error;
  const std::vector<int32_t>& stops = sequence.params.stop_token_ids;
  if (std::find(stops.begin(), stops.end(), token_id) != stops.end()) return FinishReason::stop;
  const int64_t num_output = static_cast<int64_t>(sequence.token_ids.size()) - sequence.num_prompt_tokens;
  return num_output >= sequence.max_tokens ? FinishReason::length : FinishReason::none;
}

std::vector<StepOutput> Engine::step() {
  admit();
  if (running_.empty()) return {};

  // Decodes first: each needs one token, and nobody should wait for somebody else's prompt.
  std::vector<Chunk> chunks;
  std::vector<Sequence*> scheduled;
  int64_t budget = options_.max_num_batched_tokens;
  const auto schedule = [&](Sequence& sequence, int64_t count) {
    const std::span<const int32_t> ids(sequence.token_ids);
    chunks.push_back({.token_ids = ids.subspan(static_cast<size_t>(sequence.num_computed), static_cast<size_t>(count)),
                      .start = sequence.num_computed,
                      .blocks = sequence.blocks});
    scheduled.push_back(&sequence);
    budget -= count;
  };
  const auto uncomputed = [](const Sequence& s) { return static_cast<int64_t>(s.token_ids.size()) - s.num_computed; };
  for (const auto& sequence : running_)
    if (uncomputed(*sequence) == 1) schedule(*sequence, 1);
  for (const auto& sequence : running_)
    if (uncomputed(*sequence) > 1 && budget > 0) schedule(*sequence, std::min(budget, uncomputed(*sequence)));

  const ForwardBatch batch = batch_buffers_->upload(chunks);
  loaded_.model->forward(batch, *cache_);

  // What can fail is computed first, request by request; then the results are committed, which cannot fail.
  std::vector<StepOutput> outputs;
  outputs.reserve(scheduled.size());
  std::vector<Sequence*> sampling;
  std::vector<int32_t> last_rows, batch_rows;
  int64_t first_row = 0;
  for (size_t s = 0; s < scheduled.size(); ++s) {
    Sequence& sequence = *scheduled[s];
    const int64_t count = static_cast<int64_t>(chunks[s].token_ids.size());
    const bool scored = sequence.params.prompt_logprobs < 0 || score_prompt(sequence, first_row, chunks[s]);
    first_row += count;
    const bool complete = uncomputed(sequence) == count;
    if (!scored || (complete && sequence.max_tokens == 0)) {
      outputs.push_back({.request_id = sequence.request_id,
                         .finish_reason = scored ? FinishReason::length : FinishReason::error,
                         .logprobs = {},
                         .prompt_logprobs = std::move(sequence.prompt_logprobs)});
    } else if (complete) {
      sampling.push_back(&sequence);
      last_rows.push_back(static_cast<int32_t>(first_row) - 1);
      batch_rows.push_back(static_cast<int32_t>(s));
    }
  }
  std::vector<int32_t> tokens(sampling.size());
  std::vector<std::optional<TokenLogprobs>> logprobs(sampling.size());
  if (!sampling.empty()) {
    const Tensor logits = compute_logits(last_rows);
    sample(sampling, logits, batch, batch_rows, tokens);
    for (size_t i = 0; i < sampling.size(); ++i)
      if (tokens[i] >= 0 && sampling[i]->params.logprobs >= 0) try {
          const int64_t row = static_cast<int64_t>(i);
          logprobs[i] =
              compute_logprobs(logits.slice(0, row, row + 1), {&tokens[i], 1}, sampling[i]->params.logprobs)[0];
        } catch (const std::exception&) {
          tokens[i] = -1;  // ends this request alone
        }
  }

  for (size_t s = 0; s < scheduled.size(); ++s)
    scheduled[s]->num_computed += static_cast<int64_t>(chunks[s].token_ids.size());
  for (size_t i = 0; i < sampling.size(); ++i) {
    Sequence& sequence = *sampling[i];
    if (tokens[i] >= 0) sequence.token_ids.push_back(tokens[i]);  // its capacity was reserved
    outputs.push_back({.request_id = sequence.request_id,
                       .token_id = tokens[i],
                       .finish_reason = finish_reason(sequence, tokens[i]),
                       .logprobs = std::move(logprobs[i]),
                       .prompt_logprobs = std::exchange(sequence.prompt_logprobs, {})});
  }
  for (const StepOutput& output : outputs)
    if (output.finish_reason != FinishReason::none) abort(output.request_id);
  return outputs;
}

// Logits of rows of the last step, at most max_num_seqs of them.
Tensor Engine::compute_logits(std::span<const int32_t> rows) {
  const int64_t count = static_cast<int64_t>(rows.size());
  const Tensor device_rows = logit_rows_.tensor(DType::i32, {count});
  const Tensor logits = logits_.tensor(DType::f32, {count, config().vocab_size});
  loaded_.ops->device().copy_from_host(device_rows.raw(), rows.data(), device_rows.num_bytes());
  loaded_.model->logits(logits, device_rows);
  return logits;
}

std::vector<TokenLogprobs> Engine::compute_logprobs(Tensor logits, std::span<const int32_t> token_ids, int64_t top) {
  const int64_t count = logits.size(0), width = 1 + top;
  Device& device = loaded_.ops->device();
  const Buffer values_buffer(device, count * width * 4), ids_buffer(device, count * width * 4),
      ranks_buffer(device, count * 4), chosen_buffer(device, count * 4);
  const Tensor values = values_buffer.tensor(DType::f32, {count, width}),
               ids = ids_buffer.tensor(DType::i32, {count, width});
  const Tensor ranks = ranks_buffer.tensor(DType::i32, {count}), chosen = chosen_buffer.tensor(DType::i32, {count});
  device.copy_from_host(chosen.raw(), token_ids.data(), chosen.num_bytes());
  loaded_.ops->token_logprobs(values, ids, ranks, logits, chosen);

  std::vector<int32_t> host_ranks(static_cast<size_t>(count));
  device.copy_to_host(host_ranks.data(), ranks.raw(), ranks.num_bytes());
  std::vector<TokenLogprobs> result;
  for (int64_t i = 0; i < count; ++i) {
    TokenLogprobs& one = result.emplace_back();
    one.rank = host_ranks[static_cast<size_t>(i)];
    one.ids.resize(static_cast<size_t>(width));
    one.logprobs.resize(static_cast<size_t>(width));
    device.copy_to_host(one.ids.data(), ids.row<int32_t>(i), width * 4);
    device.copy_to_host(one.logprobs.data(), values.row<float>(i), width * 4);
  }
  return result;
}

// The prompt tokens that the rows of this chunk predict. The chunk begins at row `first_row` of the step. False when
// that fails or a logit is NaN.
bool Engine::score_prompt(Sequence& sequence, int64_t first_row, const Chunk& chunk) try {
  const int64_t end =
      std::min(chunk.start + static_cast<int64_t>(chunk.token_ids.size()), sequence.num_prompt_tokens - 1);
  for (int64_t start = chunk.start; start < end; start += options_.max_num_seqs) {
    const int64_t count = std::min(options_.max_num_seqs, end - start);
    std::vector<int32_t> rows(static_cast<size_t>(count));
    std::iota(rows.begin(), rows.end(), static_cast<int32_t>(first_row + start - chunk.start));
    const std::span<const int32_t> predicted(sequence.token_ids.data() + start + 1, static_cast<size_t>(count));
    for (TokenLogprobs& one : compute_logprobs(compute_logits(rows), predicted, sequence.params.prompt_logprobs)) {
      if (std::isnan(one.logprobs[0])) return false;
      sequence.prompt_logprobs.push_back(std::move(one));
    }
  }
  return true;
} catch (const std::exception&) {
  return false;
}

void Engine::sample(std::span<Sequence* const> sequences, Tensor logits, const ForwardBatch& batch,
                    std::span<const int32_t> batch_rows, std::vector<int32_t>& tokens) {
  std::vector<SamplingRow> rows;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Sequence& sequence = *sequences[i];
    const SamplingParams& p = sequence.params;
    const int64_t num_tokens = static_cast<int64_t>(sequence.token_ids.size());
    const bool may_stop = num_tokens - sequence.num_prompt_tokens >= p.min_tokens;
    rows.push_back({.temperature = p.temperature,
                    .top_k = static_cast<int32_t>(p.top_k),
                    .top_p = p.top_p,
                    .min_p = p.min_p,
                    .repetition_penalty = p.repetition_penalty,
                    .presence_penalty = p.presence_penalty,
                    .frequency_penalty = p.frequency_penalty,
                    .seed = p.seed,
                    .sample_idx = p.sample_idx,
                    .logits_row = static_cast<int32_t>(i),
                    .sequence = batch_rows[i],
                    .position = static_cast<int32_t>(num_tokens) - 1,
                    .num_prompt_tokens = static_cast<int32_t>(sequence.num_prompt_tokens),
                    .logit_bias = p.logit_bias,
                    .bad_words = p.bad_words,
                    .banned_ids = may_stop ? std::span<const int32_t>{} : p.stop_token_ids,
                    .allowed_ids = p.allowed_token_ids,
                    .mask = sequence.mask});
  }
  const Tensor ids = sampled_ids_.tensor(DType::i32, {static_cast<int64_t>(sequences.size())});
  loaded_.ops->sample(ids, logits, rows, cache_->lane(), batch.block_tables);
  loaded_.ops->device().copy_to_host(tokens.data(), ids.raw(), ids.num_bytes());
}

void Engine::check_forward(std::span<const int32_t> token_ids) const {
  check_tokens(token_ids);
  const int64_t num_tokens = static_cast<int64_t>(token_ids.size());
  if (num_tokens > max_model_len_)
    throw std::invalid_argument(str_cat("forward of ", num_tokens, " tokens: max_model_len is ", max_model_len_));
  if (blocks_for(num_tokens) > num_free_blocks())
    throw OutOfMemory(str_cat("[kv cache] forward of ", num_tokens, " tokens needs ", blocks_for(num_tokens),
                              " blocks, ", num_free_blocks(), " are free: raise kv_cache_memory"));
}

void Engine::forward(std::span<const int32_t> token_ids, float* out, int64_t chunk_size) {
  check_forward(token_ids);
  const int64_t num_tokens = static_cast<int64_t>(token_ids.size());
  if (chunk_size <= 0 || chunk_size > options_.max_num_batched_tokens) chunk_size = options_.max_num_batched_tokens;

  Device& device = loaded_.ops->device();
  struct Borrowed {  // back to the pool also when a step throws
    Engine& engine;
    std::vector<int32_t> blocks;
    ~Borrowed() { engine.give_back(blocks); }
  } borrowed{*this, take_blocks(blocks_for(num_tokens))};
  for (int64_t start = 0; start < num_tokens; start += chunk_size) {
    const int64_t count = std::min(chunk_size, num_tokens - start);
    const Chunk chunk{.token_ids = token_ids.subspan(static_cast<size_t>(start), static_cast<size_t>(count)),
                      .start = start,
                      .blocks = borrowed.blocks};
    loaded_.model->forward(batch_buffers_->upload({&chunk, 1}), *cache_);
    for (int64_t first = 0; first < count; first += options_.max_num_seqs) {
      std::vector<int32_t> rows(static_cast<size_t>(std::min(options_.max_num_seqs, count - first)));
      std::iota(rows.begin(), rows.end(), static_cast<int32_t>(first));
      const Tensor logits = compute_logits(rows);
      device.copy_to_host(out + (start + first) * config().vocab_size, logits.raw(), logits.num_bytes());
    }
  }
}

}  // namespace longcat
