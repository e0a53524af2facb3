// Times the matrix products of a step, one by one, at the shapes of LongCat-Flash-Lite: op x format x rows, with cold
// weights.
//
//   ops_bench [--rows 1,2,4,8,16,64,512] [--formats bf16,bf16_x8,int8_x8,int4_x8] [--ops q_b,experts] [--threads N]
//             [--rounds 15] [--memory 1024]
//
// Each call takes the next of many copies of the weight, `memory` MiB in all, so that no cache holds it.
// "bound" is the larger of two times: reading the weights, and computing the useful operations. The peak is that of
// exact integer products for the integer formats, else that of f32 or bf16 (limits_of_machine()). Times are the best of
// many, because other users of the machine can only add time.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/available_threads.h"
#include "command_line.h"
#include "cpu/gemm/matmul.h"
#include "cpu/gemm/pack.h"
#include "lite_config.h"
#include "machine_limits.h"
#include "ops/backend.h"
#include "ops/packed.h"
#include "timing.h"

using namespace longcat;
using bench::Clock;
using bench::seconds_since;

namespace {

const ModelConfig kLite = lite_config();
const int64_t kNumExperts = kLite.n_routed_experts, kRouterOutputs = kLite.num_router_outputs();
const int64_t kTopK = kLite.moe_topk, kHeads = kLite.num_attention_heads;

enum class Kind { linear, per_head, silu_mul, experts };

struct Op {
  const char* name;
  Kind kind;
  int64_t out_features, in_features;  // bytes of one matrix
};

const Op kOps[] = {
    {"q_a", Kind::linear, kLite.q_lora_rank, kLite.hidden_size},
    {"q_b", Kind::linear, kHeads * kLite.qk_head_dim(), kLite.q_lora_rank},
    {"kv_a", Kind::linear, kLite.latent_dim(), kLite.hidden_size},
    {"k_up", Kind::per_head, kHeads * kLite.kv_lora_rank, kLite.qk_nope_head_dim},
    {"v_up", Kind::per_head, kHeads * kLite.v_head_dim, kLite.kv_lora_rank},
    {"o", Kind::linear, kLite.hidden_size, kHeads * kLite.v_head_dim},
    {"gate_up_silu", Kind::silu_mul, kLite.ffn_hidden_size, kLite.hidden_size},
    {"down", Kind::linear, kLite.hidden_size, kLite.ffn_hidden_size},
    {"router", Kind::linear, kRouterOutputs, kLite.hidden_size},
    {"experts", Kind::experts, kLite.expert_ffn_hidden_size, kLite.hidden_size},
    {"lm_head", Kind::linear, kLite.vocab_size, kLite.hidden_size},
};

// Memory full of matrices of one shape, one after another. Their content is a few groups of 64 rows, packed once and
// repeated.
class Matrices {
 public:
  explicit Matrices(int64_t bytes) : memory_(static_cast<size_t>(bytes)) {}

  void fill(WeightFormat format, int64_t out_features, int64_t in_features) {
    weight_ = {.format = format, .out_features = out_features, .in_features = in_features};
    LC_CHECK(weight_.num_bytes() <= size(), "--memory holds no matrix of ", weight_.num_bytes(), " bytes");
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 0.02f);
    std::vector<float> rows(static_cast<size_t>(kRows * in_features));
    for (float& value : rows) value = normal(random);
    Weight some{.format = format, .out_features = kRows, .in_features = in_features};
    std::vector<uint8_t> packed(static_cast<size_t>(some.num_bytes()));
    const float* from = rows.data();
    if (is_packed(format)) {
      ThreadPool pool(available_threads());
      cpu::pack(pool, packed.data(), format, kRows, in_features,
                [&](int64_t row, float* values) { std::copy_n(from + row * in_features, in_features, values); });
    } else {
      for (size_t i = 0; i < rows.size(); ++i) {
        const bf16 value = to_bf16(rows[i]);
        std::memcpy(packed.data() + 2 * i, &value, 2);
      }
    }
    const int64_t step = some.num_bytes();
    for (int64_t at = 0; at < size(); at += step)
      std::memcpy(memory_.data() + at, packed.data(), static_cast<size_t>(std::min(step, size() - at)));
    next_ = 0;
  }

  Weight next() {
    if (next_ + weight_.num_bytes() > size()) next_ = 0;
    Weight weight = weight_;
    weight.data = memory_.data() + next_;
    next_ += weight.num_bytes();
    return weight;
  }

 private:
  static constexpr int64_t kRows = 64;
  int64_t size() const { return static_cast<int64_t>(memory_.size()); }

  std::vector<uint8_t> memory_;
  Weight weight_;
  int64_t next_ = 0;
};

class Bench {
 public:
  Bench(int threads, int64_t memory_bytes, int64_t rounds)
      : limits_(bench::limits_of_machine(threads)),
        ops_(make_cpu_ops(threads)),
        matrices_(memory_bytes),
        rounds_(rounds) {
    ops_->use_dtype(DType::bf16);
  }

  const bench::Limits& limits() const { return limits_; }

  void run(const Op& op, WeightFormat format, const std::vector<int64_t>& rows) {
    // The weights of a head are cut from kv_b_proj, which is never stored in an integer format.
    if (op.kind == Kind::per_head && cpu::want_quantized_inputs(format)) return;
    matrices_.fill(format, op.out_features, op.in_features);
    for (const int64_t n : rows) measure(op, format, n);
  }

 private:
  struct Work {
    double bytes = 0, multiply_adds = 0;
    std::function<void()> call;
  };

  Tensor floats(std::initializer_list<int64_t> shape) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    const Tensor tensor = buffers_.emplace_back(ops_->device(), count * 4).tensor(DType::f32, shape);
    std::mt19937 random(2);
    for (int64_t i = 0; i < count; ++i) tensor.data<float>()[i] = static_cast<float>(random()) * 0x1p-31f - 1;
    return tensor;
  }
  Tensor ints(std::initializer_list<int64_t> shape) {
    Tensor tensor = floats(shape);
    return Tensor(tensor.raw(), DType::i32, shape);
  }

  void measure(const Op& op, WeightFormat format, int64_t n) {
    buffers_.clear();
    const std::function<Work()> prepare = preparation(op, n);
    double best_seconds = 0, bytes = 0, operations = 0;
    for (int64_t round = 0; round < rounds_; ++round) {
      const Work work = prepare();
      const Clock::time_point begin = Clock::now();
      work.call();
      const double seconds = seconds_since(begin);
      if (round == 0 || seconds < best_seconds) best_seconds = seconds;
      bytes = work.bytes;
      operations = 2 * work.multiply_adds;
    }
    const double peak = is_int8_x8(format)   ? limits_.int8_op_per_s
                        : is_int4_x8(format) ? limits_.int4_op_per_s
                                             : limits_.bf16_flop_per_s;
    const double bound = std::max(bytes / limits_.read_bytes_per_s, operations / peak);
    std::printf("| %s | %s | %ld | %.1f | %.1f | %.1f | %.0f %% |\n", op.name, name_of(format), n, 1e6 * best_seconds,
                bytes / best_seconds / 1e9, operations / best_seconds / 1e9, 100 * bound / best_seconds);
    bench::warn_above_limit(op.name, bound / best_seconds);
    std::fflush(stdout);
  }

  // Makes one call, on the next copy of the weights.
  std::function<Work()> preparation(const Op& op, int64_t n) {
    const int64_t out = op.out_features, in = op.in_features;
    const auto linear_work = [n](const Weight& w, std::function<void()> call) {
      return Work{static_cast<double>(w.num_bytes()), static_cast<double>(n * w.out_features * w.in_features),
                  std::move(call)};
    };
    switch (op.kind) {
      case Kind::linear: {
        const Tensor x = floats({n, in}), y = floats({n, out});
        return [=, this] {
          const Weight w = matrices_.next();
          return linear_work(w, [=, this] { ops_->linear(y, x, w); });
        };
      }
      case Kind::per_head: {
        const Tensor x = floats({n, kHeads, in}), y = floats({n, kHeads, out / kHeads});
        return [=, this] {
          const Weight w = matrices_.next();
          return linear_work(w, [=, this] { ops_->linear_per_head(y, x, w); });
        };
      }
      case Kind::silu_mul: {
        const Tensor x = floats({n, in}), y = floats({n, out}), scratch = floats({n, out});
        return [=, this] {
          const Weight gate = matrices_.next(), up = matrices_.next();
          Work work = linear_work(gate, [=, this] { ops_->linear_silu_mul(y, scratch, x, gate, up); });
          work.bytes *= 2;
          work.multiply_adds *= 2;
          return work;
        };
      }
      case Kind::experts:
        return experts(out, in, n);
    }
    return {};
  }

  // Each token picks 12 of 384 experts at random, and 256 of the 384 are computed. All three matrices have one size
  // here: the down projection has the transposed shape.
  std::function<Work()> experts(int64_t ffn, int64_t hidden, int64_t n) {
    Routing routing{.expert_idx = ints({n, kTopK}),
                    .expert_weights = floats({n, kTopK}),
                    .identity_weight = floats({n}),
                    .expert_offsets = ints({kNumExperts + 1}),
                    .permuted_tokens = ints({n * kTopK}),
                    .permuted_rows = ints({n, kTopK})};
    std::mt19937 random(3);
    std::vector<std::vector<int32_t>> tokens(kNumExperts);
    for (int64_t t = 0; t < n; ++t) {
      std::set<int32_t> picks;
      while (std::ssize(picks) < kTopK) picks.insert(static_cast<int32_t>(random() % kRouterOutputs));
      std::copy(picks.begin(), picks.end(), routing.expert_idx.row<int32_t>(t));
      for (const int32_t pick : picks)
        if (pick < kNumExperts) tokens[static_cast<size_t>(pick)].push_back(static_cast<int32_t>(t));
    }
    int32_t row = 0;
    int64_t active = 0;
    std::fill_n(routing.permuted_rows.data<int32_t>(), n * kTopK, -1);
    for (size_t e = 0; e < tokens.size(); ++e) {
      routing.expert_offsets.data<int32_t>()[e] = row;
      active += !tokens[e].empty();
      for (const int32_t t : tokens[e]) {
        const int32_t* picks = routing.expert_idx.row<int32_t>(t);
        const int64_t j = std::find(picks, picks + kTopK, static_cast<int32_t>(e)) - picks;
        routing.permuted_rows.row<int32_t>(t)[j] = row;
        routing.permuted_tokens.data<int32_t>()[row++] = t;
      }
    }
    routing.expert_offsets.data<int32_t>()[kNumExperts] = row;

    const Tensor x = floats({n, hidden}), y = floats({n, hidden}), gate = floats({n * kTopK, ffn}),
                 up = floats({n * kTopK, ffn}), expert_out = floats({n * kTopK, hidden});
    return [=, this] {
      std::vector<Weight> weights[3];
      for (std::vector<Weight>& all : weights) {
        const Weight one = matrices_.next();
        all.assign(kNumExperts, one);
      }
      double bytes = 0;
      for (int64_t e = 0; e < kNumExperts; ++e)
        if (!tokens[static_cast<size_t>(e)].empty())
          for (std::vector<Weight>& all : weights)
            bytes += static_cast<double>((all[e] = matrices_.next()).num_bytes());
      for (Weight& w : weights[2]) std::swap(w.out_features, w.in_features);
      return Work{bytes, static_cast<double>(3 * row * ffn * hidden), [=, this] {
                    ops_->moe_experts(y, gate, up, expert_out, x, routing,
                                      {.gate_proj = weights[0], .up_proj = weights[1], .down_proj = weights[2]});
                  }};
    };
  }

  bench::Limits limits_;  // measured before ops_ starts threads
  std::unique_ptr<Ops> ops_;
  Matrices matrices_;
  int64_t rounds_;
  std::vector<Buffer> buffers_;
};

WeightFormat to_format(const std::string& name) {
  for (const WeightFormat format : kAllWeightFormats)
    if ((format == WeightFormat::bf16 || is_x8(format)) && name == name_of(format)) return format;
  throw std::invalid_argument(str_cat("--formats ", name, ": expected bf16 or a format of matrices (ops/packed.h)"));
}

}  // namespace

int main(int argc, char** argv) try {
  bench::CommandLine line(argc, argv);
  const std::vector<int64_t> rows = line.numbers("--rows", {1, 2, 4, 8, 16, 64, 512});
  const std::vector<std::string> formats = line.words("--formats", {"bf16", "bf16_x8", "int8_x8", "int4_x8"});
  const std::vector<std::string> wanted = line.words("--ops", {});
  const int threads = static_cast<int>(line.number("--threads", available_threads()));
  const int64_t rounds = line.number("--rounds", 15), memory = line.number("--memory", 1024);
  line.finish();
  for (const std::string& name : wanted)
    if (std::none_of(std::begin(kOps), std::end(kOps), [&](const Op& op) { return name == op.name; }))
      throw std::invalid_argument(str_cat("--ops ", name, ": no such operation"));

  Bench bench(threads, memory << 20, rounds);
  std::printf("%s, %d threads: %s\n\n", name_of(cpu_isa()), threads, bench::text(bench.limits()).c_str());
  std::printf("| op | format | rows | time [us] | GB/s | GOP/s | share of bound |\n");
  std::printf("| --- | --- | --- | --- | --- | --- | --- |\n");
  for (const std::string& format : formats)
    for (const Op& op : kOps)
      if (wanted.empty() || std::find(wanted.begin(), wanted.end(), op.name) != wanted.end())
        bench.run(op, to_format(format), rows);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "ops_bench: %s\n", error.what());
  return 1;
}
