"""The emulator that proves tensor-core kernels: it is silent on sound kernels, and each of its checks speaks."""

import numpy as np
import pytest
from longcat import _testing as testing

pytestmark = pytest.mark.device

# Kernel of tests/native/emulator_kernels.h -> what its broken form must be found by, one of them.
FOUND_BY = {
    "block barrier": "unordered",
    "bulk bytes": "deadlock",
    "bulk read": "undelivered, unordered",  # whether the bytes have come or not
    "copy arrival": "undelivered, unordered",
    "copy groups": "undelivered, unordered",
    "deadlock": "deadlock",
    "dependent end": "unwaited",
    "dependent launch": "unordered",
    "diverged": "diverged",
    "forgotten copy": "unfinished",
    "global alignment": "misaligned",
    "global bounds": "out of bounds",
    "grid barrier": "unordered",
    "input written": "out of bounds",
    "last block": "unordered",
    "named barrier": "unordered",
    "overwrite": "unordered",
    "peer flag": "unordered",
    "peer grids": "unordered",
    "shared alignment": "misaligned",
    "shared bounds": "out of bounds",
    "two writers": "unordered",
    "uninitialised": "uninitialised",
    "warp barrier": "unordered",
}
SEEDS = range(1, 5)


@pytest.mark.parametrize("name", testing.emulator_kernels())
def test_sound_kernels_have_no_findings(name):
    for seed in SEEDS:
        result = testing.emulate(name, broken=False, seed=seed)
        assert result["right"] and not result["counts"] and result["conflicts"] == 0, (seed, result)


@pytest.mark.parametrize("name", testing.emulator_kernels())
def test_without_checks_the_values_are_the_same(name):
    result = testing.emulate(name, broken=False, checks=False)
    assert result["right"] and not result["counts"]


@pytest.mark.parametrize("name", FOUND_BY)
def test_broken_kernels_are_found(name):
    """Whatever the schedule, and where the values happen to be right."""
    for seed in SEEDS:
        result = testing.emulate(name, broken=True, seed=seed)
        assert {*FOUND_BY[name].split(", ")} & {*result["counts"]}, (seed, result)


def test_a_stage_that_is_filled_too_early_is_found():
    """By what it does first, which depends on the schedule: an early arrival, or bytes that are still read."""
    counts = [testing.emulate("bulk ring", broken=True, seed=seed)["counts"] for seed in SEEDS]
    assert all(counts) and {kind for one in counts for kind in one} <= {"diverged", "unordered", "undelivered"}


def test_both_places_are_named():
    text = next(t for t in testing.emulate("overwrite", broken=True)["texts"] if "writes shared" in t)
    first, second = text.split(" which ")
    assert "writes shared memory" in first and "emulator_kernels.h:" in first
    assert " read at emulator_kernels.h:" in second


def test_a_deadlock_says_where_threads_wait():
    [text] = testing.emulate("deadlock", broken=True)["texts"]
    assert "96 of 128 threads" in text and "at barrier 3 with 32 of 128" in text


def test_every_kernel_is_tested():
    assert set(testing.emulator_kernels()) == {*FOUND_BY, "bank conflict", "bulk ring", "exchanges"}


def test_bank_conflicts_are_counted():
    """32 lanes in one bank: 31 cycles too many, for a store and a load of 4 warps in 3 blocks."""
    assert testing.emulate("bank conflict", broken=True)["conflicts"] == 31 * 2 * 4 * 3


def test_kernels_run_on_the_emulated_device():
    for backwards in (False, True):
        assert testing.launch_on_emulated_device(reversed=backwards) == list(range(1, 385))


def test_a_deadlock_on_the_emulated_device_is_an_error():
    with pytest.raises(RuntimeError, match="deadlock"):
        testing.launch_on_emulated_device(reversed=False, broken=True)


def test_a_kernel_says_how_many_blocks_it_can_have():
    with pytest.raises(RuntimeError, match="65 blocks"):
        testing.launch_router_picks(65)


# --- tensor cores ---------------------------------------------------------------------------------------------------


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """Bits of f32 values that bf16 holds exactly."""
    bits = values.astype(np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def random_operands(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)

    def draw(*shape):
        wide = rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 7, shape)
        return (wide.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)

    return draw(16, 16), draw(8, 16), draw(16, 8)


def hopper(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c + a b^T as 9.0 adds: aligned to the largest exponent, 25 fractional bits, cut off towards zero."""
    sums = np.empty_like(c)
    for row in range(16):
        for col in range(8):
            terms = [*(a[row].astype(np.float64) * b[col]), np.float64(c[row, col])]
            factors = [np.frexp(x)[1] + np.frexp(y)[1] - 2 for x, y in zip(a[row], b[col], strict=True)]
            exponents = [*factors, np.frexp(c[row, col])[1] - 1]
            largest = max(e for e, term in zip(exponents, terms, strict=True) if term != 0)
            total = sum(np.trunc(np.ldexp(term, 25 - largest)) for term in terms)
            exact = np.ldexp(total, largest - 25)
            near = np.float32(exact)
            sums[row, col] = near if abs(np.float64(near)) <= abs(exact) else np.nextafter(near, np.float32(0))
    return sums


def test_products_in_plain_arithmetic():
    for seed in range(4):
        a, b, c = random_operands(seed)
        expected = c.copy()
        for k in range(16):
            expected += a[:, k, None] * b[None, :, k]
        assert np.array_equal(testing.emulated_product(bf16_bits(a), bf16_bits(b), c, hopper=False), expected)


def test_products_in_hoppers_arithmetic():
    for seed in range(4):
        a, b, c = random_operands(seed)
        assert np.array_equal(testing.emulated_product(bf16_bits(a), bf16_bits(b), c, hopper=True), hopper(a, b, c))


def test_a_nan_goes_through_a_product():
    a, b, c = random_operands(0)
    bits = bf16_bits(a)
    bits[3, 5] = 0x7FC0
    for arithmetic in (False, True):
        found = testing.emulated_product(bits, bf16_bits(b), c, hopper=arithmetic)
        assert np.isnan(found[3]).all() and np.isfinite(np.delete(found, 3, axis=0)).all()
