// Benchmarks and checks of the CUDA backend at the shapes of LongCat-Flash-Lite. No checkpoint is needed.
//
//   cuda_bench parity | bits | ops | model | gather [--check] [--budget SECONDS] [--tables host|device|both]
//              [--table-rows N]
//
// parity: compares a small model on the GPU with the emulated device, where there is no Python for the tests.
// bits: checks what must be equal bit for bit.
// - --check: tiny shapes on the emulated device. It needs no GPU and shows only that the program works.
// - --budget: ops, model and gather stop measuring in time, and print what they left out.
// - --tables: the place of the tables of `model`; "both" measures one after the other (default host).
// - --table-rows: rows of each of the 12 N-gram tables, where there is no room for 58.5 GiB of them.
#include <cstdio>
#include <exception>
#include <string>

#include "bench/native/command_line.h"
#include "shapes.h"
#include "suites.h"

namespace longcat {

namespace {

constexpr int64_t kGatherRows = 1'400'000;  // rows of a table: 12 tables of 0.7 GB, far more than caches and TLBs hold

struct Options {
  std::string suite;
  bool check = false;
  double budget = 0;  // [s]
  int64_t table_rows = 0;
  std::vector<Placement> placements;
};

// Throws std::invalid_argument when an option is unknown or its value is wrong.
Options read_options(int argc, char** argv) {
  bench::CommandLine line(argc, argv, {"--check"});
  Options options;
  options.check = line.flag("--check");
  options.suite = line.checkpoint_or_empty();
  // On the emulated device a long prompt takes minutes, and shows nothing more than a short one.
  options.budget = static_cast<double>(line.number("--budget", options.check ? 20 : 1'000'000));
  options.table_rows = line.number("--table-rows", 0);
  const std::string tables = line.text("--tables", options.check ? "both" : "host");
  line.finish();
  if (options.budget <= 0) throw std::invalid_argument("--budget: expected seconds, 1 or more");
  if (options.table_rows < 0) throw std::invalid_argument("--table-rows: expected rows, 1 or more");
  if (tables == "host" || tables == "both") options.placements.push_back(Placement::host);
  if (tables == "device" || tables == "both") options.placements.push_back(Placement::device);
  if (options.placements.empty())
    throw std::invalid_argument(str_cat("--tables ", tables, ": expected host, device or both"));
  for (const char* suite : {"parity", "bits", "ops", "model", "gather"})
    if (options.suite == suite) return options;
  throw std::invalid_argument(options.suite.empty() ? "no suite is named" : str_cat("no suite ", options.suite));
}

// Runs the suite; returns whether all its checks passed.
bool run(const Options& options) {
  if (options.check) std::printf("on the emulated device: no time and no share says anything about a GPU\n");
  if (options.suite == "parity") {
    Bench gpu(parity_config(), options.check, options.check);
    Bench emulated(parity_config(), true, gpu.device().multiplies_fp8());
    return check_parity(gpu, emulated);
  }
  Report report(options.suite, options.budget);
  ModelConfig config = options.check ? tiny_config() : lite_config();
  if (options.suite == "gather" && !options.check) config.ngram->table_rows = kGatherRows;
  if (options.table_rows > 0) config.ngram->table_rows = options.table_rows;
  Bench bench(config, options.check, options.check);
  if (options.suite == "bits") return check_bits(bench);
  if (options.suite == "ops") {
    bench_ops(bench, report);
  } else if (options.suite == "model") {
    bench_model(bench, report, options.placements);
  } else {
    bench_gather(bench, report);
  }
  report.finish();
  return report.holds();
}

}  // namespace

}  // namespace longcat

int main(int argc, char** argv) try {
  return longcat::run(longcat::read_options(argc, argv)) ? 0 : 1;
} catch (const std::invalid_argument& error) {
  std::fprintf(stderr,
               "cuda_bench: %s\nusage: cuda_bench parity | bits | ops | model | gather [--check] [--budget SECONDS] "
               "[--tables host|device|both] [--table-rows N]\n",
               error.what());
  return 2;
} catch (const std::exception& error) {
  std::fprintf(stderr, "cuda_bench: %s\n", error.what());
  return 1;
}
