#include "harness.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>

#include "bench/native/timing.h"
#include "cuda/device/check.h"
#include "cuda/device/cuda_device.h"
#include "cuda/emulation/emulated_device.h"

namespace longcat {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kPatternBytes = int64_t{32} << 20;

int attribute(cudaDeviceAttr which) {
  int value = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&value, which, 0));
  return value;
}

// Dense bf16 operations a multiprocessor does in a cycle.
double flops_per_cycle(int compute_capability) {
  if (compute_capability >= 100 && compute_capability < 120) return 8192;
  return compute_capability >= 90 && compute_capability < 100 ? 4096 : compute_capability == 80 ? 2048 : 1024;
}

}  // namespace

Bench::Bench(const ModelConfig& config, bool check, bool fp8) : check_(check), config_(config) {
  std::unique_ptr<GpuDevice> device;
  if (check) {
    device = std::make_unique<EmulatedDevice>(int64_t{4} << 30, fp8, false);
  } else {
    device = std::make_unique<CudaDevice>(0, 0);
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    const double memory_hz = 1e3 * attribute(cudaDevAttrMemoryClockRate), hz = 1e3 * attribute(cudaDevAttrClockRate);
    if (memory_hz > 0) peak_bytes_ = 2 * memory_hz * attribute(cudaDevAttrGlobalMemoryBusWidth) / 8 / 1e6;
    peak_flops_ = device->num_multiprocessors() * flops_per_cycle(device->compute_capability()) * hz / 1e6;
    flush_bytes_ = 2 * attribute(cudaDevAttrL2CacheSize);
    std::printf("%s: %.0f GB/s, %.0f TFLOP/s bf16 at its highest clocks\n", properties.name, peak_bytes_ / 1e3,
                peak_flops_ / 1e6);
  }
  ops_ = std::make_unique<CudaOps>(std::move(device), DType::bf16);
  flush_ = Buffer(this->device(), flush_bytes_);
  std::vector<bf16> values(static_cast<size_t>((config.vocab_size < 65536 ? 1 << 20 : kPatternBytes) / 2));
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.02f);
  for (bf16& value : values) value = to_bf16(normal(random));
  pattern_ = Buffer(this->device(), static_cast<int64_t>(values.size()) * 2);
  this->device().copy_from_host(pattern_.data(), values.data(), pattern_.bytes());
}

Bench::~Bench() = default;

const Arena& Bench::arena() const {
  GpuDevice& device = ops_->device();
  return check_ ? static_cast<EmulatedDevice&>(device).arena() : static_cast<CudaDevice&>(device).arena();
}

Buffer Bench::random(int64_t bytes) {
  Buffer buffer(device(), bytes);
  randomise(buffer.data(), bytes);
  return buffer;
}

// Pieces of the pattern from a new place each time, so that no two matrices are alike.
void Bench::randomise(void* device_data, int64_t bytes) {
  run([&] {
    for (int64_t done = 0; done < bytes;) {
      const int64_t count = std::min(bytes - done, pattern_.bytes() - next_);
      device().copy(static_cast<char*>(device_data) + done, static_cast<const char*>(pattern_.data()) + next_, count);
      done += count;
      next_ = (next_ + count + 256 * 1237) % (pattern_.bytes() / 2);
    }
  });
}

Weight Bench::matrix(Buffer& storage, int64_t out_features, int64_t in_features) {
  storage = random(out_features * in_features * 2);
  return {
      .format = WeightFormat::bf16, .out_features = out_features, .in_features = in_features, .data = storage.data()};
}

double Bench::run(const std::function<void()>& work) {
  const Clock::time_point begin = Clock::now();
  device().wait(device().submit(work));
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

double Bench::time(const std::function<void()>& work, bool cold, int repeats) {
  std::vector<double> us;
  if (check_) return run(work);
  const cudaStream_t stream = static_cast<cudaStream_t>(device().stream());
  run([&] { work(); });
  for (int i = 0; i < repeats; ++i) {
    cudaEvent_t begin, end;
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    run([&] {
      // The host prepares the launches while this runs, so that they are not part of the time.
      if (cold) CUDA_CHECK(cudaMemsetAsync(flush_.data(), i, static_cast<size_t>(flush_.bytes()), stream));
      CUDA_CHECK(cudaEventRecord(begin, stream));
      work();
      CUDA_CHECK(cudaEventRecord(end, stream));
    });
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    us.push_back(1e3 * ms);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
  }
  return bench::median(us);
}

BatchMaker::BatchMaker(Bench& bench, int64_t max_tokens, int64_t max_sequences, int64_t max_context)
    : bench_(bench),
      max_sequences_(max_sequences),
      blocks_per_sequence_((max_context + kBlockSize - 1) / kBlockSize),
      buffers_(bench.device(), max_tokens, max_sequences, blocks_per_sequence_) {}

std::vector<int32_t> BatchMaker::ids(int64_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids)
    id = 3 + static_cast<int32_t>(random_() % static_cast<uint32_t>(bench_.config().vocab_size - 3));
  return ids;
}

std::vector<int32_t> BatchMaker::blocks(int64_t sequence) const {
  std::vector<int32_t> blocks(static_cast<size_t>(blocks_per_sequence_));
  for (size_t i = 0; i < blocks.size(); ++i)
    blocks[i] = static_cast<int32_t>(1 + sequence + static_cast<int64_t>(i) * max_sequences_);
  return blocks;
}

ForwardBatch BatchMaker::decodes(int64_t num_sequences, int64_t context) {
  const std::vector<int32_t> token_ids = ids(num_sequences);
  std::vector<std::vector<int32_t>> tables;
  std::vector<Chunk> chunks;
  for (int64_t s = 0; s < num_sequences; ++s) tables.push_back(blocks(s));
  for (int64_t s = 0; s < num_sequences; ++s)
    chunks.push_back({.token_ids = std::span(token_ids).subspan(static_cast<size_t>(s), 1),
                      .start = context,
                      .blocks = tables[static_cast<size_t>(s)],
                      .generated = true});
  return buffers_.upload(chunks);
}

ForwardBatch BatchMaker::prompt(int64_t num_tokens, int64_t context) {
  const std::vector<int32_t> token_ids = ids(num_tokens), table = blocks(0);
  const Chunk chunk{.token_ids = token_ids, .start = context, .blocks = table};
  return buffers_.upload({&chunk, 1});
}

}  // namespace longcat
