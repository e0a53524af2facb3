// The proof of cuda/kernels/mla_prefill.h against float64, from keys and values to the output.
#include "cuda/kernels/mla_prefill.h"

#include <algorithm>
#include <cmath>

#include "cuda/emulation/proof.h"
#include "tests/gpu_proof/written.h"

// Compiled apart, since mutations change it.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::MlaPrefill&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::MlaPrefillSmall&, bool);

namespace longcat::emulation {

namespace {

constexpr int kNope = 128, kRope = 64, kDim = kNope + kRope, kValue = 128, kHeads = 2;
constexpr int kRowBytes = 272, kRopeAt = 144, kBlockBytes = 64 * kRowBytes + 1024;
constexpr double kTolerance = 6e-3;   // weights and results are rounded to bf16: 2^-9 of the largest value each
constexpr float kScale = 0.0721688f;  // 1 / sqrt(192)

struct Chunk {
  int sequence, first, count;
};
struct Setup {
  std::vector<Chunk> chunks;
  int watched_chunk = 0, watched_position = 0;  // whose bits are compared
  int before = 0;                               // generated tokens in front, a sequence each
  int end_position = 1 << 30;
  int broken_position = 1 << 30;  // NaN in the rope part of this one
};

// Keys, rope part, values of a position; or its query.
std::vector<bf16> row_of(int sequence, int position, int head, int kind, int width) {
  const int seed = ((sequence * 1000 + position) * 4 + head) * 4 + kind;
  std::vector<bf16> row = random_bf16(width, static_cast<uint64_t>(seed));
  // Position 3 has a score so far above later ones that a running maximum overflows where it is not kept.
  if (kind == 0 && position == 3)
    for (bf16& x : row) x = to_bf16(4 * to_float(x));
  return row;
}
std::vector<bf16> query_of(int sequence, int position, int head) {
  std::vector<bf16> query = row_of(sequence, position, head, 3, kDim);
  if (position % 3 == 0) {  // along position 3
    const std::vector<bf16> key = row_of(sequence, 3, head, 0, kNope);
    std::copy(key.begin(), key.end(), query.begin());
  }
  return query;
}

template <class Kernel>
Outcome run(SimtEmulator& gpu, const Setup& setup) {
  constexpr int kQueryRows = Kernel::kThreads / 32 * Kernel::kRows;
  const size_t stride = 8;
  std::vector<int32_t> positions, query_starts, tables;
  const auto begin_sequence = [&] {
    query_starts.push_back(static_cast<int32_t>(positions.size()));
    tables.insert(tables.end(), stride, 0);
  };
  for (int i = 0; i < setup.before; ++i) {
    begin_sequence();
    positions.push_back(200);
  }
  int blocks = 1;
  int64_t num_positions = 0, query_tiles = 1;  // one more than there are: blocks without work
  std::vector<int64_t> firsts;
  std::vector<bf16> q;
  for (const Chunk& chunk : setup.chunks) {
    begin_sequence();
    for (int i = 0; i < chunk.count; ++i) {
      positions.push_back(chunk.first + i);
      for (int head = 0; head < kHeads; ++head) {
        const std::vector<bf16> query = query_of(chunk.sequence, chunk.first + i, head);
        q.insert(q.end(), query.begin(), query.end());
      }
    }
    const int end = chunk.first + chunk.count, count = (end + 63) / 64;
    for (int i = 0; i < count; ++i) tables[tables.size() - stride + static_cast<size_t>(i)] = blocks + count - 1 - i;
    blocks += count;
    firsts.push_back(num_positions);
    if (chunk.first < setup.end_position) num_positions += (std::min(end, setup.end_position) + 127) / 128 * 128;
    query_tiles += (chunk.count + kQueryRows - 1) / kQueryRows;
  }
  query_starts.push_back(static_cast<int32_t>(positions.size()));
  std::vector<bf16> keys(static_cast<size_t>(kHeads * num_positions * kNope)), values = keys;  // zeros behind an end
  std::vector<unsigned char> latents(static_cast<size_t>(blocks * kBlockBytes), 0xff);         // NaN
  for (size_t c = 0; c < setup.chunks.size(); ++c) {
    const Chunk& chunk = setup.chunks[c];
    for (int p = 0; p < std::min(chunk.first + chunk.count, setup.end_position); ++p) {
      if (chunk.first >= setup.end_position) break;
      for (int head = 0; head < kHeads; ++head) {
        const int64_t at = (head * num_positions + firsts[c] + p) * kNope;
        std::ranges::copy(row_of(chunk.sequence, p, head, 0, kNope), &keys[static_cast<size_t>(at)]);
        std::ranges::copy(row_of(chunk.sequence, p, head, 1, kValue), &values[static_cast<size_t>(at)]);
      }
      const int64_t block = tables[(c + static_cast<size_t>(setup.before)) * stride + static_cast<size_t>(p / 64)];
      unsigned char* const row = &latents[static_cast<size_t>(block * kBlockBytes + p % 64 * kRowBytes + kRopeAt)];
      if (p != setup.broken_position) std::memcpy(row, row_of(chunk.sequence, p, 0, 2, kRope).data(), 2 * kRope);
    }
  }
  const int64_t num_rows = static_cast<int64_t>(q.size()) / kHeads / kDim;
  const int64_t num_out = num_rows * kHeads * kValue;
  Kernel kernel{.chunks = {.positions = written(gpu, positions),
                           .query_starts = gpu.input(query_starts),
                           .first_sequence = setup.before,
                           .last_sequence = static_cast<int32_t>(setup.before + std::ssize(setup.chunks)),
                           .end_position = setup.end_position},
                .q = gpu.input(q),
                .out = gpu.buffer(std::vector<bf16>(static_cast<size_t>(num_out))),
                .q_strides = {kHeads * kDim, kDim},
                .out_strides = {kHeads * kValue, kValue},
                .first_row = setup.before,
                .latents = gpu.input(latents),
                .block_bytes = kBlockBytes,
                .row_bytes = kRowBytes,
                .rope_in_row = kRopeAt,
                .block_tables = gpu.input(tables),
                .block_table_stride = static_cast<int64_t>(stride),
                .keys = gpu.input(keys),
                .values = gpu.input(values),
                .num_positions = num_positions,
                .num_heads = kHeads,
                .num_tiles = static_cast<int32_t>(query_tiles),
                .scale_log2 = kScale * 1.44269504f};
  gpu.launch(query_tiles * kHeads, kernel, true);
  const std::vector<bf16> out = gpu.read(kernel.out, num_out);

  double error = 0;
  uint64_t bits = 0;
  int64_t row = 0;
  for (size_t c = 0; c < setup.chunks.size(); ++c)
    for (int p = setup.chunks[c].first; p < setup.chunks[c].first + setup.chunks[c].count; ++p, ++row)
      for (int head = 0; head < kHeads; ++head) {
        const bf16* const at = &out[static_cast<size_t>((row * kHeads + head) * kValue)];
        float found[kValue];
        for (int d = 0; d < kValue; ++d) found[d] = to_float(at[d]);
        if (static_cast<int>(c) == setup.watched_chunk && p == setup.watched_position)
          bits = bits * 31 + hash_of_bytes(at, 2 * kValue);
        if (p >= setup.end_position || p >= setup.broken_position) {
          for (const float x : found)
            if (p >= setup.end_position ? x != 0 : !std::isnan(x)) error = 1e9;
          continue;
        }
        const std::vector<bf16> query = query_of(setup.chunks[c].sequence, p, head);
        std::vector<double> scores;
        double most = -1e300, total = 0, right[kValue] = {};
        for (int s = 0; s <= p; ++s) {
          std::vector<bf16> key = row_of(setup.chunks[c].sequence, s, head, 0, kNope);
          const std::vector<bf16> rope = row_of(setup.chunks[c].sequence, s, 0, 2, kRope);
          key.insert(key.end(), rope.begin(), rope.end());
          double score = 0;
          for (int d = 0; d < kDim; ++d) score += double{to_float(query[d])} * to_float(key[d]);
          scores.push_back(score * kScale);
          most = std::max(most, scores.back());
        }
        for (int s = 0; s <= p; ++s) {
          const double weight = std::exp(scores[s] - most);
          total += weight;
          if (weight < 1e-12) continue;
          const std::vector<bf16> value = row_of(setup.chunks[c].sequence, s, head, 1, kValue);
          for (int d = 0; d < kValue; ++d) right[d] += weight * to_float(value[d]);
        }
        for (double& x : right) x /= total;
        const double one = row_error(found, right, kValue);
        if (std::isnan(one)) return {one, kTolerance, 0};
        error = std::max(error, one);
      }
  return {error, kTolerance, bits};
}

Case case_of(const std::string& name, const Setup& setup, const std::string& watched = {}) {
  return {name, [setup](SimtEmulator& gpu) { return run<gpu::MlaPrefill>(gpu, setup); }, watched};
}
Case small(const std::string& name, const Setup& setup) {
  static_assert(gpu::MlaPrefillSmall::kSharedBytes <= 99 << 10);
  return {"small tiles, " + name, [setup](SimtEmulator& gpu) { return run<gpu::MlaPrefillSmall>(gpu, setup); },
          "small, 1 at 128"};
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat::emulation;
  return prove(
      argc, argv,
      {case_of("40 rows over the end of a tile", {.chunks = {{1, 110, 40}}, .watched_position = 128}, "1 at 128"),
       case_of(
           "129 positions beside others",
           {.chunks = {{2, 0, 3}, {1, 128, 1}, {3, 60, 6}}, .watched_chunk = 1, .watched_position = 128, .before = 2},
           "1 at 128"),
       case_of("others in the same rows", {.chunks = {{1, 67, 70}}, .watched_position = 128}, "1 at 128"),
       case_of("a NaN behind", {.chunks = {{1, 126, 6}}, .watched_position = 128, .broken_position = 129}, "1 at 128"),
       case_of("tokens from an end on are left out",
               {.chunks = {{2, 130, 2}, {1, 127, 4}}, .watched_chunk = 1, .watched_position = 128, .end_position = 129},
               "1 at 128"),
       case_of("259 rows: two tiles of queries", {.chunks = {{1, 0, 259}}, .watched_position = 128}, "1 at 128"),
       case_of("a chunk behind two tiles of queries",
               {.chunks = {{2, 0, 257}, {1, 128, 2}}, .watched_chunk = 1, .watched_position = 128}, "1 at 128"),
       small("40 rows over the end of a tile", {.chunks = {{1, 110, 40}}, .watched_position = 128}),
       small("a NaN behind", {.chunks = {{1, 126, 6}}, .watched_position = 128, .broken_position = 129}),
       small("two tiles of queries", {.chunks = {{1, 0, 131}}, .watched_position = 128}),
       small("a chunk behind two tiles of queries",
             {.chunks = {{2, 0, 129}, {1, 97, 33}}, .watched_chunk = 1, .watched_position = 128})});
}
