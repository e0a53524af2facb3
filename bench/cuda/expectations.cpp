// The figures to expect on an H200. They were counted and estimated before anything was measured; docs/cuda.md, "What
// the benchmarks expect", derives them. They are good to 40 %: a factor of two is news, a digit is not. Where a
// measurement has replaced an estimate, the comment says so.
#include "report.h"

namespace longcat {

namespace {

constexpr Expectation kExpectations[] = {
    // A layer takes its kernels before the fork, and then the longer of the two branches. A step has 14 layers and 0.24
    // ms of other kernels.
    {"model", "decode 1 x 1k, graph", 5080, "us"},
    {"model", "decode 8 x 1k, graph", 7240, "us"},     // the MoE branch: 316 us of experts
    {"model", "decode 64 x 1k, graph", 21400, "us"},   // the MoE branch: 1,122 us of experts; attention 229 us
    {"model", "decode 256 x 1k, graph", 35100, "us"},  // attention 914 us
    {"model", "decode 1 x 32k, graph", 7580, "us"},    // attention 118 us
    {"model", "decode 8 x 32k, graph", 29900, "us"},   // attention 914 us
    // Here the MoE branch runs in place, so its time is added and not hidden.
    {"model", "decode 1 x 1k, graph, one stream", 6370, "us"},
    {"model", "decode 64 x 1k, graph, one stream", 26900, "us"},
    // Counted on the emulated device: 41 kernels a layer and 7 others. In each layer three grouped products describe
    // their experts first.
    {"model", "decode 1 x 1k, nodes", 623, "nodes"},
    {"model", "decode 256 x 1k, nodes", 623, "nodes"},
    // The graph's time, and 0.12 ms of sampling in the graph, upload, launch and read-back.
    {"model", "decode 1 x 1k, step", 5200, "us"},
    // MLA prefill alone, from 32 scalar instructions for each multiply-add: 1 to 1.5 s, 8 to 25 s, 2 to 6 minutes.
    {"model", "prefill 512", 1300, "ms"},
    {"model", "prefill 2048", 16000, "ms"},
    {"model", "prefill 8192", 240000, "ms"},

    // [us] RouteScores 6, RoutePicks 5, Permute 3.
    {"ops", "moe_route, 1 token", 14, "us"},
    // 3.2 M warp instructions for 1,024 positions, at 927,000 of them a us: at least 25 us. Combining the pieces adds 4
    // us or more.
    {"ops", "mla_decode, 1 x 1k", 29, "us"},
    {"ops", "mla_decode, 1 x 16k", 61, "us"},
    {"ops", "mla_decode, 64 x 1k", 229, "us"},
    {"ops", "mla_decode, 64 x 4k", 900, "us"},
    // Reads 8, 58 and 222 of 256 experts of 18.9 MB, at two fifths of the bandwidth for 1 token and nearly all of it
    // for 64.
    {"ops", "moe_experts, 1 token", 78, "us"},
    {"ops", "moe_experts, 8 tokens", 316, "us"},
    {"ops", "moe_experts, 64 tokens", 1122, "us"},
    // 3 kernels of 32 blocks a row. 1 row: launches and barriers. 64 rows: 32 MB from memory, then three times from or
    // to
    // the L2 cache, and 2 million atomics there.
    {"ops", "sample top-k top-p, 1 row", 20, "us"},
    {"ops", "sample top-k top-p, 64 rows", 80, "us"},
    // Tiles of 128 rows occupy 12, 5, 24, 48 and 24 of 132 multiprocessors.
    {"ops", "q_a_proj, 1 token", 15, "us"},
    {"ops", "kv_a_proj, 1 token", 14, "us"},
    {"ops", "o_proj, 1 token", 18, "us"},
    {"ops", "ffn gate, 1 token", 15, "us"},
    {"ops", "ffn down, 1 token", 25, "us"},
    // 805 MB at 3.6 TB/s.
    {"ops", "lm_head, 1 token", 224, "us"},
    // [us] vocabulary rows 4, projection 14.
    {"ops", "embed, 1 token", 18, "us"},
    // A 28th of the model's prefill time for 512 tokens.
    {"ops", "mla_prefill, 512 tokens", 46000, "us"},

    // One round trip over the bus for all 12 rows.
    {"gather", "host memory, 2 MiB pages, 1 token", 3, "us"},
};

}  // namespace

const Expectation* find_expectation(const std::string& suite, const std::string& what) {
  for (const Expectation& expected : kExpectations)
    if (suite == expected.suite && what == expected.what) return &expected;
  return nullptr;
}

std::vector<Expectation> expectations_of(const std::string& suite) {
  std::vector<Expectation> found;
  for (const Expectation& expected : kExpectations)
    if (suite == expected.suite) found.push_back(expected);
  return found;
}

}  // namespace longcat
