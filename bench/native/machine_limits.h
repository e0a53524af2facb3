// The limits of the machine for a bench. A process of its own measures them before the bench's work: beside an engine,
// reading was measured at two thirds of what it is alone.
#pragma once

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <string>

#include "base/error.h"
#include "limits.h"

namespace longcat::bench {

// The limits with `threads` threads: the best of three runs of the program `limits` beside this one. Call it before
// anything else has started threads. Throws longcat::Error where `limits` is missing or fails.
inline Limits limits_of_machine(int threads) {
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "limits";
  if (!std::filesystem::exists(program)) throw Error(str_cat("[bench] ", program.string(), " is missing: make bench"));
  const std::string command = str_cat("'", program.string(), "' --plain ", threads);
  Limits best;
  for (int run = 0; run < 3; ++run) {
    FILE* output = popen(command.c_str(), "r");
    if (!output) throw Error(str_cat("[bench] ", command, " does not start"));
    double values[std::size(Limits::kAll)] = {};
    size_t found = 0;
    while (found < std::size(values) && std::fscanf(output, "%lf", &values[found]) == 1) ++found;
    const int status = pclose(output);
    if (status != 0 || found < std::size(values)) throw Error(str_cat("[bench] ", command, " failed"));
    for (size_t i = 0; i < found; ++i) best.*Limits::kAll[i] = std::max(best.*Limits::kAll[i], values[i]);
  }
  return best;
}

// A line about them.
inline std::string text(const Limits& limits) {
  char line[160];
  std::snprintf(line, sizeof line,
                "read %.1f GB/s, f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s, int8 x int8 %.0f GOP/s, int4 x int8 %.0f GOP/s",
                limits.read_bytes_per_s / 1e9, limits.f32_flop_per_s / 1e9, limits.bf16_flop_per_s / 1e9,
                limits.int8_op_per_s / 1e9, limits.int4_op_per_s / 1e9);
  return line;
}

// Says that a share cannot be right. share: of a limit, 1 at most.
inline void warn_above_limit(const std::string& what, double share) {
  if (share > 1)
    std::printf(
        "warning: %s is at %.0f %% of a limit of the machine, so the limit was measured too low: run it again where "
        "nothing else runs\n",
        what.c_str(), 100 * share);
}

}  // namespace longcat::bench
