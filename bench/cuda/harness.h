// What the CUDA benchmarks share: the device, the shapes, memory full of random numbers, and a clock.
#pragma once

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/cuda_ops.h"
#include "engine/batch_buffers.h"
#include "io/model_config.h"

namespace longcat {

class Arena;

class Bench {
 public:
  // check: on the emulated device, to see that the program works; its times mean nothing. fp8: such a device multiplies
  // fp8.
  Bench(const ModelConfig& config, bool check, bool fp8 = false);
  ~Bench();

  bool check() const { return check_; }
  const ModelConfig& config() const { return config_; }
  CudaOps& ops() { return *ops_; }
  GpuDevice& device() { return ops_->device(); }
  const Arena& arena() const;

  // Peaks of the device at its highest clocks [bytes/us, FLOP/us], 1 where they are not known.
  double peak_bytes() const { return peak_bytes_; }
  double peak_flops() const { return peak_flops_; }

  // bf16 values of a normal distribution, as wide as freshly initialised weights.
  Buffer random(int64_t bytes);
  void randomise(void* device_data, int64_t bytes);
  Weight matrix(Buffer& storage, int64_t out_features, int64_t in_features);

  // Median time of `work` on the device [us]. `cold`: with nothing of it in the L2 cache.
  double time(const std::function<void()>& work, bool cold, int repeats = 15);

  // Runs `work` to its end; wall time [us].
  double run(const std::function<void()>& work);

 private:
  bool check_;
  ModelConfig config_;
  std::unique_ptr<CudaOps> ops_;
  double peak_bytes_ = 1, peak_flops_ = 1;
  int64_t flush_bytes_ = 0;
  int64_t next_ = 0;        // in the pattern
  Buffer pattern_, flush_;  // random values; more than L2 holds
};

// A batch of one token a sequence at position `context`, or of one prompt of `num_tokens` from position `context` on.
// Blocks are taken in turn and never shared.
class BatchMaker {
 public:
  BatchMaker(Bench& bench, int64_t max_tokens, int64_t max_sequences, int64_t max_context);

  int64_t num_blocks() const { return 1 + max_sequences_ * blocks_per_sequence_; }
  ForwardBatch decodes(int64_t num_sequences, int64_t context);
  ForwardBatch prompt(int64_t num_tokens, int64_t context);
  Tensor sources() const { return buffers_.sources(); }

 private:
  std::vector<int32_t> ids(int64_t count);
  std::vector<int32_t> blocks(int64_t sequence) const;

  Bench& bench_;
  int64_t max_sequences_, blocks_per_sequence_;
  BatchBuffers buffers_;
  std::mt19937 random_{2};
};

}  // namespace longcat
