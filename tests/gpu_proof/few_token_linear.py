"""The registration of cuda/kernels/few_token_linear.h and few_token_layers.h for the mutation proof (prove.py)."""

KERNELS = [
    "longcat::gpu::FewTokenLinear<8, longcat::gpu::PlainLayer<longcat::bf16>>",
    "longcat::gpu::FewTokenLinear<16, longcat::gpu::PlainLayer<longcat::bf16>>",
    "longcat::gpu::FewTokenLinear<32, longcat::gpu::PlainLayer<float>>",
    "longcat::gpu::FewTokenLinear<64, longcat::gpu::PlainLayer<longcat::bf16>>",
    "longcat::gpu::FewTokenLinear<8, longcat::gpu::PlainLayer<float, 2>>",
    "longcat::gpu::FewTokenLinear<32, longcat::gpu::JoinedLayer>",
    "longcat::gpu::FewTokenLinear<8, longcat::gpu::GateUpLayer>",
]
SOURCES = ["cuda/kernels/few_token_linear.h", "cuda/kernels/few_token_layers.h", "cuda/kernels/silu.h"]

# name -> (what is there, exactly once; what replaces it)
MUTATIONS = {
    "W fragment: rows and columns swapped": (
        "a_at = (lane % 16) * kRow + lane / 16 * 16",
        "a_at = (lane / 2) * kRow + lane % 2 * 16",
    ),
    "W fragment: quarters swapped": (
        "a_at = (lane % 16) * kRow + lane / 16 * 16",
        "a_at = (lane % 8 + lane / 16 * 8) * kRow + lane / 8 % 2 * 16",
    ),
    "x fragment of two tiles: quarters swapped": (
        "(first_token + lane % 8 + lane / 16 * 8) * kRow + lane / 8 % 2 * 16",
        "(first_token + lane % 8 + lane / 8 % 2 * 8) * kRow + lane / 16 * 16",
    ),
    "x fragment of one tile: the first k16 twice": (
        "(first_token + lane % 8) * kRow + lane / 8 * 16",
        "(first_token + lane % 8) * kRow + lane / 8 % 2 * 16",
    ),
    "x fragment: a warp's tile of the first warp": (
        "(first_token + lane % 8) * kRow + lane / 8 * 16",
        "(lane % 8) * kRow + lane / 8 * 16",
    ),
    "halves of k swapped between two k16": ("b[k + 1][i] = two[2 + i]", "b[k + 1][i] = two[3 - i]"),
    "tiles of a warp swapped": (
        "b[k][2 * n], b[k][2 * n + 1]",
        "b[k][2 * kTiles - 2 - 2 * n], b[k][2 * kTiles - 1 - 2 * n]",
    ),
    "W of another k16": ("mma_bf16(sums[n], a[k],", "mma_bf16(sums[n], a[kStep / 16 - 1 - k],"),
    "results: tokens of a pair swapped": ("sums[n][i], sums[n][i + 2]", "sums[n][i ^ 1], sums[n][(i ^ 1) + 2]"),
    "results: rows 8 apart swapped": ("sums[n][i], sums[n][i + 2]", "sums[n][i + 2], sums[n][i]"),
    "results of the first tile for both": (
        "first_token + n * 8 + 2 * (lane % 4) + i",
        "first_token + 2 * (lane % 4) + i",
    ),
    "results of other lanes' rows": ("layer.store(tile, token, lane / 4,", "layer.store(tile, token, lane % 8,"),
    "results of tokens that are not there": ("if (token < tile.count) layer.store", "layer.store"),
    "the last token is not stored": ("if (token < tile.count) layer.store", "if (token < tile.count - 1) layer.store"),
    "a warp with one token does not multiply": (
        "if (first_token < tile.count) {",
        "if (first_token + 1 < tile.count) {",
    ),
    "the last token is zero": ("row + i * kThreadRows < tile.count);", "row + i * kThreadRows < tile.count - 1);"),
    "x without its stride": ("layer.input_row(tile, token) * x_stride", "layer.input_row(tile, token) * depth"),
    "x of the first step": ("(Layer::kPlanes > 1 ? step % (depth / kStep) : step) * kStep", "0"),
    "x runs on for the second plane": ("step % (depth / kStep) : step", "step : step"),
    "the first plane twice": ("+ step / steps * layer.plane_stride", ""),
    "only one plane": ("steps = Layer::kPlanes * (depth / kStep);", "steps = depth / kStep;"),
    "W of the first step": ("at += step * kStep;", "at += 0;"),
    "8 rows of W twice": ("tile.rows[i] + at", "tile.rows[0] + at"),
    "rows of W one copy apart": ("int64_t{row} * depth + k", "int64_t{row ^ 1} * depth + k"),
    "x over the last row of W": ("kTokensAt = kRows * kRow", "kTokensAt = (kRows - 1) * kRow"),
    "rows not padded": ("kRow = (kStep + 8) * 2", "kRow = kStep * 2"),
    "rows aligned to 8 bytes": ("kRow = (kStep + 8) * 2", "kRow = (kStep + 4) * 2"),
    "too little shared memory": ("kSharedBytes = kStages * kStage", "kSharedBytes = kStages * kStage - 32"),
    "one group too few is waited for": ("cp_async_wait<kStages - 2>()", "cp_async_wait<kStages - 1>()"),
    "one stage too few in the prologue": ("s < kStages - 1; ++s) {", "s < kStages - 2; ++s) {"),
    "a stage is filled while it is read": (
        "free_stage = stage;",
        "free_stage = stage + kStage < shared + kSharedBytes ? stage + kStage : shared;",
    ),
    "the ring does not close": ("stage = stage + kStage < shared + kSharedBytes ?", "stage = true ?"),
    "one step too few": (
        "LC_UNROLL_BY(1) for (int s = 0; s < steps; ++s)",
        "LC_UNROLL_BY(1) for (int s = 0; s < steps - 1; ++s)",
    ),
    "one step too many is loaded": ("if (s + kStages - 1 < steps) {", "if (s + kStages - 1 <= steps) {"),
    "a short K loads stages that are not there": ("if (s < steps) {", "{"),
    "early weights of stages that are not there": ("if (s < steps && tile.count > 0)", "if (tile.count > 0)"),
    "early weights of blocks without work": ("if (s < steps && tile.count > 0)", "if (s < steps)"),
    "a block without work ends before the wait": (
        "wait_for_prior_grid(); if (tile.count <= 0) return;",
        "if (tile.count <= 0) return; wait_for_prior_grid();",
    ),
    "early weights one stage late": ("if (s >= kEarly) copy_weights", "if (s > kEarly) copy_weights"),
    "bf16 results cut instead of rounded": (
        "return bf16{static_cast<uint16_t>(pack_bf16(value, 0))}",
        "return bf16{static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16)}",
    ),
    "gate and up not rounded": ("return low_bf16(pack_bf16(value, 0));", "return value;"),
    "gate and up swapped": ("silu_mul(low, high)", "silu_mul(high, low)"),
    "SiLU of the other sign": ("expf(-x)", "expf(x)"),
    "up from the gate's rows": ("up + column * depth", "gate + column * depth"),
    "columns of gate and up": ("column = block_idx() * 8;", "column = block_idx() * 16;"),
    "plain: the first block's rows of W": ("weight + column * depth", "weight"),
    "plain: the first block's columns": ("column, begin, num_tokens", "0, begin, num_tokens"),
    "plain: both halves from the same rows": (
        "return {{first, first + 8 * int64_t{depth}}, column, begin",
        "return {{first, first}, column, begin",
    ),
    "plain: rows packed": (
        "(tile.begin + token) * out_stride + tile.column + row",
        "(tile.begin + token) * 32 + tile.column + row",
    ),
    "plain: slices of 32 tokens": ("block / tiles * kSlice", "block / tiles * 32"),
    "plain: slices and columns swapped": ("begin = block / tiles * kSlice", "begin = block % tiles * kSlice"),
    "plain: all slices of the first tokens": ("return tile.begin + token;", "return token;"),
    "plain: all slices to the first rows": (
        "(tile.begin + token) * out_stride + tile.column + row",
        "token * out_stride + tile.column + row",
    ),
    "plain: a slice has all tokens": ("begin, num_tokens - begin, 0}", "begin, num_tokens, 0}"),
    "joined: one block too late": ("block_idx() >= tiles;", "block_idx() > tiles;"),
    "joined: the first layer's weights": ("(second ? weights[1] : weights[0])", "weights[0]"),
    "joined: columns run on": ("(block_idx() - (second ? tiles : 0)) * 16", "block_idx() * 16"),
    "joined: the first layer's stride": ("outs[1] + token * out_strides[1]", "outs[1] + token * out_strides[0]"),
    "joined: always the first output": ("num_tokens, second}", "num_tokens, 0}"),
}
