// The proof of cuda/kernels/mla_work.h: each token meets each piece of its history once, whatever the groups.
#include "cuda/kernels/mla_work.h"

#include <map>

#include "cuda/emulation/proof.h"
#include "tests/gpu_proof/mla_items.h"
#include "tests/gpu_proof/written.h"

// Compiled apart, since mutations change them.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::MlaPlan&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::MlaItems&, bool);

namespace longcat::emulation {

namespace {

using gpu::MlaItem;
using gpu::MlaItems;
using gpu::MlaPlan;
using gpu::MlaTokens;

struct Chunk {
  int32_t first, count;  // positions
};
struct Setup {
  std::vector<Chunk> chunks;
  int32_t most;                                     // tokens of a group, as the plan must choose them
  int32_t enough = 1, round = 1 << 20, behind = 0;  // behind: tokens of prompts, which have no work
  int32_t topk = 0;
  bool only_selecting = false;
};

// What is wrong with the list: a number of faults.
Outcome run(SimtEmulator& gpu, const Setup& setup) {
  std::vector<int32_t> positions, sequence_idx, query_starts{0};
  for (const Chunk& chunk : setup.chunks) {
    for (int32_t i = 0; i < chunk.count; ++i) {
      positions.push_back(chunk.first + i);
      sequence_idx.push_back(static_cast<int32_t>(query_starts.size()) - 1);
    }
    query_starts.push_back(static_cast<int32_t>(positions.size()));
  }
  const int32_t num_tokens = static_cast<int32_t>(positions.size()) - setup.behind;
  const MlaTokens tokens{.positions = written(gpu, positions),
                         .sequence_idx = gpu.input(sequence_idx),
                         .query_starts = gpu.input(query_starts),
                         .plan = gpu.output<int32_t>(num_tokens + 2),
                         .num_tokens = num_tokens,
                         .round = setup.round,
                         .topk = setup.topk,
                         .only_selecting = setup.only_selecting};
  std::vector<int32_t> counts;  // pieces of each token
  for (int32_t& position : positions) {
    const bool selects = setup.topk > 0 && position >= setup.topk;
    counts.push_back(setup.only_selecting && !selects ? 0 : kv_piece_index(selects ? setup.topk - 1 : position) + 1);
    if (selects) position = setup.topk - 1;  // the end of its list
  }
  gpu.launch(1, MlaPlan{.tokens = tokens, .enough = setup.enough}, true);
  const std::vector<int32_t> plan = gpu.read(tokens.plan, num_tokens + 2);
  double faults = plan[0] != setup.most;
  uint64_t bits = hash_of(plan);
  std::map<std::pair<int32_t, int32_t>, int> met;  // token, piece
  int64_t expected = 0, num_items = 0;
  for (int32_t t = 0; t < num_tokens; ++t) expected += counts[t];
  for (int32_t first = 0; first < num_tokens; first += setup.round) {
    const int32_t last = std::min(num_tokens, first + setup.round), count = plan[1 + last] - plan[1 + first];
    if (count < 1 || count > 100'000) return {1e9, 0, bits};
    MlaItem* const to = gpu.output<MlaItem>(count);
    gpu.launch(count, MlaItems{.tokens = tokens, .first_token = first, .last_token = last, .items = to}, true);
    for (const MlaItem& item : gpu.read(to, count)) {
      if (item.count == 0) continue;
      const bool is_known = item.token >= first && item.count > 0 && item.token + item.count <= last;
      if (!is_known) return {1e9, 0, bits};
      faults += item.position != positions[item.token] || item.sequence != sequence_idx[item.token];
      faults += sequence_idx[item.token + item.count - 1] != item.sequence;
      faults += item.begin != kv_piece_begin(item.piece) || item.end != kv_piece_begin(item.piece + 1);
      faults += item.count > setup.most || (item.count > 1 && item.piece >= gpu::kMlaShortPieces);
      for (int32_t t = item.token; t < item.token + item.count; ++t) {
        faults += positions[t] < item.begin;
        faults += ++met[{t, item.piece}] > 1;
      }
      ++num_items;
    }
  }
  faults += static_cast<int64_t>(met.size()) != expected;
  // Neighbours share short pieces: each group has one item a piece, of as many as its last token has.
  int64_t fewest = 0;
  for (int32_t t = 0; t < num_tokens; ++t) {
    const int32_t place = t - query_starts[sequence_idx[t]];
    const int32_t pieces = counts[t];
    const bool ends = t + 1 == num_tokens || sequence_idx[t + 1] != sequence_idx[t] || (place + 1) % setup.most == 0 ||
                      (t + 1) % setup.round == 0;
    if (ends) fewest += std::min(pieces, gpu::kMlaShortPieces);
    fewest += std::max(pieces - gpu::kMlaShortPieces, 0);
  }
  faults += fewest != num_items;
  return {faults, 0, bits};
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat::emulation;
  const auto of = [](Setup setup) { return [setup](SimtEmulator& gpu) { return run(gpu, setup); }; };
  std::vector<Chunk> many;
  for (int i = 0; i < 150; ++i) many.push_back({i * 37 % 300, 1 + i % 4});
  many.insert(many.end(), 2, {5, 1});
  return prove(argc, argv,
               {{"1 token", of({{{0, 1}}, 5})},
                {"groups over the ends of pieces", of({{{125, 5}, {127, 1}, {2045, 9}, {0, 3}, {300, 1}}, 5})},
                {"too few items for groups", of({{{125, 5}, {127, 1}, {2047, 3}}, 1, 1000})},
                {"just enough items for groups", of({{{125, 5}, {127, 1}}, 5, 3})},
                {"launches of 4 tokens", of({{{120, 7}, {2040, 12}, {5, 1}}, 5, 1, 4})},
                {"one item too few for groups", of({{{125, 5}, {127, 1}}, 1, 4})},
                {"long pieces, prompts behind", of({{{16383, 3}, {65535, 2}, {131071, 2}, {10, 6}}, 5, 1, 1 << 20, 4})},
                {"375 tokens", of({many, 5})},
                {"lists of 2,048 positions", of({{{2045, 5}, {9000, 2}, {70, 2}}, 1, 1, 5, 0, 2048})},
                {"prompts: only tokens with lists", of({{{3, 2}, {127, 4}, {0, 1}}, 1, 1, 1 << 20, 0, 129, true})}});
}
