"""The registration of cuda/kernels/few_token_experts.h for the mutation proof (prove.py)."""

KERNELS = [
    "longcat::gpu::FewTokenLinear<32, longcat::gpu::ExpertGateUpLayer>",
    "longcat::gpu::FewTokenLinear<32, longcat::gpu::ExpertDownLayer>",
]
SOURCES = ["cuda/kernels/few_token_experts.h"]

# name -> (what is there, exactly once; what replaces it)
MUTATIONS = {
    "blocks behind the list work": ("index < load_global(num_items) ?", "true ?"),
    "the last item is left out": ("index < load_global(num_items) ?", "index + 1 < load_global(num_items) ?"),
    "always the first item": ("load_global(items + index)", "load_global(items)"),
    "gate and up: items and columns swapped": (
        "const int64_t tiles = out_features / 8, column = block_idx() % tiles * 8;",
        "const int64_t tiles = out_features / 8, column = block_idx() / tiles % tiles * 8;",
    ),
    "gate and up: the next expert's gate": ("gates.of[item.expert]", "gates.of[item.expert - 1]"),
    "gate and up: the next expert's up": ("ups.of[item.expert]", "ups.of[item.expert - 1]"),
    "gate and up: the first columns": ("at = column * depth;", "at = 0;"),
    "gate and up: tokens from the list's start": (
        "load_global(tokens + tile.begin + token)",
        "load_global(tokens + token)",
    ),
    "gate and up: no gathering": ("return load_global(tokens + tile.begin + token)", "return token"),
    "gate and up: rows from the list's start": (
        "out + (tile.begin + token) * out_features + tile.column + row, as",
        "out + token * out_features + tile.column + row, as",
    ),
    "gate and up: swapped": ("silu_mul(low, high)", "silu_mul(high, low)"),
    "down: the first expert": ("weights.of[item.expert]", "weights.of[0]"),
    "down: the first columns": (
        "weights.of[item.expert] + column * depth",
        "weights.of[item.expert]",
    ),
    "down: columns of 8": ("block_idx() % tiles * 16", "block_idx() % tiles * 8"),
    "down: 8 rows twice": ("{first, first + 8 * int64_t{depth}}", "{first, first}"),
    "down: rows from the list's start": ("return tile.begin + token;", "return token;"),
    "down: the output from the list's start": (
        "to = out + (tile.begin + token) * out_features",
        "to = out + token * out_features",
    ),
    "down: rows 8 apart swapped": ("store_global(to, as<bf16>(low))", "store_global(to, as<bf16>(high))"),
    "down: one row too many": (
        "first + 8 * int64_t{depth}}, column, item.begin, item.end - item.begin, 0};",
        "first + 8 * int64_t{depth}}, column, item.begin, item.end - item.begin + 1, 0};",
    ),
}
