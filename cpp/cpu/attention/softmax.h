// Softmax over a history that comes in tiles of keys, for many queries side by side.
#pragma once

#include <cstdint>
#include <limits>

namespace longcat::cpu {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Turns scores [num_keys, lanes], a query a lane (lanes: a multiple of 16), into exp(score - maximum so far). max, sum:
// [lanes] so far, at the beginning kNothing and 0. keep [lanes]: what sums under the old maximum are to be multiplied
// by. A score of kNothing weighs 0; one of NaN makes the lane's sum NaN.
void add_scores(float* scores, int64_t num_keys, int64_t lanes, float* max, float* sum, float* keep);

// The rows of acc [num_rows, columns] times keep[row].
void keep_rows(float* acc, int64_t num_rows, int64_t columns, const float* keep);

}  // namespace longcat::cpu
