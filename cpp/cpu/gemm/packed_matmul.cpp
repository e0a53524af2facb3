// Products with packed weights: the loop over register tiles, and 8-bit inputs.
#include "cpu/gemm/packed_matmul.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "ops/packed.h"

namespace longcat::cpu {

namespace {

// Number of inputs of the next tile: the most even split of the remaining inputs that the set has tiles for.
int inputs_of_tile(const TileSet& set, int64_t left) {
  int most = kMaxTileInputs;
  while (!set.of_inputs[most]) --most;
  const int64_t tiles = (left + most - 1) / most;
  int inputs = static_cast<int>((left + tiles - 1) / tiles);
  while (!set.of_inputs[inputs]) --inputs;
  return inputs;
}

// Multiplies a weight's rows by all inputs. With a few inputs, the weights stream from memory at the speed of the
// products. With more than one tile of inputs, a chunk of columns of a few groups stays in the first-level cache for
// all inputs.
// kRounded: inputs are bf16.
template <WeightFormat format, bool kRounded = false>
class Walk {
 public:
  Walk(const Weight& weight, const MatmulBlock& block, const Tiles& tiles)
      : b_(block),
        tiles_(tiles),
        stride_(packed_stride(format, weight.in_features)),
        data_(static_cast<const uint8_t*>(weight.data) + block.first_row / kPackedRows * stride_),
        num_groups_(num_packed_groups(block.num_rows)) {
    tile_.num_blocks = num_quant_blocks(weight.in_features);
    tile_.scales_offset = tile_.num_blocks * kBlockBytes;
    tile_.in_features = weight.in_features;
  }

  void run() {
    const TileSet& wide = b_.num_inputs == 1 ? tiles_.single : tiles_.several;
    for (int64_t begin = 0; begin < b_.num_inputs; begin += kInputsAtOnce) {
      const int64_t end = std::min(begin + kInputsAtOnce, b_.num_inputs);
      for (int64_t group = 0; group < num_groups_;) {
        const TileSet& set = num_groups_ - group >= wide.groups ? wide : tiles_.last;
        multiply_groups(set, group, begin, end);
        group += set.groups;
      }
    }
  }

 private:
  static constexpr int64_t kBlockBytes = format == WeightFormat::bf16_x8 ? 512 : block_value_bytes(format);
  // Per tile, over its groups: half of a first-level cache. Of int4 in four groups a quarter, measured as the faster.
  static int64_t chunk_bytes(const TileSet& set) { return is_int4_x8(format) && set.groups >= 4 ? 8 << 10 : 16 << 10; }
  // The columns of a chunk of these, or whole rows in bf16, stay in the second-level cache.
  static constexpr int64_t kInputsAtOnce = kRounded ? 48 : 128;

  void multiply_groups(const TileSet& set, int64_t group, int64_t begin, int64_t end) {
    const int64_t rows = std::min<int64_t>(set.groups * kPackedRows, b_.num_rows - group * kPackedRows);
    // The thread reads on behind this block's rows: its next range is adjacent.
    const int64_t next_groups = set.groups * stride_;
    // Between chunks, the outputs hold the sums, so they need room for all groups of the tile.
    const bool whole = kRounded || end - begin == 1 || rows < set.groups * kPackedRows;
    const int64_t chunk =
        whole ? tile_.num_blocks : std::max<int64_t>(1, chunk_bytes(set) / (kBlockBytes * set.groups));
    for (int g = 0; g < set.groups; ++g) tile_.group[g] = data_ + std::min(group + g, num_groups_ - 1) * stride_;
    tile_.next_group = next_groups;
    for (int64_t block = 0; block < tile_.num_blocks; block += chunk) {
      tile_.begin_block = block;
      tile_.end_block = std::min(block + chunk, tile_.num_blocks);
      const bool last = tile_.end_block == tile_.num_blocks;
      const int64_t skip = last ? -block : tile_.end_block - block;  // [blocks] to the next chunk
      for (int64_t i = begin; i < end;) {
        const int inputs = inputs_of_tile(set, end - i);
        const int64_t part = (i - begin) * (tile_.end_block - block) * kBlockBytes / (end - begin);
        tile_.ahead_step = inputs * kBlockBytes / (end - begin);
        tile_.ahead_values = skip * kBlockBytes + (last ? next_groups : 0) + part;
        tile_.ahead_scales = skip * 16 + (last ? next_groups : 0);
        multiply_tile(set, group, rows, i, inputs);
        i += inputs;
      }
    }
  }

  // Results beyond the last group or row go to `spare`.
  void multiply_tile(const TileSet& set, int64_t group, int64_t rows, int64_t input, int inputs) {
    for (int t = 0; t < inputs; ++t) {
      const int64_t row = b_.row_idx ? b_.row_idx[input + t] : input + t;
      if constexpr (kRounded) {
        tile_.rounded[t] = b_.quantized->rounded(b_.quantized_first + row);
      } else if constexpr (format == WeightFormat::bf16_x8) {
        tile_.x[t] = b_.x + row * b_.x_stride;
      } else {
        tile_.q[t] = b_.quantized->values(b_.quantized_first + row);
        tile_.input_blocks[t] = b_.quantized->blocks(b_.quantized_first + row);
      }
      tile_.out[t] = b_.out + (input + t) * b_.out_stride + group * kPackedRows;
    }
    if (rows == set.groups * kPackedRows) return set.of_inputs[inputs](tile_);
    float spare[kMaxTileInputs][kMaxTileGroups * kPackedRows];
    float* out[kMaxTileInputs];
    for (int t = 0; t < inputs; ++t) {
      out[t] = tile_.out[t];
      tile_.out[t] = spare[t];
    }
    set.of_inputs[inputs](tile_);
    for (int t = 0; t < inputs; ++t) std::memcpy(out[t], spare[t], static_cast<size_t>(rows) * 4);
  }

  const MatmulBlock& b_;
  const Tiles& tiles_;
  int64_t stride_;
  const uint8_t* data_;
  int64_t num_groups_;
  Tile tile_{};
};

}  // namespace

void QuantizedInputs::quantize(ThreadPool& pool, const float* x, int64_t x_stride, int64_t num_rows,
                               int64_t in_features, const PackedKernels& kernels) {
  num_blocks_ = num_quant_blocks(in_features);
  are_quantized_ = true;
  const size_t blocks = static_cast<size_t>(num_rows * num_blocks_);
  if (blocks_.size() < blocks) {
    blocks_.resize(blocks);
    values_.resize(blocks * kQuantBlock);
  }
  pool.parallel_for(num_rows, grain_for(2 * in_features), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      kernels.quantize_row(values_.data() + row * num_blocks_ * kQuantBlock, blocks_.data() + row * num_blocks_,
                           x + row * x_stride, in_features);
  });
}

void QuantizedInputs::round(ThreadPool& pool, const float* x, int64_t x_stride, int64_t num_rows, int64_t in_features,
                            const PackedKernels& kernels) {
  num_blocks_ = num_quant_blocks(in_features);
  are_rounded_ = true;
  const size_t blocks = static_cast<size_t>(num_rows * num_blocks_);
  if (rounded_.size() < blocks) rounded_.resize(blocks);
  pool.parallel_for(num_rows, grain_for(in_features), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      kernels.round_row(rounded_[static_cast<size_t>(row * num_blocks_)].values, x + row * x_stride, in_features);
  });
}

void packed_matmul_block(const Weight& weight, const MatmulBlock& block, const PackedKernels& kernels) {
  LC_CHECK(block.first_row % kPackedRows == 0 &&
           (!want_quantized_inputs(weight.format) || (block.quantized && block.quantized->are_quantized())));
  switch (weight.format) {
    case WeightFormat::bf16_x8:
      if (block.quantized && block.quantized->are_rounded())
        return Walk<WeightFormat::bf16_x8, true>(weight, block, kernels.rounded).run();
      return Walk<WeightFormat::bf16_x8>(weight, block, kernels.bf16).run();
    case WeightFormat::int8_x8:
      return Walk<WeightFormat::int8_x8>(weight, block, kernels.int8).run();
    case WeightFormat::int4_x8:
      return Walk<WeightFormat::int4_x8>(weight, block, kernels.int4).run();
    case WeightFormat::int8_x8_f16:
      return Walk<WeightFormat::int8_x8_f16>(weight, block, kernels.int8_f16).run();
    case WeightFormat::int4_x8_f16:
      return Walk<WeightFormat::int4_x8_f16>(weight, block, kernels.int4_f16).run();
    default:
      throw Error(str_cat("[cpu] a ", name_of(weight.format), " weight cannot be multiplied"));
  }
}

}  // namespace longcat::cpu
