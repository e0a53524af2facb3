"""The kernels of amx_bf16: their source on emulated tiles, and their machine code with emulated tile instructions.

The emulated instruction is compared with exact rational numbers, and the kernels with NumPy, bit for bit.
"""

import os
import platform
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import longcat
import numpy as np
import pytest
from longcat import _testing as testing

from support.checkpoints import from_bf16, to_bf16


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


LEAST = Fraction(1, 1 << 126)  # the smallest normal number


def rounded(value: Fraction) -> Fraction:
    """Rounds to 24 bits at any exponent, ties to even, and flushes what is then too small. No overflow."""
    if not value:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length() - 24
    exponent += abs(value) >= Fraction(2) ** (exponent + 24)
    value = round(value / Fraction(2) ** exponent) * Fraction(2) ** exponent  # ties to even
    return value if abs(value) >= LEAST else Fraction(0)


def exact(bits):
    """bf16 as fractions, subnormal numbers as 0."""
    values = from_bf16(np.asarray(bits, np.uint16))
    return [[Fraction(float(v)) if abs(float(v)) >= LEAST else Fraction(0) for v in row] for row in values]


def test_the_emulated_instruction_is_exact():
    rng = np.random.default_rng(0)
    for trial in range(12):
        m, n = rng.integers(1, 7), rng.integers(1, 4)
        # Numbers around 1, or around the square root of the smallest, so that sums and products are often too small.
        centre, spread = [(127, 3), (63, 6), (20, 20)][trial % 3]
        a, b = (
            (rng.integers(0, 2, shape) << 15 | (centre + rng.integers(-spread, spread + 1, shape)) << 7)
            | rng.integers(0, 128, shape)
            for shape in ((m, 32), (32, n))
        )
        c = np.zeros((m, n), np.float32) if trial % 2 else normal(m, n, seed=trial)
        found = testing.tile_product(c, a, b)
        left, right = exact(a), exact(b)
        for i in range(m):
            for j in range(n):
                sums = [Fraction(0), Fraction(0)]
                for k in range(32):
                    sums[k % 2] = rounded(sums[k % 2] + left[i][k] * right[k][j])
                expected = rounded(Fraction(float(c[i, j])) + rounded(sums[0] + sums[1]))
                assert Fraction(float(found[i, j])) == expected, (trial, i, j)


def test_the_emulated_instruction_flushes_before_it_rounds_up():
    """Just below the smallest normal number, by the 24 bits of a larger exponent."""
    a, b = np.zeros((3, 32), np.float32), np.zeros((32, 1), np.float32)
    a[:, 0], b[0] = 2.0**-63, 2.0**-63
    b[2] = -(2.0**-81)
    a[:, 2] = [2.0**-71, 2.0**-70, 2.0**-70 * (1 + 2.0**-7)]  # less than a tie, a tie, and more
    found = testing.tile_product(np.zeros((3, 1), np.float32), to_bf16(a), to_bf16(b))
    assert found[:, 0].tolist() == [2.0**-126, 2.0**-126, 0]


def fused(a, b, c):
    """a b + c for factors of 8 bits. float64 holds the sum, or rounds where that cannot make a tie of float32."""
    total = a.astype(np.float64) * b + c
    result = total.astype(np.float32)
    return np.where(np.abs(total) < 2.0**-126 - 2.0**-151, np.float32(0), result)


def reference(x, stored):
    """What the instruction adds, in blocks of 32 columns."""
    used, width = from_bf16(to_bf16(x)), -x.shape[1] % 32
    used, stored = (np.pad(matrix, ((0, 0), (0, width))) for matrix in (used, stored))
    used, stored = (np.where(np.abs(matrix) < 2.0**-126, np.float32(0), matrix) for matrix in (used, stored))
    out = np.zeros((len(x), len(stored)), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for begin in range(0, used.shape[1], 32):
            sums = [np.zeros_like(out), np.zeros_like(out)]
            for k in range(32):
                sums[k % 2] = fused(used[:, begin + k, None], stored[None, :, begin + k], sums[k % 2])
            out += sums[0] + sums[1]
    return out


def bits(values):
    values = np.where(np.isnan(values), np.float32(np.nan), values) + np.float32(0)  # one NaN, and one zero
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


class Matrix:
    """Random weights of bf16, with values that are not finite where a kernel could read too far."""

    def __init__(self, out, width, format):
        self.shape, self.format = (out, width), format
        stored = normal(out, width)
        if out > 2:  # before and behind other rows; in groups, before other pairs of columns
            stored[out // 2, 0], stored[out // 2, -1] = np.inf, np.nan
        self.stored = from_bf16(to_bf16(stored))
        if format == "bf16":
            self.weight = to_bf16(stored)
        else:
            finite = np.where(np.isfinite(self.stored), self.stored, 0).astype(np.float32)
            self.weight = testing.pack_matrix(finite, "bf16_x8")
            pairs = self.weight.view(np.uint16).reshape(len(self.weight), -1, 8, 2)
            for k in (0, width - 1):
                pairs[out // 2 // 8, k // 2, out // 2 % 8, k % 2] = to_bf16(self.stored[out // 2, k : k + 1])[0]

    def linear(self, x, kernels, ranges=None, **options):
        """Checks also that no other output is written, and that tiles are configured once per 64 inputs."""
        out = self.shape[0]
        ranges = [(0, out)] if ranges is None else ranges
        result = testing.tile_linear(x, self.weight, out, ranges, kernels=kernels, **options)
        if result is None:
            pytest.skip("needs a processor with AVX512_BF16")
        found, configurations = result
        chunks = -(-len(found) // 64)
        assert configurations == len(ranges) * chunks or (kernels == "compiled" and has_amx())
        assert (found[:, out:] == -1).all()
        return found[:, :out]


def has_amx():
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return flags is not None and {"amx_bf16", "amx_tile"} <= set(flags[1].split())


KERNELS = ["emulated", "compiled"]
FORMATS = ["bf16", "bf16_x8"]
SHAPES = [(1, 1), (1, 64), (7, 33), (8, 31), (9, 2), (15, 63), (16, 32), (17, 70), (33, 96), (40, 257), (89, 1101)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_tiles_give_the_bits_of_the_reference(shape, format, kernels):
    matrix = Matrix(*shape, format)
    x = normal(70, shape[1], seed=1)
    expected = bits(reference(x, matrix.stored))
    for count in [1, 2, 15, 16, 17, 33, 70]:
        assert np.array_equal(bits(matrix.linear(x[:count], kernels)), expected[:count]), count


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_any_number_of_inputs_gives_the_same_bits(format, kernels):
    matrix = Matrix(20, 40, format)
    x = normal(70, 40, seed=1)
    x[3, 39], x[20, 0], x[41, 7] = np.nan, -np.inf, 1e-40
    expected = bits(reference(x, matrix.stored))
    for count in range(1, 71):
        for paired in (False, True):
            assert np.array_equal(bits(matrix.linear(x[:count], kernels, paired=paired)), expected[:count]), count


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_any_cut_of_the_rows_gives_the_same_bits(format, kernels):
    matrix = Matrix(89, 70, format)
    x = normal(21, 70, seed=1)
    expected = bits(reference(x, matrix.stored))
    unit = 1 if format == "bf16" else 8
    for cuts in [[0, 8, 16], [0, 16, 48], [0, 64], [0, 5 * unit, 6 * unit, 9 * unit]]:
        ends = [*cuts[1:], 89]
        ranges = [(begin, end - begin) for begin, end in zip(cuts, ends, strict=True)]
        assert np.array_equal(bits(matrix.linear(x, kernels, ranges)), expected), cuts
    found = matrix.linear(x, kernels, [(16, 24)])
    assert np.array_equal(bits(found[:, 16:40]), expected[:, 16:40])
    assert (found[:, :16] == -1).all() and (found[:, 40:] == -1).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_any_rows_of_the_inputs(format, kernels):
    """As the experts read them: listed rows, and rows from the middle."""
    matrix = Matrix(33, 70, format)
    x = normal(90, 70, seed=1)
    expected = bits(reference(x, matrix.stored))
    for count in (1, 5, 16, 40, 70):
        rows = np.random.default_rng(count).integers(0, 90, count).astype(np.int32)
        assert np.array_equal(bits(matrix.linear(x, kernels, row_idx=rows)), expected[rows]), count
    for first in (5, 16, 32, 87, 89):
        for paired in (False, True):
            assert np.array_equal(bits(matrix.linear(x, kernels, first=first, paired=paired)), expected[first:]), first


BACKEND = """
import sys
import numpy as np
from longcat import _testing as testing

traps = testing.assume_tiles()
given, results = np.load(sys.argv[1]), {}
experts = [list(given[name]) for name in ("gate", "up", "down")]
for threads in (1, 3):
    ops = testing.Ops(threads, "bf16")
    for count in (1, 5, 70):
        x, end = given["x"][:count], f"{threads} {count}"
        results[f"bf16 {end}"] = ops.linear(x, given["rows"])
        results[f"bf16_x8 {end}"] = ops.linear_packed(x, given["packed"], "bf16_x8", len(given["rows"]))
        results[f"moe {end}"] = ops.moe(x, given["classifier"], given["bias"], 3, 2.5, *experts)[-1]
np.savez(sys.argv[2], traps=traps, counts=testing.tile_counts(), **results)
"""


def test_the_backend_on_tiles(tmp_path):
    """All its threads, linear layers and experts. The tile instructions are emulated where the processor lacks them."""
    if testing.tile_linear(normal(1, 1), to_bf16(normal(1, 1)), 1, [(0, 1)], kernels="compiled") is None:
        pytest.skip("needs a processor with AVX512_BF16")
    stored = from_bf16(to_bf16(normal(200, 72)))
    given = {
        "x": normal(70, 72, seed=1),
        "rows": to_bf16(stored),
        "packed": testing.pack_matrix(stored, "bf16_x8"),
        "classifier": normal(7, 72, seed=2),
        "bias": normal(7, seed=3),
        "gate": to_bf16(normal(5, 100, 72, seed=4)),
        "up": to_bf16(normal(5, 100, 72, seed=5)),
        "down": to_bf16(normal(5, 72, 100, seed=6)),
    }
    np.savez(tmp_path / "given.npz", **given)
    package = str(Path(longcat.__file__).parents[1])
    command = [sys.executable, "-c", BACKEND, str(tmp_path / "given.npz"), str(tmp_path / "results.npz")]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": package}, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    results = np.load(tmp_path / "results.npz")
    configured, released, faults = results["counts"]
    assert (configured == released > 100 and faults == 0) or not results["traps"]

    expected = bits(reference(given["x"], stored))
    experts = [list(given[name]) for name in ("gate", "up", "down")]
    close = testing.Ops(1).moe(given["x"], given["classifier"], given["bias"], 3, 2.5, *experts)[-1]
    whole = results["moe 1 70"]
    assert 0 < np.abs(whole - close).max() < 0.02 * np.abs(close).max()  # of inputs rounded to bf16
    for threads in (1, 3):
        for count in (1, 5, 70):
            for format in FORMATS:
                assert np.array_equal(bits(results[f"{format} {threads} {count}"]), expected[:count]), (format, count)
            assert np.array_equal(results[f"moe {threads} {count}"], whole[:count]), count


def test_sets_need_their_instructions_and_registers():
    if not hasattr(testing, "sets_of"):
        pytest.skip("the features are those of x86-64")
    all_of_them = dict.fromkeys(("ecx1", "ebx7", "ecx7", "edx7", "eax7_1", "xcr0"), 0xFFFFFFFF)
    names = ["portable", "avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "amx_bf16"]
    assert testing.sets_of(**all_of_them) == names
    for register, bit in [("edx7", 22), ("edx7", 24), ("xcr0", 17), ("xcr0", 18)]:
        found = testing.sets_of(**{**all_of_them, register: 0xFFFFFFFF & ~(1 << bit)})
        assert found == names[:-1], (register, bit)
    needed = {**all_of_them, "edx7": 1 << 22 | 1 << 24, "xcr0": 0x600E6}
    assert testing.sets_of(**needed) == names
    assert testing.sets_of(**{**all_of_them, "eax7_1": 0}) == ["portable", "avx2", "avx512", "avx512_vnni"]
    assert testing.sets_of(**{**all_of_them, "eax7_1": 1 << 4, "xcr0": 0x06}) == names[:3]  # a laptop by Intel
    assert testing.sets_of(**{**all_of_them, "ebx7": 0}) == ["portable"]


def test_the_set_must_be_named():
    def isa(name):
        code = "from longcat import _core; print(_core.cpu_isa())"
        package = str(Path(longcat.__file__).parents[1])
        environment = {**os.environ, "LONGCAT_ISA": name, "PYTHONPATH": package}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)

    assert isa("").stdout.strip() != "amx_bf16"
    named = isa("amx_bf16")
    if platform.machine() == "x86_64" and has_amx():
        assert named.stdout.strip() == "amx_bf16"
    else:
        assert "[cpu] LONGCAT_ISA=amx_bf16: this machine has portable" in named.stderr
