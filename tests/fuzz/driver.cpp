// A stand-alone driver, for compilers without libFuzzer: damages valid inputs at random until its time is over.
//
// fuzz_headers [--seconds N] [--seed S] runs; fuzz_headers FILE... replays what a crash left behind.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "mutate.h"

// Of the sanitizer's run time; GCC does not install all of its headers.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void*, size_t),
                                                         void (*on_free)(const volatile void*));
extern "C" size_t __sanitizer_get_allocated_size(const volatile void* data);

// A small quarantine and short stacks of allocations: the defaults spend most of the time on touching fresh memory.
extern "C" const char* __asan_default_options() { return "quarantine_size_mb=8:malloc_context_size=6"; }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace longcat::fuzz {
namespace {

using Clock = std::chrono::steady_clock;

// Heap in use, by the sanitizer's hooks: a parser must not need more than a small multiple of its input.
constexpr size_t kAllowedPerByte = 64, kAllowedBase = 64 << 10;
size_t live_bytes = 0, peak_bytes = 0;

void on_malloc(const volatile void*, size_t size) {
  live_bytes += size;
  peak_bytes = std::max(peak_bytes, live_bytes);
}
void on_free(const volatile void* data) {
  if (data) live_bytes -= __sanitizer_get_allocated_size(data);
}

// Shared with the child process that runs the inputs: whatever way it dies, the parent knows how far it came and on
// what.
constexpr size_t kMaxInputBytes = 8 << 20;
struct Shared {
  uint64_t inputs, accepted, rejected;
  double slowest_ms, most_memory;  // most_memory: peak over what is allowed
  size_t input_bytes;
  char input[kMaxInputBytes];
};

bool run_one(const Seed& seed, Shared& shared) {
  const std::string input = make_input(seed.parser, seed.data_bytes, seed.text);
  if (input.size() > kMaxInputBytes) return false;
  shared.input_bytes = input.size();
  std::memcpy(shared.input, input.data(), input.size());

  const size_t before = peak_bytes = live_bytes;
  const auto start = Clock::now();
  const bool accepted = accepts(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  const std::chrono::duration<double, std::milli> elapsed = Clock::now() - start;

  const size_t used = peak_bytes - before, allowed = kAllowedBase + kAllowedPerByte * input.size();
  if (used > allowed) {
    std::fprintf(stderr, "broken promise: %zu bytes of memory for %zu bytes of input\n", used, input.size());
    std::abort();
  }
  shared.slowest_ms = std::max(shared.slowest_ms, elapsed.count());
  shared.most_memory = std::max(shared.most_memory, static_cast<double>(used) / static_cast<double>(allowed));
  ++shared.inputs;
  ++(accepted ? shared.accepted : shared.rejected);
  return accepted;
}

void run(Clock::time_point end, uint64_t seed_number, Shared& shared) {
  constexpr size_t kPoolSize = 512;
  Random random(seed_number);
  std::vector<Seed> pool = fixed_seeds();
  const size_t num_fixed = pool.size();
  for (const Seed& seed : pool) {
    if (run_one(seed, shared)) continue;
    std::fprintf(stderr, "a seed is not valid: %s\n", seed.text.c_str());
    std::abort();
  }
  while (Clock::now() < end) {
    Seed seed = below(random, 3) ? pool[below(random, pool.size())] : random_header(random);
    for (uint64_t changes = below(random, 5); changes > 0; --changes) mutate(seed, pool, random);
    if (!run_one(seed, shared) || seed.text.size() > 20'000) continue;
    // Accepted variants become seeds, so that changes add up.
    if (pool.size() < kPoolSize) {
      pool.push_back(std::move(seed));
    } else if (below(random, 8) == 0) {
      pool[num_fixed + below(random, kPoolSize - num_fixed)] = std::move(seed);
    }
  }
}

// Runs children until the time is over, the next one with another seed after each crash. Returns the number of crashes.
int supervise(double seconds, uint64_t seed_number) {
  constexpr int kMaxCrashes = 10;
  void* memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  Shared& shared = *static_cast<Shared*>(memory);  // zeroed by the system
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  int crashes = 0;
  while (crashes < kMaxCrashes && Clock::now() < end) {
    const pid_t child = ::fork();
    if (child < 0) std::abort();
    if (child == 0) {
      __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
      run(end, seed_number + static_cast<uint64_t>(crashes), shared);
      std::exit(0);  // not _exit: the leak check runs
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    if (status == 0) break;
    const std::string path = "fuzz-crash-" + std::to_string(++crashes) + ".bin";
    std::ofstream(path, std::ios::binary).write(shared.input, static_cast<std::streamsize>(shared.input_bytes));
    std::printf("crashed (wait status %d); replay the input with: fuzz_headers %s\n", status, path.c_str());
  }
  std::printf("seed %llu, slowest input %.1f ms, most memory %.2f of %zu KiB + %zu bytes a byte\n",
              static_cast<unsigned long long>(seed_number), shared.slowest_ms, shared.most_memory, kAllowedBase >> 10,
              kAllowedPerByte);
  std::printf("%llu inputs, %llu accepted, %llu rejected, %d crashes\n", static_cast<unsigned long long>(shared.inputs),
              static_cast<unsigned long long>(shared.accepted), static_cast<unsigned long long>(shared.rejected),
              crashes);
  return crashes;
}

}  // namespace
}  // namespace longcat::fuzz

int main(int argc, char** argv) {
  double seconds = 10;
  uint64_t seed = 1;
  std::vector<const char*> files;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--seconds") && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else if (!std::strcmp(argv[i], "--seed") && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else {
      files.push_back(argv[i]);
    }
  }
  for (const char* path : files) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    std::printf("%s: no crash\n", path);
  }
  return files.empty() && longcat::fuzz::supervise(seconds, seed) > 0;
}
