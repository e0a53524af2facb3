"""The registration of cuda/kernels/fp8_wide.h for the mutation proof (prove.py). fp8_linear breaks fp8_units.h."""

KERNELS = ["longcat::gpu::Fp8Wide<longcat::bf16>", "longcat::gpu::Fp8Wide<float>"]
SOURCES = ["cuda/kernels/fp8_wide.h"]

# name -> (what is there, exactly once; what replaces it)
MUTATIONS = {
    "W of the first warp": ("(first_row + warp * 16) * depth", "first_row * depth"),
    "W of the first rows": ("(first_row + warp * 16) * depth", "(warp * 16) * depth"),
    "8 rows twice": ("{first, first + 8 * int64_t{depth}}", "{first, first}"),
    "rows by slices": ("block_idx() / slices * kRows", "block_idx() % slices * kRows"),
    "all slices are the first": ("static_cast<int>(block_idx() % slices) * kTokens", "0"),
    "scales of the first block of rows": ("scales.of(matrix, first_row,", "scales.of(matrix, 0,"),
    "one scale too few": ("if (thread_idx() < units) of_unit", "if (thread_idx() < units - 1) of_unit"),
    "scales are not kept": ("if (thread_idx() < units) store_shared", "if (false) store_shared"),
    "the first unit's scale": ("kScalesAt + unit * 4)", "kScalesAt)"),
    "codes of all warps in one place": ("stage + warp_idx() * kFp8Codes", "stage"),
    "codes of the first warp": ("stage + warp * kFp8Codes", "stage"),
    "inputs of all tiles in one place": ("stage + kInputsAt + tile * kFp8Inputs", "stage + kInputsAt"),
    "inputs over the last codes": ("kInputsAt = kWarps * kFp8Codes", "kInputsAt = kWarps * kFp8Codes - 16"),
    "inputs of the first tiles": ("tile = warp_idx() * kTilesOfWarp + i", "tile = warp_idx() + i"),
    "x of one tile twice": ("(warp * kTilesOfWarp + i) * 8 + lane / 4", "warp * kTilesOfWarp * 8 + lane / 4"),
    "x of the first slice": ("token = first_token + (warp", "token = (warp"),
    "x without its stride": ("token * x_stride", "token * depth"),
    "the last token is zero": ("lane_idx() / 4 < num_tokens,", "lane_idx() / 4 < num_tokens - 1,"),
    "units of early stages": (
        "copy_stage(shared + s * kStage, rows, starts, first_token, s)",
        "copy_stage(shared + s * kStage, rows, starts, first_token, 0)",
    ),
    "a short K loads units that are not there": ("if (s < units) copy_stage", "copy_stage"),
    "the ring is loaded one unit late": ("first_token, unit + kStages - 1)", "first_token, unit + kStages - 2)"),
    "one unit too many is loaded": ("unit + kStages - 1 < units", "unit + kStages - 1 <= units"),
    "one group too few is waited for": ("cp_async_wait<kStages - 2>()", "cp_async_wait<kStages - 1>()"),
    "a stage is filled while it is read": (
        "free_stage = stage;",
        "free_stage = stage + kStage < shared + kScalesAt ? stage + kStage : shared;",
    ),
    "the ring does not close": ("stage + kStage < shared + kScalesAt ?", "true ?"),
    "one unit too few": ("unit < units; ++unit", "unit < units - 1; ++unit"),
    "not added to the sum": ("products[n][i], sums[n][i])", "products[n][i], 0.0f)"),
    "too little shared memory": ("kSharedBytes = kScalesAt + kMostUnits * 4", "kSharedBytes = kScalesAt"),
    "results of the first slice": ("token = first_token + n * 8 + 2", "token = n * 8 + 2"),
    "results: tokens of a pair swapped": ("2 * (lane % 4) + i;", "2 * (lane % 4) + 1 - i;"),
    "results of tokens that are not there": ("if (token >= num_tokens) continue;", ""),
    "the last token is not stored": ("if (token >= num_tokens) continue;", "if (token >= num_tokens - 1) continue;"),
    "results of the first warp's rows": ("first_row + warp * 16 + lane / 4;", "first_row + lane / 4;"),
    "results of other lanes' rows": ("warp * 16 + lane / 4;", "warp * 16 + lane % 8;"),
    "results: rows 8 apart swapped": ("as<Out>(sums[n][i])", "as<Out>(sums[n][i + 2])"),
    "results: the first 8 rows twice": ("as<Out>(sums[n][i + 2])", "as<Out>(sums[n][i])"),
}
