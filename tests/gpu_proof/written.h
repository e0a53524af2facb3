// Buffers that a grid before has written: what a kernel launched over that grid may not read before its wait.
#pragma once

#include <cstring>
#include <vector>

#include "cuda/emulation/simt_emulator.h"
#include "cuda/kernels/simt.h"

namespace longcat::gpu {

struct WriteWords {
  static constexpr int kThreads = 32;
  static constexpr uint32_t kSharedBytes = 16;
  const uint32_t* from;
  uint32_t* to;
  int32_t count;
  LC_HD void operator()(uint32_t) const {
    for (int i = simt::thread_idx(); i < count; i += kThreads) simt::store_global(to + i, simt::load_global(from + i));
  }
};

}  // namespace longcat::gpu

namespace longcat::emulation {

template <class T>
T* written(SimtEmulator& gpu, const std::vector<T>& values) {
  const size_t words = values.size() * sizeof(T) / 4;
  std::vector<uint32_t> bytes(words);
  std::memcpy(bytes.data(), values.data(), words * 4);
  T* const to = gpu.output<T>(static_cast<int64_t>(values.size()));
  gpu.launch(
      1, gpu::WriteWords{
             .from = gpu.input(bytes), .to = reinterpret_cast<uint32_t*>(to), .count = static_cast<int32_t>(words)});
  return to;
}

}  // namespace longcat::emulation
