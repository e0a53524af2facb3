#include "harness.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <random>

#include "bench/native/timing.h"
#include "cuda/device/check.h"
#include "cuda/device/cuda_device.h"
#include "cuda/emulation/emulated_device.h"
#include "fill.h"

namespace longcat {

namespace {

// Standard deviation of freshly initialised weights (initializer_range of config.json).
constexpr float kDeviation = 0.02f;

// A device that can run branches in place, which shows the time that a branch hides.
template <class Base>
class BenchDevice final : public Base {
 public:
  using Base::Base;
  void begin_branch() override {
    if (parallel) Base::begin_branch();
  }
  void end_branch() override {
    if (parallel) Base::end_branch();
  }
  void join_branch() override {
    if (parallel) Base::join_branch();
  }

  bool parallel = true;
};

int attribute(cudaDeviceAttr which) {
  int value = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&value, which, 0));
  return value;
}

// Dense bf16 operations of a multiprocessor in one cycle.
double flops_per_cycle(int compute_capability) {
  if (compute_capability >= 100 && compute_capability < 120) return 8192;
  return compute_capability >= 90 && compute_capability < 100 ? 4096 : compute_capability == 80 ? 2048 : 1024;
}

}  // namespace

template <class Base, class... Arguments>
std::unique_ptr<GpuDevice> Bench::make_device(Arguments... arguments) {
  auto device = std::make_unique<BenchDevice<Base>>(arguments...);
  arena_ = &device->arena();
  parallel_ = &device->parallel;
  return device;
}

Bench::Bench(const ModelConfig& config, bool check, bool fp8) : check_(check), config_(config) {
  auto device = check ? make_device<EmulatedDevice>(int64_t{4} << 30, fp8, false) : make_device<CudaDevice>(0, 0.0, 0);
  ops_ = std::make_unique<CudaOps>(std::move(device), DType::bf16);
  if (check) return;
  look_up_peaks();
  flush_ = Buffer(this->device(), flush_bytes_);
}

Bench::~Bench() = default;

void Bench::look_up_peaks() {
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  const double memory_hz = 1e3 * attribute(cudaDevAttrMemoryClockRate), hz = 1e3 * attribute(cudaDevAttrClockRate);
  if (memory_hz > 0) peak_bytes_ = 2 * memory_hz * attribute(cudaDevAttrGlobalMemoryBusWidth) / 8 / 1e6;
  peak_flops_ = device().num_multiprocessors() * flops_per_cycle(device().compute_capability()) * hz / 1e6;
  flush_bytes_ = 2 * attribute(cudaDevAttrL2CacheSize);
  std::printf("%s: %.0f GB/s, %.0f TFLOP/s bf16 at its highest clocks\n", properties.name, peak_bytes_ / 1e3,
              peak_flops_ / 1e6);
}

void Bench::randomise(void* data, int64_t bytes, DType dtype) {
  run([&] { fill_normal(device(), data, dtype, bytes / size_of(dtype), kDeviation, next_seed_++); });
}

Buffer Bench::random(int64_t bytes) {
  Buffer buffer(device(), bytes);
  randomise(buffer.data(), bytes);
  return buffer;
}

Weight Bench::matrix(Buffer& storage, int64_t out_features, int64_t in_features, WeightFormat format) {
  LC_CHECK(format == WeightFormat::bf16 || format == WeightFormat::f32);
  Weight weight{.format = format, .out_features = out_features, .in_features = in_features};
  storage = Buffer(device(), weight.num_bytes());
  randomise(storage.data(), storage.bytes(), format == WeightFormat::bf16 ? DType::bf16 : DType::f32);
  weight.data = storage.data();
  return weight;
}

Weight Bench::router(Buffer& storage, int64_t out_features, int64_t in_features) {
  Buffer plane;
  Weight logical = matrix(plane, out_features, in_features, WeightFormat::f32);
  std::vector<char> host(static_cast<size_t>(plane.bytes()));
  device().copy_to_host(host.data(), plane.data(), plane.bytes());
  logical.data = host.data();
  return ops().prepare_router(logical, storage);
}

double Bench::run(const std::function<void()>& work) {
  const bench::Clock::time_point begin = bench::Clock::now();
  device().wait(device().submit(work));
  return bench::us_since(begin);
}

double Bench::time_once(const std::function<void()>& work, bool cold) {
  if (check_) return run(work);
  const cudaStream_t stream = static_cast<cudaStream_t>(device().stream());
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  run([&] {
    // The host prepares the launches while this kernel runs, so that the time does not include the preparation.
    if (cold) CUDA_CHECK(cudaMemsetAsync(flush_.data(), 0, static_cast<size_t>(flush_.bytes()), stream));
    CUDA_CHECK(cudaEventRecord(begin, stream));
    work();
    CUDA_CHECK(cudaEventRecord(end, stream));
  });
  float ms = 0;
  CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return 1e3 * ms;
}

double Bench::time(const std::function<void()>& work, bool cold, double most_seconds) {
  const double first = run(work);
  if (check_) return first;
  std::vector<double> us;
  const double most = std::clamp(1e6 * most_seconds / first, 1.0, 15.0);
  while (static_cast<double>(us.size()) < most) us.push_back(time_once(work, cold));
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

std::vector<int32_t> BatchMaker::blocks(int64_t sequence, int64_t tokens) const {
  std::vector<int32_t> blocks(static_cast<size_t>((tokens + kBlockSize - 1) / kBlockSize));
  for (size_t i = 0; i < blocks.size(); ++i)
    blocks[i] = static_cast<int32_t>(1 + sequence + static_cast<int64_t>(i) * max_sequences_);
  return blocks;
}

ForwardBatch BatchMaker::decodes(int64_t num_sequences, int64_t context) {
  const std::vector<int32_t> token_ids = ids(num_sequences);
  std::vector<std::vector<int32_t>> tables;
  std::vector<Chunk> chunks;
  for (int64_t s = 0; s < num_sequences; ++s) tables.push_back(blocks(s, context));
  for (int64_t s = 0; s < num_sequences; ++s)
    chunks.push_back({.token_ids = std::span(token_ids).subspan(static_cast<size_t>(s), 1),
                      .start = context - 1,
                      .blocks = tables[static_cast<size_t>(s)],
                      .generated = true});
  return buffers_.upload(chunks);
}

ForwardBatch BatchMaker::prompt(int64_t num_tokens) {
  const std::vector<int32_t> token_ids = ids(num_tokens), table = blocks(0, num_tokens);
  const Chunk chunk{.token_ids = token_ids, .start = 0, .blocks = table};
  return buffers_.upload({&chunk, 1});
}

}  // namespace longcat
