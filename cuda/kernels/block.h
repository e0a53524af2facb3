// The form of our kernels: a struct of parameters whose call operator defines the work of one block of threads, in
// terms of Block. nvcc compiles it for the GPU. Without a GPU, the same source is compiled for the host, which walks
// the blocks one after the other with the same order of additions. So tests on any machine run every kernel except the
// CUTLASS ones. Results equal the GPU's except for fused multiply-adds and the last bits of exp, log, sin and cos.
//
// A kernel must not depend on the order of blocks, nor on the order of items in one for_each: the emulation walks both
// ways. Every Block method ends with a barrier, so all threads of the block must call it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/tensor.h"
#include "cuda/device/gpu_device.h"
#include "cuda/kernels/qualifiers.h"

#ifdef __CUDACC__
#include "cuda/kernels/grid_launch.h"
#include "cuda/kernels/simt.h"
#endif

namespace longcat::gpu {

constexpr int kMaxThreads = 1024;
constexpr int64_t kReduceSlot = 16;  // [bytes] of shared memory per thread for reduce(), before the kernel's own

class Block {
 public:
  LC_HD Block(int64_t block_index, int threads, unsigned char* memory, bool backwards)
      : index(block_index), num_threads(threads), reduce_area_(memory), reversed_(backwards) {}

  const int64_t index;
  const int num_threads;  // a power of two, at least 32

  // This block with the index of another, for kernels that do two kinds of work.
  LC_HD Block as(int64_t block_index) const { return Block(block_index, num_threads, reduce_area_, reversed_); }

  // The kernel's shared memory, from a byte offset on (a multiple of 16).
  template <class T>
  LC_HD T* shared(int64_t offset = 0) const {
    return reinterpret_cast<T*>(reduce_area_ + num_threads * kReduceSlot + offset);
  }

  // Calls f(i) for i in [0, n), spread over the threads.
  template <class F>
  LC_HD void for_each(int64_t n, const F& f) const {
#ifdef __CUDA_ARCH__
    for (int64_t i = threadIdx.x; i < n; i += num_threads) f(i);
    __syncthreads();
#else
    if (reversed_) {
      for (int64_t i = n; i-- > 0;) f(i);
    } else {
      for (int64_t i = 0; i < n; ++i) f(i);
    }
#endif
  }

  // Combines f(0..n-1) and returns the same value in all threads. Thread t combines t, t + num_threads, ...; then a
  // fixed tree combines the threads. T has at most 16 bytes.
  template <class T, class F, class Combine>
  LC_HD T reduce(int64_t n, T identity, const F& f, const Combine& combine) const {
    static_assert(sizeof(T) <= kReduceSlot);
    T* parts = reinterpret_cast<T*>(reduce_area_);
#ifdef __CUDA_ARCH__
    T mine = identity;
    for (int64_t i = threadIdx.x; i < n; i += num_threads) mine = combine(mine, f(i));
    parts[threadIdx.x] = mine;
    __syncthreads();
    for (int width = num_threads / 2; width >= 32; width /= 2) {
      if (threadIdx.x < width) parts[threadIdx.x] = combine(parts[threadIdx.x], parts[threadIdx.x + width]);
      __syncthreads();
    }
    if (threadIdx.x < 32) {  // the remaining tree, within one warp
      mine = combine_lanes(parts[threadIdx.x], combine);
      if (threadIdx.x == 0) parts[0] = mine;
    }
    __syncthreads();
    const T result = parts[0];
    __syncthreads();
    return result;
#else
    for (int thread = 0; thread < num_threads; ++thread) {
      T mine = identity;
      for (int64_t i = thread; i < n; i += num_threads) mine = combine(mine, f(i));
      parts[thread] = mine;
    }
    for (int width = num_threads / 2; width > 0; width /= 2)
      for (int thread = 0; thread < width; ++thread) parts[thread] = combine(parts[thread], parts[thread + width]);
    return parts[0];
#endif
  }

  template <class T, class F>
  LC_HD T sum(int64_t n, const F& f) const {
    return reduce(n, T{}, f, [](T a, T b) { return a + b; });
  }

  template <class F>
  LC_HD float max(int64_t n, const F& f) const {
    return reduce(n, minus_infinity(), f, [](float a, float b) { return a > b ? a : b; });
  }

  // Calls store(row, sum over k < depth of term(row, k)) for each row. A warp takes a row: its lane l adds k = l, l +
  // 32, ..., then a fixed tree adds the lanes. Adjacent lanes read adjacent k.
  template <class Term, class Store>
  LC_HD void dots(int64_t rows, int64_t depth, const Term& term, const Store& store) const {
#ifdef __CUDA_ARCH__
    const int lane = threadIdx.x % 32;
    for (int64_t row = threadIdx.x / 32; row < rows; row += num_threads / 32) {
      float sum = 0;
      for (int64_t k = lane; k < depth; k += 32) sum += term(row, k);
      sum = combine_lanes(sum, [](float a, float b) { return a + b; });
      if (lane == 0) store(row, sum);
    }
    __syncthreads();
#else
    for_each(rows, [&](int64_t row) {
      float lanes[32] = {};
      for (int64_t first = 0; first < depth; first += 32)
        for (int64_t k = first; k < depth && k < first + 32; ++k) lanes[k - first] += term(row, k);
      store(row, tree_of_lanes(lanes));
    });
#endif
  }

  // dots() of every row with kCount vectors: calls store(row, v, sum over k of value(open(row), k) * vector(v, k)).
  // Each value is loaded once for all vectors. Vectors from `count` on are not stored.
  template <int kCount, class Open, class Value, class Vector, class Store>
  LC_HD void multi_dots(int64_t rows, int64_t depth, int64_t count, const Open& open, const Value& value,
                        const Vector& vector, const Store& store) const {
#ifdef __CUDA_ARCH__
    const int lane = threadIdx.x % 32;
    for (int64_t row = threadIdx.x / 32; row < rows; row += num_threads / 32) {
      const auto at = open(row);
      float sums[kCount] = {};
#pragma unroll 6
      for (int64_t k = lane; k < depth; k += 32) {
        const float x = value(at, k);
#pragma unroll
        for (int v = 0; v < kCount; ++v) sums[v] += x * vector(v, k);
      }
#pragma unroll
      for (int v = 0; v < kCount; ++v) {
        const float sum = combine_lanes(sums[v], [](float a, float b) { return a + b; });
        if (lane == 0 && v < count) store(row, v, sum);
      }
    }
    __syncthreads();
#else
    for_each(rows, [&](int64_t row) {
      const auto at = open(row);
      for (int v = 0; v < count; ++v) {
        float lanes[32] = {};
        for (int64_t first = 0; first < depth; first += 32)
          for (int64_t k = first; k < depth && k < first + 32; ++k) lanes[k - first] += value(at, k) * vector(v, k);
        store(row, v, tree_of_lanes(lanes));
      }
    });
#endif
  }

  // Calls store(row, reduce() over f(row, 0..n-1)) for each row. A warp takes a row and adds in the order of a reduce()
  // by kWidth threads.
  template <int kWidth, class T, class F, class Combine, class Store>
  LC_HD void reduce_rows(int64_t rows, int64_t n, T identity, const F& f, const Combine& combine,
                         const Store& store) const {
    static_assert(kWidth % 32 == 0 && kWidth <= kMaxThreads);
#ifdef __CUDA_ARCH__
    const int lane = threadIdx.x % 32;
    for (int64_t row = threadIdx.x / 32; row < rows; row += num_threads / 32) {
      T parts[kWidth / 32];
#pragma unroll
      for (int part = 0; part < kWidth / 32; ++part) {
        parts[part] = identity;
        for (int64_t i = part * 32 + lane; i < n; i += kWidth) parts[part] = combine(parts[part], f(row, i));
      }
#pragma unroll
      for (int width = kWidth / 64; width > 0; width /= 2)
#pragma unroll
        for (int part = 0; part < width; ++part) parts[part] = combine(parts[part], parts[part + width]);
      const T result = combine_lanes(parts[0], combine);
      if (lane == 0) store(row, result);
    }
    __syncthreads();
#else
    for_each(rows, [&](int64_t row) {
      T parts[kWidth];
      for (int thread = 0; thread < kWidth; ++thread) {
        parts[thread] = identity;
        for (int64_t i = thread; i < n; i += kWidth) parts[thread] = combine(parts[thread], f(row, i));
      }
      for (int width = kWidth / 2; width > 0; width /= 2)
        for (int thread = 0; thread < width; ++thread) parts[thread] = combine(parts[thread], parts[thread + width]);
      store(row, parts[0]);
    });
#endif
  }

  // Calls emit(i, rank) for every i in [0, n) that `keep` accepts; rank is the number of accepted items before i.
  // Returns the number of accepted items.
  template <class Keep, class Emit>
  LC_HD int64_t compact(int64_t n, const Keep& keep, const Emit& emit) const {
#ifdef __CUDA_ARCH__
    int* counts = reinterpret_cast<int*>(reduce_area_);  // accepted items among each warp's 32
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int64_t before = 0;
    for (int64_t first = 0; first < n; first += num_threads) {
      const int64_t i = first + threadIdx.x;
      const bool kept = i < n && keep(i);
      const unsigned votes = __ballot_sync(~0u, kept);
      if (lane == 0) counts[warp] = __popc(votes);
      __syncthreads();
      int rank = __popc(votes & ((1u << lane) - 1)), total = 0;
      for (int w = 0; w < num_threads / 32; ++w) {
        if (w < warp) rank += counts[w];
        total += counts[w];
      }
      if (kept) emit(i, before + rank);
      before += total;
      __syncthreads();
    }
    return before;
#else
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i)
      if (keep(i)) emit(i, count++);
    return count;
#endif
  }

  // The tree that adds the lanes of a warp. On the GPU, combine_lanes() does it by shuffles for any type of 4 to 16
  // bytes, with the result in lane 0.
  LC_HD static float tree_of_lanes(float (&lanes)[32]) {
    for (int width = 16; width > 0; width /= 2)
      for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    return lanes[0];
  }
#ifdef __CUDACC__
  template <class T, class Combine>
  __device__ static T combine_lanes(T mine, const Combine& combine) {
    constexpr int kWords = sizeof(T) / 4;
    static_assert(sizeof(T) == 4 * kWords);
#pragma unroll
    for (int width = 16; width > 0; width /= 2) {
      T other;
      uint32_t words[kWords];
      memcpy(words, &mine, sizeof(T));
#pragma unroll
      for (int word = 0; word < kWords; ++word) words[word] = __shfl_down_sync(~0u, words[word], width);
      memcpy(&other, words, sizeof(T));
      mine = combine(mine, other);
    }
    return mine;
  }
#endif

  LC_HD static constexpr float minus_infinity() { return std::bit_cast<float>(0xff800000u); }

 private:
  unsigned char* reduce_area_;
  bool reversed_;
};

// A tensor of f32 or bf16 in a kernel. Element (i, j, k) is at i * stride0 + j * stride1 + k.
struct View {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t stride0 = 0, stride1 = 1;  // [elements]

  View() = default;
  explicit View(const Tensor& t) : data(t.raw()), dtype(t.dtype()) {
    LC_CHECK(t.empty() || dtype == DType::f32 || dtype == DType::bf16, name_of(dtype));
    if (t.ndim() > 0) stride0 = t.stride(0);
    if (t.ndim() == 3) stride1 = t.stride(1);
    LC_CHECK(t.empty() || t.stride(t.ndim() - 1) == 1);
  }

  LC_HD float get(int64_t offset) const {
    return dtype == DType::bf16 ? to_float(static_cast<const bf16*>(data)[offset])
                                : static_cast<const float*>(data)[offset];
  }
  LC_HD void set(int64_t offset, float value) const {
    if (dtype == DType::bf16) {
      static_cast<bf16*>(data)[offset] = to_bf16(value);
    } else {
      static_cast<float*>(data)[offset] = value;
    }
  }
  // The value that get() returns after set().
  LC_HD float rounded(float value) const { return dtype == DType::bf16 ? to_float(to_bf16(value)) : value; }
};

#ifdef __CUDACC__
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1) run_blocks(const __grid_constant__ Kernel kernel) {
  extern __shared__ __align__(16) unsigned char memory[];
  simt::launch_next_grid();
  simt::wait_for_prior_grid();
  const Block block(blockIdx.x, Kernel::kThreads, memory, false);
  kernel(block);
}
#endif

// Runs kernel(block) for the blocks [0, num_blocks), each with its own `shared_bytes`.
template <class Kernel>
void launch(GpuDevice& device, int64_t num_blocks, int64_t shared_bytes, const Kernel& kernel) {
  static_assert(Kernel::kThreads >= 32 && Kernel::kThreads <= kMaxThreads);
  static_assert((Kernel::kThreads & (Kernel::kThreads - 1)) == 0);
  if (num_blocks == 0) return;
  LC_CHECK(num_blocks <= 0x7fffffff, num_blocks, " blocks");
  shared_bytes += Kernel::kThreads * kReduceSlot;
#ifdef __CUDACC__
  if (!device.emulated())
    return launch_grid(device,
                       {.blocks = dim3(static_cast<unsigned>(num_blocks)),
                        .threads = dim3(Kernel::kThreads),
                        .shared_bytes = static_cast<size_t>(shared_bytes)},
                       run_blocks<Kernel>, kernel);
#endif
  LC_CHECK(device.emulated());
  std::vector<unsigned char> memory(static_cast<size_t>(shared_bytes) + 16);
  unsigned char* aligned = memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16;
  device.begin_kernel();
  for (int64_t i = 0; i < num_blocks; ++i) {
    std::memset(aligned, 0xff, static_cast<size_t>(shared_bytes));  // NaN, because shared memory starts undefined
    kernel(Block(device.reversed() ? num_blocks - 1 - i : i, Kernel::kThreads, aligned, device.reversed()));
  }
  device.end_kernel();
}

}  // namespace longcat::gpu
