// The figures to expect on an H200. They were counted and estimated before anything was measured; docs/cuda.md, "What
// the benchmarks expect", derives them. They are good to 40 %: a factor of two is news, a digit is not. Where a
// measurement has replaced an estimate, the comment says so.
#include "report.h"

namespace longcat {

namespace {

constexpr Expectation kExpectations[] = {
    // From bench/scripts/gpu_step.py: bytes, chains and gaps of each kernel.
    {"model", "decode 1 x 1k, graph", 2630, "us"},
    {"model", "decode 8 x 1k, graph", 6030, "us"},
    {"model", "decode 64 x 1k, graph", 18400, "us"},
    {"model", "decode 256 x 1k, graph", 23400, "us"},
    {"model", "decode 1 x 32k, graph", 3000, "us"},
    {"model", "decode 8 x 32k, graph", 8000, "us"},
    // The same where the MoE branch runs in place, so that its time is added and not hidden.
    {"model", "decode 1 x 1k, graph, one stream", 3170, "us"},
    {"model", "decode 64 x 1k, graph, one stream", 20600, "us"},
    // Counted on the emulated device: 29 kernels a layer for few tokens, 33 for many, and 8 others. With many, four
    // grouped products in each layer describe their experts first.
    {"model", "decode 1 x 1k, nodes", 414, "nodes"},
    {"model", "decode 256 x 1k, nodes", 526, "nodes"},
    // The graph's time, and 0.12 ms of sampling in the graph, upload, launch and read-back.
    {"model", "decode 1 x 1k, step", 2740, "us"},
    // From `gpu_step.py --prefill`: products at 550 TFLOP/s, attention at 350.
    {"model", "prefill 512", 24, "ms"},
    {"model", "prefill 2048", 45, "ms"},
    {"model", "prefill 8192", 177, "ms"},

    // [us] The router's chain of 384 products 7.2, its start 1.5, RouterPicks 4.
    {"ops", "moe_route, 1 token", 13, "us"},
    // MlaDecode on tensor cores. [us] A block: list 2, first tile and query 2, 1.4 a tile of 64 positions, results and
    // arrival 1.5. The last block adds 16 partial results of 66 KB at 110 GB/s. 64 x 4k: 302 MB at 3.6 TB/s, and
    // partial
    // results of 101 MB.
    {"ops", "mla_decode, 1 x 1k", 13, "us"},
    {"ops", "mla_decode, 1 x 16k", 24, "us"},
    {"ops", "mla_decode, 64 x 1k", 28, "us"},
    {"ops", "mla_decode, 64 x 4k", 110, "us"},
    // Reads 8, 58 and 222 of 256 experts of 18.9 MB at 3.6 TB/s, and 6 us.
    {"ops", "moe_experts, 1 token", 48, "us"},
    {"ops", "moe_experts, 8 tokens", 310, "us"},
    {"ops", "moe_experts, 64 tokens", 1170, "us"},
    // 3 kernels of 32 blocks a row. 1 row: launches and barriers. 64 rows: 32 MB from memory, then three times from or
    // to the L2 cache, and 2 million atomics there.
    {"ops", "sample top-k top-p, 1 row", 20, "us"},
    {"ops", "sample top-k top-p, 64 rows", 80, "us"},
    // 1.5 us, and the longer of two: the weights at 3.6 TB/s, or a chain of K / 16 products of 33 cycles each.
    {"ops", "q_a_proj, 1 token", 5, "us"},
    {"ops", "kv_a_proj, 1 token", 5, "us"},
    {"ops", "o_proj, 1 token", 8.5, "us"},
    {"ops", "ffn gate, 1 token", 12, "us"},
    {"ops", "ffn down, 1 token", 12, "us"},
    // 805 MB at 3.6 TB/s.
    {"ops", "lm_head, 1 token", 224, "us"},
    // [us] vocabulary rows 4, projection 14.
    {"ops", "embed, 1 token", 18, "us"},
    // [us] Keys and values 13, 8 tiles of 4, starts 2.
    {"ops", "mla_prefill, 512 tokens", 47, "us"},

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
