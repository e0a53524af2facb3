// A clock, and the median of its times.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

namespace longcat::bench {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}
inline double us_since(Clock::time_point begin) { return 1e6 * seconds_since(begin); }

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace longcat::bench
