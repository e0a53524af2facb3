// The fuzz target: hostile bytes to the parsers, and the promises that must hold whatever comes out.
#include "fuzz_headers.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "base/error.h"
#include "io/model_config.h"
#include "io/printable.h"
#include "io/safetensors.h"

namespace longcat::fuzz {
namespace {

void require(bool condition, const char* promise) {
  if (condition) return;
  std::fprintf(stderr, "broken promise: %s\n", promise);
  std::abort();
}

// numel, or -1 when a product of the dimensions leaves 63 bits.
int64_t checked_numel(const std::vector<int64_t>& shape) {
  int64_t numel = 1;
  for (int64_t extent : shape) {
    require(extent >= 0, "dimensions are not negative");
    if (__builtin_mul_overflow(numel, extent, &numel)) return -1;
  }
  return numel;
}

void check_header(std::string_view text, uint64_t data_bytes) {
  const auto tensors = parse_safetensors_header(text, data_bytes, "fuzz.safetensors");
  require(static_cast<int64_t>(tensors.size()) <= kMaxTensors, "tensor cap");
  std::vector<std::pair<uint64_t, uint64_t>> spans;
  for (const auto& [name, entry] : tensors) {
    require(entry.shape.size() <= kMaxTensorDims, "dimension cap");
    require(entry.begin <= entry.end && entry.end <= data_bytes, "offsets lie in the file");
    const int64_t numel = checked_numel(entry.shape);
    require(numel >= 0 && static_cast<uint64_t>(numel) <= data_bytes, "the shape fits the file");
    require(static_cast<uint64_t>(numel) * static_cast<uint64_t>(size_of(entry.dtype)) == entry.end - entry.begin,
            "the size is shape x dtype");
    spans.emplace_back(entry.begin, entry.end);
  }
  std::sort(spans.begin(), spans.end());
  uint64_t covered = 0;
  for (const auto& [begin, end] : spans) {
    require(begin == covered, "tensors neither overlap nor leave gaps");
    covered = end;
  }
  require(covered == data_bytes, "tensors cover the file");
}

void check_index(std::string_view text) {
  const ShardIndex index = parse_safetensors_index(text, "fuzz.index.json");
  require(!index.weight_map.empty(), "the index is not empty");
  for (const std::string& shard : index.shards)
    require(shard.ends_with(".safetensors") && shard.find('/') == shard.npos && shard.find('\0') == shard.npos &&
                shard.size() <= 255,
            "shards are plain file names");
  for (const auto& [name, shard] : index.weight_map)
    require(shard >= 0 && static_cast<size_t>(shard) < index.shards.size(), "shard numbers are in range");
}

void check_config(std::string_view text) {
  const ModelConfig config = parse_model_config(text, "fuzz.json");
  require(config.num_layers >= 1 && config.num_layers <= 1000, "num_layers");
  require(config.vocab_size >= 1 && config.vocab_size <= 1 << 24, "vocab_size");
  require(config.moe_topk >= 1 && config.moe_topk <= config.num_router_outputs(), "moe_topk");
  require(config.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim");
  require(config.eos_token_id >= 0 && config.eos_token_id < config.vocab_size, "eos_token_id");
  for (double value : {config.routed_scaling_factor, config.rms_norm_eps, config.rope_theta})
    require(std::isfinite(static_cast<float>(value)) && static_cast<float>(value) > 0, "numbers fit a float");
  if (config.yarn) {
    for (double turns : {config.yarn->beta_fast, config.yarn->beta_slow})
      require(std::isfinite(std::log(static_cast<double>(config.yarn->original_max_position_embeddings) / turns) /
                            std::log(config.rope_theta)),
              "YaRN's ramp is finite");
    require(std::isfinite(static_cast<float>(config.yarn->factor)) && config.yarn->factor >= 1, "YaRN's factor");
  }
  // Sizes that the model will multiply: the largest tensors, and a token's cache.
  int64_t bytes = 8;
  for (int64_t factor : {config.n_routed_experts, config.hidden_size, config.expert_ffn_hidden_size, config.num_layers})
    require(!__builtin_mul_overflow(bytes, factor, &bytes), "the experts' bytes fit 63 bits");
  bytes = 8;
  for (int64_t factor : {config.num_sub_layers(), config.latent_dim(), config.max_position_embeddings})
    require(!__builtin_mul_overflow(bytes, factor, &bytes), "the cache's bytes fit 63 bits");
  if (!config.ngram) return;
  const NgramConfig& ngram = *config.ngram;
  require(ngram.table_rows >= 1 && config.hidden_size % ngram.num_tables() == 0, "N-gram tables");
  require(ngram.rows_of(ngram.num_tables()) <= INT32_MAX, "row numbers fit 32 bits");
  int64_t hash = ngram.emb_neighbor_num;
  for (int64_t factor : {config.vocab_size, ngram.rows_of(ngram.num_tables() - 1)})
    require(!__builtin_mul_overflow(hash, factor, &hash), "the hash fits 63 bits");
}

// One line of valid UTF-8 that names its area, however hostile the text it quotes.
void check_message(std::string_view message) {
  require(message.starts_with("[safetensors] fuzz.") || message.starts_with("[config] fuzz."),
          "the message names the file");
  require(message.size() < 16'384, "the message is short");
  while (!message.empty()) {
    const CodePoint c = first_code_point(message);
    require(c.length > 0 && !is_unprintable(c.value), "the message is one line of printable UTF-8");
    message.remove_prefix(c.length);
  }
}

}  // namespace

std::string make_input(Parser parser, uint64_t data_bytes, std::string_view text) {
  std::string input(1, static_cast<char>(parser));
  for (int i = 0; i < 8; ++i) input += static_cast<char>(data_bytes >> (8 * i));
  return input.append(text);
}

bool accepts(const uint8_t* data, size_t size) {
  if (size < kPrefixBytes) return false;
  uint64_t data_bytes = 0;
  for (int i = 0; i < 8; ++i) data_bytes |= static_cast<uint64_t>(data[1 + i]) << (8 * i);
  // A copy of the exact size, so that a read past the end is seen.
  const std::vector<char> text(data + kPrefixBytes, data + size);
  const std::string_view view(text.data(), text.size());
  try {
    switch (static_cast<Parser>(data[0] % kNumParsers)) {
      case Parser::header:
        check_header(view, data_bytes);
        break;
      case Parser::index:
        check_index(view);
        break;
      case Parser::config:
        check_config(view);
        break;
    }
    return true;
  } catch (const Error& error) {
    check_message(error.what());
    return false;
  }
}

}  // namespace longcat::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  longcat::fuzz::accepts(data, size);
  return 0;
}
