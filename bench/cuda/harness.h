// The parts that the CUDA benchmarks share: the device, the shapes, memory full of random numbers, and a clock.
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
  // check: run on the emulated device, to see that the program works; its times mean nothing. fp8: the emulated device
  // multiplies fp8.
  Bench(const ModelConfig& config, bool check, bool fp8 = false);
  ~Bench();

  bool check() const { return check_; }
  const ModelConfig& config() const { return config_; }
  CudaOps& ops() { return *ops_; }
  GpuDevice& device() { return ops_->device(); }
  const Arena& arena() const { return *arena_; }

  // Whether branches run beside the main stream, or in place.
  void set_parallel(bool parallel) { *parallel_ = parallel; }

  // Peaks of the device at its highest clocks [bytes/us, FLOP/us]; 1 where they are unknown.
  double peak_bytes() const { return peak_bytes_; }
  double peak_flops() const { return peak_flops_; }

  // Fills `data` with values of a normal distribution, as wide as freshly initialised weights. Each call makes other
  // values, and every device the same ones. data: device memory, or host memory that the device reaches.
  void randomise(void* data, int64_t bytes, DType dtype = DType::bf16);
  Buffer random(int64_t bytes);
  Weight matrix(Buffer& storage, int64_t out_features, int64_t in_features, WeightFormat format = WeightFormat::bf16);
  // The classifier of moe_route().
  Weight router(Buffer& storage, int64_t out_features, int64_t in_features);

  // Returns the median time of `work` on the device [us], after one call that does not count. It makes up to 15 calls,
  // and fewer when they would take longer than `most_seconds`. cold: the L2 cache holds none of the data.
  double time(const std::function<void()>& work, bool cold, double most_seconds = 0.5);
  // Returns the time of one call [us].
  double time_once(const std::function<void()>& work, bool cold = false);

  // Runs `work` to its end, and returns the wall time [us].
  double run(const std::function<void()>& work);

 private:
  template <class Base, class... Arguments>
  std::unique_ptr<GpuDevice> make_device(Arguments... arguments);
  void look_up_peaks();

  bool check_;
  ModelConfig config_;
  std::unique_ptr<CudaOps> ops_;
  const Arena* arena_ = nullptr;
  bool* parallel_ = nullptr;  // the device's switch of its branches
  double peak_bytes_ = 1, peak_flops_ = 1;
  int64_t flush_bytes_ = 0;
  uint64_t next_seed_ = 1;
  Buffer flush_;  // memory larger than the L2 cache
};

// Makes a batch of one token for each sequence, whose context has `context` tokens with it, or a batch of one prompt of
// `num_tokens` tokens. Sequences take blocks in turn and share none.
class BatchMaker {
 public:
  BatchMaker(Bench& bench, int64_t max_tokens, int64_t max_sequences, int64_t max_context);

  // Returns the number of blocks that such batches take, with the null block.
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
