"""The registration of cuda/kernels/select_positions.h for the mutation proof (prove.py)."""

KERNELS = ["longcat::gpu::SelectionBins", "longcat::gpu::SelectionLists"]
SOURCES = ["cuda/kernels/select_positions.h"]

# name -> (what is there, exactly once; what replaces it)
MUTATIONS = {
    "rows with topk positions select": (
        "if (part.position < topk) return false;",
        "if (part.position < topk - 1) return false;",
    ),
    "rows of the first launch": ("part.row = first_row + part.of;", "part.row = part.of;"),
    "first positions are chosen": (
        "part.begin = slice * kSlice < init_tokens ? init_tokens : slice * kSlice;",
        "part.begin = slice * kSlice;",
    ),
    "one position late": (
        "chosen_end = part.position + 1 - local_tokens;",
        "chosen_end = part.position + 2 - local_tokens;",
    ),
    "one position early": (
        "chosen_end = part.position + 1 - local_tokens;",
        "chosen_end = part.position - local_tokens;",
    ),
    "blocks of the context": ("slice >= first && slice < first + part.num_blocks;", "slice >= first;"),
    "negative scores ascend": ("? ~bits : bits | 0x80000000u;", "? bits : bits | 0x80000000u;"),
    "NaN counts": ("return score == score ? order : 0;", "return order;"),
    "scores of the first row": ("scores + part.of * context;", "scores;"),
    "candidates of the first row": ("candidates + part.of * context;", "candidates;"),
    "marks of the first row": ("marks + part.of * (context / 32);", "marks;"),
    "arrival without order": (
        "arrive(&states[part.of].arrived, 1u)",
        "atomic_add_global(&states[part.of].arrived, 1u)",
    ),
    "arrivals of the first row": ("arrive(&states[part.of].arrived, 1u)", "arrive(&states[0].arrived, 1u)"),
    "the first to arrive goes on": ("static_cast<uint32_t>(part.num_blocks) - 1;", "0u;"),
    "together, one too few": (
        "static_cast<uint32_t>(count_bits(together)));",
        "static_cast<uint32_t>(count_bits(together)) - 1);",
    ),
    "alone and together": ("} else if (counts && !(together >> lane_idx() & 1)) {", "} else if (counts) {"),
    "scan: over 16 lanes": ("delta < 32; delta *= 2", "delta < 16; delta *= 2"),
    "scan: with its own warp": ("warp < warp_idx() ? of_warp", "warp <= warp_idx() ? of_warp"),
    "scan: with its own": ("before = sum - own;", "before = sum;"),
    "bins of the first row": (
        "atomic_add_global(bins + int64_t{part.of} * kBins + bin, own)",
        "atomic_add_global(bins + bin, own)",
    ),
    "bins are left": ("store_global(best - i, 0u);", ""),
    "bins: arrivals are left": ("if (thread_idx() == 0) store_global(&states[part.of].arrived, 0u);", ""),
    "the bin after": ("before + own < wanted) return;", "before + own <= wanted) return;"),
    "the worst bins first": ("bin = kBins - 1 - thread_idx() * kEach;", "bin = thread_idx() * kEach;"),
    "left of all": ("wanted - before);", "wanted);"),
    "better bins and this one": ("bin_of(order) > bin);", "bin_of(order) >= bin);"),
    "marks of what may not be chosen": ("ballot(counts && bin_of(order) > bin)", "ballot(bin_of(order) > bin)"),
    "candidates at one place": (
        "at = shuffle(at, 0) + static_cast<uint32_t>(count_bits(votes & ((1u << lane_idx()) - 1)));",
        "at = shuffle(at, 0);",
    ),
    "ties: the higher position": (
        "static_cast<uint32_t>(kMaxContext - 1 - position);",
        "static_cast<uint32_t>(position);",
    ),
    "order with its bin": ("<< kBinBits >> kBinBits;", "<< kBinBits;"),
    "five rounds": ("round < kRounds; ++round", "round < kRounds - 1; ++round"),
    "digits of all candidates": ("order >> (shift + 8) == found >> (shift + 8);", "true;"),
    "left is not less": (
        "store_shared(shared + kFoundAt + 4, left - before);",
        "store_shared(shared + kFoundAt + 4, left);",
    ),
    "the digit after": ("before < left && before + own >= left", "before <= left && before + own > left"),
    "one candidate too few": ("if (order >= least) atomic", "if (order > least) atomic"),
    "only cached candidates": (
        "i < num_candidates; i += kThreads) {",
        "i < num_candidates && i < kCached; i += kThreads) {",
    ),
    "marks from position 0": ("first = init_tokens / 32, last", "first = 0, last"),
    "one word too few": (
        "last = (part.position - local_tokens) / 32 + 1;",
        "last = (part.position - local_tokens) / 32;",
    ),
    "last positions one early": ("part.position + 1 - local_tokens + j);", "part.position - local_tokens + j);"),
    "last positions at the begin": ("to + topk - local_tokens + j,", "to + init_tokens + j,"),
    "lists of the first row": ("selected + part.row * selected_stride;", "selected;"),
    "chosen ones in place of the first": (
        "write_chosen(shared, part, to + init_tokens);",
        "write_chosen(shared, part, to);",
    ),
    "candidates are left": ("store_global(&states[part.of].num_candidates, 0u);", ""),
    "lists: arrivals are left": (
        "return; store_global(&states[part.of].num_candidates, 0u);\n    store_global(&states[part.of].arrived, 0u);",
        "return; store_global(&states[part.of].num_candidates, 0u);",
    ),
}
