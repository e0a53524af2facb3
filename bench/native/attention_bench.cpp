// Times attention of one sub-layer at the real shape, beside the time that the machine's limits allow.
//
//   attention_bench [CHECKPOINT] [--depth 4096,32768] [--latents f32,bf16,fp8,int8] [--index-keys auto,int8]
//                   [--ops decode,prefill] [--chunk 512] [--threads N] [--rounds 9] [--dtype bf16]
//
// decode: one generated token after `depth` tokens. The bound is the larger of two times: its multiply-adds at the
// machine's peak, and reading its latents. The peak is that of exact int8 for int8 latents, of bf16 for bf16 latents
// under --dtype bf16, else that of f32.
// select: the indexer of sparse attention for this token. The bound: its products at their peak, or reading its keys.
// The peak is that of bf16 for bf16 keys under --dtype bf16, that of 16-bit queries for int8 keys, else that of f32.
// decode selected: attention to the positions that it selected. One selection serves two of them (cli_factor).
// prefill: a chunk of prompt tokens that ends at `depth`. The bound is the multiply-adds of its keys, values, scores
// and weighted sums at the peak of f32, or of bf16 as above. It has a third of the rounds; a single one begins cold.
// prefill select, prefill selected: the indexer for this chunk, and its attention to what was selected.
// step (with a checkpoint): whole decode steps of its model. The bound is that of the attention alone.
// The latents are random, because their values do not change the time. The history of a step is filled with them,
// because computing a prompt would take minutes.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/available_threads.h"
#include "command_line.h"
#include "engine/batch_buffers.h"
#include "engine/load_model.h"
#include "lite_config.h"
#include "machine_limits.h"
#include "ops/backend.h"
#include "timing.h"

using namespace longcat;
using bench::Clock;
using bench::median;
using bench::seconds_since;

namespace {

const ModelConfig kLite = lite_config();
const int64_t kHeads = kLite.num_attention_heads, kLatent = kLite.kv_lora_rank, kRope = kLite.qk_rope_head_dim,
              kNope = kLite.qk_nope_head_dim, kValue = kLite.v_head_dim;

// index_n_heads, index_head_dim, and the rule of LongCat-Flash-Lite-Sparse.
constexpr int64_t kIndexHeads = 16, kIndexDim = 128;
constexpr SelectionRule kRule{.topk = 2048, .init_tokens = 16, .local_tokens = 1024};

std::vector<float> random_values(int64_t n) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = normal(random);
  return values;
}

std::vector<bf16> random_bf16(int64_t n) {
  std::vector<bf16> values;
  for (const float value : random_values(n)) values.push_back(to_bf16(value));
  return values;
}

// A cache of one sequence with `depth` tokens, and batches at its end.
class Attention {
 public:
  Attention(Ops& ops, DType dtype, int64_t depth)
      : ops_(ops),
        depth_(depth),
        num_blocks_((depth + kBlockSize - 1) / kBlockSize),
        row_(latent_row_size(dtype, kLatent, kRope)),
        memory_(ops.device(), (num_blocks_ + 1) * kBlockSize * row_ * size_of(dtype)),
        latents_(memory_.tensor(dtype, {num_blocks_ + 1, kBlockSize, row_})),
        buffers_(ops.device(), depth, 1, num_blocks_) {
    for (int64_t b = 1; b <= num_blocks_; ++b) blocks_.push_back(static_cast<int32_t>(b));
    std::vector<float> rows = random_values(depth * (kLatent + kRope));
    std::vector<float> ones(static_cast<size_t>(std::max(kLatent, depth * kRope / 2)), 1.0f);
    const auto view = [](std::vector<float>& values, int64_t r, int64_t c) {
      return Tensor(values.data(), DType::f32, {r, c});
    };
    ops.mla_store(latents_, view(rows, depth, kLatent + kRope), Tensor(ones.data(), DType::f32, {kLatent}), 1e-6f,
                  view(ones, depth, kRope / 2), view(ones, depth, kRope / 2), batch(0, depth, false));
  }

  // Copies the latents of the first block to another block.
  void copy_block(Tensor to) const {
    std::memcpy(to.raw(), latents_.index(0, 1).raw(), static_cast<size_t>(to.num_bytes()));
  }

  int64_t latent_bytes() const { return depth_ * row_ * size_of(latents_.dtype()); }

  // Calls time(function) with a function that computes the attention of one generated token.
  template <class Time>
  void decode(Time&& time) {
    std::vector<float> q = random_values(kHeads * (kLatent + kRope)), out(static_cast<size_t>(kHeads * kLatent));
    const ForwardBatch at_end = batch(depth_ - 1, 1, true);
    time([&] {
      ops_.mla_decode(Tensor(out.data(), DType::f32, {1, kHeads, kLatent}),
                      Tensor(q.data(), DType::f32, {1, kHeads, kLatent}),
                      Tensor(q.data() + kHeads * kLatent, DType::f32, {1, kHeads, kRope}), latents_, at_end, 0.07f);
    });
  }

  // Calls time_select(function) with the selections of the last `tokens` tokens, and time_attention(function) with
  // their attention: that of one generated token, or of a chunk of prompt tokens.
  template <class TimeSelect, class TimeAttention>
  void selected(int64_t tokens, bool generated, DType keys_dtype, TimeSelect&& time_select,
                TimeAttention&& time_attention) {
    const int64_t key_size = index_key_size(keys_dtype, kIndexDim);
    const Buffer memory(ops_.device(), (num_blocks_ + 1) * kBlockSize * key_size * size_of(keys_dtype));
    const Tensor keys = memory.tensor(keys_dtype, {num_blocks_ + 1, kBlockSize, key_size});
    std::vector<float> rows = random_values(depth_ * kIndexDim), ones(static_cast<size_t>(depth_ * kRope / 2), 1.0f),
                       norm(static_cast<size_t>(kIndexDim), 1.0f);
    const Tensor angles(ones.data(), DType::f32, {depth_, kRope / 2});
    ops_.index_store(keys, Tensor(rows.data(), DType::f32, {depth_, kIndexDim}),
                     Tensor(norm.data(), DType::f32, {kIndexDim}), 1e-6f, angles, angles, batch(0, depth_, false));
    std::vector<float> index_q = random_values(tokens * kIndexHeads * kIndexDim),
                       head_weights = random_values(tokens * kIndexHeads);
    std::vector<int32_t> positions(static_cast<size_t>(tokens * kRule.topk));
    const Tensor selected(positions.data(), DType::i32, {tokens, kRule.topk});
    const ForwardBatch at_end = batch(depth_ - tokens, tokens, generated);
    time_select([&] {
      ops_.select_positions(selected, Tensor(index_q.data(), DType::f32, {tokens, kIndexHeads, kIndexDim}),
                            Tensor(head_weights.data(), DType::f32, {tokens, kIndexHeads}), keys, at_end, kRule, 0.02f);
    });
    std::vector<float> q_latent = random_values(tokens * kHeads * kLatent), latent_out(q_latent.size());
    const Tensor latent_queries(q_latent.data(), DType::f32, {tokens, kHeads, kLatent});
    const Tensor latent_results(latent_out.data(), DType::f32, {tokens, kHeads, kLatent});
    std::vector<float> q = random_values(tokens * kHeads * (kNope + kRope));
    const Tensor queries(q.data(), DType::f32, {tokens, kHeads, kNope + kRope});
    if (generated) {
      time_attention([&] {
        ops_.mla_decode_selected(latent_results, latent_queries, queries.slice(2, kNope, kNope + kRope), latents_,
                                 selected, at_end, 0.07f);
      });
    } else {
      const std::vector<bf16> weight = random_bf16(kHeads * kLatent * kNope);
      std::vector<float> out(static_cast<size_t>(tokens * kHeads * kValue));
      time_attention([&] {
        ops_.mla_prefill_selected(Tensor(out.data(), DType::f32, {tokens, kHeads, kValue}), queries, latents_,
                                  k_up(weight), v_up(weight), selected, latent_queries, latent_results, at_end, 0.07f);
      });
    }
  }

  // Calls time(function) with a function that computes the attention of a chunk of prompt tokens.
  template <class Time>
  void prefill(int64_t chunk, Time&& time) {
    std::vector<float> q = random_values(chunk * kHeads * (kNope + kRope)),
                       out(static_cast<size_t>(chunk * kHeads * kValue));
    const std::vector<bf16> weight = random_bf16(kHeads * kLatent * kNope);
    const ForwardBatch at_end = batch(depth_ - chunk, chunk, false);
    time([&] {
      ops_.mla_prefill(Tensor(out.data(), DType::f32, {chunk, kHeads, kValue}),
                       Tensor(q.data(), DType::f32, {chunk, kHeads, kNope + kRope}), latents_, k_up(weight),
                       v_up(weight), at_end, 0.07f);
    });
  }

 private:
  static Weight k_up(const std::vector<bf16>& values) {
    return {
        .format = WeightFormat::bf16, .out_features = kHeads * kLatent, .in_features = kNope, .data = values.data()};
  }
  static Weight v_up(const std::vector<bf16>& values) {
    return {
        .format = WeightFormat::bf16, .out_features = kHeads * kValue, .in_features = kLatent, .data = values.data()};
  }

  ForwardBatch batch(int64_t start, int64_t tokens, bool generated) {
    const std::vector<int32_t> ids(static_cast<size_t>(tokens), 0);
    const Chunk chunk{.token_ids = ids, .start = start, .blocks = blocks_, .generated = generated};
    return buffers_.upload({&chunk, 1});
  }

  Ops& ops_;
  int64_t depth_, num_blocks_, row_;
  Buffer memory_;
  Tensor latents_;
  BatchBuffers buffers_;
  std::vector<int32_t> blocks_;
};

// Operations a second, of a machine's limits.
struct Peak {
  const char* name;
  double per_s;
};

bool has(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

// A model whose cache holds random latents of `depth` tokens.
class DeepModel {
 public:
  DeepModel(const std::string& folder, const std::string& latents, int threads, int64_t depth)
      : loaded_(load_model(folder, {.kv_cache_dtype = latents, .max_num_batched_tokens = 64, .num_threads = threads})),
        depth_(depth),
        num_blocks_((depth + kBlockSize - 1) / kBlockSize),
        cache_(loaded_.ops->device(), loaded_.config, num_blocks_ + 1, loaded_.kv_cache_dtype),
        buffers_(loaded_.ops->device(), 1, 1, num_blocks_),
        logits_(static_cast<size_t>(loaded_.config.vocab_size)) {
    for (int64_t b = 1; b <= num_blocks_; ++b) blocks_.push_back(static_cast<int32_t>(b));
    Attention one(*loaded_.ops, loaded_.kv_cache_dtype, kBlockSize);
    for (int64_t sub_layer = 0; sub_layer < loaded_.config.num_sub_layers(); ++sub_layer)
      for (int64_t b = 1; b <= num_blocks_; ++b) one.copy_block(cache_.latents(sub_layer).index(0, b));
  }

  void step() {
    const std::vector<int32_t> ids{static_cast<int32_t>(3 + random_() % 1000)};
    const Chunk chunk{.token_ids = ids, .start = depth_ - 1, .blocks = blocks_, .generated = true};
    const Tensor hidden = loaded_.model->forward(buffers_.upload({&chunk, 1}), cache_);
    int32_t row = 0;
    loaded_.model->logits(Tensor(logits_.data(), DType::f32, {1, loaded_.config.vocab_size}), hidden,
                          Tensor(&row, DType::i32, {1}));
  }

  int64_t num_sub_layers() const { return loaded_.config.num_sub_layers(); }

 private:
  LoadedModel loaded_;
  int64_t depth_, num_blocks_;
  KvCache cache_;
  BatchBuffers buffers_;
  std::vector<int32_t> blocks_;
  std::vector<float> logits_;
  std::mt19937 random_{3};
};

}  // namespace

int main(int argc, char** argv) try {
  bench::CommandLine line(argc, argv);
  const std::vector<int64_t> depths = line.numbers("--depth", {4096, 32768});
  const std::vector<std::string> wanted = line.words("--latents", {"f32", "bf16", "fp8", "int8"});
  const std::vector<std::string> index_keys = line.words("--index-keys", {"auto"});
  const std::vector<std::string> ops_wanted = line.words("--ops", {"decode", "prefill"});
  const std::string checkpoint = line.checkpoint_or_empty();
  const int64_t chunk = line.number("--chunk", 512), rounds = line.number("--rounds", 9);
  const int threads = static_cast<int>(line.number("--threads", available_threads()));
  const DType dtype = line.text("--dtype", "bf16") == "f32" ? DType::f32 : DType::bf16;
  line.finish();
  const bench::Limits limits = bench::limits_of_machine(threads);
  const std::unique_ptr<Ops> ops = make_ops("cpu", threads);
  ops->use_dtype(dtype);
  std::printf("%s, %d threads: %s\n\n| op | latents | depth | ms | bound [ms] | times the bound | of |\n",
              name_of(cpu_isa()), threads, bench::text(limits).c_str());
  std::printf("| --- | --- | --- | --- | --- | --- | --- |\n");
  const auto measure = [&](const char* op, const char* latents, int64_t depth, int64_t times, double operations,
                           double bytes, const Peak& peak, auto&& work) {
    const double computed = operations / peak.per_s;
    const double read = bytes / limits.read_bytes_per_s, bound = std::max(computed, read);
    std::vector<double> seconds;
    if (times > 1) work();
    for (int64_t round = 0; round < times; ++round) {
      const Clock::time_point begin = Clock::now();
      work();
      seconds.push_back(seconds_since(begin));
    }
    std::printf("| %s | %s | %ld | %.2f | %.2f | %.2f | %s |\n", op, latents, depth, 1e3 * median(seconds), 1e3 * bound,
                median(seconds) / bound, read > computed ? "reading" : peak.name);
    bench::warn_above_limit(op, bound / median(seconds));
    std::fflush(stdout);
  };
  struct Format {
    const char* name;
    DType dtype;
  };
  const Peak f32{"f32", limits.f32_flop_per_s}, exact_int8{"exact int8", limits.int8_op_per_s};
  const Peak bf16 = dtype == DType::bf16 ? Peak{"bf16", limits.bf16_flop_per_s} : f32;
  // Where 8-bit products have an instruction, one with 16 bits is two of them.
  const double products_of_8_bits = cpu_isa() >= Isa::avx512_vnni ? 2 : 1;
  const Peak keys_of_int8{"exact int16 x int8", limits.int8_op_per_s / products_of_8_bits};
  for (const int64_t depth : depths)
    for (const Format format : {Format{"f32", DType::f32}, Format{"bf16", DType::bf16}, Format{"fp8", DType::f8_e4m3},
                                Format{"int8", DType::i8}}) {
      if (!has(wanted, format.name)) continue;
      Attention attention(*ops, format.dtype, depth);
      const double bytes = static_cast<double>(attention.latent_bytes());
      const Peak& float_peak = format.dtype == DType::bf16 ? bf16 : f32;
      const Peak& peak = format.dtype == DType::i8 && limits.int8_op_per_s > 0 ? exact_int8 : float_peak;
      const bool decodes = has(ops_wanted, "decode");
      const bool prefills = has(ops_wanted, "prefill") && 0 < chunk && chunk <= depth;
      if (decodes)
        attention.decode([&](auto&& work) {
          measure("decode", format.name, depth, rounds,
                  2.0 * static_cast<double>(kHeads * depth * (2 * kLatent + kRope)), bytes, peak, work);
        });
      const int64_t few_rounds = std::max<int64_t>(1, rounds / 3);
      // Selections of `tokens` tokens, whose last is at `depth`, and their attention.
      const auto measure_selected = [&](const std::string& keys, int64_t tokens, bool generated, int64_t times) {
        const bool int8_keys = keys == "int8";
        const DType automatic = format.dtype == DType::f32 ? DType::f32 : DType::bf16;
        const DType keys_dtype = int8_keys ? DType::i8 : automatic;
        const Peak& keys_peak = int8_keys && limits.int8_op_per_s > 0 ? keys_of_int8
                                : keys_dtype == DType::bf16           ? bf16
                                                                      : f32;
        const double pairs =
            static_cast<double>(tokens) * (static_cast<double>(depth) - 0.5 * static_cast<double>(tokens));
        const double key_bytes =
            static_cast<double>(depth * index_key_size(keys_dtype, kIndexDim) * size_of(keys_dtype));
        const std::string before = generated ? "" : "prefill ", after = int8_keys ? ", int8 keys" : "";
        attention.selected(
            tokens, generated, keys_dtype,
            [&](auto&& work) {
              measure(str_cat(before, "select", after).c_str(), format.name, depth, times,
                      2.0 * pairs * static_cast<double>(kIndexHeads * kIndexDim), key_bytes, keys_peak, work);
            },
            [&](auto&& work) {
              const double latents = static_cast<double>(tokens * kRule.topk);
              measure(generated ? "decode selected" : "prefill selected", format.name, depth, times,
                      2.0 * latents * static_cast<double>(kHeads * (2 * kLatent + kRope)),
                      bytes * std::min(1.0, latents / static_cast<double>(depth)), peak, work);
            });
      };
      if (depth > kRule.topk)
        for (const std::string& keys : index_keys) {
          if (decodes) measure_selected(keys, 1, true, rounds);
          if (prefills) measure_selected(keys, chunk, false, few_rounds);
        }
      if (!checkpoint.empty()) {
        DeepModel model(checkpoint, format.name, threads, depth);
        const double sub_layers = static_cast<double>(model.num_sub_layers());
        measure("step", format.name, depth, rounds,
                sub_layers * 2.0 * static_cast<double>(kHeads * depth * (2 * kLatent + kRope)), sub_layers * bytes,
                peak, [&] { model.step(); });
      }
      if (!prefills) continue;
      const double pairs = static_cast<double>(chunk) * (static_cast<double>(depth) - 0.5 * static_cast<double>(chunk));
      const double operations =
          2.0 * kHeads * (static_cast<double>(depth * kLatent) * (kNope + kValue) + pairs * (kNope + kRope + kValue));
      attention.prefill(chunk, [&](auto&& work) {
        measure(str_cat("prefill ", chunk).c_str(), format.name, depth, few_rounds, operations, bytes, float_peak,
                work);
      });
    }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "attention_bench: %s\n", error.what());
  return 1;
}
