"""A file that is cut while it is mapped, an allocation that fails, a close or a signal while logits are computed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import longcat
import pytest

from support.checkpoints import random_token_ids
from support.engines import Steps, assert_same, make_engine, sampling

PACKAGE = Path(longcat.__file__).parents[1]
HANG = 60  # seconds after which a thread counts as stuck


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        check=False,
    )


# --- files that are cut ---------------------------------------------------------------------------------------------

CUT = """
import os, sys, longcat
from longcat.checkpoint.convert import PRESETS, convert_checkpoint

folder, out, what = sys.argv[1:4]
path = os.path.join(folder, "model.safetensors")

def cut(*_):
    os.truncate(path, 8192)

try:
    if what == "convert":
        convert_checkpoint(folder, out, PRESETS["int8"], progress=cut)
    elif what == "copy":
        convert_checkpoint(folder, out, {"tables": "int8"}, progress=cut)
    else:
        engine = longcat.Engine(folder, num_threads=2)
        cut()
        if what == "forward":
            engine.forward([5] * 100)
        output = engine.generate(prompt_token_ids=[5, 6, 7], max_tokens=4, ignore_eos=True)
        print(output.outputs[0].finish_reason, output.outputs[0].error)
        print("failure:", engine.failure())
        engine.forward([5])
except longcat.Error as error:
    print("Error:", error)
print("alive")
"""


@pytest.mark.parametrize("what", ["generate", "forward", "convert", "copy"])
def test_a_shard_cut_while_in_use_ends_in_one_line(random_checkpoint, tmp_path, what):
    folder = tmp_path / "model"
    shutil.copytree(random_checkpoint, folder)
    done = run_script(CUT, str(folder), str(tmp_path / "out"), what)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    lines = done.stdout.splitlines()
    assert lines[-1] == "alive" and "model.safetensors" in lines[0]
    assert "could not be read; expected" in lines[0] or "became shorter" in lines[0], lines
    if what == "generate":
        assert lines[0].startswith("error [safetensors] ") and lines[1].startswith("failure: [safetensors] ")
        # Not on the callers' threads: several would compute at once.
        assert lines[2].startswith("Error: [engine] this engine has failed: [safetensors] ")
    else:
        assert lines[0].startswith("Error: [")
    assert not (tmp_path / "out").exists()


BUS_ERROR = """
import ctypes, os, signal, sys, faulthandler
import longcat
engine = longcat.Engine(sys.argv[1])
if sys.argv[2] == "sent":
    os.kill(os.getpid(), signal.SIGBUS)
else:
    import mmap, tempfile
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), 8192)
        view = mmap.mmap(file.fileno(), 8192, access=mmap.ACCESS_READ)
        os.ftruncate(file.fileno(), 0)
        view[5000]
print("alive")
"""


@pytest.mark.parametrize("how", ["sent", "of another mapping"])
def test_other_bus_errors_end_the_process_as_before(random_checkpoint, how):
    done = run_script(BUS_ERROR, random_checkpoint, how)
    assert done.returncode == -signal.SIGBUS and "alive" not in done.stdout


# --- allocations that fail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["schedule", "stage", "commit"])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_failed_allocation_ends_the_requests_of_its_step(random_checkpoint, part, overlap):
    prompts = [random_token_ids(i, 40) for i in range(6)]

    def steps_with(**options):
        steps = Steps(make_engine(random_checkpoint, overlap=overlap, **options))
        return steps, [steps.add(ids, sampling(12, seed=i))[0] for i, ids in enumerate(prompts)]

    undisturbed, expected = steps_with(max_num_seqs=8)
    undisturbed.run()
    steps, ids = steps_with(max_num_seqs=3)
    for _ in range(4):
        steps.step()
    steps.engine.fail_allocation(part)
    steps.run()
    broken = [i for i in ids if steps.outcomes[i].finish_reason == "error"]
    assert 0 < len(broken) < len(ids)
    for i, mine in enumerate(ids):
        if mine in broken:
            assert steps.outcomes[mine].error.startswith("[engine] the host has no memory left for this step")
        else:
            assert_same(steps.outcomes[mine], undisturbed.outcomes[expected[i]])
    assert steps.engine.poison_free_blocks() >= 0 and not steps.engine.has_work()
    [after] = steps.add(prompts[0], sampling(12))
    steps.run()
    assert steps.outcomes[after].token_ids == undisturbed.outcomes[expected[0]].token_ids


# --- close and signals ----------------------------------------------------------------------------------------------


def test_close_is_not_kept_out_by_threads_that_call_forward(random_checkpoint):
    engine = longcat.Engine(random_checkpoint, num_threads=1)
    stop, running = threading.Event(), threading.Semaphore(0)
    said = []

    def loop():
        try:
            while not stop.is_set():
                engine.forward([5, 6, 7])
                running.release()
        except longcat.Error as error:
            said.append(str(error))

    callers = [threading.Thread(target=loop, daemon=True) for _ in range(4)]
    for thread in callers:
        thread.start()
    for _ in range(20):
        running.acquire()
    closer = threading.Thread(target=engine.close, daemon=True)
    closer.start()
    for thread in [closer, *callers]:
        thread.join(HANG)
    ended = not any(thread.is_alive() for thread in [closer, *callers])
    stop.set()
    assert ended and len(said) == 4 and all("closed" in line for line in said)


def test_close_ends_a_long_forward(tiny):
    engine = longcat.Engine(tiny, num_threads=1)
    said = []

    def long_forward():
        try:
            engine._core.forward([5] * 2000, 1)  # a step a token
            said.append("done")
        except longcat.Error as error:
            said.append(str(error))

    engine.forward([5])
    thread = threading.Thread(target=long_forward, daemon=True)
    thread.start()
    time.sleep(0.2)
    engine.close()
    thread.join(HANG)
    assert len(said) == 1 and "closed" in said[0]


def test_signals_are_handled_during_a_long_forward(tiny):
    """Handlers run while the engine computes, and the exception of one ends the call."""
    engine = longcat.Engine(tiny, num_threads=1)
    engine.forward([5])
    events: list[str] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: events.append("signal"))
    # A shell ignores SIGINT for what it starts in the background.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)

    def send():
        for count in range(1, 4):
            os.kill(os.getpid(), signal.SIGUSR1)
            deadline = time.monotonic() + HANG
            while len(events) < count and time.monotonic() < deadline:
                time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=send)
    try:
        with pytest.raises(KeyboardInterrupt):
            sender.start()
            engine._core.forward([5] * 2000, 1)
            events.append("returned")
            sender.join()
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGINT, interrupt)
    assert events == ["signal"] * 3
    assert engine.forward([5]).shape[0] == 1
    engine.close()


# --- grammars that are at their end ---------------------------------------------------------------------------------

FORM = {"choice": ["a red hat", "a blue hat"]}


@pytest.mark.parametrize(
    "options", [{"ignore_eos": True}, {"min_tokens": 30}, {"ignore_eos": True, "min_tokens": 30}, {}], ids=str
)
def test_a_finished_grammar_ends_with_stop(tiny, options):
    with longcat.Engine(tiny, num_threads=2) as engine:
        output = engine.generate("Mira has", structured_outputs=FORM, max_tokens=40, logprobs=1, **options)
    completion = output.outputs[0]
    assert completion.text in FORM["choice"]
    assert (completion.finish_reason, completion.stop_reason, completion.error) == ("stop", None, None)


def test_a_mask_that_forbids_everything_is_an_error(tiny):
    with longcat.Engine(tiny, num_threads=2) as engine:
        vocab_size = engine.info()["vocab_size"]
        output = engine.generate("Mira", max_tokens=5, min_tokens=3, token_mask=lambda ids: [0] * (vocab_size // 32))
    assert output.outputs[0].finish_reason == "error"
