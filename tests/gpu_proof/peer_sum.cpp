// The proof of cuda/kernels/peer_sum.h: the bits of every sum, on every rank, against sums in fp32 in ascending rank.
#include "cuda/kernels/peer_sum.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "cuda/emulation/proof.h"

// Compiled apart, since mutations change them.
#define LC_ON_RANKS(kernel) \
  extern template void longcat::emulation::SimtEmulator::launch_on_ranks(const std::vector<std::vector<Grid<kernel>>>&)
LC_ON_RANKS(longcat::gpu::PeerSum<longcat::DType::f32>);
LC_ON_RANKS(longcat::gpu::PeerSum<longcat::DType::bf16>);
LC_ON_RANKS(longcat::gpu::PeerSum<longcat::DType::i32>);

namespace longcat::emulation {

namespace {

using gpu::kMostPeers;
using gpu::kPeerBlockBytes;
using gpu::kPeerBlocks;
using gpu::PeerSum;

struct Setup {
  int ranks;
  std::vector<int64_t> counts;  // of each sum, one after the other
  uint32_t epoch = 0;           // sums before these
  int64_t offset = 0;           // of the tensors [elements]
};

template <DType kType>
std::vector<uint32_t> values_of(int rank, size_t sum, int64_t count);
template <>
std::vector<uint32_t> values_of<DType::f32>(int rank, size_t sum, int64_t count) {
  std::vector<uint32_t> bits;
  for (const float value : random_f32(count, 100 * sum + static_cast<uint64_t>(rank) + 1))
    bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}
template <>
std::vector<uint32_t> values_of<DType::bf16>(int rank, size_t sum, int64_t count) {
  std::vector<uint32_t> bits;
  for (const bf16 value : random_bf16(count, 100 * sum + static_cast<uint64_t>(rank) + 1)) bits.push_back(value.bits);
  return bits;
}
template <>
std::vector<uint32_t> values_of<DType::i32>(int rank, size_t sum, int64_t count) {
  std::vector<uint32_t> bits = values_of<DType::f32>(rank, sum, count);  // any words: their sums wrap around
  return bits;
}

// Of the values of all ranks, in ascending rank.
template <DType kType>
uint32_t sum_of(const std::vector<uint32_t>& values) {
  if constexpr (kType == DType::i32) {
    uint32_t sum = 0;
    for (const uint32_t value : values) sum += value;
    return sum;
  } else {
    constexpr int kShift = kType == DType::bf16 ? 16 : 0;
    float sum = std::bit_cast<float>(values[0] << kShift);
    for (size_t r = 1; r < values.size(); ++r) sum += std::bit_cast<float>(values[r] << kShift);
    return kType == DType::bf16 ? to_bf16(sum).bits : std::bit_cast<uint32_t>(sum);
  }
}

template <class Element>
std::vector<Element> narrowed(const std::vector<uint32_t>& bits) {
  return {bits.begin(), bits.end()};
}

template <DType kType>
Outcome run(SimtEmulator& gpu, const Setup& setup) {
  using Element = std::conditional_t<kType == DType::bf16, uint16_t, uint32_t>;
  using Kernel = PeerSum<kType>;
  const auto ranks = static_cast<size_t>(setup.ranks);
  const int64_t most = *std::max_element(setup.counts.begin(), setup.counts.end()) * int64_t{sizeof(Element)};
  const int64_t slot_bytes = (most + kPeerBlockBytes - 1) / kPeerBlockBytes * kPeerBlockBytes;
  gpu::PeerMemory memory{.rank = 0,
                         .ranks = setup.ranks,
                         .slot_bytes = slot_bytes,
                         .epochs = nullptr,
                         .stop = gpu.input(std::vector<uint32_t>(1)),
                         .mailboxes = {}};
  for (size_t r = 0; r < ranks; ++r)
    memory.mailboxes[r] = {.flags = gpu.buffer(std::vector<uint32_t>(kMostPeers * kPeerBlocks, setup.epoch)),
                           .slots = gpu.output<std::byte>(2 * setup.ranks * slot_bytes)};
  std::vector<std::vector<SimtEmulator::Grid<Kernel>>> grids(ranks);
  for (size_t r = 0; r < ranks; ++r) {
    memory.rank = static_cast<int32_t>(r);
    memory.epochs = gpu.buffer(std::vector<uint32_t>(kPeerBlocks, setup.epoch));
    for (size_t s = 0; s < setup.counts.size(); ++s) {
      const int64_t count = setup.counts[s];
      auto part = narrowed<Element>(values_of<kType>(static_cast<int>(r), s, count));
      part.insert(part.begin(), static_cast<size_t>(setup.offset), Element{});
      const int64_t blocks = (count * int64_t{sizeof(Element)} + kPeerBlockBytes - 1) / kPeerBlockBytes;
      grids[r].push_back({blocks, Kernel{.x = reinterpret_cast<std::byte*>(gpu.buffer(part) + setup.offset),
                                         .count = count,
                                         .is_aligned = setup.offset == 0,
                                         .peers = memory}});
    }
  }
  gpu.launch_on_ranks(grids);

  double error = 0;
  uint64_t bits = 0;
  for (size_t s = 0; s < setup.counts.size(); ++s) {
    const int64_t count = setup.counts[s];
    std::vector<std::vector<uint32_t>> parts;
    for (size_t r = 0; r < ranks; ++r) parts.push_back(values_of<kType>(static_cast<int>(r), s, count));
    std::vector<Element> expected;
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
      std::vector<uint32_t> values;
      for (const auto& part : parts) values.push_back(part[i]);
      expected.push_back(static_cast<Element>(sum_of<kType>(values)));
    }
    for (size_t r = 0; r < ranks; ++r) {
      const auto found = gpu.read(reinterpret_cast<const Element*>(grids[r][s].kernel.x), count);
      if (found != expected) error = std::numeric_limits<double>::infinity();
      bits = bits * 31 + hash_of(found);
    }
  }
  return {error, 0, bits};
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat;
  using namespace longcat::emulation;
  const auto f32 = [](Setup setup) { return [=](SimtEmulator& gpu) { return run<DType::f32>(gpu, setup); }; };
  const auto bf16 = [](Setup setup) { return [=](SimtEmulator& gpu) { return run<DType::bf16>(gpu, setup); }; };
  const auto i32 = [](Setup setup) { return [=](SimtEmulator& gpu) { return run<DType::i32>(gpu, setup); }; };
  return prove(argc, argv,
               {{"2 ranks, a token", bf16({.ranks = 2, .counts = {3072}})},
                {"2 ranks, 6 sums of other sizes", bf16({.ranks = 2, .counts = {1024, 2048, 8, 1024, 1031, 1024}})},
                {"2 ranks, f32, ends in a vector", f32({.ranks = 2, .counts = {513, 514, 515, 1}})},
                {"3 ranks, ids", i32({.ranks = 3, .counts = {1, 7, 64, 1}})},
                {"4 ranks, 5 sums", bf16({.ranks = 4, .counts = {1024, 1024, 1024, 1024, 1024}})},
                {"2 ranks, not aligned", bf16({.ranks = 2, .counts = {1031, 24}, .offset = 3})},
                {"2 ranks, f32, not aligned", f32({.ranks = 2, .counts = {9, 515}, .offset = 1})},
                {"4 ranks, f32", f32({.ranks = 4, .counts = {1500, 512, 700}})},
                {"8 ranks, 3 sums", bf16({.ranks = 8, .counts = {1024, 1000, 1024}})},
                {"8 ranks, ids, epochs wrap around", i32({.ranks = 8, .counts = {5, 5, 5, 5}, .epoch = 0xfffffffe})}});
}
