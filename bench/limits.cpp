// What this machine can do at most: limits [--threads N].
#include "limits.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

int main(int argc, char** argv) {
  using namespace longcat;
  const int most = argc == 3 && std::strcmp(argv[1], "--threads") == 0 ? std::atoi(argv[2]) : available_threads();
  std::printf("%s\n\n| threads | read [GB/s] | f32 multiply-add [GFLOP/s] | exact int8 [GOP/s] |\n",
              name_of(cpu_isa()));
  std::printf("| --- | --- | --- | --- |\n");
  for (int threads = 1; threads <= most; threads *= 2) {
    ThreadPool pool(threads);
    const bench::Limits limits = bench::measure_limits(pool);
    std::printf("| %d | %.1f | %.0f | %.0f |\n", threads, limits.read_bytes_per_s / 1e9, limits.f32_flop_per_s / 1e9,
                limits.int8_op_per_s / 1e9);
  }
  return 0;
}
