// The proof of cuda/kernels/mla_decode.h against float64, at the real sizes of a tile: from a batch to its output.
#include "cuda/kernels/mla_decode.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "cuda/emulation/proof.h"
#include "tests/gpu_proof/written.h"

using Bf16Decode = longcat::gpu::MlaDecode<longcat::DType::bf16, 32>;
using Fp8Decode = longcat::gpu::MlaDecode<longcat::DType::f8_e4m3, 16>;
using SmallDecode = longcat::gpu::MlaDecode<longcat::DType::bf16, 16, false, 32>;  // of 99 KiB

// Compiled apart, since mutations change them.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const Bf16Decode&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const Fp8Decode&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const SmallDecode&, bool);

namespace longcat::emulation {

namespace {

using gpu::MlaPlan;
using gpu::MlaTokens;

constexpr int kHeads = 32, kLora = 512, kRope = 64, kDim = kLora + kRope;
constexpr Fp8Latent kLayout{kLora, kRope};
constexpr int kLongest = 2052;  // positions of a sequence
// Weights and results are rounded to bf16: 2^-9 of the largest value each, and a half of that for the sum of many.
constexpr double kTolerance = 6e-3;
constexpr float kScale = 0.0721688f;  // 1 / sqrt(192)

// Consecutive tokens of one sequence, whose history is a prefix of kLongest positions.
struct Chunk {
  int sequence, first, count;
};
struct Setup {
  std::vector<Chunk> chunks;
  int watched = 0;        // the row whose bits are compared
  int blocks = 3;         // of the grid
  int round = 1000;       // tokens of a launch
  int broken = kLongest;  // from this position on, latents have a NaN
  bool groups = true;
};

// Latents and queries of a sequence, by position.
struct Sequence {
  std::vector<bf16> latents, queries;  // [kLongest, kDim]; of a query: [.., kHeads, kDim], made when it is needed
  explicit Sequence(int number) : latents(random_bf16(int64_t{kLongest} * kDim, 100 + number, 0.5f)) {
    // Position 3 is four times a query: its score is so far above later ones that a running maximum overflows where it
    // is not kept.
    if (number == 0)
      for (int k = 0; k < kDim; ++k) latents[3 * kDim + k] = to_bf16(4 * to_float(query(0, 128)[k]));
  }
  static std::vector<bf16> query(int number, int position) {
    return random_bf16(kHeads * kDim, static_cast<uint64_t>(number * 10000 + position));
  }
};
const Sequence& sequence_of(int number) {
  static std::map<int, std::unique_ptr<Sequence>> made;
  std::unique_ptr<Sequence>& one = made[number];
  if (!one) one = std::make_unique<Sequence>(number);
  return *one;
}

// A latent row as it is stored, and the values that it stands for.
std::vector<unsigned char> stored_row(const bf16* values, bool fp8) {
  std::vector<unsigned char> row(fp8 ? kLayout.row_bytes() : kDim * 2);
  if (!fp8) {
    std::memcpy(row.data(), values, row.size());
    return row;
  }
  for (int g = 0; g < kLayout.num_groups(); ++g) {
    float largest = 0;
    for (int k = g * 128; k < (g + 1) * 128; ++k) largest = std::max(largest, std::fabs(to_float(values[k])));
    const float scale = largest / 448;
    std::memcpy(&row[kLayout.scales_offset() + 4 * g], &scale, 4);
    for (int k = g * 128; k < (g + 1) * 128; ++k) row[k] = to_e4m3(to_float(values[k]) / scale);
  }
  std::memcpy(&row[kLayout.rope_offset()], values + kLora, kRope * 2);
  return row;
}
std::vector<double> values_of(const std::vector<unsigned char>& row, bool fp8) {
  std::vector<double> values(kDim);
  for (int k = 0; k < kDim; ++k) {
    bf16 plain{};
    if (fp8 && k < kLora) {
      float scale;
      std::memcpy(&scale, &row[kLayout.scales_offset() + k / 128 * 4], 4);
      values[k] = double{e4m3_to_float(row[k])} * scale;
      continue;
    }
    std::memcpy(&plain, &row[fp8 ? kLayout.rope_offset() + 2 * (k - kLora) : 2 * k], 2);
    values[k] = to_float(plain);
  }
  return values;
}

// [kHeads, kLora] in f64; the same for all cases.
const std::vector<double>& expected(int sequence, int position, bool fp8) {
  static std::map<std::tuple<int, int, bool>, std::vector<double>> known;
  std::vector<double>& out = known[{sequence, position, fp8}];
  if (!out.empty()) return out;
  out.resize(kHeads * kLora);
  static std::map<std::pair<int, bool>, std::vector<std::vector<double>>> all_rows;
  std::vector<std::vector<double>>& rows = all_rows[{sequence, fp8}];
  for (int p = static_cast<int>(rows.size()); p <= position; ++p)
    rows.push_back(values_of(stored_row(&sequence_of(sequence).latents[p * kDim], fp8), fp8));
  const std::vector<bf16> query = Sequence::query(sequence, position);
  for (int head = 0; head < kHeads; ++head) {
    std::vector<double> scores;
    double most = -1e300, total = 0;
    for (int p = 0; p <= position; ++p) {
      double score = 0;
      for (int k = 0; k < kDim; ++k) score += double{to_float(query[head * kDim + k])} * rows[p][k];
      scores.push_back(score * kScale);
      most = std::max(most, scores.back());
    }
    for (int p = 0; p <= position; ++p) {
      const double weight = std::exp(scores[p] - most);
      total += weight;
      if (weight > 1e-12)
        for (int k = 0; k < kLora; ++k) out[head * kLora + k] += weight * rows[p][k];
    }
    for (int k = 0; k < kLora; ++k) out[head * kLora + k] /= total;
  }
  return out;
}

// What a batch is made of, in the memory of the host.
struct Batch {
  std::vector<int32_t> positions, sequence_idx, query_starts = {0}, sequences, block_tables;
  std::vector<unsigned char> latents;
  std::vector<bf16> queries;  // [tokens, kHeads, kDim]: both parts are views of it
  int64_t row_bytes, block_bytes, table_stride = kLongest / 64 + 1;

  Batch(const Setup& setup, bool fp8) {
    row_bytes = fp8 ? kLayout.row_bytes() : kDim * 2;
    block_bytes = 64 * row_bytes + 1024;  // another sub-layer lies between
    int blocks = 1;                       // block 0 is no one's
    for (const Chunk& chunk : setup.chunks) {
      for (int i = 0; i < chunk.count; ++i) {
        positions.push_back(chunk.first + i);
        sequence_idx.push_back(static_cast<int32_t>(sequences.size()));
        const std::vector<bf16> query = Sequence::query(chunk.sequence, chunk.first + i);
        queries.insert(queries.end(), query.begin(), query.end());
      }
      sequences.push_back(chunk.sequence);
      query_starts.push_back(static_cast<int32_t>(positions.size()));
      const int count = (chunk.first + chunk.count + 63) / 64;
      for (int i = 0; i < table_stride; ++i) block_tables.push_back(i < count ? blocks + count - 1 - i : 0);
      blocks += count;
    }
    latents.assign(static_cast<size_t>(blocks * block_bytes), 0xff);  // NaN
    for (size_t s = 0; s < setup.chunks.size(); ++s) {
      const Chunk& chunk = setup.chunks[s];
      for (int p = 0; p < chunk.first + chunk.count; ++p) {
        std::vector<unsigned char> row = stored_row(&sequence_of(chunk.sequence).latents[p * kDim], fp8);
        if (p >= setup.broken) fp8 ? std::memset(&row[300], 0x7f, 1) : std::memset(&row[600], 0xff, 2);
        const int64_t block = block_tables[s * static_cast<size_t>(table_stride) + static_cast<size_t>(p / 64)];
        std::copy(row.begin(), row.end(), &latents[static_cast<size_t>(block * block_bytes + p % 64 * row_bytes)]);
      }
    }
  }
};

template <class Kernel>
Outcome run(SimtEmulator& gpu, const Setup& setup, const Batch& batch) {
  const int32_t num_tokens = static_cast<int32_t>(batch.positions.size());
  constexpr int kTile = Kernel::kRowTiles * 16, kHeadBlocks = kHeads / kTile, kPieces = 18;
  const int64_t slots = std::min<int64_t>(num_tokens, setup.round) * kHeadBlocks * kPieces;
  const bf16* const queries = gpu.input(batch.queries);
  Kernel kernel{
      .tokens = {.positions = written(gpu, batch.positions),
                 .sequence_idx = gpu.input(batch.sequence_idx),
                 .query_starts = gpu.input(batch.query_starts),
                 .plan = gpu.output<int32_t>(num_tokens + 2),
                 .num_tokens = num_tokens,
                 .round = setup.round},
      .q_latent = queries,
      .q_rope = queries + kLora,
      .out = gpu.output<bf16>(int64_t{num_tokens} * kHeads * kLora),
      .q_latent_strides = {kHeads * kDim, kDim},
      .q_rope_strides = {kHeads * kDim, kDim},
      .out_strides = {kHeads * kLora, kLora},
      .latents = gpu.input(batch.latents),
      .block_bytes = batch.block_bytes,
      .block_tables = gpu.input(batch.block_tables),
      .block_table_stride = batch.table_stride,
      .head_blocks = kHeadBlocks,
      .num_pieces = kPieces,
      .sums = gpu.output<float>(slots * kTile * kLora),
      .maxima = gpu.output<float>(slots * kTile),
      .weights = gpu.output<float>(slots * kTile),
      .arrivals = gpu.buffer(std::vector<uint32_t>(static_cast<size_t>(slots / kPieces * 3))),
      .scale_log2 = kScale * 1.44269504f,
  };
  gpu.launch(1, MlaPlan{.tokens = kernel.tokens, .enough = setup.groups ? 0 : 1 << 30}, true);
  for (int32_t first = 0; first < num_tokens; first += setup.round) {
    kernel.first_token = first;
    kernel.last_token = std::min(num_tokens, first + setup.round);
    gpu.launch(setup.blocks, kernel, true);
  }
  const std::vector<bf16> out = gpu.read(kernel.out, int64_t{num_tokens} * kHeads * kLora);
  double error = 0;
  for (int32_t token = 0; token < num_tokens; ++token) {
    if (batch.positions[token] >= setup.broken) {
      for (int64_t i = 0; i < kHeads * kLora; ++i)
        if (!std::isnan(to_float(out[int64_t{token} * kHeads * kLora + i]))) error = 1e9;
      continue;
    }
    const std::vector<double>& right =
        expected(batch.sequences[batch.sequence_idx[token]], batch.positions[token], Kernel::kFp8);
    for (int head = 0; head < kHeads; ++head) {
      float row[kLora];
      for (int k = 0; k < kLora; ++k) row[k] = to_float(out[(int64_t{token} * kHeads + head) * kLora + k]);
      const double one = row_error(row, &right[head * kLora], kLora);
      if (std::isnan(one)) return {one, kTolerance, 0};
      error = std::max(error, one);
    }
  }
  for (const uint32_t left : gpu.read(kernel.arrivals, slots / kPieces * 3))
    if (left != 0) error = 1e9;
  const int64_t row = kHeads * kLora;
  return {error, kTolerance, hash_of_bytes(&out[static_cast<size_t>(setup.watched * row)], row * 2)};
}

template <class Kernel>
Case case_of(const std::string& name, const Setup& setup, const std::string& watched = {}) {
  auto batch = std::make_shared<std::unique_ptr<Batch>>();  // made when the case first runs
  return {name,
          [setup, batch](SimtEmulator& gpu) {
            if (!*batch) *batch = std::make_unique<Batch>(setup, Kernel::kFp8);
            return run<Kernel>(gpu, setup, **batch);
          },
          watched};
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat::emulation;
  const auto bf16 = [](const char* name, Setup setup, const char* watched = "") {
    return case_of<Bf16Decode>(name, setup, watched);
  };
  const auto fp8 = [](const char* name, Setup setup, const char* watched = "") {
    return case_of<Fp8Decode>(std::string("fp8, ") + name, setup, watched);
  };
  // A piece does not stay in its shared memory, so it never has groups.
  const auto small = [](const char* name, Setup setup, const char* watched = "") {
    setup.groups = false;
    return case_of<SmallDecode>(std::string("small tiles, ") + name, setup, watched);
  };
  static_assert(SmallDecode::kSharedBytes <= 99 << 10);
  return prove(
      argc, argv,
      {bf16("129 positions, a falling score", {.chunks = {{0, 128, 1}}, .blocks = 2}, "0 at 128"),
       bf16("2,049 positions", {.chunks = {{1, 2048, 1}}, .blocks = 5}, "1 at 2,048"),
       fp8("a group of 5 over the end of a piece", {.chunks = {{1, 125, 5}}, .watched = 3}, "fp8, 1 at 128"),
       bf16("a group of 5 over the end of a piece", {.chunks = {{0, 125, 5}}, .watched = 3}, "0 at 128"),
       bf16("1 position", {.chunks = {{2, 0, 1}}, .blocks = 1}),
       bf16("127 positions beside others, one at a time",
            {.chunks = {{2, 60, 6}, {1, 126, 1}, {3, 0, 2}}, .watched = 6, .blocks = 2, .groups = false}, "1 at 126"),
       bf16("127 positions, others behind, two launches",
            {.chunks = {{1, 126, 3}, {2, 63, 2}}, .watched = 0, .blocks = 4, .round = 2}, "1 at 126"),
       bf16("127 positions in a group with NaN", {.chunks = {{1, 124, 5}}, .watched = 2, .broken = 127}, "1 at 126"),
       fp8("129 positions", {.chunks = {{1, 128, 1}}, .blocks = 1}, "fp8, 1 at 128"),
       fp8("129 positions, one at a time",
           {.chunks = {{3, 5, 1}, {1, 126, 3}}, .watched = 3, .blocks = 5, .groups = false}, "fp8, 1 at 128"),
       fp8("127 positions in a group with NaN", {.chunks = {{1, 124, 5}}, .watched = 2, .broken = 127}),
       // With two blocks, each finds an item without tokens before its last one.
       bf16("2,047 to 2,050 positions", {.chunks = {{1, 2046, 4}}, .watched = 2, .blocks = 2}, "1 at 2,048"),
       small("129 positions, a falling score", {.chunks = {{0, 128, 1}}, .blocks = 2}),
       small("127 positions beside others",
             {.chunks = {{2, 60, 6}, {1, 126, 1}, {3, 31, 2}}, .watched = 6, .blocks = 3}, "small, 1 at 126"),
       small("127 positions, others behind, two launches",
             {.chunks = {{1, 126, 3}, {2, 63, 2}}, .watched = 0, .blocks = 5, .round = 2}, "small, 1 at 126"),
       small("127 positions, then NaN", {.chunks = {{1, 126, 2}}, .watched = 0, .broken = 127}, "small, 1 at 126"),
       small("2,049 positions", {.chunks = {{1, 2048, 1}}, .blocks = 5})});
}
