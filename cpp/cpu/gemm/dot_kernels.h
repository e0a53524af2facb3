// Kernels of matrices as they are in checkpoints: rows of f32 or bf16. A register tile covers a few weight rows and a
// few inputs. Each output adds chunks of columns in ascending order. A chunk is a dot product of 16 partial sums with k
// ascending, then a fixed tree. That holds for every tile, so the bits do not depend on the number of inputs.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "cpu/simd/dispatch.h"

namespace longcat::cpu {

// Columns of a chunk. A tile's rows of that length stay in the first-level cache, here of f32 and here of bf16.
constexpr int64_t kF32Chunk = 512, kBf16Chunk = 1024;

// Rows of weights that are needed next.
struct RowsAhead {
  const char* first = nullptr;
  int64_t row_stride = 0;                   // [bytes]
  int64_t lines_of_row = 0, num_lines = 0;  // of the cache
};

// Products of rows of weights and rows of inputs over a range of columns.
template <class W, class X>
struct Dots {
  float* out;  // [num_inputs, num_rows]; with begin > 0 it holds the sums so far
  int64_t out_stride;
  const W* rows;  // [num_rows, columns], from column `begin` on
  int64_t row_stride, num_rows;
  const X* x;  // [inputs, columns], from column 0 on; the columns of bf16 inputs are padded to a multiple of 32
  int64_t x_stride;
  const int32_t* row_idx;  // [num_inputs] rows of x; null: the first num_inputs
  int64_t num_inputs;
  int64_t begin, end;  // columns; begin is that of a chunk
  RowsAhead ahead{};   // what to prefetch (`many`)
};

struct DotKernels {
  // Up to this number of inputs, rows are read in place. With more inputs, widening each row to f32 once pays off.
  int64_t most_few_inputs;
  void (*few_f32)(const Dots<float, float>& dots);
  void (*few_bf16)(const Dots<bf16, float>& dots);  // these two read rows in place, from memory
  void (*many)(const Dots<float, float>& dots);     // for one chunk of rows in the first-level cache
  // bf16 rows in place, times inputs rounded to bf16; null on sets without an instruction for it. Its partial sums are
  // of pairs of columns, as the instruction adds them.
  void (*rounded)(const Dots<bf16, bf16>& dots);
};

}  // namespace longcat::cpu
