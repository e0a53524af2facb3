// Prints the limits of this machine: limits [--threads N]. limits --plain N prints the numbers alone, of N threads, for
// other benches.
#include "limits.h"

#include <cstdio>

#include "base/available_threads.h"
#include "command_line.h"

using namespace longcat;

namespace {

bench::Limits measure(int threads) {
  ThreadPool pool(threads);
  return bench::LimitsMeter(pool).best();
}

}  // namespace

int main(int argc, char** argv) try {
  bench::CommandLine line(argc, argv);
  const int most = static_cast<int>(line.number("--threads", available_threads()));
  const int plain = static_cast<int>(line.number("--plain", 0));
  line.finish();
  if (plain > 0) {
    const bench::Limits limits = measure(plain);
    for (double bench::Limits::* limit : bench::Limits::kAll) std::printf("%.6g\n", limits.*limit);
    return 0;
  }
  std::printf(
      "%s\n\n| threads | read [GB/s] | f32 multiply-add [GFLOP/s] | bf16 [GFLOP/s] | int8 x int8 [GOP/s] | int4 x int8 "
      "[GOP/s] |\n",
      name_of(cpu_isa()));
  std::printf("| --- | --- | --- | --- | --- | --- |\n");
  for (int threads = 1; threads <= most; threads *= 2) {
    const bench::Limits limits = measure(threads);
    std::printf("| %d | %.1f | %.0f | %.0f | %.0f | %.0f |\n", threads, limits.read_bytes_per_s / 1e9,
                limits.f32_flop_per_s / 1e9, limits.bf16_flop_per_s / 1e9, limits.int8_op_per_s / 1e9,
                limits.int4_op_per_s / 1e9);
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "limits: %s\n", error.what());
  return 1;
}
