#include "cuda/cuda_ops.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "cuda/gemm/few_tokens.h"
#include "cuda/kernels/packed_layout.h"
#include "cuda/kernels/sampler.h"
#include "cuda/kernels/select_positions.h"
#include "ops/packed.h"

namespace longcat {

namespace {

constexpr int64_t kBranchWorkspaceBytes = int64_t{16} << 20;
constexpr int64_t kSamplingRowsBytes = 64 << 10;    // at first
constexpr int64_t kTablePiece = int64_t{64} << 20;  // [bytes] of a table per read

}  // namespace

CudaOps::CudaOps(std::unique_ptr<GpuDevice> device, DType activation_dtype, int64_t workspace_bytes)
    : device_(std::move(device)),
      activation_dtype_(activation_dtype),
      workspace_(*device_, workspace_bytes),
      branch_workspace_(*device_, kBranchWorkspaceBytes),
      router_counts_(*device_, gpu::kRouterCountsBytes),
      decode_memory_(*device_, workspace_bytes),
      sampling_rows_address_(*device_, sizeof(void*)),
      sampling_states_(*device_, kSamplingRowsAtOnce * int64_t{sizeof(gpu::SamplerState)}),
      sampling_bins_(*device_, kSamplingRowsAtOnce * gpu::Sampler::kBins * 8),
      selection_states_(*device_, kSelectionRowsAtOnce * int64_t{sizeof(gpu::SelectionState)}),
      selection_bins_(*device_, kSelectionRowsAtOnce * gpu::Selection::kBins * 4) {
  LC_CHECK(activation_dtype == DType::bf16 || activation_dtype == DType::f32);
  allocate_sampling_rows(kSamplingRowsBytes);
}

// Planes are copied unchanged. Scales are transposed, because the fp8 kernel reads those of a column of blocks
// together.
Weight CudaOps::prepare(const Weight& logical, Buffer& storage) {
  if (is_packed(logical.format)) return prepare_packed(logical, storage);
  const int64_t count = logical.out_features * logical.in_features;
  const int64_t data_bytes = logical.format == WeightFormat::fp8_block ? count : logical.num_bytes();
  const int64_t scales_offset = scales_offset_of(data_bytes);
  const int64_t scale_bytes = logical.num_bytes() - data_bytes;
  storage = Buffer(*device_, scale_bytes > 0 ? scales_offset + scale_bytes : data_bytes);
  Weight weight = logical;
  weight.data = storage.data();
  weight.placement = Placement::device;
  device_->copy_from_host(storage.data(), logical.data, data_bytes);
  if (scale_bytes > 0) {
    char* scales = static_cast<char*>(storage.data()) + scales_offset;
    const int64_t rows = (logical.out_features + kFp8Block - 1) / kFp8Block,
                  cols = (logical.in_features + kFp8Block - 1) / kFp8Block;
    std::vector<float> transposed(static_cast<size_t>(rows * cols));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c)  // a plane in a file may be unaligned
        std::memcpy(&transposed[static_cast<size_t>(c * rows + r)],
                    reinterpret_cast<const char*>(logical.scales) + 4 * (r * cols + c), 4);
    device_->copy_from_host(scales, transposed.data(), scale_bytes);
    weight.scales = reinterpret_cast<const float*>(scales);
    spread_nans(weight, rows * cols);
  }
  return weight;
}

// bf16 groups become plain rows of bf16. Integers are rearranged where a kernel on tensor cores reads units, or keep
// the order of the file. Either way by pieces, since a head has 400 MB.
Weight CudaOps::prepare_packed(const Weight& logical, Buffer& storage) {
  const bool unpacks = logical.format == WeightFormat::bf16_x8;
  Weight weight = logical;
  weight.placement = Placement::device;
  if (unpacks) weight.format = WeightFormat::bf16;
  storage = Buffer(*device_, weight.num_bytes());
  weight.data = storage.data();
  const int64_t n = logical.in_features, rows = logical.out_features, unit = is_x8(logical.format) ? kPackedRows : 1;
  const int64_t from_stride = packed_stride(logical.format, n), to_stride = unpacks ? 2 * n * kPackedRows : from_stride;
  const int64_t num_units = (rows + unit - 1) / unit, at_once = std::max<int64_t>(1, kTablePiece / to_stride);
  std::vector<uint8_t> piece;
  std::vector<float> row(static_cast<size_t>(n));
  for (int64_t begin = 0; begin < num_units; begin += at_once) {
    const int64_t count = std::min(at_once, num_units - begin);
    const uint8_t* const from = static_cast<const uint8_t*>(logical.data) + begin * from_stride;
    piece.resize(static_cast<size_t>(count * to_stride));
    int64_t bytes = count * to_stride;
    if (unpacks) {
      const int64_t last = std::min(rows, (begin + count) * kPackedRows);
      bytes = 2 * n * (last - begin * kPackedRows);
      for (int64_t r = begin * kPackedRows; r < last; ++r) {
        unpack_row(row.data(), logical, r);
        bf16* const to = reinterpret_cast<bf16*>(piece.data()) + (r - begin * kPackedRows) * n;
        std::transform(row.begin(), row.end(), to, [](float value) { return to_bf16(value); });
      }
    } else if (gpu::has_units(logical.format, n)) {
      gpu::rearrange(piece.data(), from, logical.format, n, count);
    } else {
      std::memcpy(piece.data(), from, piece.size());
    }
    device_->copy_from_host(static_cast<char*>(storage.data()) + begin * to_stride, piece.data(), bytes);
  }
  return weight;
}

// The scales of a column of blocks lie together (prepare), so those of the first rows do not.
Weight CudaOps::first_rows(const Weight& weight, int64_t rows, Buffer& storage) {
  Weight first = Ops::first_rows(weight, rows, storage);
  if (weight.format != WeightFormat::fp8_block) return first;
  const int64_t cols = (weight.in_features + kFp8Block - 1) / kFp8Block;
  const int64_t whole = (weight.out_features + kFp8Block - 1) / kFp8Block, kept = rows / kFp8Block;
  std::vector<float> scales(static_cast<size_t>(whole * cols));
  device_->copy_to_host(scales.data(), weight.scales, 4 * whole * cols);
  for (int64_t c = 0; c < cols; ++c) std::copy_n(scales.begin() + c * whole, kept, scales.begin() + c * kept);
  storage = Buffer(*device_, 4 * kept * cols);
  device_->copy_from_host(storage.data(), scales.data(), storage.bytes());
  first.scales = static_cast<const float*>(storage.data());
  return first;
}

bool CudaOps::multiplies_packed(const Weight& weight) const {
  return device_->multiplies_packed() && activation_dtype_ == DType::bf16 &&
         gpu::has_units(weight.format, weight.in_features) && weight.out_features % 16 == 0;
}

// Two bf16 planes where kernels over tensor cores read them. The small one is first: its products would be lost below
// the sum of the large one's.
Weight CudaOps::prepare_router(const Weight& logical, Buffer& storage) {
  LC_CHECK(logical.format == WeightFormat::f32, name_of(logical.format));
  if (!device_->multiplies_few_tokens() || activation_dtype_ != DType::bf16 ||
      !fits_few_tokens({.out_features = logical.out_features,
                        .in_features = logical.in_features,
                        .out_stride = logical.out_features,
                        .x_stride = logical.in_features,
                        .x_dtype = DType::bf16,
                        .format = WeightFormat::bf16}))
    return prepare(logical, storage);
  const int64_t count = logical.out_features * logical.in_features;
  std::vector<bf16> planes(static_cast<size_t>(2 * count));
  for (int64_t i = 0; i < count; ++i) {
    float value;  // a plane in a file may be unaligned
    std::memcpy(&value, static_cast<const char*>(logical.data) + 4 * i, 4);
    const bf16 large = to_bf16(value);
    planes[static_cast<size_t>(count + i)] = large;
    planes[static_cast<size_t>(i)] = to_bf16(std::isfinite(to_float(large)) ? value - to_float(large) : 0);
  }
  Weight weight = logical;
  weight.format = WeightFormat::bf16_planes;
  storage = Buffer(*device_, weight.num_bytes());
  device_->copy_from_host(storage.data(), planes.data(), weight.num_bytes());
  weight.data = storage.data();
  return weight;
}

int64_t CudaOps::fp8_row_multiple() const {
  return device_->multiplies_fp8() && activation_dtype_ == DType::bf16 ? kFp8Block : 1;
}

std::span<const Placement> CudaOps::table_placements() const {
  static constexpr Placement kPlacements[] = {Placement::host, Placement::device};
  return kPlacements;
}

// From pinned host memory, kernels read table rows over the bus: 12 rows of 512 bytes per token. The bytes go from the
// file directly into that memory, or in parts through pinned memory to the device. So there is never a second copy of a
// table.
Weight CudaOps::prepare_table(const Weight& logical, Placement placement, const ReadPlane& read, Buffer& storage,
                              HostBuffer& host_storage) {
  const int64_t bytes = logical.num_bytes();
  Weight weight = logical;
  weight.placement = placement;
  if (placement == Placement::device) {
    storage = Buffer(*device_, bytes);
    const HostBuffer piece(*device_, std::min(kTablePiece, bytes));
    for (int64_t begin = 0; begin < bytes; begin += kTablePiece) {
      const int64_t count = std::min(kTablePiece, bytes - begin);
      read(piece.data(), begin, count);
      device_->copy_from_host(static_cast<char*>(storage.data()) + begin, piece.data(), count);
    }
    weight.data = storage.data();
    return weight;
  }
  if (!device_->reads_registered_memory())
    throw Error(str_cat("[cuda] ", device_->name(), " found no access to pinned host memory by the host's pointer",
                        " (cudaDevAttrCanUseHostPointerForRegisteredMem = 0); expected 1. Use",
                        " ngram_placement=\"device\" or device=\"cpu\"."));
  try {
    host_storage = HostBuffer(*device_, bytes);
  } catch (const OutOfMemory& refused) {
    // Where the driver follows the host's page tables, kernels can read the mapped file, at the speed of its page
    // faults.
    // Packed rows are read by the byte.
    const int64_t element = logical.format == WeightFormat::bf16 ? 2 : is_packed(logical.format) ? 1 : 4;
    if (!device_->reads_pageable_memory() || reinterpret_cast<uintptr_t>(logical.data) % element != 0) throw;
    std::fprintf(stderr, "longcat: %s; a table of %lld bytes is read from its mapped file, slowly\n", refused.what(),
                 static_cast<long long>(bytes));
    return logical;
  }
  char* plane = static_cast<char*>(host_storage.data());
  for (int64_t begin = 0; begin < bytes; begin += kTablePiece)
    read(plane + begin, begin, std::min(kTablePiece, bytes - begin));
  weight.data = plane;
  return weight;
}

// The address of the rows is itself in device memory, so that a recorded graph finds rows that had to move.
void CudaOps::allocate_sampling_rows(int64_t bytes) {
  sampling_rows_ = Buffer(*device_, bytes);
  void* const address = sampling_rows_.data();
  device_->copy_from_host(sampling_rows_address_.data(), &address, sizeof(address));
}

}  // namespace longcat
