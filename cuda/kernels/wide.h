// Loads and stores of 16 bytes for eight values of a row. Scalar loads of 2 or 4 bytes leave most of a memory
// transaction unused and take an instruction per value.
#pragma once

#include <type_traits>

#include "cuda/kernels/block.h"

namespace longcat::gpu {

constexpr int64_t kWide = 8;  // values

// Whether rows of `stride` values of `element_bytes` at `data` can be read 16 bytes at a time.
inline bool is_wide(const void* data, int64_t stride, int64_t element_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * element_bytes % 16 == 0;
}

// 16 bytes, the unit of a load.
struct alignas(16) Word16 {
  uint32_t words[4];
};

template <class T>
struct Wide {
  static constexpr int kWords = sizeof(T) * kWide / 16;
  Word16 words[kWords];

  // `from` is aligned to 16 bytes.
  LC_HD static Wide load(const T* from) {
    Wide wide;
#ifdef __CUDA_ARCH__
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint4 word = __ldg(reinterpret_cast<const uint4*>(from) + i);
      wide.words[i] = {word.x, word.y, word.z, word.w};
    }
#else
    std::memcpy(&wide, from, sizeof(wide));
#endif
    return wide;
  }
  // The same for memory that kernels write.
  LC_HD static Wide read(const T* from) {
    Wide wide;
#ifdef __CUDA_ARCH__
#pragma unroll
    for (int i = 0; i < kWords; ++i) wide.words[i] = reinterpret_cast<const Word16*>(from)[i];
#else
    std::memcpy(&wide, from, sizeof(wide));
#endif
    return wide;
  }
  LC_HD void store(T* to) const {
#ifdef __CUDA_ARCH__
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      reinterpret_cast<uint4*>(to)[i] =
          make_uint4(words[i].words[0], words[i].words[1], words[i].words[2], words[i].words[3]);
#else
    std::memcpy(to, this, sizeof(*this));
#endif
  }

  // Value i as f32; i is a constant after unrolling.
  LC_HD float get(int i) const {
    if constexpr (sizeof(T) == 4) {
      return std::bit_cast<float>(words[i / 4].words[i % 4]);
    } else {
      const uint32_t pair = words[0].words[i / 2];
      return std::bit_cast<float>(i % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
    }
  }
  LC_HD void set(int i, float value) {
    if constexpr (sizeof(T) == 4) {
      words[i / 4].words[i % 4] = std::bit_cast<uint32_t>(value);
    } else {
      const uint32_t bits = to_bf16(value).bits;
      uint32_t& pair = words[0].words[i / 2];
      pair = i % 2 == 0 ? (pair & 0xffff0000u) | bits : (pair & 0xffffu) | bits << 16;
    }
  }
};

// view[offset + i] = values[i] * scale, rounded to the view's dtype. The destination is aligned to 16 bytes.
template <class T>
LC_HD void set_wide(const View& view, int64_t offset, const Wide<T>& values, float scale) {
  const auto as = [&]<class Out>(Out* to) {
    Wide<Out> scaled;
    if constexpr (sizeof(Out) == 2) scaled = {};
    for (int i = 0; i < kWide; ++i) scaled.set(i, values.get(i) * scale);
    scaled.store(to);
  };
  if (view.dtype == DType::bf16) {
    as(static_cast<bf16*>(view.data) + offset);
  } else {
    as(static_cast<float*>(view.data) + offset);
  }
}

// Whether rows of `dim` values of a view can be read and written 16 bytes at a time. Those of an empty one can.
inline bool is_wide(const View& view, int64_t dim) {
  return !view.data || (dim % kWide == 0 && is_wide(view.data, view.stride0, size_of(view.dtype)) &&
                        (view.stride1 == 1 || is_wide(view.data, view.stride1, size_of(view.dtype))));
}

// Some values of a row as f32. Eight are read and written 16 bytes at a time, others one by one.
template <int kCount>
struct Values {
  float v[kCount];
};
template <int kCount>
LC_HD Values<kCount> get_values(const View& view, int64_t offset) {
  Values<kCount> values;
  if constexpr (kCount != kWide) {
    LC_UNROLL for (int i = 0; i < kCount; ++i) values.v[i] = view.get(offset + i);
  } else if (view.dtype == DType::bf16) {
    const auto wide = Wide<bf16>::read(static_cast<const bf16*>(view.data) + offset);
    LC_UNROLL for (int i = 0; i < kCount; ++i) values.v[i] = wide.get(i);
  } else {
    const auto wide = Wide<float>::read(static_cast<const float*>(view.data) + offset);
    LC_UNROLL for (int i = 0; i < kCount; ++i) values.v[i] = wide.get(i);
  }
  return values;
}
template <int kCount>
LC_HD void set_values(const View& view, int64_t offset, const Values<kCount>& values) {
  if constexpr (kCount != kWide) {
    LC_UNROLL for (int i = 0; i < kCount; ++i) view.set(offset + i, values.v[i]);
  } else if (view.dtype == DType::bf16) {
    Wide<bf16> wide{};
    LC_UNROLL for (int i = 0; i < kCount; ++i) wide.set(i, values.v[i]);
    wide.store(static_cast<bf16*>(view.data) + offset);
  } else {
    Wide<float> wide{};
    LC_UNROLL for (int i = 0; i < kCount; ++i) wide.set(i, values.v[i]);
    wide.store(static_cast<float*>(view.data) + offset);
  }
}
// The same for f32 values, aligned to 16 bytes where kCount is 8: in shared memory, or weights.
template <int kCount>
LC_HD Values<kCount> get_values(const float* from) {
  Values<kCount> values;
  if constexpr (kCount != kWide) {
    LC_UNROLL for (int i = 0; i < kCount; ++i) values.v[i] = from[i];
  } else {
    const auto wide = Wide<float>::read(from);
    LC_UNROLL for (int i = 0; i < kCount; ++i) values.v[i] = wide.get(i);
  }
  return values;
}
template <int kCount>
LC_HD void set_values(float* to, const Values<kCount>& values) {
  if constexpr (kCount != kWide) {
    LC_UNROLL for (int i = 0; i < kCount; ++i) to[i] = values.v[i];
  } else {
    Wide<float> wide{};
    LC_UNROLL for (int i = 0; i < kCount; ++i) wide.set(i, values.v[i]);
    wide.store(to);
  }
}

// Calls f(count, k) for the values [k, k + count) of a row, spread over the threads. `count` is a constant: 8 where
// rows are `wide`, else 1. A thread has the same values in each call for one row.
template <class F>
LC_HD void for_each_values(const Block& block, int64_t dim, bool wide, const F& f) {
  if (wide) {
    block.for_each(dim / kWide, [&](int64_t i) { f(std::integral_constant<int, kWide>(), i * kWide); });
  } else {
    block.for_each(dim, [&](int64_t k) { f(std::integral_constant<int, 1>(), k); });
  }
}

// Calls store(r, c, sum over k < depth of a[r][k] * b[c][k]) for the rows r < num_rows of a, with stride `depth`, and
// the kCols rows b(c). A warp takes kRows rows. Lane l adds k = 8 l .. 8 l + 7, then the same k + 256, and so on; then
// a fixed tree adds the lanes. The order does not depend on kRows, kCols or kAhead, nor on `wide`, which says that rows
// can be read 16 bytes at a time. kAhead: number of steps of 256 with loads in flight.
template <int kRows, int kCols, int kAhead, class A, class B, class Store>
LC_HD void row_products(const Block& block, const A* a, int64_t num_rows, const B* const (&b)[kCols], int64_t depth,
                        bool wide, const Store& store) {
#ifdef __CUDA_ARCH__
  constexpr int64_t kStep = 32 * kWide;
  const int lane = threadIdx.x % 32;
  for (int64_t first = threadIdx.x / 32 * kRows; first < num_rows; first += block.num_threads / 32 * kRows) {
    const A* rows[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) rows[r] = a + (first + r < num_rows ? first + r : num_rows - 1) * depth;
    float sums[kRows][kCols] = {};
    if (wide) {
      // A ring of steps: each step's loads are issued one round before their use. The compiler moves loads after the
      // additions of their own round to save registers, but not into the next round.
      Wide<A> x[kAhead][kRows];
      Wide<B> y[kAhead][kCols];
      const auto load = [&](int slot, int64_t k) {
        if (k >= depth) return;
#pragma unroll
        for (int r = 0; r < kRows; ++r) x[slot][r] = Wide<A>::load(rows[r] + k);
#pragma unroll
        for (int c = 0; c < kCols; ++c) y[slot][c] = Wide<B>::load(b[c] + k);
      };
#pragma unroll
      for (int slot = 0; slot < kAhead; ++slot) load(slot, lane * kWide + slot * kStep);
      for (int64_t k = lane * kWide; k < depth; k += kAhead * kStep) {
#pragma unroll
        for (int slot = 0; slot < kAhead; ++slot) {
          if (k + slot * kStep >= depth) break;
#pragma unroll
          for (int j = 0; j < kWide; ++j)
#pragma unroll
            for (int r = 0; r < kRows; ++r)
#pragma unroll
              for (int c = 0; c < kCols; ++c) sums[r][c] += x[slot][r].get(j) * y[slot][c].get(j);
          load(slot, k + (slot + kAhead) * kStep);
        }
      }
    } else {
      for (int64_t k = lane * kWide; k < depth; k += kStep)
        for (int64_t i = k; i < depth && i < k + kWide; ++i)
#pragma unroll
          for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int c = 0; c < kCols; ++c) sums[r][c] += to_float(rows[r][i]) * to_float(b[c][i]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kCols; ++c) {
        const float sum = Block::combine_lanes(sums[r][c], [](float p, float q) { return p + q; });
        if (lane == 0 && first + r < num_rows) store(first + r, c, sum);
      }
  }
  __syncthreads();
#else
  block.for_each(num_rows, [&](int64_t r) {
    for (int c = 0; c < kCols; ++c) {
      float lanes[32] = {};
      for (int64_t k = 0; k < depth; k += kWide) {
        float& sum = lanes[k / kWide % 32];
        if (wide) {
          const Wide<A> x = Wide<A>::load(a + r * depth + k);
          const Wide<B> y = Wide<B>::load(b[c] + k);
          for (int j = 0; j < kWide; ++j) sum += x.get(j) * y.get(j);
        } else {
          for (int64_t i = k; i < depth && i < k + kWide; ++i) sum += to_float(a[r * depth + i]) * to_float(b[c][i]);
        }
      }
      store(r, c, Block::tree_of_lanes(lanes));
    }
  });
#endif
}

}  // namespace longcat::gpu
