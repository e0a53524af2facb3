"""The registration of cuda/kernels/router_picks.h for the mutation proof (prove.py)."""

KERNELS = ["longcat::gpu::RouterPicks"]
SOURCES = ["cuda/kernels/router_picks.h"]

# name -> (what is there, exactly once; what replaces it)
MUTATIONS = {
    "NaN and negative keys in float order": ("return bits & 0x80000000u ? ~bits : bits | 0x80000000u;", "return bits;"),
    "sum without the last third": ("i + 8 < kEach ?", "false ?"),
    "sum over 16 lanes": ("mask = 16; mask > 0; mask /= 2) parts[0]", "mask = 8; mask > 0; mask /= 2) parts[0]"),
    "sum in another order": ("width = 4; width > 0; width /= 2)", "width = 4; width > 2; width /= 2)"),
    "maximum over 16 lanes": ("mask = 16; mask > 0; mask /= 2) {", "mask = 8; mask > 0; mask /= 2) {"),
    "no maximum": ("expf(p[i] - largest)", "expf(p[i])"),
    "scores of the first token": ("scores + token * kOutputs", "scores"),
    "no bias": ("add_rn(p[i], load_global(bias + i * 32 + lane))", "p[i]"),
    "bias of another output": ("load_global(bias + i * 32 + lane)", "load_global(bias + lane)"),
    "11 picks": ("n = 0; n < kTopk;", "n = 1; n < kTopk;"),
    "picked again": ("!(picked >> i & 1) &&", ""),
    "ties in a lane: the last": ("keys[i] > best)", "keys[i] >= best)"),
    "ties between lanes: the last": (
        "kOutputs - warp_max(best == most ? kOutputs - best_output : 0)",
        "warp_max(best == most ? best_output : 0)",
    ),
    "ranks from the lane above": ("((1u << lane) - 1)", "((2u << lane) - 1)"),
    "ranks start anew": ("rank += count_bits(votes);", "rank = count_bits(votes);"),
    "weights not scaled": ("mul_rn(p[i], scaling_factor)", "p[i]"),
    "picks of the first token": (
        "store_global(expert_idx + token * kTopk + at, output)",
        "store_global(expert_idx + at, output)",
    ),
    "experts of other ranks below": ("expert >= 0 && expert < num_experts)", "expert < num_experts)"),
    "experts of other ranks above": ("expert >= 0 && expert < num_experts)", "expert >= 0)"),
    "mask of the next token": ("1ull << token);", "1ull << (token + 1));"),
    "identity weight of the routed": (
        "kPicksAt + j * 4) >= n_routed_experts",
        "kPicksAt + j * 4) < n_routed_experts",
    ),
    "identity weight of 11 picks": ("for (int j = 0; j < kTopk; ++j)", "for (int j = 0; j < kTopk - 1; ++j)"),
    "tokens that are not real pick": ("block_idx() < load_global(num_real_tokens)", "true"),
    "the last real token has no picks": (
        "block_idx() < load_global(num_real_tokens)",
        "block_idx() + 1 < load_global(num_real_tokens)",
    ),
    "no picks: rows left": ("store_global(permuted_rows + token * kTopk + lane, -1);", ""),
    "only the lower half of a mask": ("count_bits(static_cast<uint32_t>(mask >> 32))", "0"),
    "scan: one lane too far": ("lane >= delta ? before", "lane >= delta - 1 ? before"),
    "scan: with its own rows": ("before = sum - own;", "before = sum;"),
    "scan: one warp too few": ("warp < warp_idx(); ++warp)", "warp < warp_idx() - 1; ++warp)"),
    "scan: totals of the first lanes": ("if (lane == 31)", "if (lane == 30)"),
    "items of experts without rows": ("if (rows > 0) store_global(items", "store_global(items"),
    "items end one row early": ("ExpertRows{expert, first, end}", "ExpertRows{expert, first, end - 1}"),
    "one item too few": ("item + (rows > 0)", "item"),
    "masks are left": ("store_global(masks + expert, 0ull);", ""),
    "the counter is left": ("if (expert == 0) store_global(finished, 0u);", ""),
    "no end of the offsets": ("store_global(expert_offsets + num_experts, end);", ""),
    "rows of one expert in one place": ("& ((1ull << token) - 1);", "& 0ull;"),
    "rows: the lower half of a mask": ("count_bits(static_cast<uint32_t>(lower >> 32))", "0"),
    "rows: other ranks' picks below": ("of < 0 ||", ""),
    "rows: other ranks' picks above": ("|| of >= num_experts) continue", ") continue"),
    "tokens of the picks": ("store_global(permuted_tokens + row, token)", "store_global(permuted_tokens + row, i)"),
    "the first block makes the lists": ("== num_blocks() - 1)", "== 0)"),
    "too little shared memory": (
        "kSharedBytes = kMasksAt + kMaxExperts * 8",
        "kSharedBytes = kMasksAt + kMaxExperts * 4",
    ),
}
