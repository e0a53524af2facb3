// Valid inputs to start mutating from: text that the parsers accept, in the shapes that real checkpoints have.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "fuzz_headers.h"

namespace longcat::fuzz {

using Random = std::mt19937_64;

// Uniform in [0, bound); `bound` > 0.
inline uint64_t below(Random& random, uint64_t bound) { return random() % bound; }

struct Seed {
  Parser parser = Parser::header;
  uint64_t data_bytes = 0;
  std::string text;
};

// config.json of the published models at toy sizes, and small indexes.
std::vector<Seed> fixed_seeds();

// A header with random dtypes, shapes and metadata whose offsets tile its data, listed in any order. One in three has a
// fault that mutation of the text hardly finds: offsets that agree with their shape but not with the other tensors. Now
// and then it is large.
Seed random_header(Random& random);

}  // namespace longcat::fuzz
