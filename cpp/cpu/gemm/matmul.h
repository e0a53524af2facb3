// Product of a block of weight rows and a list of rows of x, the core of linear, linear_per_head and the experts.
#pragma once

#include "ops/packed.h"

namespace longcat::cpu {

class QuantizedInputs;

// out[i * out_stride + r] = x[row i] . W[first_row + r] for r in [0, num_rows), i in [0, num_inputs).
// Row i of x is x + i * x_stride, or x + row_idx[i] * x_stride when row_idx is not null. Strides in floats.
struct MatmulBlock {
  float* out;  // [num_inputs, num_rows]
  int64_t out_stride;
  const float* x;  // [rows, in_features]
  int64_t x_stride;
  const int32_t* row_idx;  // [num_inputs], or null
  int64_t num_inputs;
  int64_t first_row, num_rows;
  // The same rows in 8 bits, for weights that want_quantized_inputs(), or rounded to bf16, for bf16 and bf16_x8. Row i
  // of x is row quantized_first + i of them.
  const QuantizedInputs* quantized = nullptr;
  int64_t quantized_first = 0;
};

constexpr bool want_quantized_inputs(WeightFormat format) { return is_int_x8(format); }

void matmul_block(const Weight& weight, const MatmulBlock& block);

// out[0..in_features) = row `row` of the weight as floats.
void read_row(float* out, const Weight& weight, int64_t row);

}  // namespace longcat::cpu
