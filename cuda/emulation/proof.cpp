#include "cuda/emulation/proof.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>

namespace longcat::emulation {

namespace {

// A schedule may take as much: a broken kernel may never end, and the process is then stopped.
constexpr rlim_t kCpuSeconds = 40;

void limit_schedule() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  rlimit limit{};
  ::getrlimit(RLIMIT_CPU, &limit);
  limit.rlim_cur = static_cast<rlim_t>(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + kCpuSeconds;
  ::setrlimit(RLIMIT_CPU, &limit);
}

// What a failure is found by.
const char* way_of(const std::string& finding) {
  const std::string kind = finding.substr(0, finding.find(':'));
  if (kind == "deadlock" || kind == "diverged") return "deadlock";
  return kind == "out of bounds" || kind == "misaligned" ? "bounds" : "order";
}

struct Failures {
  int64_t count = 0;
  void add(const char* way, const std::string& text) {
    ++count;
    std::printf("FOUND %s: %s\n", way, text.c_str());
  }
};

}  // namespace

int prove(int argc, char** argv, const std::vector<Case>& cases) {
  int seeds = 20;
  bool only_first = false;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--seeds" && i + 1 < argc) seeds = std::atoi(argv[++i]);
    if (std::string(argv[i]) == "--first") only_first = true;
  }
  Failures failures;
  std::map<std::pair<std::string, int>, uint64_t> bits;  // group, arithmetic
  for (const Case& one : cases) {
    const int64_t before = failures.count;
    double worst = 0, tolerance = 0;
    int64_t conflicts = 0;
    int run = 0;
    for (int seed = 1; seed <= seeds && !(only_first && failures.count > 0); ++seed, ++run) {
      limit_schedule();
      const Arithmetic arithmetic = seed % 2 ? Arithmetic::hopper : Arithmetic::plain;
      SimtEmulator gpu({.seed = static_cast<uint64_t>(seed),
                        .arithmetic = arithmetic,
                        .resident_blocks = one.resident_blocks > 0 ? one.resident_blocks : 1 + seed % 4,
                        .stops = only_first});
      const Outcome outcome = one.run(gpu);
      const std::string name = one.name + ", seed " + std::to_string(seed) + ": ";
      for (const std::string& text : gpu.findings().texts()) failures.add(way_of(text), name + text);
      if (!(outcome.error <= outcome.tolerance))
        failures.add("value",
                     name + "error " + std::to_string(outcome.error) + " of " + std::to_string(outcome.tolerance));
      const auto [expected, is_new] =
          bits.insert({{one.group.empty() ? one.name : one.group, static_cast<int>(arithmetic)}, outcome.bits});
      if (!is_new && expected->second != outcome.bits) failures.add("value", name + "other bits than before");
      conflicts = gpu.bank_conflicts().total();
      if (conflicts > one.most_conflicts)
        failures.add("conflicts", name + std::to_string(conflicts) + " cycles of bank conflicts, at most " +
                                      std::to_string(one.most_conflicts) + " allowed\n" + gpu.bank_conflicts().table());
      worst = std::isnan(outcome.error) ? outcome.error : std::max(worst, outcome.error);
      tolerance = outcome.tolerance;
    }
    if (run > 0)
      std::printf("%s: %d seeds, error %.1e of %.1e, %lld bank conflicts, %lld failures\n", one.name.c_str(), run,
                  worst, tolerance, static_cast<long long>(conflicts), static_cast<long long>(failures.count - before));
    std::fflush(stdout);
  }
  return failures.count > 0;
}

uint64_t hash_of_bytes(const void* data, int64_t bytes) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (int64_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211u;
  return hash;
}

std::vector<float> random_f32(int64_t count, uint64_t seed, float scale) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = scale * normal(random);
  return values;
}

std::vector<bf16> random_bf16(int64_t count, uint64_t seed, float scale) {
  std::vector<bf16> values;
  values.reserve(static_cast<size_t>(count));
  for (const float value : random_f32(count, seed, scale)) values.push_back(to_bf16(value));
  return values;
}

double row_error(const float* found, const double* expected, int64_t count) {
  double largest = 0, error = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(found[i])) return std::nan("");
    largest = std::max(largest, std::fabs(expected[i]));
    error = std::max(error, std::fabs(found[i] - expected[i]));
  }
  return error / largest;
}

}  // namespace longcat::emulation
