#include "model/weight_slice.h"

#include <cstring>

#include "ops/packed.h"

namespace longcat {

namespace {

struct Units {
  int64_t rows = 1, cols = 1;  // numbers of rows and columns that a format cannot separate
};

Units units_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::fp8_block:
      return {kFp8Block, kFp8Block};
    case WeightFormat::bf16_x8:
      return {kPackedRows, 2};
    default:
      return is_int_x8(format) ? Units{kPackedRows, kQuantBlock} : Units{};
  }
}

void require_whole_units(const Weight& whole, Range range, int64_t total, int64_t unit, const char* what,
                         const std::string& name) {
  if (range.begin % unit == 0 && (range.end % unit == 0 || range.end == total)) return;
  std::string fitting;
  for (int64_t parts = 1; parts <= total / unit; ++parts)
    if (total % parts == 0 && total / parts % unit == 0)
      fitting += (fitting.empty() ? "" : ", ") + std::to_string(parts);
  throw Error(str_cat("[parallel] \"", name, "\": found parts of ", range.size(), " of its ", total, " ", what,
                      "; expected whole blocks of ", unit, " (", name_of(whole.format),
                      "). Numbers of parts that fit: ", fitting.empty() ? "1" : fitting));
}

// Distance from one row, or group of interleaved rows, to the next [bytes].
int64_t row_stride(const Weight& w) {
  switch (w.format) {
    case WeightFormat::f32:
      return w.in_features * 4;
    case WeightFormat::bf16:
      return w.in_features * 2;
    case WeightFormat::fp8_block:
      return w.in_features;
    default:
      return packed_stride(w.format, w.in_features);
  }
}

int64_t blocks_in(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

// Copies `count` rows of `bytes` each between two strides.
void copy_rows(std::byte* out, int64_t out_stride, const std::byte* in, int64_t in_stride, int64_t count,
               int64_t bytes) {
  for (int64_t i = 0; i < count; ++i) std::memcpy(out + i * out_stride, in + i * in_stride, static_cast<size_t>(bytes));
}

}  // namespace

Weight slice_of(const Weight& whole, Range rows, Range cols, const std::string& name,
                std::unique_ptr<std::byte[]>& storage) {
  const Units units = units_of(whole.format);
  require_whole_units(whole, rows, whole.out_features, units.rows, "rows", name);
  require_whole_units(whole, cols, whole.in_features, units.cols, "columns", name);
  const int64_t stride = row_stride(whole), rows_at_once = is_x8(whole.format) ? kPackedRows : 1;
  const std::byte* data = static_cast<const std::byte*>(whole.data) + rows.begin / rows_at_once * stride;

  Weight part = whole;
  part.out_features = rows.size();
  part.data = data;
  if (whole.format == WeightFormat::fp8_block)
    part.scales += rows.begin / kFp8Block * blocks_in(whole.in_features, kFp8Block);
  if (cols.size() == whole.in_features) return part;

  LC_CHECK(is_x8(whole.format) || !is_packed(whole.format), name);
  part.in_features = cols.size();
  part.placement = Placement::device;
  storage.reset(new std::byte[static_cast<size_t>(part.num_bytes())]());
  part.data = storage.get();
  const int64_t part_stride = row_stride(part), count = blocks_in(rows.size(), rows_at_once);
  switch (whole.format) {
    case WeightFormat::f32:
    case WeightFormat::bf16:
    case WeightFormat::fp8_block: {
      const int64_t element = stride / whole.in_features;
      copy_rows(storage.get(), part_stride, data + cols.begin * element, stride, count, part_stride);
      if (whole.format != WeightFormat::fp8_block) break;
      std::byte* scales = storage.get() + rows.size() * cols.size();
      const int64_t num_scales = blocks_in(cols.size(), kFp8Block);
      copy_rows(scales, num_scales * 4, reinterpret_cast<const std::byte*>(part.scales + cols.begin / kFp8Block),
                blocks_in(whole.in_features, kFp8Block) * 4, blocks_in(rows.size(), kFp8Block), num_scales * 4);
      part.scales = reinterpret_cast<const float*>(scales);
      break;
    }
    case WeightFormat::bf16_x8:
      copy_rows(storage.get(), part_stride, data + cols.begin / 2 * 32, stride, count, (cols.size() + 1) / 2 * 32);
      break;
    default: {  // blocks of integers: values, then scales
      const int64_t first = cols.begin / kQuantBlock, blocks = num_quant_blocks(cols.size());
      copy_rows(storage.get(), part_stride, data + first * block_value_bytes(whole.format), stride, count,
                blocks * block_value_bytes(whole.format));
      constexpr int64_t kScaleBytes = kPackedRows * 2;
      copy_rows(storage.get() + value_bytes_of_group(whole.format, cols.size()), part_stride,
                data + value_bytes_of_group(whole.format, whole.in_features) + first * kScaleBytes, stride, count,
                blocks * kScaleBytes);
    }
  }
  return part;
}

}  // namespace longcat
