// The proof of cuda/kernels/index_scores.h against float64, at the published sizes of the indexer.
#include "cuda/kernels/index_scores.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "cuda/emulation/proof.h"
#include "tests/gpu_proof/written.h"

// Compiled apart, since mutations change it.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::IndexScores&, bool);

namespace longcat::emulation {

namespace {

using gpu::IndexScores;

constexpr int kHeads = IndexScores::kHeads, kDim = IndexScores::kDim;
constexpr double kTolerance = 1e-5;  // f32 sums of 128 exact products, of 16 heads
constexpr float kScale = 0.0220970869f, kUnwritten = 7e7f;

// Consecutive tokens of one sequence.
struct Chunk {
  int sequence, first, count;
};
struct Setup {
  std::vector<Chunk> chunks;
  int watched = 0;  // the row whose bits are compared
  int topk = 40, init_tokens = 5, local_tokens = 20;
  int tiles_of_piece = 2, round = 1000;  // round: rows of a launch
};

// Values of a sequence, by position. All weights of sequence 9 are negative and so are all products of every seventh
// position, whose scores are zeros then.
std::vector<bf16> key_of(int sequence, int position) {
  std::vector<bf16> key = random_bf16(kDim, static_cast<uint64_t>(sequence * 10000 + position));
  if (sequence == 9 && position % 7 == 0)
    for (bf16& value : key) value = to_bf16(-std::fabs(to_float(value)));
  return key;
}
std::vector<bf16> query_of(int sequence, int position) {
  std::vector<bf16> query = random_bf16(kHeads * kDim, static_cast<uint64_t>(1'000'000 + sequence * 10000 + position));
  if (sequence == 9)
    for (bf16& value : query) value = to_bf16(std::fabs(to_float(value)));
  return query;
}
std::vector<float> weights_of(int sequence, int position) {
  std::vector<float> weights = random_f32(kHeads, static_cast<uint64_t>(2'000'000 + sequence * 10000 + position));
  if (sequence == 9)
    for (float& value : weights) value = -std::fabs(value);
  return weights;
}

// Of the positions up to its own; the same for all cases.
const std::vector<double>& expected(int sequence, int position) {
  static std::map<std::pair<int, int>, std::vector<double>> known;
  std::vector<double>& scores = known[{sequence, position}];
  if (!scores.empty()) return scores;
  const std::vector<bf16> query = query_of(sequence, position);
  const std::vector<float> weights = weights_of(sequence, position);
  for (int p = 0; p <= position; ++p) {
    const std::vector<bf16> key = key_of(sequence, p);
    double score = 0;
    for (int h = 0; h < kHeads; ++h) {
      double product = 0;
      for (int k = 0; k < kDim; ++k) product += double{to_float(query[h * kDim + k])} * to_float(key[k]);
      score += double{weights[h]} * std::max(product, 0.0);
    }
    scores.push_back(score * kScale);
  }
  return scores;
}

Outcome run(SimtEmulator& gpu, const Setup& setup) {
  std::vector<int32_t> positions, sequence_idx, sequences, block_tables;
  std::vector<bf16> queries;   // [tokens, kHeads + 1, kDim]: strided
  std::vector<float> weights;  // [tokens, kHeads + 4]: strided
  int longest = 0, blocks = 1;
  for (const Chunk& chunk : setup.chunks) longest = std::max(longest, chunk.first + chunk.count);
  const int64_t table_stride = (longest + 63) / 64 + 1, context = table_stride * 64;
  const int64_t block_stride = 64 * kDim + 512;  // another set lies between
  std::vector<bf16> keys;
  for (const Chunk& chunk : setup.chunks) {
    for (int i = 0; i < chunk.count; ++i) {
      positions.push_back(chunk.first + i);
      sequence_idx.push_back(static_cast<int32_t>(sequences.size()));
      const std::vector<bf16> query = query_of(chunk.sequence, chunk.first + i);
      queries.insert(queries.end(), query.begin(), query.end());
      queries.resize(queries.size() + kDim, to_bf16(1e9f));
      const std::vector<float> of = weights_of(chunk.sequence, chunk.first + i);
      weights.insert(weights.end(), of.begin(), of.end());
      weights.resize(weights.size() + 4, 1e9f);
    }
    sequences.push_back(chunk.sequence);
    const int count = (chunk.first + chunk.count + 63) / 64;
    for (int i = 0; i < table_stride; ++i) block_tables.push_back(i < count ? blocks + count - 1 - i : 0);
    blocks += count;
  }
  keys.assign(static_cast<size_t>(blocks * block_stride), bf16{0xffff});  // NaN
  for (size_t s = 0; s < setup.chunks.size(); ++s)
    for (int p = 0; p < setup.chunks[s].first + setup.chunks[s].count; ++p) {
      const std::vector<bf16> key = key_of(setup.chunks[s].sequence, p);
      const int64_t block = block_tables[s * static_cast<size_t>(table_stride) + static_cast<size_t>(p / 64)];
      std::copy(key.begin(), key.end(), &keys[static_cast<size_t>(block * block_stride + p % 64 * kDim)]);
    }

  const int32_t num_tokens = static_cast<int32_t>(positions.size());
  const int32_t piece = setup.tiles_of_piece * IndexScores::kTile;
  IndexScores kernel{.q = gpu.input(queries),
                     .q_strides = {(kHeads + 1) * kDim, kDim},
                     .head_weights = gpu.input(weights),
                     .weights_stride = kHeads + 4,
                     .keys = gpu.input(keys),
                     .block_stride = block_stride,
                     .positions = gpu.input(positions),
                     .sequence_idx = written(gpu, sequence_idx),
                     .block_tables = gpu.input(block_tables),
                     .block_table_stride = table_stride,
                     .context = context,
                     .num_pieces = static_cast<int32_t>((context + piece - 1) / piece),
                     .piece = piece,
                     .topk = setup.topk,
                     .init_tokens = setup.init_tokens,
                     .local_tokens = setup.local_tokens,
                     .scale = kScale};
  double error = 0;
  uint64_t bits = 0;
  for (int32_t first = 0; first < num_tokens; first += setup.round) {
    kernel.first_row = first;
    kernel.last_row = std::min(num_tokens, first + setup.round);
    const int64_t rows = kernel.last_row - first;
    kernel.scores = gpu.buffer(std::vector<float>(static_cast<size_t>(rows * context), kUnwritten));
    gpu.launch((rows + IndexScores::kRows - 1) / IndexScores::kRows * kernel.num_pieces, kernel, true);
    const std::vector<float> scores = gpu.read(kernel.scores, rows * context);
    for (int64_t row = 0; row < rows; ++row) {
      const int32_t position = positions[static_cast<size_t>(first + row)];
      if (position < setup.topk) continue;
      const int sequence = sequences[static_cast<size_t>(sequence_idx[static_cast<size_t>(first + row)])];
      const float* const of = &scores[static_cast<size_t>(row * context)];
      const int64_t count = position + 1 - setup.local_tokens - setup.init_tokens;
      const double one = row_error(of + setup.init_tokens, &expected(sequence, position)[setup.init_tokens], count);
      if (std::isnan(one)) return {one, kTolerance, 0};
      error = std::max(error, one);
      for (int64_t i = 0; i < count; ++i)
        if (of[setup.init_tokens + i] == 0 && std::signbit(of[setup.init_tokens + i])) error = 1e9;
      if (first + row == setup.watched) bits = hash_of_bytes(of + setup.init_tokens, count * 4);
    }
  }
  return {error, kTolerance, bits};
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat::emulation;
  const auto of = [](const char* name, Setup setup, const char* watched = "") {
    return Case{name, [setup](SimtEmulator& gpu) { return run(gpu, setup); }, watched};
  };
  return prove(
      argc, argv,
      {of("5 rows, 4 tiles in one piece", {.chunks = {{1, 215, 5}}, .watched = 2, .tiles_of_piece = 8}, "1 at 217"),
       of("1 row, pieces of 2 tiles", {.chunks = {{1, 217, 1}}}, "1 at 217"),
       of("rows of several sequences, some without a choice",
          {.chunks = {{2, 100, 1}, {3, 38, 3}, {1, 216, 2}, {4, 3, 1}, {5, 190, 4}}, .watched = 5}, "1 at 217"),
       of("11 rows of a chunk, two launches", {.chunks = {{1, 210, 11}}, .watched = 7, .tiles_of_piece = 1, .round = 9},
          "1 at 217"),
       of("first positions beyond a tile, no last ones",
          {.chunks = {{6, 145, 2}}, .topk = 90, .init_tokens = 70, .local_tokens = 0}),
       of("negative weights: no -0", {.chunks = {{9, 80, 1}}})});
}
