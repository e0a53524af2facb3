// Kernels of matrices as they are in checkpoints: rows of f32 or bf16. A register tile covers a few weight rows and a
// few inputs. Each output is a dot product of 16 partial sums with k ascending, then a fixed tree. That holds for every
// tile, so the bits do not depend on the number of inputs.
#pragma once

#include "cpu/gemm/matmul.h"
#include "cpu/simd/dispatch.h"

namespace longcat::cpu {

// Multiplies rows [num_rows, in_features] by the block's inputs [begin, end). The results are those of the block's rows
// from first_row on.
template <class W>
using DotRows = void (*)(const W* rows, int64_t in_features, int64_t first_row, int64_t num_rows, int64_t begin,
                         int64_t end, const MatmulBlock& block);

struct DotKernels {
  // Up to this number of inputs, rows are read in place. With more inputs, widening each row to f32 once pays off.
  int64_t most_few_inputs;
  DotRows<float> few_f32;
  DotRows<bf16> few_bf16;  // these two read rows in place, from memory
  DotRows<float> many;     // for rows in the cache
};

}  // namespace longcat::cpu
