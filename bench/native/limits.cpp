// Prints the limits of this machine: limits [--threads N].
#include "limits.h"

#include <cstdio>

#include "command_line.h"

using namespace longcat;

int main(int argc, char** argv) try {
  bench::CommandLine line(argc, argv);
  const int most = static_cast<int>(line.number("--threads", available_threads()));
  line.finish();
  std::printf(
      "%s\n\n| threads | read [GB/s] | f32 multiply-add [GFLOP/s] | int8 x int8 [GOP/s] | int4 x int8 [GOP/s] |\n",
      name_of(cpu_isa()));
  std::printf("| --- | --- | --- | --- | --- |\n");
  for (int threads = 1; threads <= most; threads *= 2) {
    ThreadPool pool(threads);
    const bench::Limits limits = bench::LimitsMeter(pool).best();
    std::printf("| %d | %.1f | %.0f | %.0f | %.0f |\n", threads, limits.read_bytes_per_s / 1e9,
                limits.f32_flop_per_s / 1e9, limits.int8_op_per_s / 1e9, limits.int4_op_per_s / 1e9);
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "limits: %s\n", error.what());
  return 1;
}
