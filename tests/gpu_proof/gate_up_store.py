"""The registration of cuda/kernels/gate_up_store.h for the mutation proof (prove.py)."""

KERNELS = ["longcat::gpu::GateUpProducts<16>", "longcat::gpu::GateUpProducts<64>"]
SOURCES = ["cuda/kernels/gate_up_store.h", "tests/gpu_proof/gate_up_products.h"]

# name -> (what is there, exactly once; what replaces it)
MUTATIONS = {
    "gate and up swapped": (
        "silu_mul(value(false, n, 2 * h + i), value(true, n, 2 * h + i))",
        "silu_mul(value(true, n, 2 * h + i), value(false, n, 2 * h + i))",
    ),
    "halves of 8 features swapped": (
        "silu_mul(value(false, n, 2 * h + i), value(true, n, 2 * h + i))",
        "silu_mul(value(false, n, 2 * (h ^ 1) + i), value(true, n, 2 * (h ^ 1) + i))",
    ),
    "not transposed": ("transpose(pack_bf16(results[0], results[1]))", "pack_bf16(results[0], results[1])"),
    "tokens of a pair swapped": ("pack_bf16(results[0], results[1])", "pack_bf16(results[1], results[0])"),
    "pairs swapped": ("feature, pairs[0], pairs[1],", "feature, pairs[1], pairs[0],"),
    "one token more": ("n * 8 + token < count &&", "n * 8 + token <= count &&"),
    "one token less": ("n * 8 + token < count &&", "n * 8 + token + 1 < count &&"),
    "features behind the last": ("&& is_here);", ");"),
    "both halves end with the lower": ("feature + lane_idx() % 2 * 8 < features", "feature < features"),
    "the last features left out": ("% 2 * 8 < features", "% 2 * 8 + 8 < features"),
    "tokens of the first 8": ("(row + n * 8 + token) * out_stride", "(row + token) * out_stride"),
    "rows of the first expert": ("(row + n * 8 + token) * out_stride", "(n * 8 + token) * out_stride"),
    "features of the first warp": ("out_stride, feature, pairs[0]", "out_stride, feature % 16, pairs[0]"),
}
