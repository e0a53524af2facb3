// Measures the whole model with random weights: its memory, and the time of its steps.
#include "model/model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "bench/native/timing.h"
#include "cuda/device/arena.h"
#include "model/kv_cache.h"
#include "random_weights.h"
#include "suites.h"

namespace longcat {

namespace {

struct DecodeCase {
  int64_t sequences, context;
  std::string name() const { return str_cat("decode ", sequences, " x ", context / 1024, "k"); }
};
// The budget may end the suite, so the most important measurements come first.
constexpr DecodeCase kDecodes[] = {{1, 1024}, {64, 1024}, {8, 1024}, {256, 1024}, {1, 32768}, {8, 32768}};
constexpr int64_t kPrompts[] = {512, 2048, 8192};
constexpr double kDecodeSeconds = 2, kFirstPromptSeconds = 3;  // [s] estimated time of each case
constexpr int64_t kMaxSequences = 256;
constexpr double kOtherPlacementSeconds = 25;  // [s] to make the tables again and to compare the logits

double gib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

// Bytes of weights that a step of `tokens` decoding tokens reads: all but the embedding and the experts that no token
// picked.
double weight_bytes(const ModelConfig& c, double device_bytes, int64_t tokens) {
  const double experts = 6.0 * static_cast<double>(c.num_layers * c.n_routed_experts) *
                         static_cast<double>(c.hidden_size * c.expert_ffn_hidden_size);
  const double picked = static_cast<double>(c.moe_topk) / static_cast<double>(c.num_router_outputs());
  const double hit = 1 - std::pow(1 - picked, static_cast<double>(tokens));
  return device_bytes - 2.0 * static_cast<double>(c.vocab_size * c.hidden_size) - experts * (1 - hit);
}

// FLOP of a prompt that begins at position 0; a multiply-add counts as 2.
double prefill_flops(const ModelConfig& c, int64_t tokens) {
  const auto product = [](int64_t a, int64_t b) { return static_cast<double>(a) * static_cast<double>(b); };
  const int64_t heads = c.num_attention_heads, hidden = c.hidden_size;
  const double attention = product(hidden, c.q_lora_rank + c.latent_dim() + heads * c.v_head_dim) +
                           product(c.q_lora_rank, heads * c.qk_head_dim()) +
                           product(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim));
  const double picks = product(c.moe_topk, c.n_routed_experts) / static_cast<double>(c.num_router_outputs());
  const double layer = 2 * attention + 6 * product(hidden, c.ffn_hidden_size) +
                       3 * picks * product(hidden, c.expert_ffn_hidden_size) + product(hidden, c.num_router_outputs());
  const double pairs = product(tokens, tokens + 1) / 2;
  const double token = static_cast<double>(c.num_layers) * layer + product(hidden, hidden);
  return 2 * (token * static_cast<double>(tokens) +
              2 * pairs * product(c.num_layers * heads, c.qk_head_dim() + c.v_head_dim));
}

class ModelBench {
 public:
  // note: printed with every row.
  ModelBench(Bench& bench, Report& report, ModelWeights weights, double device_weight_bytes, int64_t max_tokens,
             int64_t num_blocks, std::string note)
      : b_(bench),
        report_(report),
        c_(bench.config()),
        max_tokens_(max_tokens),
        device_weight_bytes_(device_weight_bytes),
        note_(std::move(note)),
        model_(bench.ops(), c_, single_rank(c_), std::move(weights), max_tokens, max_tokens),
        cache_(bench.device(), c_, num_blocks, DType::bf16),
        logits_(bench.device(), kMaxSequences * c_.vocab_size * 4),
        rows_(bench.device(), kMaxSequences * 4),
        sampled_(bench.device(), kMaxSequences * 4) {
    std::vector<int32_t> rows(static_cast<size_t>(kMaxSequences));
    std::iota(rows.begin(), rows.end(), 0);
    b_.device().copy_from_host(rows_.data(), rows.data(), rows_.bytes());
    // Makes a history: random latents, and ids whose N-gram rows lie all over the tables.
    const Tensor latents = cache_.latents(0), lane = cache_.token_lane();
    b_.randomise(latents.raw(), num_blocks * latents.stride(0) * 2);
    std::mt19937 random(5);
    std::vector<int32_t> ids(static_cast<size_t>(lane.numel()));
    for (int32_t& id : ids) id = 3 + static_cast<int32_t>(random() % static_cast<uint32_t>(c_.vocab_size - 3));
    b_.device().copy_from_host(lane.raw(), ids.data(), lane.num_bytes());
  }

  // compare_only: measures only the graphs of decode steps and the shortest prompt. reserve: time to leave for later
  // work [s].
  void run(bool compare_only, double reserve) {
    report_.header(compare_only ? "the same" : "step");
    for (const DecodeCase& c : kDecodes) decode(c, compare_only);
    double seconds = 0;  // the time of the prompt before, which had `before` tokens
    int64_t before = 0;
    for (const int64_t tokens : kPrompts) {
      // The time of attention grows with the square of the prompt, all other time less.
      const double ratio = before > 0 ? static_cast<double>(tokens) / static_cast<double>(before) : 0;
      const double found = prefill(tokens, before > 0 ? seconds * ratio * ratio + reserve : kFirstPromptSeconds);
      if (found > 0) seconds = found, before = tokens;
      if (compare_only) return;
    }
  }

 private:
  Tensor logits(int64_t tokens) const { return logits_.tensor(DType::f32, {tokens, c_.vocab_size}); }

  void compute(const ForwardBatch& batch) {
    model_.logits(logits(batch.num_tokens()), model_.forward(batch, cache_),
                  rows_.tensor(DType::i32, {batch.num_tokens()}));
  }

  std::vector<float> host_logits(int64_t tokens) {
    std::vector<float> out(static_cast<size_t>(tokens * c_.vocab_size));
    b_.device().copy_to_host(out.data(), logits_.data(), static_cast<int64_t>(out.size()) * 4);
    return out;
  }

  std::unique_ptr<Recording> record(const ForwardBatch& batch) {
    std::unique_ptr<Recording> recording;
    b_.run([&] { recording = b_.device().record([&] { compute(batch); }); });
    return recording;
  }

  // Whether there is time and memory for a case.
  bool is_possible(const DecodeCase& c) {
    const int64_t blocks = BatchMaker::num_blocks(c.sequences, c.context);
    if (blocks <= cache_.num_blocks()) return report_.has_time(c.name(), kDecodeSeconds, note_);
    const int64_t bytes = KvCache::block_bytes(c_, DType::bf16);
    report_.leave_out(
        c.name(),
        str_cat("its latents need ", gib(blocks * bytes), " GiB, there are ", gib(cache_.num_blocks() * bytes)), note_);
    return false;
  }

  void decode(const DecodeCase& c, bool compare_only) {
    if (!is_possible(c)) return;
    const std::string name = c.name();
    BatchMaker batches(b_, c.sequences, c.sequences, c.context);
    const ForwardBatch batch = batches.decodes(c.sequences, c.context);
    const double latents = static_cast<double>(c.sequences * c.context * c_.latent_dim() * 2 * c_.num_sub_layers());
    const double bound = (weight_bytes(c_, device_weight_bytes_, c.sequences) + latents) / b_.peak_bytes();
    const auto time_row = [&](const char* how, double us) { report_.row(name + how, us, "us", bound / us, note_); };

    b_.run([&] { compute(batch); });
    const std::vector<float> eager = host_logits(c.sequences);
    const std::unique_ptr<Recording> recording = record(batch);
    b_.run([&] { recording->launch(); });
    const std::vector<float> replayed = host_logits(c.sequences);
    report_.fact(name + ", replay = eager", std::memcmp(eager.data(), replayed.data(), eager.size() * 4) == 0);
    time_row(", graph", b_.time([&] { recording->launch(); }, false));
    if (compare_only) return;

    report_.row(name + ", nodes", static_cast<double>(recording->num_nodes()), "nodes");
    time_row(", step", step_time(batch));
    if (c.context > 1024) return;
    time_row(", eager", b_.time([&] { compute(batch); }, false, 0.2));
    b_.set_parallel(false);
    const std::unique_ptr<Recording> in_place = record(batch);
    time_row(", graph, one stream", b_.time([&] { in_place->launch(); }, false, 0.2));
    report_.fact(name + ", one stream = two",
                 std::memcmp(eager.data(), host_logits(c.sequences).data(), eager.size() * 4) == 0);
    time_row(", eager, one stream", b_.time([&] { compute(batch); }, false, 0.2));
    b_.set_parallel(true);
  }

  // Runs steps as the engine does: their graph samples too, and the host waits for the ids. Wall time [us].
  double step_time(const ForwardBatch& batch) {
    const int64_t tokens = batch.num_tokens();
    std::vector<SamplingRow> rows;
    for (int32_t i = 0; i < tokens; ++i)
      rows.push_back({.temperature = 0.7, .top_p = 0.95, .logits_row = i, .sequence = i});
    const Tensor ids = sampled_.tensor(DType::i32, {tokens});
    std::vector<int32_t> host_ids(static_cast<size_t>(tokens));
    std::vector<double> steps;
    std::unique_ptr<Recording> recording;
    b_.run([&] {
      b_.ops().set_sampling_rows(rows);
      recording = b_.device().record([&] {
        compute(batch);
        b_.ops().sample(ids, logits(tokens), cache_.token_lane(), batch.block_tables);
      });
    });
    const auto begin = bench::Clock::now();
    while (steps.empty() || (!b_.check() && steps.size() < 15 && bench::seconds_since(begin) < 0.5))
      steps.push_back(b_.run([&] {
        b_.ops().set_sampling_rows(rows);
        recording->launch();
        b_.device().download(host_ids.data(), ids.raw(), ids.num_bytes());
      }));
    return bench::median(steps);
  }

  // Times one run, after a prompt of one tile that loads the kernels, if the budget allows it [s]; 0: it was left out.
  double prefill(int64_t tokens, double seconds) {
    const std::string name = str_cat("prefill ", tokens);
    if (tokens > max_tokens_) {
      report_.leave_out(name, str_cat("there is room for the activations of ", max_tokens_, " tokens"), note_);
      return 0;
    }
    if (!report_.has_time(name, seconds, note_)) return 0;
    BatchMaker batches(b_, tokens, 1, tokens);
    const ForwardBatch tile = batches.prompt(kPrefillTile);
    b_.run([&] { model_.forward(tile, cache_); });
    const ForwardBatch batch = batches.prompt(tokens);
    const double us = b_.time_once([&] { model_.forward(batch, cache_); });
    report_.row(name, us / 1e3, "ms", prefill_flops(c_, tokens) / b_.peak_flops() / us, note_);
    report_.row(name + ", tokens/s", 1e6 * static_cast<double>(tokens) / us, "tokens/s", Report::kNoShare, note_);
    return us / 1e6;
  }

  Bench& b_;
  Report& report_;
  ModelConfig c_;
  int64_t max_tokens_;
  double device_weight_bytes_;
  std::string note_;
  Model model_;
  KvCache cache_;
  Buffer logits_, rows_, sampled_;
};

// Bytes of the activations of one token, as the arena counts them.
double activation_bytes(Bench& b) {
  constexpr int64_t kTokens = 64;
  const int64_t before = b.arena().used_bytes();
  const ActivationBuffers buffers(b.device(), b.config(), make_shard(b.config(), 1, 1, 0), kTokens, DType::bf16);
  return static_cast<double>(b.arena().used_bytes() - before) / kTokens;
}

struct Room {
  int64_t max_tokens, num_blocks;
};

// The largest step, and as many latent blocks as the cases need, or as the memory holds.
Room room(Bench& b) {
  constexpr int64_t kReserve = int64_t{512} << 20;  // for logits, sampling and batches
  const double per_token = activation_bytes(b);
  const int64_t block_bytes = KvCache::block_bytes(b.config(), DType::bf16);
  int64_t wanted = 0;
  for (const DecodeCase& c : kDecodes) wanted = std::max(wanted, BatchMaker::num_blocks(c.sequences, c.context));
  Room best{};
  for (const int64_t tokens : kPrompts) {
    const int64_t left =
        b.arena().largest_free() - kReserve - static_cast<int64_t>(per_token * static_cast<double>(tokens));
    const int64_t blocks = std::min(left / block_bytes, wanted);
    if (best.max_tokens > 0 && blocks < wanted) break;  // where memory is short, latents matter more than long prompts
    best = {tokens, blocks};
  }
  if (best.num_blocks < BatchMaker::num_blocks(1, 1024))
    throw OutOfMemory(
        str_cat("[cuda] ", gib(b.arena().largest_free()),
                " GiB beside the weights are too little for a step: give --tables host, or --table-rows"));
  return best;
}

}  // namespace

void bench_model(Bench& bench, Report& report, const std::vector<Placement>& placements) {
  const Arena& arena = bench.arena();
  const int64_t before = arena.used_bytes();
  auto begin = bench::Clock::now();
  const ModelWeights weights = random_weights(bench);
  const int64_t weight_bytes = arena.used_bytes() - before;
  std::printf("weights: %.1f GiB on the device, made in %.1f s\n", gib(weight_bytes), bench::seconds_since(begin));
  bool measured = false;
  for (const Placement placement : placements) {
    const double reserve = placement == placements.back() || bench.check() ? 0 : kOtherPlacementSeconds;
    begin = bench::Clock::now();
    ModelWeights views = views_of(weights);
    try {
      make_tables(bench, views, placement);
      const Room found = room(bench);
      std::printf(
          "\ntables: %.1f GiB in %s memory, made in %.1f s; beside them %.1f GiB of latents, steps of %ld tokens\n",
          gib(table_bytes(bench.config())), name_of(placement), bench::seconds_since(begin),
          gib(found.num_blocks * KvCache::block_bytes(bench.config(), DType::bf16)), found.max_tokens);
      std::fflush(stdout);
      ModelBench(bench, report, std::move(views), static_cast<double>(weight_bytes), found.max_tokens, found.num_blocks,
                 placement == Placement::host ? "" : "tables on the device")
          .run(measured, reserve);
      measured = true;
    } catch (const OutOfMemory& error) {  // the other place of the tables may have room
      if (placement == placements.back() && !measured) throw;
      report.leave_out(str_cat("tables in ", name_of(placement), " memory"), error.what());
    }
  }
  std::printf("\npeak memory %.2f GiB of an arena of %.2f GiB\n", gib(arena.peak_bytes()), gib(arena.bytes()));
}

}  // namespace longcat
