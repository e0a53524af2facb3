"""Packed weights: what is stored, and products with it on every instruction set this machine has."""

import os
import platform
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import longcat
import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing

from support.checkpoints import from_bf16, from_e4m3, to_bf16

X8 = ["bf16_x8", "int8_x8", "int4_x8", "int8_x8_f16", "int4_x8_f16"]
ROWS = ["int8_row", "int4_row"]
GRIDS = ["int8_x8", "int4_x8", "int8_x8_f16", "int4_x8_f16", "int8_b32", "int4_b32"]
# (out, in): one group and one block, more, groups and blocks that are not full, odd widths, several chunks of columns.
SHAPES = [(8, 32), (64, 96), (40, 70), (17, 33), (128, 256), (9, 1), (1, 31), (200, 520), (44, 2101)]
NUM_INPUTS = [1, 2, 3, 4, 5, 8, 9, 70]  # below, at and beyond every tile; more than are kept in the cache at once
BITS = {format: int(format[3]) for format in GRIDS + ROWS}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("format, unit", [(format, 2 if format == "bf16_x8" else 32) for format in X8])
@pytest.mark.parametrize("shape", [(32, 128), (19, 70)])
def test_slices_have_the_values_of_the_whole(format, unit, shape):
    """What a rank cuts out, which may end with the matrix's own rest of a block."""
    rows, cols = shape
    packed = testing.pack_matrix(normal(rows, cols), format)
    whole = _core.unpack(packed, format, rows, cols)
    for row_range in [(0, rows), (8, 16), (16, rows)]:
        for col_range in [(0, cols), (0, unit), (64, cols), (unit, 2 * unit)]:
            part = testing.slice_packed(packed, format, rows, cols, row_range, col_range)
            size = (row_range[1] - row_range[0], col_range[1] - col_range[0])
            found = _core.unpack(part, format, *size)
            assert np.array_equal(found, whole[slice(*row_range), slice(*col_range)])
    for row_range, col_range in [((4, 12), (0, cols)), ((0, rows), (unit // 2, cols))]:
        with pytest.raises(_core.Error, match="expected whole blocks of"):
            testing.slice_packed(packed, format, rows, cols, row_range, col_range)


def unpacked(matrix, format):
    packed = testing.pack_matrix(matrix, format)
    assert packed.shape == _core.packed_shape(format, *matrix.shape)
    return packed, _core.unpack(packed, format, *matrix.shape)


def blocks_of(x):
    """x in blocks of 32 columns, filled up with zeros: [rows, blocks, 32]."""
    rows, cols = x.shape
    padded = np.zeros((rows, -(-cols // 32) * 32), x.dtype)
    padded[:, :cols] = x
    return padded.reshape(rows, -1, 32)


def quantized_inputs(x):
    """(integers, scales): 127 is the largest of 32 columns, the nearest integer, ties to even."""
    blocks = blocks_of(x)
    most = np.abs(blocks).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    return np.rint(blocks * inverse), most[..., 0] / np.float32(127)


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_is_kept(shape):
    matrix = from_bf16(to_bf16(normal(*shape)))
    assert np.array_equal(unpacked(matrix, "bf16_x8")[1], matrix)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", GRIDS)
def test_values_are_within_half_a_step(shape, format):
    """Of the scale a block of 32 needs; int4's searched scale may clip one end for the good of the rest."""
    matrix = normal(*shape)
    error = blocks_of(unpacked(matrix, format)[1] - matrix)
    most = np.abs(blocks_of(matrix)).max(-1)
    assert np.all(np.abs(error).max(-1) <= most * (0.51 / 127 + 2**-8 if BITS[format] == 8 else 0.16))
    # No worse than the plain choice, the largest value at the end of the range, in bf16 as it is stored.
    steps = 2 ** (BITS[format] - 1) - 1
    scale = from_bf16(to_bf16(most / steps))[..., None]
    q = np.clip(np.rint(np.divide(blocks_of(matrix), scale, where=scale > 0, out=np.zeros_like(error))), -steps, steps)
    plain = ((q * scale - blocks_of(matrix)) ** 2).sum()
    gain = 0.95 if BITS[format] == 4 and matrix.size > 200 else 1.0001  # in a single block there may be none
    assert (error**2).sum() <= plain * gain + 1e-12


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", ROWS)
def test_rows_have_one_scale(shape, format):
    matrix = normal(*shape)
    matrix[0] = 0
    found = unpacked(matrix, format)[1]
    steps = 2 ** (BITS[format] - 1) - 1
    step = np.abs(matrix).max(1, keepdims=True) / steps
    plain = np.rint(np.divide(matrix, step, where=step > 0, out=np.zeros_like(matrix))) * step
    if format == "int8_row":
        assert np.all(np.abs(found - matrix) <= 0.5001 * step)
    else:  # the searched scale may cut the largest for the good of the rest
        error, of_plain = ((x - matrix) ** 2 for x in (found, plain))
        assert np.all(error.sum(1) <= of_plain.sum(1) * 1.0001 + 1e-12)
        assert matrix.size < 200 or error.sum() < 0.97 * of_plain.sum()
        assert all(len(np.unique(row)) <= 15 for row in found)
    assert not found[0].any()


def hostile_scales(format, shape, seed=0):
    """Bits of finite scales of all magnitudes and signs, zeros and subnormals among them, and their values."""
    bits = np.random.default_rng(seed).integers(0, 1 << 16, (shape[0], -(-shape[1] // 32))).astype(np.uint16)
    bits.flat[:4] = [0, 0x8001, 0x03FF, 0x7BFF][: bits.size]
    half = not format.endswith("x8")
    values = bits.view(np.float16).astype(np.float32) if half else from_bf16(bits & 0xBFFF)  # no bf16 beyond 1
    bits = np.where(np.isfinite(values), bits if half else bits & 0xBFFF, 0x3C00).astype(np.uint16)
    return bits, bits.view(np.float16).astype(np.float32) if half else from_bf16(bits)


def random_grid(format, shape, seed=0):
    """Integers of the format's whole range, -128 too, and hostile scales."""
    most = 1 << BITS[format] - 1
    q = np.random.default_rng(seed).integers(-most, most, shape).astype(np.int8)
    q.flat[0] = -most
    return q, *hostile_scales(format, shape, seed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", GRIDS)
def test_grids_are_kept(shape, format):
    q, bits, scales = random_grid(format, shape)
    packed = _core.pack_grid(q, bits, format)
    assert packed.shape == _core.packed_shape(format, *shape)
    expected = q * np.repeat(scales, 32, axis=1)[:, : shape[1]]
    assert np.array_equal(_core.unpack(packed, format, *shape), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_half_scales_change_no_value(shape):
    """The scales that are chosen for floats are bf16 numbers, which are exact as halves."""
    matrix = normal(*shape)
    for integers in ("int4", "int8"):
        expected = unpacked(matrix, f"{integers}_x8")[1]
        for format in (f"{integers}_x8_f16", f"{integers}_b32"):
            assert np.array_equal(unpacked(matrix, format)[1], expected), format


@pytest.mark.parametrize("shape", SHAPES)
def test_fp8_rows_have_one_scale(shape):
    matrix = normal(*shape)
    matrix[0] = 0
    found = unpacked(matrix, "fp8_row")[1]
    scale = np.abs(matrix).max(1, keepdims=True) / np.float32(448)
    scale[scale == 0] = 1
    codes = np.array([[testing.to_e4m3(float(v)) for v in row] for row in matrix / scale], np.uint8)
    assert np.array_equal(found, from_e4m3(codes) * scale)


@pytest.mark.parametrize("format", [format for format in GRIDS if "_x8" in format])
def test_products_are_the_sums_of_the_definition(format):
    """Block by block, one fused multiply-add each: sum of integers times the product of both scales."""
    shape = (17, 100)
    q, bits, scales = random_grid(format, shape)
    x = normal(3, shape[1])
    inputs, input_scales = quantized_inputs(x)
    expected = np.zeros((3, shape[0]), np.float32)
    for b in range(scales.shape[1]):
        integers = inputs[:, b].astype(np.int64) @ blocks_of(q)[:, b].astype(np.int64).T
        factors = scales[None, :, b] * input_scales[:, None, b]
        for at, integer in np.ndenumerate(integers):
            expected[at] = float(Fraction(int(integer)) * Fraction(float(factors[at])) + Fraction(float(expected[at])))
    found = testing.Ops(2).linear_packed(x, _core.pack_grid(q, bits, format), format, shape[0])
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", X8)
@pytest.mark.parametrize("threads", [1, 3])
def test_linear(shape, format, threads):
    ops = testing.Ops(threads)
    packed, stored = unpacked(normal(*shape), format)
    for num_inputs in NUM_INPUTS:
        x = normal(num_inputs, shape[1], seed=1)
        used = x
        if format != "bf16_x8":  # the exact sum of the integers: only the additions of blocks round
            q, scales = quantized_inputs(x)
            used = (q * scales[..., None]).reshape(num_inputs, -1)[:, : shape[1]]
        found = ops.linear_packed(x, packed, format, shape[0])
        bound = np.abs(used).astype(np.float64) @ np.abs(stored).astype(np.float64).T
        assert np.all(np.abs(found - used.astype(np.float64) @ stored.T.astype(np.float64)) <= 5e-6 * bound + 1e-30)
        alone = np.concatenate([ops.linear_packed(x[i : i + 1], packed, format, shape[0]) for i in range(num_inputs)])
        assert np.array_equal(found, alone), f"{num_inputs} inputs together differ from each alone"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", ["bf16", "bf16_x8"])
@pytest.mark.parametrize("threads", [1, 3])
def test_bf16_rounds_inputs_where_the_processor_multiplies_bf16(shape, format, threads):
    """Under dtype bf16; under f32, and on other sets, inputs stay as they are."""
    rounds = _core.cpu_isa() in ("avx512_bf16", "amx_bf16")
    ops = testing.Ops(threads, "bf16")
    packed, stored = unpacked(normal(*shape), "bf16_x8")

    def linear(ops, x):
        if format == "bf16":
            return ops.linear(x, to_bf16(stored), None)
        return ops.linear_packed(x, packed, format, shape[0])

    for num_inputs in [*NUM_INPUTS, 131]:  # more than 128: as many are in the second-level cache at once
        x = normal(num_inputs, shape[1], seed=1)
        used = from_bf16(to_bf16(x)) if rounds else x
        found = linear(ops, x)
        bound = np.abs(used).astype(np.float64) @ np.abs(stored).astype(np.float64).T
        assert np.all(np.abs(found - used.astype(np.float64) @ stored.T.astype(np.float64)) <= 5e-6 * bound + 1e-30)
        alone = np.concatenate([linear(ops, x[i : i + 1]) for i in range(num_inputs)])
        assert np.array_equal(found, alone), f"{num_inputs} inputs together differ from each alone"
    assert np.array_equal(found, linear(testing.Ops(threads), x)) != rounds
    x[0, 0] = np.nan
    found = linear(ops, x)
    assert not np.isfinite(found[0]).any() and np.isfinite(found[1:]).all()


@pytest.mark.parametrize("format", X8)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(format, value):
    x = normal(3, 70)
    x[1, 65] = value
    found = testing.Ops(1).linear_packed(x, testing.pack_matrix(normal(16, 70), format), format, 16)
    assert not np.isfinite(found[1]).any() and np.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize("format", X8)
def test_zeros_and_tiny_values(format):
    x = np.zeros((2, 64), np.float32)
    x[1] = 1e-42
    found = testing.Ops(1).linear_packed(x, testing.pack_matrix(normal(8, 64), format), format, 8)
    assert not found[0].any() and np.isfinite(found).all() and np.abs(found).max() < 1e-38


SCRIPT = """
import sys
import numpy as np
from longcat import _core
from longcat import _testing as testing
assert _core.cpu_isa() == sys.argv[1]
ops, rng = testing.Ops(2), np.random.default_rng(0)
for out, width in [(8, 32), (40, 70), (17, 33), (200, 520), (44, 2101)]:
    matrix = rng.standard_normal((out, width)).astype(np.float32)
    for format in ["bf16_x8", "int8_x8", "int4_x8", "int8_x8_f16", "int4_x8_f16"]:
        packed = testing.pack_matrix(matrix, format)
        if format.endswith("f16"):  # scales of all halves that are finite
            most = 1 << int(format[3]) - 1
            q = rng.integers(-most, most, (out, width)).astype(np.int8)
            bits = rng.integers(0, 1 << 15, (out, -(-width // 32))) % 0x7C00 | rng.integers(0, 2, (out, 1)) << 15
            packed = _core.pack_grid(q, bits.astype(np.uint16), format)
        for count in [1, 3, 7, 9]:
            x = rng.standard_normal((count, width)).astype(np.float32)
            sys.stdout.buffer.write(ops.linear_packed(x, packed, format, out).tobytes())
"""


def run_on(isa):
    package = Path(longcat.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, isa],
        capture_output=True,
        env={**os.environ, "LONGCAT_ISA": isa, "PYTHONPATH": str(package)},
        timeout=60,
    )


def test_every_instruction_set_gives_the_same_bits():
    results = {}
    for isa in ["portable", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx_bf16", "neon_dotprod"]:
        done = run_on(isa)
        if b"this machine has" in done.stderr:
            continue
        assert done.returncode == 0, done.stderr.decode()
        results[isa] = done.stdout
    assert len(results["portable"]) > 10_000
    for isa, result in results.items():
        assert result == results["portable"], isa


def test_an_unknown_instruction_set_is_refused():
    assert b"[cpu] LONGCAT_ISA=mmx is unknown: expected one of portable" in run_on("mmx").stderr
    other = "neon_dotprod" if platform.machine() == "x86_64" else "avx2"
    assert f"[cpu] LONGCAT_ISA={other}: this machine has portable".encode() in run_on(other).stderr


def test_wrong_arguments():
    with pytest.raises(ValueError, match='found format "int3"; expected one of bf16_x8, int8_x8'):
        testing.pack_matrix(normal(8, 32), "int3")
    for value in (np.nan, np.inf):
        matrix = normal(8, 32)
        matrix[5, 7] = value
        with pytest.raises(longcat.Error, match=f"row 5, column 7 is {value}; expected a finite value"):
            testing.pack_matrix(matrix, "int4_x8")
    matrix = normal(8, 32)
    matrix[2, 3] = 1e5
    with pytest.raises(longcat.Error, match="row 2, column 3 is 100000; expected a finite value up to 65504"):
        testing.pack_matrix(matrix, "int4_b32")
    with pytest.raises(ValueError, match="10 bytes; expected 320"):
        _core.unpack(np.zeros(10, np.uint8), "int8_x8", 8, 32)


@pytest.mark.parametrize("format", _core.PACKED_FORMATS)
def test_extreme_floats(format):
    """The largest and the smallest stay finite and near, or are refused."""
    half = format.endswith(("f16", "b32"))
    matrix = np.zeros((9, 64), np.float32)
    for magnitude in (1e-45, 3e-43, 1e-41, 6e-8, 6e4 if half else 1.7e38):
        matrix[1:, ::3], matrix[1:, 1::3] = magnitude, -magnitude
        found = unpacked(matrix, format)[1]
        step = 2.0**-20 if half else 2.0**-129  # of scales that are subnormal
        assert np.abs(found.astype(np.float64) - matrix).max() <= 0.27 * magnitude + step
    matrix[2, 3] = np.finfo(np.float32).max
    with pytest.raises(longcat.Error, match="row 2, column 3 is 3.40282e.38; expected a finite value up to"):
        testing.pack_matrix(matrix, format)


@pytest.mark.parametrize("format", _core.PACKED_FORMATS)
def test_a_matrix_without_columns_is_refused(format):
    for call in (lambda: _core.packed_shape(format, 8, 0), lambda: _core.scan_packed(b"", format, 0)):
        with pytest.raises(ValueError, match="found 0 columns; expected at least 1"):
            call()
    with pytest.raises(ValueError, match="found 0 columns; expected at least 1"):
        _core.pack_values(np.zeros((8, 0), np.float32), format)


def test_grids_that_cannot_be_stored():
    q, scales = np.zeros((9, 70), np.int8), np.zeros((9, 3), np.uint16)
    with pytest.raises(ValueError, match="expected values .rows, cols. and scales"):
        _core.pack_grid(q, scales[:, :2], "int8_x8")
    for format in ("bf16_x8", "int8_row", "fp8_row"):
        with pytest.raises(ValueError, match=f"{format} has no scales of blocks; expected int8_x8, int4_x8"):
            _core.pack_grid(q, scales, format)
    q[8, 69] = 8
    with pytest.raises(ValueError, match="row 8, column 69 is 8; expected -8 to 7 in int4_x8_f16"):
        _core.pack_grid(q, scales, "int4_x8_f16")
    for format, bits in [("int8_x8", 0x7F80), ("int8_x8", 0xFFC0), ("int8_x8_f16", 0x7C00), ("int8_b32", 0xFE00)]:
        scales[4, 1] = bits
        with pytest.raises(longcat.Error, match="row 4: the scale of column 32 is -?(inf|nan); expected a finite"):
            _core.pack_grid(q, scales, format)
