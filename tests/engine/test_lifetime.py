"""Engines end while something is under way: no crash, no hang, no caller left waiting."""

import os
import subprocess
import sys
from pathlib import Path

import longcat
import pytest

from support.checkpoints import random_token_ids

PACKAGE = Path(longcat.__file__).parents[1]  # the one under test: of the source tree, or installed


def run_script(script: str, *arguments: str) -> str:
    """The output of a script in a process of its own, which must end by itself and well."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
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


LEFT_RUNNING = {
    "a stream": 'stream = engine.generate("Once", max_tokens=1500, ignore_eos=True, stream=True); next(stream)',
    "a mask": 'engine.generate("Once", max_tokens=2, ignore_eos=True, token_mask=lambda ids: None)',
    "a thread that generates": 'in_thread(lambda: engine.generate("Once", max_tokens=1500, ignore_eos=True))',
    "a thread in forward": "engine.forward([5]); in_thread(lambda: engine.forward([5] * 1500))",
}


@pytest.mark.parametrize("left", LEFT_RUNNING)
def test_a_program_ends_without_closing(tiny, left):
    run_script(
        f"""
import sys, threading, time, longcat

def in_thread(work):
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.1)

engine = longcat.Engine(sys.argv[1], num_threads=1)
{LEFT_RUNNING[left]}
""",
        tiny,
    )


AFTER_FORK = """
import os, signal, sys, longcat

engine = longcat.Engine(sys.argv[1], num_threads=1)
stream = engine.generate("Once", max_tokens=1500, ignore_eos=True, stream=True)
next(stream)
if os.fork() == 0:
    signal.alarm(20)
    for call in (lambda: engine.generate("Once", max_tokens=3), engine.metrics, lambda: next(stream)):
        try:
            call()
        except longcat.Error as error:
            print("child:", error, flush=True)
    sys.exit(0)  # and all that is cleaned up then
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
print("parent:", len(engine.generate("Once", max_tokens=3, ignore_eos=True).outputs[0].token_ids))
"""


def test_a_forked_child_is_told(tiny):
    """Threads stay with the parent: a child that waited for one would wait for ever."""
    lines = run_script(AFTER_FORK, tiny).splitlines()
    assert len(lines) == 4 and lines[3] == "parent: 3"
    assert all(line.startswith("child: [engine]") and "fork" in line for line in lines[:3])


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff", "é".encode("latin-1") + b"/x"])
def test_a_folder_whose_name_is_not_utf8_is_refused_in_one_line(tmp_path, name):
    folder = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
    with pytest.raises(ValueError, match="not UTF-8; expected") as caught:
        longcat.Engine(folder)
    assert "\n" not in str(caught.value) and str(caught.value).isascii()


def test_a_stream_outlives_an_engine_that_is_dropped(random_checkpoint):
    """`for chunk in longcat.Engine(path).generate(..., stream=True)` refers to the engine by its stream alone."""
    options = dict(prompt_token_ids=[5, 6, 7], max_tokens=20, ignore_eos=True)
    stream = longcat.Engine(random_checkpoint).generate(**options, stream=True)
    assert sum(len(chunk.token_ids) for chunk in stream) == 20
