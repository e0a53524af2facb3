"""What the ranks of a test run: `python -m support.rank_programs NAME ARGUMENTS`."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import sys
import threading
import time
from pathlib import Path

import numpy as np
from longcat import Engine, Error, _core
from longcat.parallel import job as parallel

from support.live import until


def say(line: str) -> None:
    """In one piece: the ranks of a launcher may share a pipe, and Python may write the end of a line by itself."""
    print(line + "\n", end="", flush=True)


def collectives() -> None:
    """Every check of the thread ranks, on processes; then sums of many sizes one after the other."""
    from support.collectives import check_collectives, check_splits

    launch = parallel.find_launch()
    assert launch is not None
    job = parallel.join_job(launch.size, 1)
    assert job is not None
    for count in (1, 7, 300, 20_011):
        for dtype in ("f32", "bf16", "i32"):
            check_collectives(job.communicator, count, dtype)
    check_splits(job.communicator)
    for count in range(1, 400):
        x = np.full(count, job.communicator.rank + 1, np.float32)
        job.communicator.all_reduce(x)
        assert (x == sum(range(1, launch.size + 1))).all()
    say(f"rank {launch.rank} is well")


def generate(folder: str, tp: str, ep: str, prompt: str, max_tokens: str) -> None:
    """Rank 0 prints greedy tokens, and writes the logits of all positions to standard output as JSON."""
    engine = Engine(folder, dtype="f32", tp=int(tp), ep=int(ep), num_threads=1, kv_cache_memory="64MiB", max_num_seqs=2)
    with engine:
        if engine.rank > 0:
            return engine.follow()
        ids = json.loads(prompt)
        output = engine.generate(prompt_token_ids=ids, max_tokens=int(max_tokens), temperature=0, ignore_eos=True)
        token_ids = list(output.outputs[0].token_ids)
        np.save(sys.argv[-1], engine.forward([*ids, *token_ids]))
        print(json.dumps(token_ids))


def spmd(folder: str) -> None:
    """The same script on every rank, which prints what it got; rank 0 is slow to begin."""
    with Engine(folder, tp=2, num_threads=1, dtype="f32") as engine:
        if engine.rank == 0:
            time.sleep(0.3)
        prompts = ["Once upon a time", "Tom had a red ball."]
        outputs = engine.generate(prompts, max_tokens=20, temperature=0.8, top_k=4, n=2, seed=5, logprobs=2)
        texts = [completion.text for output in outputs for completion in output.outputs]
        ranked = [
            [sorted(entry) for entry in completion.logprobs] for output in outputs for completion in output.outputs
        ]
        streamed = [chunk.delta for chunk in engine.generate("One day", stream=True, max_tokens=15, stop=["the"])]
        score = engine.score("Once upon a time, there was a cat.")
        say(json.dumps([texts, ranked, "".join(streamed), [round(float(x), 4) for x in score.logprobs[1:]]]))


def replicas(folder: str, tp: str, dp: str) -> None:
    """Each copy of the model continues prompts of its own; their first ranks print which, and the tokens."""
    with Engine(folder, tp=int(tp), dp=int(dp), num_threads=1, kv_cache_memory="64MiB", dtype="f32") as engine:
        if engine.rank > 0:
            return engine.follow()
        for length in range(10 + engine.replica, 13, int(dp)):
            output = engine.generate(prompt_token_ids=range(3, 3 + length), max_tokens=30, temperature=0)
            say(json.dumps([engine.replica, length, list(output.outputs[0].token_ids)]))


def raise_on(rank: str, folder: str) -> None:
    """A script with an error of its own on one rank."""
    with Engine(folder, tp=2, num_threads=1) as engine:
        job = parallel.current_job()
        assert job is not None
        job.watch()
        if engine.rank == int(rank):
            raise RuntimeError("something went wrong here")
        if engine.rank > 0:
            return engine.follow()
        for _ in range(1000):
            engine.generate(prompt_token_ids=[1, 2, 3], max_tokens=100)


def break_on(rank: str, after: str, folder: str) -> None:
    """The engine of one rank fails as by an error of its own thread; its script is busy elsewhere, or just ends."""
    with Engine(folder, tp=2, num_threads=1) as engine:
        job = parallel.current_job()
        assert job is not None
        job.watch()
        if engine.rank == int(rank):
            time.sleep(0.3)
            engine._core.abort_ranks(f"[parallel] rank {rank} failed: [engine] it is broken")
            return time.sleep(60 if after == "busy" else 0)
        if engine.rank > 0:
            return engine.follow()
        while True:
            engine.generate(prompt_token_ids=[1, 2, 3], max_tokens=100)


def give_up(folder: str) -> None:
    """Rank 1 gives up a broadcast and frees the memory it was to fill; then rank 0 sends, and rank 1 leaves the job.

    Args:
        folder: an empty one, in which the ranks wait for each other.
    """
    launch = parallel.find_launch()
    assert launch is not None
    job = parallel.join_job(launch.size, 1)
    assert job is not None
    job.watch()
    given_up = Path(folder, "given up")
    if launch.rank == 0:
        until(given_up.exists)
        return job.communicator.broadcast(np.ones(1 << 10, np.uint8), 0)
    memory = mmap.mmap(-1, 1 << 10)
    threading.Timer(0.2, job.communicator.abort, ["given up"]).start()
    with contextlib.suppress(Error):
        job.communicator.broadcast(np.frombuffer(memory, np.uint8), 0)
    memory.close()
    given_up.touch()
    time.sleep(0.3)  # rank 0 has begun to send
    say("rank 1 is well")


def pause(folder: str) -> None:
    """Ranks that miss a second of silence, of which rank 1 does not run Python code for longer than that.

    Args:
        folder: an empty one, in which the ranks say that they are ready, and are told to end.
    """
    launch = parallel.find_launch()
    assert launch is not None
    job = parallel.join_job(launch.size, 1)
    assert job is not None
    losses: list[_core.RankLoss | None] = []
    watch = _core.Watch(job.communicator, [], beat_s=0.1, silence_s=1)
    listener = threading.Thread(target=lambda: losses.append(watch.wait()), daemon=True)
    listener.start()
    if launch.rank == 1:
        ctypes.PyDLL(None).usleep(1_500_000)  # holds the interpreter's lock
    Path(folder, f"ready {launch.rank}").touch()
    until(Path(folder, "end").exists)
    job.communicator.barrier()
    assert losses == [], losses[0] and losses[0].reason
    watch.close()
    say(f"rank {launch.rank} is well")


if __name__ == "__main__":
    programs = {
        "break_on": break_on,
        "collectives": collectives,
        "generate": generate,
        "give_up": give_up,
        "pause": pause,
        "raise_on": raise_on,
        "replicas": replicas,
        "spmd": spmd,
    }
    arguments = sys.argv[2:-1] if sys.argv[1] == "generate" else sys.argv[2:]
    programs[sys.argv[1]](*arguments)
