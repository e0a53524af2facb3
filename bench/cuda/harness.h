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
  const Arena& arena() const { return *arena_; }

  // Whether branches run beside the main stream; else they run in place.
  void set_parallel(bool parallel) { *parallel_ = parallel; }

  // Peaks of the device at its highest clocks [bytes/us, FLOP/us], 1 where they are not known.
  double peak_bytes() const { return peak_bytes_; }
  double peak_flops() const { return peak_flops_; }

  // Values of a normal distribution, as wide as freshly initialised weights: of each call others, but on every device
  // the same. data: device memory, or host memory that the device reaches.
  void randomise(void* data, int64_t bytes, DType dtype = DType::bf16);
  Buffer random(int64_t bytes);
  Weight matrix(Buffer& storage, int64_t out_features, int64_t in_features, WeightFormat format = WeightFormat::bf16);

  // Median time of `work` on the device [us], after a call that is not counted: of up to 15 calls, fewer where they
  // would take longer than `most_seconds`. `cold`: with nothing of it in the L2 cache.
  double time(const std::function<void()>& work, bool cold, double most_seconds = 0.5);
  // Time of one call [us].
  double time_once(const std::function<void()>& work, bool cold = false);

  // Runs `work` to its end; wall time [us].
  double run(const std::function<void()>& work);

 private:
  template <class Base, class... Arguments>
  std::unique_ptr<GpuDevice> make_device(Arguments... arguments);
  void look_up_peaks();

  bool check_;
  ModelConfig config_;
  std::unique_ptr<CudaOps> ops_;
  const Arena* arena_ = nullptr;
  bool* parallel_ = nullptr;  // of the device
  double peak_bytes_ = 1, peak_flops_ = 1;
  int64_t flush_bytes_ = 0;
  uint64_t next_seed_ = 1;
  Buffer flush_;  // more than L2 holds
};

// A batch of one token a sequence, whose context has `context` tokens with it, or of one prompt of `num_tokens`.
// Blocks are taken in turn and never shared.
class BatchMaker {
 public:
  BatchMaker(Bench& bench, int64_t max_tokens, int64_t max_sequences, int64_t max_context);

  // Blocks that such batches take, the null block among them.
  static int64_t num_blocks(int64_t max_sequences, int64_t max_context) {
    return 1 + max_sequences * ((max_context + kBlockSize - 1) / kBlockSize);
  }
  int64_t num_blocks() const { return 1 + max_sequences_ * blocks_per_sequence_; }
  ForwardBatch decodes(int64_t num_sequences, int64_t context);
  ForwardBatch prompt(int64_t num_tokens);

 private:
  std::vector<int32_t> ids(int64_t count);
  std::vector<int32_t> blocks(int64_t sequence, int64_t tokens) const;

  Bench& bench_;
  int64_t max_sequences_, blocks_per_sequence_;
  BatchBuffers buffers_;
  std::mt19937 random_{2};
};

}  // namespace longcat
