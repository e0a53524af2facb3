// The proof of cuda/kernels/mla_prefill_keys.h against float64, at the real sizes of a tile.
#include "cuda/kernels/mla_prefill_keys.h"

#include <algorithm>
#include <cmath>

#include "cuda/emulation/proof.h"
#include "tests/gpu_proof/written.h"

using Bf16Keys = longcat::gpu::MlaPrefillKeys<longcat::DType::bf16>;
using Fp8Keys = longcat::gpu::MlaPrefillKeys<longcat::DType::f8_e4m3>;
using SmallKeys = longcat::gpu::MlaPrefillKeys<longcat::DType::bf16, 64>;  // of 99 KiB

// Compiled apart, since mutations change them.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const Bf16Keys&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const Fp8Keys&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const SmallKeys&, bool);

namespace longcat::emulation {

namespace {

constexpr int kLora = 512, kRope = 64, kWidth = 128, kHeads = 3, kTile = 128;
constexpr int kNoEnd = 1 << 30;
constexpr Fp8Latent kLayout{kLora, kRope};
// One rounding to bf16 is 2^-8 of a value. Latents of fp8 are rounded too: as much again at most.
constexpr double kTolerance = 4e-3, kFp8Tolerance = 8e-3;

struct Chunk {
  int sequence, first, count;  // values of a sequence are by its number and the position
};
struct Setup {
  std::vector<Chunk> chunks;
  int watched_chunk = 0, watched_position = 0;  // whose bits are compared
  int heads_of_block = 2;
  int before = 0;  // sequences in front that are not of the launch
  int end_position = kNoEnd;
  int broken_position = -1, huge_position = -1;  // of each chunk: a NaN in the latent; values of two heads overflow
};

std::vector<bf16> latent_of(int sequence, int position) {
  return random_bf16(kLora + kRope, static_cast<uint64_t>(1000 * sequence + position), 0.5f);
}

struct Row {
  std::vector<unsigned char> stored;
  std::vector<double> values;  // that it stands for
};
Row row_of(std::vector<bf16> latent, bool fp8) {
  Row row;
  row.stored.resize(fp8 ? kLayout.row_bytes() : 2 * (kLora + kRope));
  for (int k = 0; k < kLora; ++k) row.values.push_back(to_float(latent[k]));
  if (!fp8) {
    std::memcpy(row.stored.data(), latent.data(), row.stored.size());
    return row;
  }
  for (int g = 0; g < kLayout.num_groups(); ++g) {
    float largest = 0;
    for (int k = g * 128; k < (g + 1) * 128; ++k) largest = std::max(largest, std::fabs(to_float(latent[k])));
    const float scale = (g + 1) * largest / 448;  // unlike in each group
    std::memcpy(&row.stored[kLayout.scales_offset() + 4 * g], &scale, 4);
    for (int k = g * 128; k < (g + 1) * 128; ++k) {
      row.stored[k] = to_e4m3(to_float(latent[k]) / scale);
      row.values[k] = double{e4m3_to_float(row.stored[k])} * scale;
    }
  }
  return row;
}

template <class Kernel>
Outcome run(SimtEmulator& gpu, const Setup& setup) {
  constexpr bool kFp8 = Kernel::kFp8;
  const int64_t row_bytes = kFp8 ? kLayout.row_bytes() : 2 * (kLora + kRope), block_bytes = 64 * row_bytes + 1024;
  const size_t stride = 5;
  std::vector<int32_t> positions, query_starts, tables;
  const auto begin_sequence = [&] {
    query_starts.push_back(static_cast<int32_t>(positions.size()));
    tables.insert(tables.end(), stride, 0);
  };
  for (int i = 0; i < setup.before; ++i) {
    begin_sequence();
    positions.push_back(200);  // a generated token: no keys are made for it
  }
  int blocks = 1;
  std::vector<std::vector<Row>> rows;
  std::vector<int> ends;
  for (const Chunk& chunk : setup.chunks) {
    begin_sequence();
    for (int i = 0; i < chunk.count; ++i) positions.push_back(chunk.first + i);
    const int end = std::max(0, std::min(chunk.first + chunk.count, setup.end_position));
    ends.push_back(chunk.count > 0 && chunk.first < end ? end : 0);
    const int count = (chunk.first + chunk.count + 63) / 64;
    for (int i = 0; i < count; ++i) tables[tables.size() - stride + i] = blocks + count - 1 - i;
    blocks += count;
    rows.emplace_back();
    for (int p = 0; p < chunk.first + chunk.count; ++p) {
      std::vector<bf16> latent = latent_of(chunk.sequence, p);
      if (p == setup.huge_position) latent[7] = to_bf16(3e38f);
      rows.back().push_back(row_of(latent, kFp8));
      if (p == setup.broken_position) {
        std::vector<unsigned char>& stored = rows.back().back().stored;
        kFp8 ? std::memset(&stored[302], 0xff, 1) : std::memset(&stored[600], 0xff, 2);
      }
    }
  }
  query_starts.push_back(static_cast<int32_t>(positions.size()));
  std::vector<unsigned char> latents(static_cast<size_t>(blocks * block_bytes), 0xff);  // NaN
  for (size_t c = 0; c < rows.size(); ++c)
    for (size_t p = 0; p < rows[c].size(); ++p) {
      const int64_t block = tables[(c + static_cast<size_t>(setup.before)) * stride + p / 64];
      std::copy(rows[c][p].stored.begin(), rows[c][p].stored.end(),
                &latents[static_cast<size_t>(block * block_bytes + static_cast<int64_t>(p % 64) * row_bytes)]);
    }

  std::vector<bf16> k_up = random_bf16(kHeads * kLora * kWidth, 1, 0.04f);
  std::vector<bf16> v_up = random_bf16(kHeads * kWidth * kLora, 2, 0.04f);
  // The huge latent overflows here: in an even column of head 0, and in an odd one of head 1.
  v_up[90 * kLora + 7] = v_up[(kWidth + 91) * kLora + 7] = to_bf16(64);
  int64_t tiles = 1;  // one more than there are: a block without work
  for (const int end : ends) tiles += (end + kTile - 1) / kTile;
  const int64_t num_positions = tiles * kTile, count = kHeads * num_positions * kWidth;
  Kernel kernel{.chunks = {.positions = written(gpu, positions),
                           .query_starts = gpu.input(query_starts),
                           .first_sequence = setup.before,
                           .last_sequence = static_cast<int32_t>(setup.before + std::ssize(setup.chunks)),
                           .end_position = setup.end_position},
                .latents = gpu.input(latents),
                .block_bytes = block_bytes,
                .block_tables = gpu.input(tables),
                .block_table_stride = static_cast<int64_t>(stride),
                .k_up = gpu.input(k_up),
                .v_up = gpu.input(v_up),
                .keys = gpu.output<bf16>(count),
                .values = gpu.output<bf16>(count),
                .num_positions = num_positions,
                .num_heads = kHeads,
                .heads_of_block = setup.heads_of_block};
  constexpr int kRows = static_cast<int>(Kernel::kStagesAt / Kernel::kRow);  // of a block
  gpu.launch(num_positions / kRows * ((kHeads + setup.heads_of_block - 1) / setup.heads_of_block), kernel, true);
  const std::vector<bf16> keys = gpu.read(kernel.keys, count), values = gpu.read(kernel.values, count);

  double error = 0;
  uint64_t bits = 0;
  int64_t first = 0;
  for (size_t c = 0; c < ends.size(); ++c) {
    const int padded = (ends[c] + kTile - 1) / kTile * kTile, made = (ends[c] + kRows - 1) / kRows * kRows;
    for (int head = 0; head < kHeads; ++head)
      for (int p = 0; p < made; ++p) {
        const int64_t at = (head * num_positions + first + p) * kWidth;
        if (static_cast<int>(c) == setup.watched_chunk && p == setup.watched_position)
          bits = bits * 31 + hash_of_bytes(&keys[static_cast<size_t>(at)], 2 * kWidth) * 7 +
                 hash_of_bytes(&values[static_cast<size_t>(at)], 2 * kWidth);
        const bool is_nan = p == setup.broken_position || (p == setup.huge_position && head < 2);
        double key[kWidth] = {}, value[kWidth] = {};
        float found_key[kWidth], found_value[kWidth];
        for (int d = 0; d < kWidth; ++d) {
          found_key[d] = to_float(keys[static_cast<size_t>(at + d)]);
          found_value[d] = to_float(values[static_cast<size_t>(at + d)]);
          if (p >= ends[c] && (found_key[d] != 0 || found_value[d] != 0)) error = 1e9;
          if (is_nan && (!std::isnan(found_key[d]) || !std::isfinite(found_value[d]))) error = 1e9;
        }
        if (p >= ends[c] || is_nan) continue;
        for (int l = 0; l < kLora; ++l)
          for (int d = 0; d < kWidth; ++d) {
            key[d] += rows[c][p].values[l] * to_float(k_up[static_cast<size_t>((head * kLora + l) * kWidth + d)]);
            value[d] += rows[c][p].values[l] * to_float(v_up[static_cast<size_t>((head * kWidth + d) * kLora + l)]);
          }
        for (const double one : {row_error(found_key, key, kWidth), row_error(found_value, value, kWidth)}) {
          if (std::isnan(one)) return {one, kTolerance, 0};
          error = std::max(error, one);
        }
      }
    first += padded;
  }
  return {error, kFp8 ? kFp8Tolerance : kTolerance, bits};
}

template <class Kernel>
Case case_of(const std::string& name, const Setup& setup, const std::string& watched = {}) {
  return {name, [setup](SimtEmulator& gpu) { return run<Kernel>(gpu, setup); }, watched};
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat::emulation;
  std::vector<Chunk> many(33, {.sequence = 4, .first = 0, .count = 0});  // more than a warp has lanes
  many.push_back({.sequence = 1, .first = 3, .count = 1});
  return prove(
      argc, argv,
      {case_of<Bf16Keys>("130 positions behind others",
                         {.chunks = {{2, 0, 5}, {1, 100, 30}}, .watched_chunk = 1, .watched_position = 3, .before = 2},
                         "1 at 3"),
       case_of<Fp8Keys>("fp8, 70 positions", {.chunks = {{1, 64, 6}}, .watched_position = 3, .heads_of_block = 3},
                        "fp8, 1 at 3"),
       case_of<Bf16Keys>("a NaN and a value that overflows",
                         {.chunks = {{1, 0, 40}},
                          .watched_position = 3,
                          .heads_of_block = 3,
                          .broken_position = 17,
                          .huge_position = 35},
                         "1 at 3"),
       case_of<Fp8Keys>("fp8, a NaN, a head a block",
                        {.chunks = {{1, 0, 20}}, .watched_position = 3, .heads_of_block = 1, .broken_position = 17},
                        "fp8, 1 at 3"),
       case_of<Bf16Keys>("tokens from an end on are left out",
                         {.chunks = {{3, 90, 2}, {1, 2, 60}, {2, 1, 3}},
                          .watched_chunk = 1,
                          .watched_position = 3,
                          .heads_of_block = 3,
                          .end_position = 6},
                         "1 at 3"),
       case_of<Bf16Keys>("the last of 34 chunks", {.chunks = many, .watched_chunk = 33, .watched_position = 3},
                         "1 at 3"),
       case_of<SmallKeys>("small tiles, 130 positions behind others, a NaN",
                          {.chunks = {{2, 0, 5}, {1, 100, 30}},
                           .watched_chunk = 1,
                           .watched_position = 3,
                           .before = 2,
                           .broken_position = 97},
                          "1 at 3"),
       case_of<SmallKeys>("small tiles, a value that overflows",
                          {.chunks = {{1, 0, 70}}, .watched_position = 3, .heads_of_block = 3, .huge_position = 66},
                          "1 at 3")});
}
