#include "engine/engine.h"

#include <algorithm>
#include <fstream>
#include <limits>

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
    case FinishReason::abort:
      return "abort";
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
  const int64_t block_bytes = KvCache::block_bytes(c, kv_cache_dtype());
  const int64_t useful = options.max_num_seqs * blocks_for(max_model_len_);
  const int64_t budget = options.kv_cache_memory > 0 ? options.kv_cache_memory : available_memory() / 4;
  const int64_t num_blocks = std::min(useful, budget / block_bytes);
  if (num_blocks < 1)
    throw OutOfMemory(str_cat("[kv cache] ", budget, " bytes hold no block of ", kBlockSize, " tokens (", block_bytes,
                              " bytes): raise kv_cache_memory"));
  Device& device = loaded_.ops->device();
  cache_ = std::make_unique<KvCache>(device, c, num_blocks + 1, kv_cache_dtype());
  batch_buffers_ = std::make_unique<BatchBuffers>(device, options.max_num_batched_tokens, options.max_num_seqs,
                                                  blocks_for(max_model_len_));
  logits_ = Buffer(device, options.max_num_seqs * c.vocab_size * size_of(DType::f32));
  logit_rows_ = Buffer(device, options.max_num_seqs * size_of(DType::i32));
  sampled_ids_ = Buffer(device, options.max_num_seqs * size_of(DType::i32));
  for (int64_t block = num_blocks; block >= 1; --block) free_blocks_.push_back(static_cast<int32_t>(block));
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

void Engine::release(Sequence& sequence) {
  free_blocks_.insert(free_blocks_.end(), sequence.blocks.begin(), sequence.blocks.end());
  sequence.blocks.clear();
}

int64_t Engine::add_request(std::vector<int32_t> prompt_token_ids, const SamplingParams& params) {
  check_tokens(prompt_token_ids);
  check(params, config().vocab_size);
  const int64_t num_prompt_tokens = static_cast<int64_t>(prompt_token_ids.size());
  if (num_prompt_tokens >= max_model_len_)
    throw std::invalid_argument(str_cat("the prompt has ", num_prompt_tokens,
                                        " tokens, and max_model_len=", max_model_len_,
                                        " leaves no room for an answer: shorten the prompt or raise max_model_len"));
  const int64_t max_tokens = std::min(params.max_tokens, max_model_len_ - num_prompt_tokens);
  if (blocks_for(num_prompt_tokens + max_tokens) > num_kv_blocks())
    throw std::invalid_argument(str_cat("prompt and max_tokens make ", num_prompt_tokens + max_tokens,
                                        " tokens, the KV cache holds ", num_kv_blocks() * kBlockSize,
                                        ": lower max_tokens or raise kv_cache_memory"));
  auto sequence = std::make_unique<Sequence>(Sequence{.request_id = next_request_id_++,
                                                      .params = params,
                                                      .token_ids = std::move(prompt_token_ids),
                                                      .num_prompt_tokens = num_prompt_tokens,
                                                      .max_tokens = max_tokens,
                                                      .blocks = {}});
  waiting_.push_back(std::move(sequence));
  return waiting_.back()->request_id;
}

bool Engine::abort(int64_t request_id) {
  const auto is_it = [&](const auto& sequence) { return sequence->request_id == request_id; };
  if (const auto it = std::find_if(running_.begin(), running_.end(), is_it); it != running_.end()) {
    release(**it);
    running_.erase(it);
    return true;
  }
  if (const auto it = std::find_if(waiting_.begin(), waiting_.end(), is_it); it != waiting_.end()) {
    waiting_.erase(it);
    return true;
  }
  return false;
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

  // Sequences whose every token is now in the cache get their next one.
  std::vector<Sequence*> sampling;
  std::vector<int32_t> last_rows, batch_rows;
  int32_t row = -1;
  for (size_t s = 0; s < scheduled.size(); ++s) {
    row += static_cast<int32_t>(chunks[s].token_ids.size());
    scheduled[s]->num_computed += static_cast<int64_t>(chunks[s].token_ids.size());
    if (uncomputed(*scheduled[s]) > 0) continue;
    sampling.push_back(scheduled[s]);
    last_rows.push_back(row);
    batch_rows.push_back(static_cast<int32_t>(s));
  }
  if (sampling.empty()) return {};

  std::vector<int32_t> tokens(sampling.size());
  sample(sampling, last_rows, batch, batch_rows, tokens);
  std::vector<StepOutput> outputs;
  for (size_t i = 0; i < sampling.size(); ++i) {
    if (tokens[i] >= 0) sampling[i]->token_ids.push_back(tokens[i]);
    const FinishReason reason = finish_reason(*sampling[i], tokens[i]);
    outputs.push_back({.request_id = sampling[i]->request_id, .token_id = tokens[i], .finish_reason = reason});
    if (reason != FinishReason::none) abort(sampling[i]->request_id);
  }
  return outputs;
}

void Engine::sample(std::span<Sequence* const> sequences, std::span<const int32_t> last_rows, const ForwardBatch& batch,
                    std::span<const int32_t> batch_rows, std::vector<int32_t>& tokens) {
  const int64_t count = static_cast<int64_t>(sequences.size());
  Device& device = loaded_.ops->device();
  const Tensor rows = logit_rows_.tensor(DType::i32, {count}), ids = sampled_ids_.tensor(DType::i32, {count});
  const Tensor logits = logits_.tensor(DType::f32, {count, config().vocab_size});
  device.copy_from_host(rows.raw(), last_rows.data(), rows.num_bytes());
  loaded_.model->logits(logits, rows);

  std::vector<SamplingRow> params;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const SamplingParams& p = sequences[i]->params;
    params.push_back({.temperature = p.temperature,
                      .top_k = static_cast<int32_t>(p.top_k),
                      .top_p = p.top_p,
                      .repetition_penalty = p.repetition_penalty,
                      .seed = p.seed,
                      .sample_idx = 0,
                      .sequence = batch_rows[i],
                      .position = static_cast<int32_t>(sequences[i]->token_ids.size()) - 1});
  }
  loaded_.ops->sample(ids, logits, params, cache_->lane(), batch.block_tables);
  device.copy_to_host(tokens.data(), ids.raw(), ids.num_bytes());
}

void Engine::forward(std::span<const int32_t> token_ids, float* out, int64_t chunk_size) {
  check_tokens(token_ids);
  const int64_t num_tokens = static_cast<int64_t>(token_ids.size());
  if (num_tokens > max_model_len_)
    throw std::invalid_argument(str_cat("forward of ", num_tokens, " tokens: max_model_len is ", max_model_len_));
  if (blocks_for(num_tokens) > num_free_blocks())
    throw OutOfMemory(str_cat("[kv cache] forward of ", num_tokens, " tokens needs ", blocks_for(num_tokens),
                              " blocks, ", num_free_blocks(), " are free: raise kv_cache_memory"));
  if (chunk_size <= 0 || chunk_size > options_.max_num_batched_tokens) chunk_size = options_.max_num_batched_tokens;

  Device& device = loaded_.ops->device();
  struct Borrowed {  // back to the pool also when a step throws
    Engine& engine;
    Sequence sequence;
    ~Borrowed() { engine.release(sequence); }
  } borrowed{*this, Sequence{.request_id = -1,
                             .params = {},
                             .token_ids = {},
                             .num_prompt_tokens = num_tokens,
                             .max_tokens = 0,
                             .blocks = take_blocks(blocks_for(num_tokens))}};
  for (int64_t start = 0; start < num_tokens; start += chunk_size) {
    const int64_t count = std::min(chunk_size, num_tokens - start);
    const Chunk chunk{.token_ids = token_ids.subspan(static_cast<size_t>(start), static_cast<size_t>(count)),
                      .start = start,
                      .blocks = borrowed.sequence.blocks};
    loaded_.model->forward(batch_buffers_->upload({&chunk, 1}), *cache_);
    for (int64_t first = 0; first < count; first += options_.max_num_seqs) {
      const int64_t num_rows = std::min(options_.max_num_seqs, count - first);
      std::vector<int32_t> wanted;
      for (int64_t i = 0; i < num_rows; ++i) wanted.push_back(static_cast<int32_t>(first + i));
      const Tensor rows = logit_rows_.tensor(DType::i32, {num_rows});
      const Tensor logits = logits_.tensor(DType::f32, {num_rows, config().vocab_size});
      device.copy_from_host(rows.raw(), wanted.data(), rows.num_bytes());
      loaded_.model->logits(logits, rows);
      device.copy_to_host(out + (start + first) * config().vocab_size, logits.raw(), logits.num_bytes());
    }
  }
}

}  // namespace longcat
