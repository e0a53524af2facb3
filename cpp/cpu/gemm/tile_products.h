// The kernels of gemm/tile_kernels.h, over the tiles of a processor (vec::Tiles) or emulated ones.
#pragma once

#include <cstring>
#include <utility>

#include "cpu/gemm/tile_kernels.h"
#include "cpu/simd/tiles.h"
#include "cpu/simd/vec.h"

namespace longcat::cpu {

template <class Tiles>
struct TileProducts {
  static void rows(const TiledRows& product) {
    const TiledRows p = product;  // a copy that no store can change
    const int64_t rows = vec::least(vec::kTileRows, p.num_rows), blocks = (p.in_features + kColumns - 1) / kColumns;
    const int64_t row_bytes = p.num_inputs == 1 ? 4 : vec::kTileRowBytes, block_bytes = vec::kTileRows * row_bytes;
    Tiles::configure(vec::tile_config(rows, row_bytes));
    Sums sums[4] = {};
    Tail tails[2];
    for (int64_t row = 0; row < p.num_rows; row += 2 * vec::kTileRows) {
      const bool two_rows = row + vec::kTileRows < p.num_rows;
      int64_t first_row[2];
      Operand a[2];
      for (int m = 0; m < 2; ++m) {
        // The last tile begins earlier where fewer rows are left, and computes some of them again.
        first_row[m] = vec::least(row + m * vec::kTileRows, p.num_rows - rows);
        a[m] = {.first = reinterpret_cast<const char*>(p.rows + first_row[m] * p.in_features),
                .stride = 2 * p.in_features,
                .step = vec::kTileRowBytes};
        pad(a[m], tails[m], rows, p.in_features % kColumns * 2, blocks);
      }
      for (int64_t input = 0; input < p.num_inputs; input += 2 * kPairedInputs) {
        const bool two_inputs = input + kPairedInputs < p.num_inputs;
        Operand b[2];
        for (int n = 0; n < 2; ++n)
          b[n] = {.first = reinterpret_cast<const char*>(p.pairs) + (input / kPairedInputs + n) * blocks * block_bytes,
                  .stride = row_bytes,
                  .step = block_bytes};
        multiply(sums, a, b, two_rows, two_inputs, blocks);
        for (int m = 0; m <= two_rows; ++m)
          for (int n = 0; n <= two_inputs; ++n) {
            const int64_t first = input + n * kPairedInputs, count = vec::least(kPairedInputs, p.num_inputs - first);
            float* const out = p.out + first * p.out_stride + first_row[m];
            if (p.num_inputs == 1) {
              for (int64_t r = 0; r < rows; ++r) std::memcpy(out + r, &sums[2 * m].lanes[r], 4);
              continue;
            }
            transpose(sums[2 * m + n].lanes);
            for (int64_t i = 0; i < count; ++i)
              std::memcpy(out + i * p.out_stride, &sums[2 * m + n].lanes[i], static_cast<size_t>(rows) * 4);
          }
      }
    }
    Tiles::release();
  }

  static void groups(const TiledGroups& product) {
    constexpr int64_t kRows = 8, kRowBytes = 4 * kRows;
    const TiledGroups p = product;
    const int64_t inputs = vec::least(vec::kTileRows, p.num_inputs);
    const int64_t blocks = (p.in_features + kColumns - 1) / kColumns, groups = (p.num_rows + kRows - 1) / kRows;
    Tiles::configure(vec::tile_config(inputs, kRowBytes));
    Sums sums[4];
    Tail tails[2];
    for (int64_t group = 0; group < groups; group += 2) {
      const bool two_groups = group + 1 < groups;
      Operand b[2];
      for (int n = 0; n < 2; ++n) {
        b[n] = {.first = reinterpret_cast<const char*>(p.groups) + vec::least(group + n, groups - 1) * p.group_stride,
                .stride = kRowBytes,
                .step = vec::kTileRows * kRowBytes};
        pad(b[n], tails[n], (p.in_features % kColumns + 1) / 2, kRowBytes, blocks);
      }
      for (int64_t input = 0; input < p.num_inputs; input += 2 * vec::kTileRows) {
        const bool two_inputs = input + vec::kTileRows < p.num_inputs;
        int64_t first_input[2];
        Operand a[2];
        for (int m = 0; m < 2; ++m) {
          first_input[m] = vec::least(input + m * vec::kTileRows, p.num_inputs - inputs);  // as first_row above
          a[m] = {.first = reinterpret_cast<const char*>(p.x + first_input[m] * p.x_stride),
                  .stride = 2 * p.x_stride,
                  .step = vec::kTileRowBytes};
        }
        multiply(sums, a, b, two_inputs, two_groups, blocks);
        for (int m = 0; m <= two_inputs; ++m)
          for (int n = 0; n <= two_groups; ++n) {
            const int64_t row = (group + n) * kRows, rows = vec::least(kRows, p.num_rows - row);
            for (int64_t i = 0; i < inputs; ++i)
              std::memcpy(p.out + (first_input[m] + i) * p.out_stride + row, &sums[2 * m + n].lanes[i],
                          static_cast<size_t>(rows) * 4);
          }
      }
    }
    Tiles::release();
  }

  static void pair(bf16* pairs, const bf16* const* inputs, int64_t num_inputs, int64_t num_blocks) {
    for (int64_t block = 0; block < num_blocks; ++block) {
      Lanes lanes[kPairedInputs] = {};  // a pair of columns each
      for (int64_t i = 0; i < num_inputs; ++i) std::memcpy(&lanes[i], inputs[i] + block * kColumns, sizeof(Lanes));
      transpose(lanes);
      std::memcpy(pairs + block * kPairedInputs * kColumns, lanes, sizeof(lanes));
    }
  }

 private:
  static constexpr int64_t kColumns = 32;  // of a block

  // The 16 values of a tile's row.
  typedef uint32_t Lanes __attribute__((vector_size(64)));

  // A tile of C, as far as its shape goes.
  struct Sums {
    Lanes lanes[vec::kTileRows];
  };

  // A tile for each block of columns.
  struct Operand {
    const char* first = nullptr;
    int64_t stride = 0, step = 0;  // [bytes] between rows, and between blocks
    const char* tail = nullptr;    // the last block where it is not whole, padded with zeros; rows of 64 bytes
  };

  struct Tail {
    alignas(64) char bytes[vec::kTileBytes];
  };

  // Copies `rows` rows of row_bytes bytes of the last block, where that is not whole.
  static LC_INLINE void pad(Operand& operand, Tail& tail, int64_t rows, int64_t row_bytes, int64_t blocks) {
    if (rows == 0 || row_bytes == 0) return;
    std::memset(tail.bytes, 0, sizeof(tail.bytes));
    const char* const from = operand.first + (blocks - 1) * operand.step;
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(tail.bytes + r * vec::kTileRowBytes, from + r * operand.stride, static_cast<size_t>(row_bytes));
    operand.tail = tail.bytes;
  }

  static LC_INLINE void multiply(Sums* sums, const Operand* a, const Operand* b, bool two_a, bool two_b,
                                 int64_t blocks) {
    if (two_a) return two_b ? multiply<2, 2>(sums, a, b, blocks) : multiply<2, 1>(sums, a, b, blocks);
    return two_b ? multiply<1, 2>(sums, a, b, blocks) : multiply<1, 1>(sums, a, b, blocks);
  }

  // sums[2 m + n] = A[m] B[n].
  template <int M, int N>
  static LC_INLINE void multiply(Sums* sums, const Operand* a, const Operand* b, int64_t blocks) {
    const Operand a0 = a[0], a1 = a[M - 1], b0 = b[0], b1 = b[N - 1];  // in registers
    Tiles::template zero<0>();
    if constexpr (N > 1) Tiles::template zero<1>();
    if constexpr (M > 1) Tiles::template zero<2>();
    if constexpr (M > 1 && N > 1) Tiles::template zero<3>();
    for (int64_t k = 0; k < blocks; ++k) {
      const bool last = k + 1 == blocks;
      load<4>(a0, k, last);
      load<6>(b0, k, last);
      if constexpr (M > 1) load<5>(a1, k, last);
      if constexpr (N > 1) load<7>(b1, k, last);
      Tiles::template add_product<0, 4, 6>();
      if constexpr (N > 1) Tiles::template add_product<1, 4, 7>();
      if constexpr (M > 1) Tiles::template add_product<2, 5, 6>();
      if constexpr (M > 1 && N > 1) Tiles::template add_product<3, 5, 7>();
    }
    Tiles::template store<0>(&sums[0], vec::kTileRowBytes);
    if constexpr (N > 1) Tiles::template store<1>(&sums[1], vec::kTileRowBytes);
    if constexpr (M > 1) Tiles::template store<2>(&sums[2], vec::kTileRowBytes);
    if constexpr (M > 1 && N > 1) Tiles::template store<3>(&sums[3], vec::kTileRowBytes);
  }

  template <int t>
  static LC_INLINE void load(const Operand& operand, int64_t block, bool last) {
    if (last && operand.tail) return Tiles::template load<t>(operand.tail, vec::kTileRowBytes);
    Tiles::template load<t>(operand.first + block * operand.step, operand.stride);
  }

  // Lane j of v[i] becomes lane i of v[j]: swaps blocks of 8 x 8 lanes, then of 4 x 4, 2 x 2 and 1.
  static LC_INLINE void transpose(Lanes* v) {
    constexpr auto kLanes = std::make_integer_sequence<int, 16>();
    swap_blocks<8>(v, kLanes);
    swap_blocks<4>(v, kLanes);
    swap_blocks<2>(v, kLanes);
    swap_blocks<1>(v, kLanes);
  }
  template <int size, int... lane>
  static LC_INLINE void swap_blocks(Lanes* v, std::integer_sequence<int, lane...>) {
    LC_UNROLL for (int pair = 0; pair < 8; ++pair) {
      const int i = pair / size * 2 * size + pair % size;
      const Lanes upper = v[i], lower = v[i + size];
      v[i] = __builtin_shufflevector(upper, lower, (lane & size ? 16 + lane - size : lane)...);
      v[i + size] = __builtin_shufflevector(upper, lower, (lane & size ? 16 + lane : lane + size)...);
    }
  }
};

}  // namespace longcat::cpu
