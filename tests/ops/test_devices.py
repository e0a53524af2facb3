"""One table for every device: each op of the CUDA backend against the same op of the CPU backend.

`cuda-emulated` walks the kernels on the host, so all but the CUTLASS kernels are compared with the CPU everywhere. With
f32 activations only the order of additions differs. `cuda` is a real GPU, skipped and counted where there is none.
"""

import numpy as np
import pytest
from longcat import _testing as testing

from support.checkpoints import from_bf16, from_e4m3, quantize_fp8_blocks, to_bf16, to_e4m3
from support.compare import assert_rows_close
from support.device_cases import CPU, moe_case, normal
from support.devices import DEVICES, EMULATED, EMULATED_FP8, EMULATED_REVERSED, EMULATED_SMALL, needs_gpu
from support.tolerances import BF16_OPS, F32_TRANSCENDENTAL, FP8_OPS

pytestmark = pytest.mark.device


@pytest.fixture(scope="module", params=DEVICES)
def ops(request):
    return testing.DeviceOps(request.param)


@pytest.fixture(scope="module")
def tolerance(ops):
    return F32_TRANSCENDENTAL if ops.activation_dtype() == "F32" else BF16_OPS


# --- norms and sums --------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens,dim", [(1, 1), (7, 96), (3, 513), (2, 2304)])
def test_norms(ops, tolerance, tokens, dim):
    x, residual, weight = normal(tokens, dim), normal(tokens, dim, seed=1, scale=3), normal(dim, seed=2)
    assert_rows_close(ops.rms_norm(x, weight, 1e-5), CPU.rms_norm(x, weight, 1e-5), tolerance)
    for found, expected in zip(
        ops.add_rms_norm(residual, x, weight, 1e-6), CPU.add_rms_norm(residual, x, weight, 1e-6), strict=True
    ):
        assert_rows_close(found, expected, tolerance)


@pytest.mark.parametrize("dim", [70, 264])  # by single values, and by 16 bytes
def test_elementwise(ops, tolerance, dim):
    x, y, row_weight = normal(5, dim), normal(5, dim, seed=1), normal(5, seed=2)
    assert_rows_close(ops.add(x, y), CPU.add(x, y), tolerance)
    assert_rows_close(ops.add_scaled_rows(x, y, row_weight), CPU.add_scaled_rows(x, y, row_weight), tolerance)
    gate = 5 * x
    gate[0, :3] = [-100, 0, 100]
    assert_rows_close(ops.silu_mul(gate, y), CPU.silu_mul(gate, y), tolerance)
    rows = np.array([4, 0, 0, 2], np.int32)
    assert np.array_equal(ops.gather_rows(x, rows), x[rows])
    parts = normal(3, 4, 50, seed=3)  # of ranks, whose last rows are padding
    assert np.array_equal(ops.merge_vocab_parts(parts, 3), np.concatenate(parts[:, :3], axis=1))


@pytest.mark.parametrize("dim", [70, 264])
@pytest.mark.parametrize("is_routed", [True, False])
def test_the_end_of_a_layer_in_one_gives_the_bits_of_its_parts(ops, tolerance, is_routed, dim):
    residual, x, routed, y = (normal(5, dim, seed=seed) for seed in range(4))
    routed = routed if is_routed else np.empty((0, dim), np.float32)
    case = residual, x, routed, y, normal(5, seed=4), normal(dim, seed=5), 1e-5
    found, parts = (ops.add_shortcut_rms_norm(*case, fused) for fused in (True, False))
    for a, b, expected in zip(found, parts, CPU.add_shortcut_rms_norm(*case, True), strict=True):
        assert np.array_equal(a, b)
        assert_rows_close(a, expected, tolerance)


def test_select_token_ids(ops):
    ids, sampled = np.array([5, 6, 7, 8], np.int32), np.array([30, -1, 32], np.int32)
    sources = np.array([-1, 2, 1, 0], np.int32)
    assert ops.select_token_ids(ids, sampled, sources).tolist() == [5, 32, 0, 30]


@pytest.mark.parametrize("dim", [8, 6, 64])
@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_rope(ops, tolerance, factor, dim):
    positions = np.array([0, 1, 63, 64, 5000, 262143], np.int32)
    x, inv_freq = normal(6, 3, dim), (5e6 ** (-np.arange(0, dim, 2) / dim)).astype(np.float32)
    assert_rows_close(ops.rope(x, positions, inv_freq, factor), CPU.rope(x, positions, inv_freq, factor), tolerance)


# --- linear layers ---------------------------------------------------------------------------------

# Odd shapes go through the plain kernel; multiples of 8 through CUTLASS on a GPU. 1 token, a prime, tile size plus one.
SHAPES = [(1, 1, 1), (3, 33, 65), (1, 128, 64), (17, 200, 192), (129, 136, 264)]


@pytest.mark.parametrize("tokens,out,width", SHAPES)
@pytest.mark.parametrize("format", ["f32", "bf16", "fp8_block"])
@pytest.mark.parametrize("f32_out", [False, True])
def test_linear(ops, tolerance, tokens, out, width, format, f32_out):
    x, weight, scales = normal(tokens, width), normal(out, width, seed=1), None
    if format == "bf16":
        weight = to_bf16(weight)
    elif format == "fp8_block":
        weight, scales = quantize_fp8_blocks(weight)
    found = ops.linear(x, weight, scales, f32_out)
    assert_rows_close(found, CPU.linear(x, weight, scales, f32_out), tolerance)


@pytest.mark.parametrize("format", ["f32", "bf16", "fp8_block", "bf16_x8", "int8_x8", "int4_x8", "int4_x8_f16"])
def test_first_rows_of_a_matrix(ops, format):
    """The head of draft tokens may have them only: the same products, also behind the last block of 128."""
    x, weight, scales, packed = normal(3, 256), normal(304, 256, seed=1), None, ""
    if format == "bf16":
        weight = to_bf16(weight)
    elif format == "fp8_block":
        weight, scales = quantize_fp8_blocks(weight)
    elif format != "f32":
        weight, packed = testing.pack_matrix(weight, format), format
    whole = ops.linear_packed(x, weight, packed, 304, True) if packed else ops.linear(x, weight, scales, True)
    for rows in (128, 256):
        found = ops.linear_first_rows(x, weight, scales, packed, 304, rows)
        assert np.array_equal(found, whole[:, :rows])


# Whole blocks of 128: there a device that multiplies fp8 takes the inputs as fp8 too.
FP8_DEVICES = [EMULATED_FP8, pytest.param("cuda", marks=needs_gpu)]
FP8_SHAPES = [(1, 128, 128), (17, 256, 384), (130, 384, 256)]


def fp8_rows(x):
    """What is left of rows in e4m3 with a scale for every 128 values."""
    groups = x.reshape(len(x), -1, 128)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    scales = np.where(largest > 0, largest / np.float32(448), np.float32(1)).astype(np.float32)
    return (from_e4m3(to_e4m3(groups / scales)) * scales).reshape(x.shape)


@pytest.mark.parametrize("device", FP8_DEVICES)
@pytest.mark.parametrize("tokens,out,width", FP8_SHAPES)
def test_linear_in_fp8(device, tokens, out, width):
    ops = testing.DeviceOps(device)
    x = normal(tokens, width) * np.exp2(np.arange(width) // 128, dtype=np.float32)  # groups of other sizes
    weight, scales = quantize_fp8_blocks(normal(out, width, seed=1))
    found = ops.linear(x, weight, scales)
    assert_rows_close(found, CPU.linear(x, weight, scales), FP8_OPS)
    if device == EMULATED_FP8:
        assert_rows_close(found, CPU.linear(fp8_rows(x), weight, scales), BF16_OPS)
        assert not np.allclose(found, testing.DeviceOps(EMULATED).linear(x, weight, scales), rtol=1e-3)
    for count in (1, 16):
        assert np.array_equal(ops.linear(x[:count], weight, scales), found[:count])


@pytest.mark.parametrize("device", FP8_DEVICES)
def test_experts_in_fp8(device):
    ops = testing.DeviceOps(device)
    case = moe_case(40, 256, 128, 8, 4, 3)
    scales = []
    for e in range(8):
        for name in ("gate", "up", "down"):
            case[name][e], found = quantize_fp8_blocks(from_bf16(case[name][e]))
            scales.append(found)
    found, expected = ops.moe(**case, scales=scales), CPU.moe(**case, scales=scales)
    assert np.array_equal(found[0], expected[0])
    assert_rows_close(found[-1], expected[-1], 2 * FP8_OPS)  # two roundings one after the other
    alone = ops.moe(**{**case, "x": case["x"][:3]}, scales=scales)
    assert np.array_equal(alone[-1], found[-1][:3])


def test_scales_of_rows_lie_apart():
    for counts in ([1], [3, 0, 5], [0, 130, 1]):
        first, places = 0, set()
        for count in counts:
            places |= {
                testing.input_scale_at(first, count, row, group, 384)
                for row in range(first, first + count)
                for group in range(3)
            }
            first += count
        assert places == set(range(3 * sum(counts)))


@pytest.mark.parametrize("device", ["cpu", EMULATED, EMULATED_FP8, pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("rows,cols", [(1, 1), (130, 257), (256, 128)])
def test_quantized_matrices_are_the_same_everywhere(device, rows, cols):
    matrix = normal(rows, cols, scale=0.02)
    matrix[0, 0] = 3
    codes, scales = quantize_fp8_blocks(matrix)
    expected = from_e4m3(codes) * np.kron(scales, np.ones((128, 128), np.float32))[:rows, :cols]
    for stored in (matrix, to_bf16(matrix)):
        assert np.array_equal(testing.DeviceOps(device).quantized(stored).T, expected)


@pytest.mark.parametrize("heads,out,width", [(3, 9, 20), (4, 64, 32)])
def test_linear_per_head(ops, tolerance, heads, out, width):
    x, weight = normal(5, heads, width), to_bf16(normal(heads * out, width, seed=1))
    found, expected = ops.linear_per_head(x, weight), CPU.linear_per_head(x, weight)
    assert_rows_close(found, expected, tolerance)


@pytest.mark.parametrize("tokens,out,width", [(129, 33, 65), (129, 128, 64)])
def test_rows_do_not_depend_on_their_number(ops, tokens, out, width):
    x, weight = normal(tokens, width), to_bf16(normal(out, width, seed=1))
    whole = ops.linear(x, weight)
    for count in (1, 2, 16, 17, 64, 65):
        assert np.array_equal(ops.linear(x[:count], weight), whole[:count])


# --- embedding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden,width", [(24, 12), (64, 64)])
def test_embed(ops, tolerance, hidden, width):
    ids, rows = np.array([3, 0, 3, 10], np.int32), normal(4, width)
    word, projection = to_bf16(normal(11, hidden, seed=1)), to_bf16(normal(hidden, width, seed=2))
    assert_rows_close(
        ops.embed(ids, word, rows, projection, 1 / 7), CPU.embed(ids, word, rows, projection, 1 / 7), tolerance
    )
    assert_rows_close(ops.embed(ids, word, rows, None, 0.5), CPU.embed(ids, word, rows, None, 0.5), tolerance)


def test_words_of_shares_add_up(ops, tolerance):
    """Each of two ranks has some words and the projection of some tables."""
    ids, rows = np.array([3, 0, 3, 10, 7, 8], np.int32), normal(6, 40)
    word, projection = to_bf16(normal(11, 24, seed=1)), to_bf16(normal(24, 40, seed=2))
    whole = CPU.embed(ids, word, rows, projection, 1 / 7)
    first = ops.embed(ids, word[:8], rows[:, :16].copy(), projection[:, :16].copy(), 1 / 7)
    second = ops.embed(ids, word[8:], rows[:, 16:].copy(), projection[:, 16:].copy(), 1 / 7, first_word=8)
    assert_rows_close(first + second, whole, 2 * tolerance)
    alone = ops.embed(ids, word[8:], rows, None, 0.5, first_word=8)
    assert not alone[[0, 1, 2, 4]].any() and alone[[3, 5]].any()


def ngram_tables(max_order, splits, dim, rows=301, seed=0):
    return [to_bf16(normal(rows + 2 * t, dim, seed=seed + t)) for t in range((max_order - 1) * splits)]


def random_steps(rng, vocab, eos, num_sequences=4):
    """Sequences in chunks over several steps, decodes first; short ones, some EOS; blocks out of order."""
    blocks = rng.permutation(np.arange(1, 1 + 2 * num_sequences)).reshape(num_sequences, 2).tolist()
    ids = rng.integers(0, vocab, (num_sequences, 128))
    ids[rng.random(ids.shape) < 0.2] = eos
    done, steps = [0] * num_sequences, []
    for _ in range(6):
        decodes, prompts = [], []
        for s in rng.permutation(num_sequences):
            count = int(rng.integers(0, 20)) if rng.random() < 0.5 else 1
            if count == 0 or done[s] + count > 128:
                continue
            chunk = (blocks[s], done[s], ids[s, done[s] : done[s] + count].tolist())
            (decodes if count == 1 and done[s] > 0 else prompts).append(chunk)
            done[s] += count
        if decodes or prompts:
            steps.append((decodes + prompts, len(decodes)))
    return steps


@pytest.mark.parametrize("max_order,splits", [(1, 0), (2, 1), (4, 2), (4, 4), (16, 1)])
def test_ngram_lookup_is_exact(ops, max_order, splits):
    rng = np.random.default_rng(max_order)
    tables = ngram_tables(max_order, splits, dim=8)
    for _ in range(5):
        steps = random_steps(rng, vocab=97, eos=2)
        found = ops.ngram_lookup(steps, tables, 97, max_order, splits, 2, 9)
        expected = CPU.ngram_lookup(steps, tables, 97, max_order, splits, 2, 9)
        for a, b in zip(found, expected, strict=True):
            assert np.array_equal(a, b)


def test_ngram_rows_of_some_tables(ops):
    """Ids are of all tables, rows of those that are here, perhaps none."""
    tables = ngram_tables(4, 4, dim=8)
    steps = random_steps(np.random.default_rng(1), vocab=97, eos=2)
    ids, rows, lane = CPU.ngram_lookup(steps, tables, 97, 4, 4, 2, 9)
    moduli = [len(table) for table in tables]
    for first, last in [(0, 5), (5, 12), (7, 7)]:
        found = ops.ngram_lookup(steps, tables[first:last], 97, 4, 4, 2, 9, moduli, first)
        assert np.array_equal(found[0], ids) and np.array_equal(found[2], lane)
        if first < last:
            assert np.array_equal(found[1], rows[:, 8 * first : 8 * last])


@pytest.mark.parametrize("first,begin,last,end", [(0, 0, 0, 100), (3, 7, 3, 8), (2, 150, 3, 1), (4, 200, 11, 90)])
def test_ngram_rows_of_parts_of_tables(ops, first, begin, last, end):
    """From row `begin` of table `first` to before row `end` of table `last`: zeros for all others."""
    tables = ngram_tables(4, 4, dim=8)
    moduli = [len(table) for table in tables]
    steps = random_steps(np.random.default_rng(first), vocab=97, eos=2)
    ids, rows, lane = CPU.ngram_lookup(steps, tables, 97, 4, 4, 2, 9)
    ranges = [(begin if t == first else 0, end if t == last else moduli[t]) for t in range(first, last + 1)]
    parts = [tables[first + i][low:high] for i, (low, high) in enumerate(ranges)]
    found = ops.ngram_lookup(steps, parts, 97, 4, 4, 2, 9, moduli, first, begin)
    assert np.array_equal(found[0], ids) and np.array_equal(found[2], lane)
    for i, (low, high) in enumerate(ranges):
        here = (low <= ids[:, first + i]) & (ids[:, first + i] < high)
        whole = rows[:, 8 * (first + i) : 8 * (first + i + 1)]
        assert np.array_equal(found[1][:, 8 * i : 8 * (i + 1)], np.where(here[:, None], whole, 0))


def test_ngram_rows_elsewhere_are_not_read(ops):
    """Rows far beyond the memory of a few that are here, in tables of the longest that ids can name."""
    moduli = [2**31 - 1 - 2 * t for t in range(3)]
    steps = [([([1], 0, list(range(3, 60)))], 0)]
    parts = [np.full((3, 512), 1, np.float32) for _ in range(2)]
    ids, rows, _ = ops.ngram_lookup(steps, parts, 131072, 4, 1, 2, 2, moduli, 0, 2**30)
    assert (np.abs(ids[1:, :2] - 2**30) > 2**20).mean() > 0.5 and not rows.any()


def test_ngram_ids_of_the_real_model(ops):
    """The real row counts, with tables of one value; vectors computed by hand from the definition."""
    moduli = [10223617 + 2 * t for t in range(12)]
    tables = [np.zeros((m, 1), np.uint16) for m in moduli]
    ids, _, _ = ops.ngram_lookup([([([1], 0, [131071, 131070, 131069, 131068])], 0)], tables, 131072, 4, 4, 2, 2)
    assert ids[3].tolist() == [
        3930476, 3927116, 3923756, 3920396, 8183666, 7293911, 6404328, 5514917, 8016838, 4204349, 2534734, 3007981,
    ]  # fmt: skip
    ids, _, _ = ops.ngram_lookup([([([1], 0, [10, 11, 2, 14, 15, 16])], 0)], tables, 131072, 4, 4, 2, 2)
    assert ids[2, 8:].tolist() == [2204702, 2171094, 2137486, 2103878]  # an EOS looks back
    assert ids[3].tolist() == [14] * 12  # and nothing looks past it


# --- attention -------------------------------------------------------------------------------------


def attention_case(lengths, generated, heads, latent, rope, nope=6, v=5):
    """Chunks of given (start, count) behind stored histories: everything is stored by the call itself from position 0,
    so histories are chunks from 0."""
    chunks, block = [], 1
    for length in lengths:
        count = -(-length // 64)
        chunks.append((list(range(block, block + count))[::-1], 0, [0] * length))
        block += count
    tokens = sum(lengths)
    case = {
        "chunks": chunks,
        "num_blocks": block,
        "kv_a": normal(tokens, latent + rope),
        "norm_weight": normal(latent, seed=1),
        "inv_freq": (100.0 ** (-np.arange(rope // 2) / rope)).astype(np.float32),
        "generated": generated,
        "q": normal(tokens, heads, (latent if generated else nope) + rope, seed=2),
        "q_a": normal(tokens, 40, seed=5, scale=3),
    }
    if not generated:
        case["k_up"] = to_bf16(normal(heads * latent, nope, seed=3, scale=latent**-0.5))
        case["v_up"] = to_bf16(normal(heads * v, latent, seed=4, scale=latent**-0.5))
    return case


@pytest.mark.parametrize("cache_dtype", ["f32", "bf16", "fp8"])
@pytest.mark.parametrize("generated", [True, False], ids=["decode", "prefill"])
@pytest.mark.parametrize("lengths", [[1], [65, 1, 300], [127, 128, 64]], ids=str)
def test_attention(ops, tolerance, cache_dtype, generated, lengths):
    case = attention_case(lengths, generated, heads=9, latent=24, rope=6)
    (found, stored, q_a), (expected, cpu_stored, cpu_q_a) = (
        o.attention(cache_dtype=cache_dtype, **case) for o in (ops, CPU)
    )
    assert_rows_close(found, expected, tolerance if cache_dtype != "fp8" else max(tolerance, 0.04))
    assert_rows_close(q_a, cpu_q_a, tolerance)
    if ops.activation_dtype() == "BF16" and cache_dtype == "bf16":  # same inputs, same roundings
        written = (stored != 0xFF) | (cpu_stored != 0xFF)  # the rest is as it was: NaN
        assert written.any()
        differ = np.mean(stored[written] != cpu_stored[written])
        assert differ < 0.05, f"{differ:.1%} of the stored bytes differ"


@pytest.mark.parametrize("cache_dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("heads,lengths", [(32, [1, 130]), (16, [3, 65]), (48, [2])], ids=str)
def test_decode_of_the_published_shape(ops, tolerance, cache_dtype, heads, lengths):
    """512 latent and 64 rope values, and a multiple of 16 heads: on tensor cores, where activations are bf16."""
    case = attention_case(lengths, True, heads=heads, latent=512, rope=64)
    case["scale"] = 0.02
    found, expected = (o.attention(cache_dtype=cache_dtype, **case)[0] for o in (ops, CPU))
    assert_rows_close(found, expected, tolerance if cache_dtype != "fp8" else max(tolerance, 0.04))


def test_decode_in_little_shared_memory():
    """Blocks of 99 KiB: smaller tiles of bf16 latents on tensor cores, the plain kernel for fp8."""
    ops, case = testing.DeviceOps(EMULATED_SMALL), attention_case([3, 190], True, heads=32, latent=512, rope=64)
    case["scale"] = 0.02
    for cache_dtype, launches, tolerance in (("bf16", 2, BF16_OPS), ("fp8", 0, 0.04)):
        before = testing.emulated_thread_kernels()
        found = ops.attention(cache_dtype=cache_dtype, **case)[0]
        assert testing.emulated_thread_kernels() - before == launches  # the list of work, and the attention
        assert_rows_close(found, CPU.attention(cache_dtype=cache_dtype, **case)[0], tolerance)


DECODERS = [EMULATED, EMULATED_REVERSED, EMULATED_SMALL, pytest.param("cuda", marks=needs_gpu)]


@pytest.mark.parametrize("device", DECODERS)
@pytest.mark.parametrize("cache_dtype", ["bf16", "fp8"])
def test_decode_of_the_published_shape_ignores_its_batch(device, cache_dtype):
    """133 rows of a sequence in chunks of all kinds, so that others are neighbours, and beside another sequence."""
    case = attention_case([133, 70], True, heads=16, latent=512, rope=64)
    blocks, _, tokens = case["chunks"].pop(0)
    alone = {name: case[name][:133] for name in ("kv_a", "q", "q_a")}
    expected = testing.DeviceOps(EMULATED).attention(
        cache_dtype=cache_dtype, **{**case, **alone, "chunks": [(blocks, 0, tokens)]}
    )[0]
    ops = testing.DeviceOps(device)
    if device in ("cuda", EMULATED_SMALL):
        expected = ops.attention(cache_dtype=cache_dtype, **{**case, **alone, "chunks": [(blocks, 0, tokens)]})[0]
    for counts in ([133], [128, 5], [126, 1, 4, 2]):
        starts = [sum(counts[:i]) for i in range(len(counts))]
        chunks = [(blocks, start, [0] * count) for start, count in zip(starts, counts, strict=True)]
        found = ops.attention(cache_dtype=cache_dtype, **{**case, "chunks": chunks + case["chunks"]})[0]
        assert np.array_equal(found[:133], expected)


def prefill_case(lengths, heads):
    """Of the published shape, but for the number of heads: on tensor cores, where activations are bf16."""
    case = attention_case(lengths, False, heads=heads, latent=512, rope=64, nope=128, v=128)
    return {**case, "scale": 0.07}


@pytest.mark.parametrize("cache_dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("lengths", [[1], [130, 3], [64, 257, 65]], ids=str)
def test_prefill_of_the_published_shape(ops, tolerance, cache_dtype, lengths):
    case = prefill_case(lengths, heads=2)
    found, expected = (o.attention(cache_dtype=cache_dtype, **case)[0] for o in (ops, CPU))
    assert_rows_close(found, expected, tolerance if cache_dtype != "fp8" else max(tolerance, 0.04))


@pytest.mark.parametrize("device", DECODERS)
@pytest.mark.parametrize("cache_dtype", ["bf16", "fp8"])
def test_prefill_of_the_published_shape_ignores_cuts_and_batch(device, cache_dtype):
    """201 rows of a sequence in one chunk and in any others, beside another sequence. The reversed device has
    little memory: it takes two heads at most at a time."""
    case = prefill_case([201, 70], heads=3)
    blocks, _, tokens = case["chunks"].pop(0)
    alone = {name: case[name][:201] for name in ("kv_a", "q", "q_a")}
    expected = testing.DeviceOps(device if device in ("cuda", EMULATED_SMALL) else EMULATED).attention(
        cache_dtype=cache_dtype, **{**case, **alone, "chunks": [(blocks, 0, tokens)]}
    )[0]
    assert np.isfinite(expected).all()
    ops = testing.DeviceOps(device)
    for counts in ([201], [128, 73], [1, 63, 1, 1, 70, 65]):
        starts = [sum(counts[:i]) for i in range(len(counts))]
        chunks = [(blocks, start, [0] * count) for start, count in zip(starts, counts, strict=True)]
        found = ops.attention(cache_dtype=cache_dtype, **{**case, "chunks": chunks + case["chunks"]})[0]
        assert np.array_equal(found[:201], expected), counts


@pytest.mark.parametrize("lengths", [[1], [65, 2]], ids=str)
def test_prompt_rows_take_prefill_attention_however_few(lengths):
    """Keys and values, then attention: two kernels on tensor cores. Generated rows take none of them."""
    case = prefill_case(lengths, heads=1)
    before = testing.emulated_thread_kernels()
    testing.DeviceOps(EMULATED).attention(cache_dtype="bf16", **case)
    assert testing.emulated_thread_kernels() - before == 2


@pytest.mark.parametrize("cache_dtype", ["f32", "bf16", "fp8"])
def test_norm_and_store_in_one_give_the_bits_of_the_two(ops, cache_dtype):
    case = attention_case([1, 65], True, heads=2, latent=24, rope=6)
    for a, b in zip(
        *(ops.attention(cache_dtype=cache_dtype, **case, fused=fused) for fused in (True, False)), strict=True
    ):
        assert np.array_equal(a, b)


def test_long_decode_crosses_every_kind_of_piece(ops, tolerance):
    """Histories name the blocks of eight short sequences again and again, in random order, so that only 100 tokens of a
    long sequence are computed: those around a position where the length of pieces changes, or a long piece ends."""
    case, rng = attention_case([64] * 8 + [100] * 3, True, heads=1, latent=8, rope=2), np.random.default_rng(0)
    for i, position in enumerate((2048, 16384, 16384 + 2048), start=8):
        own_blocks, _, tokens = case["chunks"][i]
        history = rng.integers(1, 9, position // 64 - 1).tolist()
        case["chunks"][i] = ([*history, *own_blocks], position - 64, tokens)
    case["num_blocks"] = 300
    found, expected = (o.attention(cache_dtype="bf16", **case)[0] for o in (ops, CPU))
    assert_rows_close(found, expected, tolerance)


def test_attention_pieces_by_index_are_the_same_list():
    begin = 0
    for piece in range(340):
        assert testing.kv_piece_begin(piece) == begin
        end = testing.kv_piece_end(begin)
        assert testing.kv_piece_index(begin) == testing.kv_piece_index(end - 1) == piece
        begin = end
    assert begin > 327_680
    for positions in (1, 128, 129, 2048, 2049, 16384, 16385, 65536, 65537, 131072, 131073, 327680):
        count = testing.num_kv_pieces(positions)
        assert testing.kv_piece_begin(count - 1) < positions <= testing.kv_piece_begin(count)


# --- mixture of experts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens,hidden,width,routed,identity,topk",
    [(1, 20, 9, 5, 3, 4), (17, 20, 9, 5, 3, 4), (40, 64, 32, 8, 4, 3), (3, 16, 8, 40, 0, 2)],
)
def test_moe(ops, tolerance, tokens, hidden, width, routed, identity, topk):
    case = moe_case(tokens, hidden, width, routed, identity, topk)
    found, expected = ops.moe(**case), CPU.moe(**case)
    names = ("picks", "weights", "identity", "offsets", "tokens", "rows", "out")
    found, expected = (dict(zip(names, r, strict=True)) for r in (found, expected))
    rows = expected["offsets"][-1]
    for name in ("picks", "offsets", "rows"):
        assert np.array_equal(found[name], expected[name]), name
    assert np.array_equal(found["tokens"][:rows], expected["tokens"][:rows])
    assert_rows_close(found["weights"], expected["weights"], F32_TRANSCENDENTAL)
    assert np.allclose(found["identity"], expected["identity"], rtol=F32_TRANSCENDENTAL, atol=1e-7)
    assert_rows_close(found["out"], expected["out"], tolerance)


def test_experts_of_shares_add_up(ops, tolerance):
    """Three ranks have experts 0-1, 2-6 and 7: the same picks, each its own rows."""
    case = moe_case(33, 24, 16, routed=8, identity=4, topk=5)
    expected = CPU.moe(**case)
    total = np.zeros_like(expected[6])
    for first, last in [(0, 2), (2, 7), (7, 8)]:
        share = case | {name: case[name][first:last] for name in ("gate", "up", "down")}
        picks, _, identity, offsets, tokens, rows, out = ops.moe(**share, first_expert=first, n_routed_experts=8)
        assert np.array_equal(picks, expected[0])
        assert np.allclose(identity, expected[2], rtol=F32_TRANSCENDENTAL, atol=1e-7)
        assert np.array_equal(offsets, expected[3][first : last + 1] - expected[3][first])
        begin, end = expected[3][first], expected[3][last]
        assert np.array_equal(tokens[: end - begin], expected[4][begin:end])
        here = (picks >= first) & (picks < last)
        assert np.array_equal(rows, np.where(here, expected[5] - begin, -1))
        total += out
    assert_rows_close(total, expected[6], 3 * tolerance)


def test_padded_rows_pick_nothing(ops):
    case = moe_case(6, 20, 9, 5, 3, 4)
    picks, weights, identity, offsets, _, rows, out = ops.moe(**case, num_real_tokens=2)
    assert (picks[2:] == 5).all() and (weights[2:] == 0).all() and (identity[2:] == 0).all()
    assert (rows[2:] == -1).all() and (out[2:] == 0).all()
    alone = ops.moe(**{**case, "x": case["x"][:2]})
    assert offsets[-1] == alone[3][-1] and np.array_equal(out[:2], alone[-1])


@pytest.mark.parametrize("hidden", [776, 20])  # read by 16 bytes, and not
def test_picks_do_not_depend_on_the_number_of_tokens(ops, hidden):
    """One token is routed by other blocks than many: the same bits."""
    case = moe_case(20, hidden, 8, 37, 8, 4)
    case["x"] *= 0.0625  # exact in bf16
    weights = ops.moe(**case)[1]
    for count in (1, 8, 9):
        assert np.array_equal(ops.moe(**{**case, "x": case["x"][:count]})[1], weights[:count])
    expected = CPU.moe(**case)
    assert_rows_close(weights, expected[1], F32_TRANSCENDENTAL)


@pytest.mark.parametrize("dim", [8, 24, 7])
@pytest.mark.parametrize("format", ["bf16", "f32"])
def test_rows_of_tables_are_copied_exactly(ops, dim, format):
    """By 16 bytes where rows are aligned to them, else a value at a time."""
    tables = ngram_tables(4, 2, dim)
    if format == "f32":
        tables = [from_bf16(table) for table in tables]
    steps = random_steps(np.random.default_rng(dim), vocab=97, eos=2)
    for a, b in zip(*(o.ngram_lookup(steps, tables, 97, 4, 2, 2, 9) for o in (ops, CPU)), strict=True):
        assert np.array_equal(a, b)


def test_router_ties_go_to_the_lowest_id(ops):
    case = moe_case(2, 16, 8, 5, 3, 3)
    case["classifier"][:] = 0
    case["bias"][:] = 0
    assert ops.moe(**case)[0].tolist() == [[0, 1, 2]] * 2


def test_router_survives_nan(ops):
    case = moe_case(2, 16, 8, 5, 3, 3)
    case["x"][0] = np.nan
    picks = ops.moe(**case)[0]
    assert all(len(set(row)) == 3 and min(row) >= 0 and max(row) < 8 for row in picks.tolist())
    assert np.array_equal(picks[1], CPU.moe(**case)[0][1])


def test_expert_of_row():
    offsets = [0, 0, 3, 3, 3, 7, 9, 9]
    assert [testing.expert_of_row(offsets, row) for row in range(9)] == [1, 1, 1, 4, 4, 4, 4, 5, 5]


# --- sampling --------------------------------------------------------------------------------------


def sampling_cases(rng, count):
    for case in range(count):
        vocab = int(rng.integers(1, 60)) if case % 10 else 3000
        logits = np.round(rng.normal(size=vocab) * 3, 1).astype(np.float32)  # rounded: ties are common
        history = rng.integers(0, vocab, int(rng.integers(1, 70))).tolist()
        params = {
            "repetition_penalty": float(rng.choice([1.0, 1.06, 1.5])),
            "temperature": float(rng.choice([0.0, 0.5, 1.0, 1.7, 1e-40])),
            "top_k": int(rng.choice([0, 1, 4, 200])),
            "top_p": float(rng.choice([1.0, 0.93, 0.41, 0.0])),
            "min_p": float(rng.choice([0.0, 0.0613])),
            "presence_penalty": float(rng.choice([0.0, 0.7])),
            "frequency_penalty": float(rng.choice([0.0, -0.3])),
            "num_prompt_tokens": int(rng.integers(0, len(history) + 1)),
            "logit_bias": {int(i): float(rng.choice([-2.0, 1.5])) for i in rng.integers(0, vocab, 2)},
            "seed": case,
            "sample_idx": case % 3,
            "banned_ids": [int(i) for i in rng.integers(0, vocab, int(rng.integers(0, 3)))],
            "bad_words": [[history[-1], int(rng.integers(vocab))], [0, 0, 0, 0]] if rng.random() < 0.5 else [],
            "allowed_ids": sorted({int(i) for i in rng.integers(0, vocab, 20)}) if rng.random() < 0.3 else [],
        }
        if rng.random() < 0.3:
            bits = np.zeros(-(-vocab // 32) * 32, np.uint8)
            bits[:vocab] = rng.random(vocab) < 0.7
            params["mask"] = np.packbits(bits, bitorder="little").view("<u4").tolist()
        yield logits, params, history


def test_sampled_ids_are_the_cpus(ops):
    rng = np.random.default_rng(7)
    for case, (logits, params, history) in enumerate(sampling_cases(rng, 400)):
        found, expected = (o.sample(logits[None], [params], [history])[0] for o in (ops, CPU))
        assert found == expected, (case, params)


@pytest.mark.parametrize("top_k,top_p,min_p", [(50, 1, 0), (4, 0.95, 0), (0, 0.9, 0), (0, 0.5, 0.01), (700, 0.99, 0)])
def test_sampled_ids_of_a_large_vocabulary(ops, top_k, top_p, min_p):
    """Thresholds lie within bins of many ids, after removals that leave a list of some."""
    rng = np.random.default_rng(top_k)
    for case in range(4):
        logits = (rng.normal(size=30_000) * (0.3, 2, 5, 5)[case]).astype(np.float32)
        logits[rng.integers(0, 30_000, 200)] = logits.max()  # ties at the top
        params = {"seed": case, "temperature": 0.7, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        found, expected = (o.sample(logits[None], [params], [[5]])[0] for o in (ops, CPU))
        assert found == expected, case


def test_many_rows_at_once_are_the_rows_alone(ops):
    rng = np.random.default_rng(8)
    logits = np.round(rng.normal(size=(70, 50)) * 3, 1).astype(np.float32)
    params = [{"seed": s, "top_p": 0.8, "frequency_penalty": 0.2} for s in range(70)]
    histories = [rng.integers(0, 50, 1 + s).tolist() for s in range(70)]
    together = ops.sample(logits, params, histories).tolist()
    assert together == CPU.sample(logits, params, histories).tolist()


def test_a_recording_samples_the_rows_that_are_set(ops):
    """Three kernels and no copy, whatever the rows ask, even after their lists have outgrown their memory."""
    rng = np.random.default_rng(9)
    logits = rng.normal(size=(5, 9000)).astype(np.float32)
    histories = [rng.integers(0, 9000, 1 + 60 * s).tolist() for s in range(5)]
    allowed = [int(i) for i in rng.permutation(9000)[:8000]]
    calls = [
        [{"temperature": 0.0}] * 5,
        [{"seed": s, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2} for s in range(5)],
        [],
        [{"seed": s, "top_p": 0.7, "allowed_ids": allowed} for s in range(4)],
        [{"seed": 3, "min_p": 0.1}, {"temperature": 0.0, "banned_ids": [int(logits[1].argmax())]}],
    ]
    found, nodes = ops.sample_recorded(logits, calls, histories)
    for ids, params in zip(found, calls, strict=True):
        expected = CPU.sample(logits[: len(params)], params, histories[: len(params)]) if params else []
        assert ids.tolist() == [*expected, *[77] * (5 - len(params))]
    assert nodes == 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_logits_give_no_token(ops, value):
    logits = np.zeros((2, 40), np.float32)
    logits[0, 7] = value
    assert ops.sample(logits, [{}] * 2, [[0], [0]])[0] == -1
    logits[0, 7] = -np.inf
    assert ops.sample(logits, [{"temperature": 0.0}] * 2, [[0], [0]])[0] == 0
    assert ops.sample(logits, [{"banned_ids": list(range(40))}] * 2, [[0], [0]]).tolist() == [-1, -1]


def test_token_logprobs(ops):
    logits = np.random.default_rng(1).normal(size=(3, 500)).astype(np.float32)
    logits[0, [4, 9]] = 7  # a tie at the top
    logits[1, 5] = -np.inf
    chosen = np.array([9, 0, 17], np.int32)
    (values, ids, ranks), (cpu_values, cpu_ids, cpu_ranks) = (o.token_logprobs(logits, chosen, 5) for o in (ops, CPU))
    assert np.array_equal(ids, cpu_ids) and np.array_equal(ranks, cpu_ranks)
    assert np.abs(values - cpu_values).max() < 1e-5


def test_order_keys_are_ordered_like_floats():
    values = np.array([-np.inf, -3e38, -1.5, -1e-45, -0.0, 0.0, 1e-45, 1.5, 3e38, np.inf], np.float32)
    keys = [testing.order_key(float(v)) for v in values]
    assert [testing.value_of_key(key) for key in keys] == values.tolist()
    assert keys == sorted(keys) and keys[4] == keys[5] and len(set(keys)) == len(keys) - 1


# --- the emulation ---------------------------------------------------------------------------------


def test_no_result_depends_on_the_order_of_blocks_and_threads():
    forwards, backwards = testing.DeviceOps(EMULATED), testing.DeviceOps(EMULATED_REVERSED)
    case = moe_case(17, 20, 9, 5, 3, 4)
    for a, b in zip(forwards.moe(**case), backwards.moe(**case), strict=True):
        assert np.array_equal(a, b)
    for generated in (True, False):
        case = attention_case([65, 1, 130], generated, heads=9, latent=24, rope=6)
        for cache_dtype in ("bf16", "fp8"):
            for a, b in zip(
                forwards.attention(cache_dtype=cache_dtype, **case),
                backwards.attention(cache_dtype=cache_dtype, **case),
                strict=True,
            ):
                assert np.array_equal(a, b)
    rng, tables = np.random.default_rng(3), ngram_tables(4, 4, dim=8)
    steps = random_steps(rng, vocab=97, eos=2)
    for a, b in zip(*(o.ngram_lookup(steps, tables, 97, 4, 4, 2, 9) for o in (forwards, backwards)), strict=True):
        assert np.array_equal(a, b)
    for logits, params, history in sampling_cases(rng, 60):
        assert np.array_equal(*(o.sample(logits[None], [params], [history]) for o in (forwards, backwards)))
