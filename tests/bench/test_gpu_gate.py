"""bench/gpu_gate.sh on a kit of small scripts in place of the programs: hangs, crashes, tables, what is built there."""

import shutil
import subprocess
from pathlib import Path

import pytest

GATE = Path(__file__).resolve().parents[2] / "bench" / "gpu_gate.sh"
USAGE = "usage: cuda_bench bits | parity | ops | model | gather [--check --budget --tables both --table-rows]"
TABLE = """\
| step | found | unit | expected | found/expected | of the bound |
| --- | --- | --- | --- | --- | --- |
| decode 1 x 1k | 5200 | us | 4800 | 1.08 | 40 % |
| decode 2 x 1k | 5300 | us | - | - | - |
| replay = eager | NO | | yes | | |"""


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def program(**suites):
    """A cuda_bench: what it does for each suite, else a line."""
    cases = "".join(f"  {name}) {text} ;;\n" for name, text in suites.items())
    return f"""case ${{1:-}} in
  "") echo "{USAGE}" >&2; exit 2 ;;
{cases}  *) echo "all of $1 well" ;;
esac"""


@pytest.fixture
def gate(tmp_path):
    """Runs the script of a kit: its exit code, output, results and log."""
    kit = tmp_path / "kit"
    script(kit / "cuda_bench", program())
    script(kit / "python3", 'echo "python $*"')
    script(kit / "bench" / "gpu_build.sh", 'echo "built $*"')
    script(kit / "bench" / "scripts" / "trace.py", "")
    shutil.copy(GATE, kit / "bench")
    (kit / "kit.txt").write_text("commit 0123456789ab\n")

    def run(*arguments):
        environment = {
            "PATH": f"{kit}/programs:/usr/bin:/bin",
            "OUT": str(tmp_path / "out"),
            "PYTHON": str(kit / "python3"),
        }
        command = [kit / "bench" / "gpu_gate.sh", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        files = {path.suffix: path.read_text() for path in (tmp_path / "out").glob("*")}
        return done.returncode, done.stdout + done.stderr, files.get(".md", ""), files.get(".log", "")

    run.kit = kit
    return run


def rows(results):
    """Maps each check to its result and its quoted line, by the last table."""
    table = results.rpartition("| check | result |")[2].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]
    return {name: (result, words) for name, result, _, words in cells}


def test_all_checks_run_in_order_of_proof(gate):
    code, output, results, log = gate("--check")
    assert code == 0, output
    order = "ceilings bits parity tests gather model trace ops memcheck racecheck build".split()
    assert list(rows(results)) == order
    assert [line.split()[1].rstrip(",") for line in log.splitlines() if line.startswith("=====")] == order
    assert "model --budget 15 --tables both --check" in log
    heading = results.splitlines()[0]
    assert heading.startswith("# emulated, driver none, 20") and heading.endswith("UTC, commit 0123456789ab")
    assert "0 of 11 checks failed" in output and "0 of 11 checks failed" in results


def test_results_are_written_at_once(gate):
    script(gate.kit / "cuda_bench", program(parity='grep -c "## bits: ok" "$OUT"/*.md'))
    code, _, results, _ = gate("--check", "--only", "bits,parity")
    assert code == 0 and rows(results)["parity"] == ("ok", "1")


def test_a_hang_costs_only_its_own_time(gate):
    script(gate.kit / "cuda_bench", program(bits="echo begun; sleep 50 & wait"))
    code, output, results, _ = gate("--check", "--only", "bits,parity,gather", "--seconds", "10")
    found = rows(results)
    assert code == 1, output
    assert found["bits"] == ("CUT after 2 s", "begun")
    assert found["parity"] == ("ok", "all of parity well") and found["gather"] == ("ok", "all of gather well")


def test_what_ignores_a_signal_is_killed(gate):
    script(gate.kit / "cuda_bench", program(bits="trap '' TERM; while :; do sleep 0.2; done"))
    code, output, results, _ = gate("--check", "--only", "bits,model", "--seconds", "16")
    found = rows(results)
    assert code == 1, output
    assert found["bits"][0] == "CUT after 2 s" and found["model"][0] == "ok"


def test_time_that_is_used_up_is_a_failure(gate):
    script(gate.kit / "cuda_bench", program(bits="sleep 50", parity="sleep 50"))
    code, output, results, _ = gate("--check", "--only", "bits,parity,gather", "--seconds", "2")
    assert code == 3 and rows(results)["gather"] == ("NOT RUN", "no time was left"), output


def test_crashes_and_failures_are_reported(gate):
    script(gate.kit / "cuda_bench", program(bits="echo near the end; kill -SEGV $$", parity="echo wrong; exit 3"))
    code, output, results, _ = gate("--check", "--only", "bits,parity,gather")
    found = rows(results)
    assert code == 2
    assert found["bits"][0] == "CRASHED (signal 11)" and found["parity"] == ("FAILED (3)", "wrong")
    assert found["gather"][0] == "ok"
    assert "near the end" in output and "near the end" in results  # the log's last lines


def test_expected_figures_stand_beside_found_ones(gate):
    script(gate.kit / "cuda_bench", program(model=f"echo '{TABLE}'"))
    script(gate.kit / "python3", "echo '| a | found | unit | expected |\n| - | - | - | - |\n| copy | 3 | GB/s | 4 |'")
    _, output, results, _ = gate("--check", "--only", "ceilings,model")
    for text in (output, results):
        figures = text.partition("| check | figure |")[2].partition("| check | result |")[0]
        assert figures.splitlines()[2:5] == [
            "| ceilings | copy | 3 | GB/s | 4 | 0.75 |",
            "| model | decode 1 x 1k | 5200 | us | 4800 | 1.08 |",
            "| model | replay = eager | NO |  | yes |  |",
        ]
    assert TABLE in results  # whole, with the figure of which nothing is expected


def test_binaries_that_do_not_load_are_built_there(gate):
    script(gate.kit / "cuda_bench", 'echo "version GLIBC_2.99 not found" >&2; exit 1')
    script(gate.kit / "made", program(parity='echo "with $PYTHONPATH"'))
    script(gate.kit / "bench" / "gpu_build.sh", "mkdir $2 && mv made $2/cuda_bench")
    for _ in range(2):  # the second run finds what the first has built
        code, output, results, _ = gate("--check", "--only", "parity")
        assert code == 0, output
        assert "do not load here: version GLIBC_2.99 not found" in results
        assert rows(results)["parity"] == ("ok", f"with {gate.kit}/built/python")


def test_without_binaries_all_checks_fail(gate):
    script(gate.kit / "cuda_bench", "exit 127")
    script(gate.kit / "bench" / "gpu_build.sh", "echo no nvcc; exit 1")
    code, output, results, _ = gate("--check", "--only", "parity,ops")
    assert code == 2
    assert "## build: FAILED (1), " in results and "\nno nvcc\n" in results and "no check can run" in output


def test_on_a_gpu(gate):
    """The commands that only a GPU gets, and a sanitizer that refuses the machine."""
    script(gate.kit / "programs" / "nvidia-smi", 'echo "NVIDIA Card 9, 580.1.2"')
    script(gate.kit / "programs" / "compute-sanitizer", 'echo "Device not supported"; exit 1')
    script(gate.kit / "python3", 'echo "python $*, $LONGCAT_GPU_MEMORY, $LONGCAT_TESTS_NEED_GPU"')
    code, output, results, log = gate("--only", "tests,memcheck,ops", "--seconds", "280")
    found = rows(results)
    assert code == 0, output
    assert "-n 8 --dist worksteal -k cuda and not emulated, 0.05, 1\n" in log
    assert "cuda_bench ops --budget 62\n" in log  # seven eighths of its share
    assert found["memcheck"][0] == "skipped" and found["ops"][0] == "ok"
    assert results.startswith("# NVIDIA Card 9, driver 580.1.2, 20")
    assert not [line for line in log.splitlines() if line.startswith("=====") and "--check" in line]
    assert list((gate.kit.parent / "out").glob("NVIDIA-Card-9-20??-??-??.md"))


@pytest.mark.parametrize("arguments", [["--only", "ops,none"], ["--only"], ["--seconds", "x"], ["a"]])
def test_usage(gate, arguments):
    code, output, results, _ = gate(*arguments)
    assert code == 2 and "Checks: ceilings, bits" in output and results == ""


def test_without_a_kit_it_says_how_to_make_one(gate):
    (gate.kit / "kit.txt").unlink()
    code, output, _, _ = gate("--check")
    assert code == 2 and "run `make gpu-kit` first" in output
