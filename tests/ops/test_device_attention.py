"""Attention on every device: prompt tokens, generated tokens, and the pieces of long histories."""

import numpy as np
import pytest
from longcat import _testing as testing

from support.compare import assert_rows_close
from support.device_cases import CPU, attention_case
from support.devices import EMULATED, EMULATED_REVERSED, EMULATED_SMALL, needs_gpu
from support.tolerances import BF16_OPS

pytestmark = pytest.mark.device


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
