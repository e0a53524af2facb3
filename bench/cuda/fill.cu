#include "cuda/kernels/wide.h"
#include "fill.h"

namespace longcat {

namespace {

using gpu::Block;

// Value i is the sum of four bytes of a hash of (seed, i / 2), which is nearly normally distributed.
template <class T>
struct FillNormal {
  static constexpr int kThreads = 256;
  static constexpr int64_t kTile = int64_t{1} << 16;  // values that one block writes
  T* data;
  int64_t count;
  uint64_t seed;
  float scale;

  // SplitMix64's finalizer (Steele, Lea, Flood, 2014).
  LC_HD static uint64_t mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  LC_HD uint64_t hash(int64_t pair) const { return mixed(seed + static_cast<uint64_t>(pair) * 0x9e3779b97f4a7c15u); }

  LC_HD float value(uint64_t hash, int64_t i) const {
    const uint32_t bits = static_cast<uint32_t>(hash >> (32 * (i & 1)));
    const int sum = static_cast<int>((bits & 0xff) + (bits >> 8 & 0xff) + (bits >> 16 & 0xff) + (bits >> 24));
    return static_cast<float>(sum - 510) * scale;
  }

  LC_HD void operator()(const Block& block) const {
    const int64_t first = block.index * kTile, rest = count - first, here = rest < kTile ? rest : kTile;
    block.for_each(here / gpu::kWide, [&](int64_t group) {
      const int64_t at = first + group * gpu::kWide;
      gpu::Wide<T> wide{};
      for (int i = 0; i < gpu::kWide; i += 2) {
        const uint64_t both = hash((at + i) / 2);
        wide.set(i, value(both, 0));
        wide.set(i + 1, value(both, 1));
      }
      wide.store(data + at);
    });
    block.for_each(here % gpu::kWide, [&](int64_t i) {
      const int64_t at = first + here / gpu::kWide * gpu::kWide + i;
      const float one = value(hash(at / 2), at);
      if constexpr (sizeof(T) == 2) {
        data[at] = to_bf16(one);
      } else {
        data[at] = one;
      }
    });
  }
};

template <class T>
void fill(GpuDevice& device, void* data, int64_t count, float scale, uint64_t seed) {
  const int64_t blocks = (count + FillNormal<T>::kTile - 1) / FillNormal<T>::kTile;
  gpu::launch(device, blocks, 0,
              FillNormal<T>{.data = static_cast<T*>(data), .count = count, .seed = seed, .scale = scale});
}

}  // namespace

void fill_normal(GpuDevice& device, void* data, DType dtype, int64_t count, float deviation, uint64_t seed) {
  LC_CHECK(reinterpret_cast<uintptr_t>(data) % 16 == 0 && (dtype == DType::bf16 || dtype == DType::f32));
  constexpr float kDeviation = 147.8f;  // standard deviation of the sum of four bytes
  if (dtype == DType::bf16) return fill<bf16>(device, data, count, deviation / kDeviation, seed << 40);
  fill<float>(device, data, count, deviation / kDeviation, seed << 40);
}

}  // namespace longcat
