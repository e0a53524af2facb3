"""Host code of the CUDA backend: memory, recorded sizes, and which kernel serves a layer."""

import re
from pathlib import Path

import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing
from longcat.engine.config import EngineConfig

pytestmark = pytest.mark.device

ROOT = Path(__file__).resolve().parents[2]


def test_auto_is_the_cpu_until_a_card_has_proven_parity():
    """One constant decides, kGpuProof of cpp/ops/backend.h: the report of a gate that has passed."""
    assert [testing.auto_device(proof, gpu) for proof in ("", "report.md") for gpu in (False, True)] == [
        "cpu", "cpu", "cpu", "cuda",
    ]  # fmt: skip
    if _core.GPU_PROOF:
        report = (ROOT / _core.GPU_PROOF).read_text(encoding="utf-8")
        [checks] = re.findall(r"^0 of (\d+) checks failed", report, re.MULTILINE)
        assert _core.GPU_PROOF.startswith("bench/results/") and int(checks) >= 10  # all of the gate's
    else:
        assert _core.resolved_device("auto") == "cpu"
    assert EngineConfig("folder").core_options().device == _core.resolved_device("auto")
    assert EngineConfig("folder", device="cuda:1").core_options().device == "cuda:1"


def test_recorded_rows():
    assert [testing.graph_rows(r) for r in (1, 2, 3, 4, 5, 8, 9, 16, 17, 25, 64, 65)] == [
        1, 2, 4, 4, 8, 8, 16, 16, 24, 32, 64, 72,
    ]  # fmt: skip
    for rows in range(1, 600):
        padded = testing.graph_rows(rows)
        assert padded >= rows and testing.graph_rows(padded) == padded and padded - rows <= 7


def test_buckets_of_contexts():
    assert [testing.context_bucket(p, 327_680) for p in (0, 1, 1024, 1025, 2048, 2049, 200_000, 327_680)] == [
        1024, 1024, 1024, 2048, 2048, 4096, 262_144, 327_680,
    ]  # fmt: skip
    assert testing.context_bucket(100, 320) == 320


def test_an_arena_leaves_room_for_the_driver_and_nccl():
    gib = 1 << 30
    assert testing.arena_bytes(140 * gib, 0, 0) == 138.5 * gib
    assert testing.arena_bytes(140 * gib, 0, 2) == 136.5 * gib
    assert testing.arena_bytes(140 * gib, 0.5, 2) == 69 * gib
    assert testing.arena_bytes(1 * gib, 0, 2) == 2 << 20  # the smallest: allocations then say what is missing


def test_arena_keeps_its_budget_and_its_ranges_apart():
    total, rng = 1 << 20, np.random.default_rng(0)
    arena, live = testing.Arena(total), {}
    for _ in range(3000):
        if live and (rng.random() < 0.5 or len(live) > 40):
            offset = list(live)[rng.integers(len(live))]
            arena.free(offset, live.pop(offset))
        else:
            size = int(rng.integers(1, 60_000))
            offset = arena.allocate(size)
            if offset < 0:
                assert arena.largest_free < size
                continue
            assert offset % 256 == 0 and offset + size <= total
            for other, other_size in live.items():
                assert offset + size <= other or other + other_size <= offset
            live[offset] = size
        assert sum(live.values()) <= arena.used_bytes <= arena.peak_bytes <= total
    for offset, size in live.items():
        arena.free(offset, size)
    assert arena.used_bytes == 0 and arena.largest_free == total
    assert arena.allocate(total) == 0 and arena.allocate(1) == -1


def test_arena_notices_what_is_freed_twice():
    arena = testing.Arena(4096)
    first, second = arena.allocate(512), arena.allocate(512)
    arena.free(first, 512)
    with pytest.raises(RuntimeError, match="freed twice"):
        arena.free(first, 512)
    arena.free(second, 512)


# (out_features, in_features) of LongCat-Flash-Lite's layers.
LAYERS = [(1536, 3072), (6144, 1536), (576, 3072), (3072, 4096), (6144, 3072), (3072, 6144), (3072, 3072)]


@pytest.mark.parametrize("out,width", LAYERS)
def test_layers_of_the_model_run_on_tensor_cores(out, width):
    for capability, path in ((90, "sm90_bf16"), (80, "sm80_bf16"), (86, "sm80_bf16"), (100, "sm80_bf16")):
        for tokens in (1, 16, 17, 64, 65, 8192):
            found = testing.gemm_choice(tokens, out, width, compute_capability=capability)
            assert found[0] == path
    tiles = [testing.gemm_choice(tokens, out, width)[1] for tokens in (1, 16, 17, 64, 65, 8192)]
    assert tiles == [16, 16, 64, 64, 128, 128]


def test_fp8_latent_projection_runs_on_tensor_cores_when_padded():
    assert testing.grouped_choice(1, 576, 3072, fp8=True)[0] == "plain"
    assert testing.grouped_choice(1, 640, 3072, fp8=True)[0] == "sm90_fp8"


def test_experts_of_the_model_run_on_tensor_cores():
    for out, width in ((1024, 3072), (3072, 1024)):
        for fp8, paths in ((False, ("sm90_bf16", "sm80_bf16", "plain")), (True, ("sm90_fp8", "plain", "plain"))):
            for capability, path in zip((90, 80, 0), paths, strict=True):
                for rows in (12, 24_576):
                    assert testing.grouped_choice(rows, out, width, fp8, capability)[0] == path
    assert testing.grouped_choice(12, 192, 128, fp8=True)[0] == "plain"  # half a block


def test_gate_and_up_of_the_model_run_in_one_kernel():
    for rows, tile in ((12, 16), (60, 64), (24_576, 128)):
        for capability, path in ((90, "sm90_bf16"), (80, "sm80_bf16"), (0, "plain")):
            found = testing.grouped_choice(rows, 1024, 3072, compute_capability=capability, gate_up=True)
            assert found == testing.grouped_choice(rows, 1024, 3072, compute_capability=capability)
            assert found[0] == path and (capability != 90 or found[1] == tile)
    assert testing.grouped_choice(12, 1024, 3072, gate_up=True, misalignment=8)[0] == "plain"  # the second alone


def test_the_path_never_depends_on_the_number_of_tokens():
    for out, width in [*LAYERS, (33, 65), (131072, 3072), (7, 8)]:
        for format in ("f32", "bf16", "fp8_block"):
            for out_dtype in ("bf16", "f32"):
                paths = {
                    testing.gemm_choice(t, out, width, format=format, out_dtype=out_dtype)[0]
                    for t in (1, 2, 16, 17, 100, 5000)
                }
                assert len(paths) == 1


def test_layers_of_the_model_fit_few_tokens():
    """All but those of k_up and v_up, which CUTLASS computes for any number of tokens, head by head."""
    for out, width in [*LAYERS, (384, 3072), (1024, 3072), (3072, 1024), (131072, 3072)]:
        assert testing.fits_few_tokens(out, width)
        assert testing.fits_few_tokens(out, width, out_dtype="f32")
    for out, width in ((24, 128), (32, 192), (33, 65)):
        assert not testing.fits_few_tokens(out, width)
    assert not testing.fits_few_tokens(64, 128, format="fp8_block")
    assert not testing.fits_few_tokens(64, 128, batch=2)
    assert not testing.fits_few_tokens(64, 128, misalignment=2)
    assert not testing.fits_few_tokens(64, 128, add=True)  # CUTLASS rounds the sum in its own way


def test_what_tensor_cores_cannot_address_takes_the_plain_kernel():
    assert testing.gemm_choice(4, 64, 60)[0] == "plain"  # rows of 120 bytes
    assert testing.gemm_choice(4, 60, 64)[0] == "plain"
    assert testing.gemm_choice(4, 64, 64, misalignment=2)[0] == "plain"
    assert testing.gemm_choice(4, 64, 64, format="fp8_block")[0] == "plain"
    assert testing.gemm_choice(4, 64, 64, format="f32")[0] == "plain"
    for capability in (0, 70, 75):
        assert testing.gemm_choice(4, 64, 64, compute_capability=capability)[0] == "plain"
    assert testing.gemm_choice(4, 64, 64, out_dtype="f32", add=True)[0] == "plain"
    assert testing.gemm_choice(4, 512, 128, batch=32)[0] == "sm90_bf16"
