#include <cuda_runtime.h>

#include "base/error.h"
#include "cuda/device/check.h"
#include "probes.h"

namespace longcat {

namespace {

constexpr int kTileRows = kProbeRows, kTileCols = kProbeCols;
constexpr int kStride = kTileCols + 8;  // values between rows in shared memory, so that rows begin in different banks
constexpr int kTileThreads = 256;

__device__ uint32_t two_values(const bf16* from) { return *reinterpret_cast<const uint32_t*>(from); }

// A warp computes 16 rows of w and 8 tokens. The PTX ISA gives the fragments of mma.m16n8k16: lane l has rows l / 4 and
// l / 4 + 8 of A and column l / 4 of B. Of each it has the values 2 (l % 4) and 2 (l % 4) + 8 along K, and their right
// neighbours.
__global__ void mma_sync_kernel(float* out, const bf16* x, const bf16* w, int64_t tokens, int64_t out_features,
                                int64_t in_features) {
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, pair = 2 * (lane % 4);
  const int64_t row = int64_t{blockIdx.x} * 16 + group, token = int64_t{blockIdx.y} * 8;
  const bf16* const w0 = w + row * in_features + pair;
  const bf16* const w8 = w0 + 8 * in_features;
  const bf16* const x0 = token + group < tokens ? x + (token + group) * in_features + pair : nullptr;
  float d[4] = {};
  for (int64_t k = 0; k < in_features; k += 16) {
    const uint32_t a[4] = {two_values(w0 + k), two_values(w8 + k), two_values(w0 + k + 8), two_values(w8 + k + 8)};
    const uint32_t b[2] = {x0 ? two_values(x0 + k) : 0, x0 ? two_values(x0 + k + 8) : 0};
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  for (int i = 0; i < 4; ++i)
    if (token + pair + i % 2 < tokens) out[(token + pair + i % 2) * out_features + row + i / 2 * 8] = d[i];
}

__device__ void copy_columns(bf16* to, const bf16* tile, int begin, int end) {
  const int pieces = (end - begin) / 8;  // bytes of a row
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * pieces; i += kTileThreads) {
    const int row = i / pieces, col = begin + i % pieces * 8;
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to + row * kStride + col));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(tile + row * kTileCols + col)
                 : "memory");
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Reads the sub-tiles of 16 x 16 in the columns [begin, end); the warps take them in turn.
__device__ void read_columns(bf16* plain, bf16* transposed, const bf16* shared, int begin, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int count = kTileRows / 16 * ((end - begin) / 16);
  for (int i = warp; i < count; i += kTileThreads / 32) {
    const int row = i % (kTileRows / 16) * 16, col = begin + i / (kTileRows / 16) * 16;
    // Lanes 0-7 give the addresses of the rows of the upper left 8 x 8, the next lanes those of lower left, upper right
    // and lower right.
    const bf16* const from = shared + (row + lane % 16) * kStride + col + lane / 16 * 8;
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(from));
    uint32_t r[4], t[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(t[0]), "=r"(t[1]), "=r"(t[2]), "=r"(t[3])
                 : "r"(address)
                 : "memory");
    for (int q = 0; q < 4; ++q)
      for (int j = 0; j < 2; ++j) {
        const int high = row + q % 2 * 8, left = col + q / 2 * 8, slow = lane / 4, fast = 2 * (lane % 4) + j;
        plain[(high + slow) * kTileCols + left + fast] = {static_cast<uint16_t>(r[q] >> (16 * j))};
        transposed[(high + fast) * kTileCols + left + slow] = {static_cast<uint16_t>(t[q] >> (16 * j))};
      }
  }
}

// Two groups of copies are in flight: the first half is read while the second may still arrive.
__global__ void __launch_bounds__(kTileThreads) read_tile_kernel(bf16* plain, bf16* transposed, const bf16* tile) {
  extern __shared__ __align__(16) bf16 shared[];
  constexpr int kHalf = kTileCols / 2;
  copy_columns(shared, tile, 0, kHalf);
  copy_columns(shared, tile, kHalf, kTileCols);
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  __syncthreads();
  read_columns(plain, transposed, shared, 0, kHalf);
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  read_columns(plain, transposed, shared, kHalf, kTileCols);
}

}  // namespace

void mma_sync_linear(GpuDevice& device, float* out, const bf16* x, const bf16* w, int64_t tokens, int64_t out_features,
                     int64_t in_features) {
  LC_CHECK(!device.emulated() && out_features % 16 == 0 && in_features % 16 == 0);
  const dim3 grid(static_cast<unsigned>(out_features / 16), static_cast<unsigned>((tokens + 7) / 8));
  const cudaStream_t stream = static_cast<cudaStream_t>(device.stream());
  mma_sync_kernel<<<grid, 32, 0, stream>>>(out, x, w, tokens, out_features, in_features);
  check_launch(stream);
}

void read_tile(GpuDevice& device, bf16* plain, bf16* transposed, const bf16* tile) {
  LC_CHECK(!device.emulated());
  constexpr int kBytes = kTileRows * kStride * static_cast<int>(sizeof(bf16));
  CUDA_CHECK(cudaFuncSetAttribute(read_tile_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const cudaStream_t stream = static_cast<cudaStream_t>(device.stream());
  read_tile_kernel<<<1, kTileThreads, kBytes, stream>>>(plain, transposed, tile);
  check_launch(stream);
}

}  // namespace longcat
