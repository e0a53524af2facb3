"""bench/scripts/trace.py: its table from events that a profiler gives, and its frame without one."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "scripts" / "trace.py"
# As nvcc mangles them, up to the instruction, and as a demangler that copes with them would write it.
MANGLED = "_ZN7cutlassL13device_kernelINS_4gemm6kernel13GemmUniversalI{problem}NS1_10collective13CollectiveMmaI{atom}"
PLAIN = (
    "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<{problem}, cute::SM90::GMMA::{atom}> >(Params)"
)
OURS = "void longcat::gpu::run_blocks<longcat::(anonymous namespace)::{0}>(longcat::(anonymous namespace)::{0})"
NAMES = {
    OURS.format("Permute"): "Permute",
    OURS.format("RouteScores<longcat::bf16, 2> "): "RouteScores<bf16, 2>",
    OURS.format("DecodePiece<(longcat::DType)1> "): "DecodePiece<(DType)1>",
    MANGLED.format(problem="N4cute5tupleIJiiiiEEE", atom="GMMA27MMA_64x16x16_F32BF16BF16_SSI"): (
        "cutlass dense 64x16x16"
    ),
    MANGLED.format(
        problem="NS1_17GroupProblemShapeIN4cute5tupleIJiiiEEEEE", atom="GMMA28MMA_64x128x16_F32BF16BF16_SSI"
    ): ("cutlass grouped 64x128x16"),
    PLAIN.format(problem="GroupProblemShape<>, cutlass::float_e4m3_t", atom="MMA_64x128x32_F32E4M3E4M3_SS_TN<>"): (
        "cutlass grouped fp8 64x128x32"
    ),
    "void cutlass::Kernel2<cutlass::gemm::kernel::DefaultGemmUniversal<cutlass::gemm::GemmShape<128, 128, 32>> >(P)": (
        "cutlass dense 128x128x32"
    ),
    "void longcat::describe_experts<cutlass::gemm::kernel::GemmUniversal<> >()": "describe_experts",
    "Memcpy DtoH (Device -> Pinned)": "Memcpy DtoH (Device -> Pinned)",
}


@pytest.fixture(scope="module")
def trace():
    spec = importlib.util.spec_from_file_location("kernel_trace", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names(trace):
    for name, short in NAMES.items():
        assert trace.short_name(name) == short


def test_events_of_the_device_are_read(trace):
    events = [
        {"cat": "kernel", "name": "a", "dur": 2, "args": {"grid": [7, 1, 1]}},
        {"cat": "kernel", "name": "cutlass::MMA_64x16x16_SS", "dur": 3, "args": {"grid": [12, 2, 1]}},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD", "dur": 1.5},
        {"cat": "cuda_runtime", "name": "cudaGraphLaunch", "dur": 9},
        {"ph": "M", "name": "process_name"},
    ]
    assert trace.read_events({"traceEvents": events}) == [
        ("a", 2.0),
        ("cutlass dense 64x16x16, 24 blocks", 3.0),
        ("Memcpy HtoD", 1.5),
    ]


def test_a_step_is_the_difference_of_two_runs(trace):
    short = [("prefill", 50.0), ("decode", 3.0), ("sample", 4.0)]
    long = [("prefill", 52.0), *[("decode", 3.0), ("decode", 5.0), ("sample", 4.0)] * 3]
    rows = trace.per_step(long, short, 2)
    assert rows == [("decode", 2.5, 10.5), ("sample", 1.0, 4.0)]
    assert trace.table("a step", rows, 20.0).splitlines() == [
        "",
        "a step",
        "",
        "| kernel | calls | us | share |",
        "| --- | --- | --- | --- |",
        "| decode | 2.5 | 10.5 | 72.4% |",
        "| sample | 1 | 4.0 | 27.6% |",
        "| all | 3.5 | 14.5 | |",
        "| by the clock, without the profiler | | 20.0 | |",
    ]


@pytest.mark.device
def test_check_runs_engine_steps_on_the_emulated_device(trace, capsys):
    trace.main(["--check", "--steps", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 layers on the emulated device: no kernel is timed"
    titles = [
        "a decode step of 1, context 40",
        "a decode step of 3, context 40",
        "a prompt of 40, and one sampled token",
    ]
    assert [line for line in lines if line in titles] == titles
    assert lines.count("| kernel | calls | us | share |") == 3


def test_what_is_missing_is_told_in_one_line(trace, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"^trace: torch is not installed here, .*: pip install torch$"):
        trace.main([])


def test_a_machine_without_a_gpu_is_told_in_one_line(trace, monkeypatch):
    class Torch:
        class cuda:
            @staticmethod
            def is_available():
                return False

    monkeypatch.setitem(sys.modules, "torch", Torch)
    with pytest.raises(SystemExit, match="^trace: torch finds no GPU here: give --check"):
        trace.main([])
