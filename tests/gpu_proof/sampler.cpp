// The proof of cuda/kernels/sampler.h: ids exactly, against a sampler in float64 that sorts.
#include "cuda/kernels/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <set>

#include "cuda/emulation/proof.h"
#include "tests/gpu_proof/written.h"

// Compiled apart, since mutations change them.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::SamplerScores&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::SamplerBins&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::SamplerDraws&, bool);

namespace longcat::emulation {

namespace {

using gpu::Sampler;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kUnwritten = 77'777'777;

// A row, and what its spans name.
struct Row {
  SamplingRow options;
  std::vector<LogitBias> bias = {};
  std::vector<std::vector<int32_t>> bad_words = {};
  std::vector<int32_t> banned = {}, allowed = {};
  std::vector<uint32_t> mask = {};
  SamplingRow packed() const {
    SamplingRow row = options;
    row.logit_bias = bias;
    row.bad_words = bad_words;
    row.banned_ids = banned;
    row.allowed_ids = allowed;
    row.mask = mask;
    return row;
  }
};

// Logits [.., vocab] with the rows that read them, and the ids of their sequences.
struct Call {
  int32_t vocab;
  std::vector<float> logits;
  std::vector<std::vector<int32_t>> histories;
  std::vector<Row> rows;
  std::vector<int32_t> ids;  // expected

  void add_logits(const std::vector<float>& row) { logits.insert(logits.end(), row.begin(), row.end()); }
  int32_t num_logits() const { return static_cast<int32_t>(logits.size()) / vocab; }
  void finish();
};

int32_t expected_id(const Call& call, const Row& r) {
  const SamplingRow& row = r.options;
  const auto vocab = static_cast<size_t>(call.vocab);
  const auto from = call.logits.begin() + int64_t{row.logits_row} * call.vocab;
  std::vector<float> x(from, from + call.vocab);
  for (const LogitBias& bias : r.bias) x[static_cast<size_t>(bias.token_id)] += bias.bias;
  const std::vector<int32_t>& history = call.histories[static_cast<size_t>(row.sequence)];
  const float repetition = static_cast<float>(row.repetition_penalty);
  const std::vector<int32_t> ids(history.begin(), history.begin() + row.position + 1);
  for (const int32_t id : std::set<int32_t>(ids.begin(), ids.end())) {
    float& l = x[static_cast<size_t>(id)];
    l = l < 0 ? l * repetition : l / repetition;
    const auto count =
        std::count(ids.begin() + std::min<int64_t>(row.num_prompt_tokens, row.position + 1), ids.end(), id);
    if (count > 0) l -= static_cast<float>(row.presence_penalty + row.frequency_penalty * static_cast<double>(count));
  }
  for (const std::vector<int32_t>& word : r.bad_words)
    if (!word.empty() && word.size() <= ids.size() + 1 &&
        std::equal(word.begin(), word.end() - 1, ids.end() - static_cast<int64_t>(word.size() - 1)))
      x[static_cast<size_t>(word.back())] = -kInfinity;
  for (const int32_t id : r.banned) x[static_cast<size_t>(id)] = -kInfinity;
  for (size_t id = 0; id < vocab; ++id)
    if ((!r.allowed.empty() && std::count(r.allowed.begin(), r.allowed.end(), static_cast<int32_t>(id)) == 0) ||
        (!r.mask.empty() && !(r.mask[id / 32] >> (id % 32) & 1)))
      x[id] = -kInfinity;

  std::vector<int32_t> kept;  // by likelihood; ties: the lowest id first
  bool is_greedy = row.temperature == 0;
  for (size_t id = 0; id < vocab; ++id) {
    if (std::isnan(x[id]) || x[id] == kInfinity) return -1;
    if (x[id] == -kInfinity) continue;
    is_greedy |= !std::isfinite(x[id] / static_cast<float>(row.temperature));
    kept.push_back(static_cast<int32_t>(id));
  }
  if (kept.empty()) return -1;
  std::stable_sort(kept.begin(), kept.end(),
                   [&](int32_t a, int32_t b) { return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)]; });
  if (is_greedy) return kept[0];
  const auto score = [&](int32_t id) { return x[static_cast<size_t>(id)] / static_cast<float>(row.temperature); };
  const auto mass = [&](int32_t id) { return std::exp(double{score(id)} - double{score(kept[0])}); };
  if (row.top_k > 0 && row.top_k < call.vocab)
    while (static_cast<int32_t>(kept.size()) > row.top_k &&
           score(kept.back()) < score(kept[static_cast<size_t>(row.top_k) - 1]))
      kept.pop_back();
  if (row.top_p < 1) {
    double total = 0, sum = 0;
    for (auto id = kept.rbegin(); id != kept.rend(); ++id) total += mass(*id);
    while (kept.size() > 1 &&
           static_cast<float>((sum += mass(kept.back())) / total) <= static_cast<float>(1 - row.top_p))
      kept.pop_back();
  }
  while (mass(kept.back()) < row.min_p && score(kept.back()) != score(kept[0])) kept.pop_back();
  int32_t best = -1;
  double best_score = 0;
  for (const int32_t id : kept) {
    const double uniform = sampling_uniform(row.seed, static_cast<uint32_t>(id), static_cast<uint32_t>(row.position),
                                            static_cast<uint32_t>(row.sample_idx));
    const double own = score(id) - std::log(-std::log(uniform));
    if (best < 0 || own > best_score || (own == best_score && id < best)) {
      best = id;
      best_score = own;
    }
  }
  return best;
}

void Call::finish() {
  for (const Row& row : rows) ids.push_back(expected_id(*this, row));
}

// num_rows: only the first; of them, up to 10 ids are `bits`. rows_at_once: the next ones find what these have left.
// choice: with it, all rows are choices, which lie behind those rows, and row i is drawn as choice[i].
Outcome run(SimtEmulator& gpu, const Call& call, int32_t num_rows, int32_t slice, int32_t rows_at_once,
            const std::vector<int32_t>& choice = {}) {
  std::vector<SamplingRow> rows, choices;
  for (int32_t i = 0; i < num_rows; ++i) rows.push_back(call.rows[static_cast<size_t>(i)].packed());
  if (!choice.empty())
    for (const Row& row : call.rows) choices.push_back(row.packed());
  std::vector<std::byte> packed;
  pack_sampling_rows(packed, rows, choices);
  const auto* const packed_rows = reinterpret_cast<const unsigned char*>(gpu.input(packed));

  // The blocks of the sequences take turns in memory. Between them lie ids that no history has.
  size_t longest = 1;
  for (const auto& history : call.histories) longest = std::max(longest, history.size());
  const size_t sequences = call.histories.size(), width = (longest + kBlockSize - 1) / kBlockSize;
  std::vector<int32_t> lane((sequences * width + 1) * kBlockSize, 3), tables(sequences * width);
  for (size_t s = 0; s < sequences; ++s)
    for (size_t b = 0; b < width; ++b) {
      const size_t block = b * sequences + s + 1;
      tables[s * width + b] = static_cast<int32_t>(block);
      for (size_t i = 0; i < kBlockSize && b * kBlockSize + i < call.histories[s].size(); ++i)
        lane[block * kBlockSize + i] = call.histories[s][b * kBlockSize + i];
    }

  std::vector<int32_t> expected(call.ids.begin(), call.ids.begin() + num_rows);
  expected.push_back(kUnwritten);  // one row is not real
  if (!choice.empty()) {
    expected.clear();
    for (const int32_t one : choice) expected.push_back(one < 0 ? kUnwritten : call.ids[static_cast<size_t>(one)]);
  }
  const int32_t blocks = (call.vocab + slice - 1) / slice, padded = static_cast<int32_t>(expected.size());
  const auto at_once = static_cast<size_t>(rows_at_once);
  Sampler sampler{.token_ids = gpu.buffer(std::vector<int32_t>(static_cast<size_t>(padded), kUnwritten)),
                  .logits = written(gpu, call.logits),
                  .logits_stride = call.vocab,
                  .packed = gpu.input(std::vector<const unsigned char*>{packed_rows}),
                  .choice = choice.empty() ? nullptr : gpu.input(choice),
                  .lane = gpu.input(lane),
                  .block_tables = gpu.input(tables),
                  .block_table_stride = static_cast<int64_t>(width),
                  .states = gpu.buffer(std::vector<gpu::SamplerState>(at_once)),
                  .bins = gpu.buffer(std::vector<unsigned long long>(at_once * Sampler::kBins)),
                  .scores = gpu.output<float>(int64_t{rows_at_once} * call.vocab),
                  .candidates = gpu.output<int32_t>(int64_t{rows_at_once} * call.vocab),
                  .bests = gpu.output<gpu::ScoredId>(int64_t{rows_at_once} * blocks),
                  .vocab = call.vocab,
                  .slice = slice,
                  .blocks_per_row = blocks,
                  .first_row = 0};
  for (; sampler.first_row < padded; sampler.first_row += rows_at_once) {
    const int64_t grid = int64_t{std::min(rows_at_once, padded - sampler.first_row)} * blocks;
    gpu.launch(grid, gpu::SamplerScores{sampler}, true);
    gpu.launch(grid, gpu::SamplerBins{sampler}, true);
    gpu.launch(grid, gpu::SamplerDraws{sampler}, true);
  }
  const std::vector<int32_t> found = gpu.read(sampler.token_ids, padded);
  const bool same = found == expected;
  if (!same && std::getenv("LONGCAT_SHOW_IDS"))
    for (size_t i = 0; i < expected.size(); ++i)
      if (found[i] != expected[i]) std::printf("row %zu: id %d, expected %d\n", i, found[i], expected[i]);
  return {same ? 0 : kInfinity, 0, hash_of_bytes(found.data(), int64_t{std::min(padded - 1, 10)} * 4)};
}

std::vector<float> rounded(std::vector<float> values, float by) {
  for (float& value : values) value = std::round(value / by) * by;
  return values;
}

// One id.
Call one_id() {
  Call call{.vocab = 1, .logits = {-2.5f, kInfinity}, .histories = {{0}}, .rows = {}, .ids = {}};
  for (int32_t i = 0; i < 6; ++i)
    call.rows.push_back({{.temperature = i == 0 ? 0.0 : 0.7,
                          .top_k = i == 1,
                          .top_p = i == 2   ? 0.5
                                   : i == 3 ? 0.0
                                            : 1.0,
                          .min_p = i == 4 ? 1.0 : 0.0,
                          .logits_row = i == 5}});
  call.finish();
  return call;
}

// Every option alone and some together, over logits of every kind.
Call options() {
  constexpr int32_t kVocab = 200;
  const auto count = static_cast<size_t>(kVocab);
  Call call{.vocab = kVocab, .logits = {}, .histories = {{5}}, .rows = {}, .ids = {}};
  enum { normal, ties, equal, nan, infinity, none, half, extreme, negative, close, ten, deep };
  call.add_logits(random_f32(kVocab, 1, 2));
  call.add_logits(rounded(random_f32(kVocab, 2, 2), 0.5f));
  call.add_logits(std::vector<float>(count, 0.5f));
  for (const float value : {std::nanf(""), kInfinity}) {
    std::vector<float> row = random_f32(kVocab, 3);
    row[150] = value;
    call.add_logits(row);
  }
  call.add_logits(std::vector<float>(count, -kInfinity));
  std::vector<float> row = random_f32(kVocab, 4, 3);
  for (size_t id = 0; id < count; id += 2) row[id] = -kInfinity;
  call.add_logits(row);
  row = random_f32(kVocab, 5);
  row[3] = -3e38f, row[70] = 3e38f, row[130] = 3e38f;
  call.add_logits(row);
  row = random_f32(kVocab, 6);
  for (size_t id = 0; id < count; ++id) row[id] = id % 8 == 0 ? -0.0f : id % 8 == 1 ? 0.0f : -std::fabs(row[id]);
  call.add_logits(row);
  for (size_t id = 0; id < count; ++id) row[id] = 1 + static_cast<float>(id * 37 % count) * 0x1p-23f;
  call.add_logits(row);
  for (size_t id = 0; id < count; ++id) row[id] = id % 20 == 9 ? 0.25f : -kInfinity;
  call.add_logits(row);
  row = random_f32(kVocab, 7);
  row[3] = -3e38f;
  call.add_logits(row);

  const auto add = [&](int32_t logits_row, SamplingRow like) {
    like.logits_row = logits_row;
    like.seed = call.rows.size() * 0x100000001u;
    like.sample_idx = static_cast<int32_t>(call.rows.size() % 3);
    like.num_prompt_tokens = 1;
    call.rows.push_back({like});
  };
  add(normal, {.temperature = 0});
  add(ties, {.temperature = 0});
  add(negative, {.temperature = 0});
  add(half, {.temperature = 0});
  for (int i = 0; i < 2; ++i)
    for (const int32_t kind : {normal, ties, equal}) {
      add(kind, {.temperature = 1.5});
      add(kind, {.temperature = 3, .top_k = 5});
      add(kind, {.temperature = 0.9, .top_p = 0.7});
      add(kind, {.temperature = 2, .top_k = 20, .top_p = 0.6, .min_p = 0.2});
    }
  for (const int32_t kind : {nan, infinity, none})
    for (const double temperature : {0.0, 1.0}) add(kind, {.temperature = temperature, .top_p = 0.9});
  for (const int32_t kind : {half, extreme, negative}) {
    add(kind, {.temperature = 1, .top_k = 150});  // half: more than there are
    add(kind, {.temperature = 2, .top_p = 0.999999});
    add(kind, {.temperature = 1, .top_k = 200, .min_p = 0.3});
  }
  add(ties, {.temperature = 1, .top_k = 1});
  add(ties, {.temperature = 1, .top_p = 0});
  add(ties, {.temperature = 1, .top_p = 1e-9});
  add(ties, {.temperature = 1, .min_p = 1});
  add(normal, {.temperature = 1, .top_k = 199});
  add(normal, {.temperature = 0.01, .top_k = 30});  // the 30th is beyond the last bin
  add(normal, {.temperature = 0.05, .top_p = 0.2});
  add(normal, {.temperature = 1e-30, .top_p = 0.5});
  add(extreme, {.temperature = 0.5});
  add(extreme, {.temperature = 1e-40});
  add(half, {.temperature = 2, .top_k = 150, .top_p = 0.5});
  for (int i = 0; i < 4; ++i) {
    add(ten, {.temperature = 1, .top_p = 0.3});  // 7 of 10 is 1 - 0.3 in f32, and more in f64
    add(ten, {.temperature = 1, .top_p = 0.5});
    add(close, {.temperature = 1, .top_k = 20});
    add(deep, {.temperature = 0.5});
    for (int more = 0; more < 2; ++more) add(close, {.temperature = 1, .top_k = 2});
    add(normal, {.temperature = 1.5, .min_p = 0.4});
  }
  call.finish();
  return call;
}

// Bias, penalties by the history, and removals.
Call edits() {
  constexpr int32_t kVocab = 150;
  Call call{.vocab = kVocab, .logits = {}, .histories = {}, .rows = {}, .ids = {}};
  call.add_logits(random_f32(kVocab, 7));
  call.add_logits(random_f32(kVocab, 8, 0.2f));
  std::vector<float> broken = random_f32(kVocab, 9);
  broken[9] = std::nanf("");
  call.add_logits(broken);
  std::mt19937_64 random(3);
  for (const int32_t tokens : {1, 70, 300}) {
    std::vector<int32_t>& history = call.histories.emplace_back();
    for (int32_t i = 0; i < tokens; ++i) history.push_back(static_cast<int32_t>(random() % 30 * 5));
  }
  const auto id = [&] { return static_cast<int32_t>(random() % kVocab); };
  for (int32_t i = 0; i < 30; ++i) {
    const int32_t sequence = i % 3;
    const std::vector<int32_t>& history = call.histories[static_cast<size_t>(sequence)];
    const auto tokens = static_cast<int32_t>(history.size());
    Row row{{.temperature = i % 4 == 0 ? 0.0 : 0.8,
             .top_k = i % 5 == 1 ? 10 : 0,
             .top_p = i % 5 == 2 ? 0.9 : 1.0,
             .repetition_penalty = i % 2 ? 1.3 : 1.0,
             .presence_penalty = i % 3 == 1 ? 0.6 : 0.0,
             .frequency_penalty = i % 4 == 2 ? -0.3 : 0.1,
             .seed = static_cast<uint64_t>(i),
             .logits_row = i % 2,
             .sequence = sequence,
             .position = i < 20 ? tokens - 1 : tokens / 2,
             .num_prompt_tokens = i % 7 == 0 ? tokens : tokens / 3}};
    if (i % 3 != 0) row.bias = {{id() / 2, 4.0f}, {kVocab / 2 + id() / 2, -2.0f}};
    if (i % 4 != 1) row.banned = {id(), id(), id()};
    if (i % 5 == 3)
      for (int32_t a = 0; a < 40; ++a) row.allowed.push_back(id());
    if (i % 6 == 4)
      for (int32_t word = 0; word < (kVocab + 31) / 32; ++word) row.mask.push_back(static_cast<uint32_t>(random()));
    call.rows.push_back(row);
  }
  // The most likely id is the last of a word.
  const auto likeliest =
      static_cast<int32_t>(std::max_element(call.logits.begin(), call.logits.begin() + kVocab) - call.logits.begin());
  for (int32_t i = 0; i < 6; ++i) {
    const int32_t sequence = i < 2 ? 0 : 1;
    const std::vector<int32_t>& history = call.histories[static_cast<size_t>(sequence)];
    Row row{{.temperature = 0, .sequence = sequence, .position = static_cast<int32_t>(history.size()) - 1}};
    const std::vector<int32_t> end(history.end() - std::min<int64_t>(i, 3) * (i >= 2), history.end());
    row.bad_words = {{}, {id() / 2}, end, {}};  // the likeliest is in the upper half
    row.bad_words[2].push_back(likeliest);
    if (i == 1) row.bad_words[2] = {3, history[0], likeliest};  // longer than the history; 3 lies before it in memory
    if (i == 4) row.bad_words[2][0] = row.bad_words[2][0] + 1;  // not how it ends
    if (i == 5) row.bad_words.push_back({history.back(), likeliest});
    call.rows.push_back(row);
  }
  // Each edit alone takes the likeliest id, which is the newest of its history. In the prompt only repetition does.
  std::vector<float> negative = random_f32(kVocab, 10);
  for (float& logit : negative) logit = -std::fabs(logit);
  call.add_logits(negative);
  const auto nearest_0 = static_cast<int32_t>(std::max_element(negative.begin(), negative.end()) - negative.begin());
  call.histories.push_back({1, likeliest});
  call.histories.push_back({1, nearest_0});
  const SamplingRow greedy{.temperature = 0, .sequence = 3, .position = 1};
  for (int32_t i = 0; i < 10; ++i) {
    Row row{greedy};
    if (i == 0) row.bias = {{likeliest, -50.0f}};
    if (i == 1) row.mask.assign((kVocab + 31) / 32, ~0u);
    if (i == 1) row.mask[static_cast<size_t>(likeliest / 32)] &= ~(1u << likeliest % 32);
    if (i == 2 || i == 7) row.options.presence_penalty = 50;
    if (i == 3) row.options.frequency_penalty = 50;
    if (i == 4 || i == 8 || i == 9) row.options.repetition_penalty = 50;
    if (i == 5) row.banned = {likeliest};
    if (i == 6) row.allowed = {likeliest / 2, likeliest / 3};
    if (i == 7 || i == 8) row.options.num_prompt_tokens = 2;
    if (i == 9) row.options.logits_row = 3, row.options.sequence = 4;
    call.rows.push_back(row);
  }
  // What is removed may be broken.
  call.rows.push_back({.options = {.temperature = 1, .logits_row = 2}, .banned = {9}});
  call.rows.push_back({.options = {.temperature = 1, .logits_row = 2}, .banned = {8}});
  // Nothing is left.
  call.rows.push_back({.options = {.temperature = 1}, .banned = {7}, .allowed = {7}});
  call.finish();
  return call;
}

// More candidates than shared memory holds: all ids in one bin, or behind the last.
Call many_candidates() {
  constexpr int32_t kVocab = 5000;
  Call call{.vocab = kVocab, .logits = {}, .histories = {{5}}, .rows = {}, .ids = {}};
  call.add_logits(random_f32(kVocab, 11, 0.001f));
  call.add_logits(std::vector<float>(static_cast<size_t>(kVocab), 0.5f));
  call.rows.push_back({{.temperature = 0, .logits_row = 1}});
  for (int32_t i = 0; i < 4; ++i)
    call.rows.push_back({{.temperature = 0.9,
                          .top_k = i % 2 ? 2400 : 0,
                          .top_p = i > 0 ? 0.4 : 0.02,
                          .seed = static_cast<uint64_t>(i)}});
  call.finish();
  return call;
}

// As the model has it: 131,072 ids.
Call whole_vocabulary() {
  constexpr int32_t kVocab = 131072;
  Call call{
      .vocab = kVocab, .logits = random_f32(kVocab, 12, 2.5f), .histories = {{5, 6, 7, 5}}, .rows = {}, .ids = {}};
  for (const SamplingRow& like :
       {SamplingRow{.temperature = 0},
        SamplingRow{.temperature = 0.7, .top_k = 4, .top_p = 0.95, .repetition_penalty = 1.06},
        SamplingRow{.temperature = 1, .top_k = 50}, SamplingRow{.temperature = 1, .top_p = 0.9},
        SamplingRow{.temperature = 1}, SamplingRow{.temperature = 1.2, .min_p = 0.05}}) {
    Row row{like};
    row.options.seed = call.rows.size() + 5;
    row.options.position = 3;
    call.rows.push_back(row);
  }
  call.finish();
  return call;
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat;
  using namespace longcat::emulation;
  const Call one = one_id(), all = options(), edited = edits(), many = many_candidates();
  // Lanes add to the bins of their scores: conflicts depend on the logits.
  const auto of = [](const char* name, const Call& call, const char* group, int32_t slice, int32_t rows_at_once,
                     int32_t num_rows = 0) {
    const int32_t rows = num_rows > 0 ? num_rows : static_cast<int32_t>(call.rows.size());
    return Case{name, [=, &call](SimtEmulator& gpu) { return run(gpu, call, rows, slice, rows_at_once); }, group,
                int64_t{1} << 40};
  };
  std::vector<Case> cases{of("1 id", one, "", 4, 3),
                          of("options, 1 block a row, 16 rows", all, "options", 200, 9, 16),
                          of("options, 2 blocks a row", all, "options", 100, 24),
                          of("edits, 2 blocks a row", edited, "edits", 100, 16),
                          of("options, 10 blocks a row, 7 rows at once", all, "options", 20, 7, 10),
                          of("edits, 1 block a row", edited, "edits", 150, 3, 16),
                          of("many candidates", many, "many", 4096, 4)};
  cases.push_back({"rows that are chosen",
                   [&](SimtEmulator& gpu) { return run(gpu, edited, 3, 100, 3, {7, -1, 0, 21, 21, 2, 4, -1, 30}); },
                   "chosen", int64_t{1} << 40});
  // As much work as all others: only in the full proof.
  int seeds = 20;
  for (int i = 1; i + 1 < argc; ++i)
    if (std::string(argv[i]) == "--seeds") seeds = std::atoi(argv[i + 1]);
  Call whole;
  if (seeds >= 20) {
    whole = whole_vocabulary();
    cases.push_back(of("131,072 ids, 32 blocks a row", whole, "whole", 4096, 6));
    cases.push_back(of("131,072 ids, 40 blocks a row", whole, "whole", 3300, 2));
  }
  return prove(argc, argv, cases);
}
