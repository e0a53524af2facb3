"""Engines end while something is under way: no crash, no hang, nobody left waiting."""

import subprocess
import sys
from pathlib import Path

from checkpoints import random_token_ids

PACKAGE = Path(__file__).resolve().parents[2] / "python"


def run_script(script: str, *arguments: str) -> str:
    """The output of a script in a process of its own, which must end by itself and well."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(PACKAGE)},
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    return done.stdout


STEP_UNDER_WAY = """
import sys
from longcat import _core

for i in range(20):
    options = _core.EngineOptions()
    options.num_threads = 1
    engine = _core.Engine(sys.argv[1], options)
    params = _core.SamplingParams()
    params.prompt_logprobs = 2
    engine.add_request([int(token_id) for token_id in sys.argv[2:]], params, 3)
    engine.step()
    if i % 2:
        engine.step()
    engine.close()
    junk = [bytearray(range(1, 1 + size % 255)) for size in range(8, 2000, 8)]  # where the step was described
"""


def test_closed_with_a_step_under_way(random_checkpoint):
    run_script(STEP_UNDER_WAY, random_checkpoint, *map(str, random_token_ids(5, 300)))
