// Philox4x32-10: random numbers as a pure function of a key and a counter (Salmon et al., "Parallel random numbers: as
// easy as 1, 2, 3", SC 2011). Without a state, a token's draw does not depend on other draws.
#pragma once

#include <array>
#include <cstdint>

namespace longcat {

constexpr std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, uint64_t key) {
  uint32_t key_lo = static_cast<uint32_t>(key), key_hi = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key_lo, static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key_hi, static_cast<uint32_t>(product0)};
    key_lo += 0x9E3779B9u;
    key_hi += 0xBB67AE85u;
  }
  return counter;
}

// Uniform in (0, 1) for one token id, position and completion of a request.
constexpr double sampling_uniform(uint64_t seed, uint32_t token_id, uint32_t position, uint32_t sample_idx) {
  const std::array<uint32_t, 4> words = philox4x32({token_id / 4, position, sample_idx, 0}, seed);
  const uint32_t which = token_id % 4;  // no index, which would put the words into a GPU's memory
  const uint32_t word = which == 0 ? words[0] : which == 1 ? words[1] : which == 2 ? words[2] : words[3];
  return (word + 0.5) * 0x1p-32;
}

}  // namespace longcat
