"""Ranks that are processes: the same results, and an end within ten seconds whatever happens to one of them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from checkpoints import make_checkpoint, random_token_ids, read_config
from longcat import Engine
from openai import OpenAI
from server.live import LiveServer, until

from parallel.mpi import LIMIT_SECONDS, MPIRUN, Job, assert_gone, job_environment, needs_mpi, ranks_of
from parallel.test_layouts import MAX_ERROR, SMALL, TINY

pytestmark = needs_mpi


def program(name: str, *arguments: str) -> list[str]:
    return ["-m", "parallel.rank_programs", name, *arguments]


def generate(folder: str, *arguments: str) -> list[str]:
    return ["-m", "longcat", "generate", folder, "Once upon a time", "--num-threads", "1", *arguments]


@pytest.mark.parametrize("size", [2, 4])
def test_collectives(size):
    code, out, lines = Job(size, program("collectives")).end()
    assert (code, lines) == (0, [])
    assert sorted(out.splitlines()) == [f"rank {r} is well" for r in range(size)]


@pytest.fixture(scope="module", params=["tiny", "small", "longcat-tiny"])
def case(request, tiny, tmp_path_factory):
    """(folder, prompt, greedy tokens, logits) of one process."""
    folder = str(tmp_path_factory.mktemp(request.param))
    if request.param == "longcat-tiny":
        folder = tiny
    else:
        overrides, dtype = (TINY, "F32") if request.param == "tiny" else (SMALL, "BF16")
        make_checkpoint(folder, seed=1, dtype=dtype, config_overrides=overrides)
    prompt = random_token_ids(5, 70, read_config(folder)["vocab_size"])
    with Engine(folder, dtype="f32", num_threads=1, kv_cache_memory="64MiB", max_num_seqs=2) as engine:
        output = engine.generate(prompt_token_ids=prompt, max_tokens=200, temperature=0, ignore_eos=True)
        token_ids = list(output.outputs[0].token_ids)
        return folder, prompt, token_ids, engine.forward([*prompt, *token_ids])


@pytest.mark.parametrize("tp, ep", [(2, 1), (1, 2), (4, 1), (2, 4)])
def test_greedy_tokens_and_logits(case, tp, ep, tmp_path):
    folder, prompt, token_ids, logits = case
    path = str(tmp_path / "logits.npy")
    command = program("generate", folder, str(tp), str(ep), json.dumps(prompt), "200", path)
    code, out, lines = Job(max(tp, ep), command).end(120)
    assert (code, lines) == (0, [])
    assert json.loads(out) == token_ids
    assert np.abs(np.load(path) - logits).max() <= MAX_ERROR


def test_generate_prints_once(tiny):
    options = ["--max-tokens", "20", "--temperature", "0"]
    code, out, _ = Job(2, generate(tiny, "--tp", "2", *options)).end()
    alone = subprocess.run([sys.executable, *generate(tiny, *options)], env=job_environment(), capture_output=True)
    assert code == 0 and out == alone.stdout.decode()


def test_the_same_script_on_every_rank(tiny):
    code, out, lines = Job(2, program("spmd", tiny)).end()
    assert (code, lines) == (0, [])
    first, second = map(json.loads, out.splitlines())
    assert first == second and all(first[0]) and first[2]


@pytest.mark.parametrize(
    "size, arguments, line",
    [
        (2, ["--tp", "4"], "[parallel] tensor_parallel_size=4 and expert_parallel_size=1 are 4 ranks, and mpirun "
                           "started 2: start 4"),
        (2, [], "mpirun started 2 processes, and --tp 1 --ep 1 is one: pass --tp 2 or --ep 2, or start one"),
        (3, ["--tp", "3"], "[parallel] tp=3 does not divide num_attention_heads=4: use 1, 2 or 4"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be(tiny, size, arguments, line):
    began = time.monotonic()
    code, _, lines = Job(size, generate(tiny, *arguments)).end()
    assert code != 0 and lines == [f"longcat: {line}"]
    assert time.monotonic() - began < LIMIT_SECONDS


def test_a_rank_that_cannot_load(tiny, tmp_path):
    began = time.monotonic()
    code, _, lines = Job(2, generate(tiny, "--tp", "2"), generate(str(tmp_path / "x"), "--tp", "2")).end()
    assert code != 0 and len(lines) == 1
    assert re.fullmatch(r"longcat: \[parallel\] rank 1 failed: \[config\] \S+ does not exist: .*", lines[0])
    assert time.monotonic() - began < LIMIT_SECONDS


def test_checkpoints_that_differ(tiny, tmp_path):
    make_checkpoint(tmp_path, config_overrides=TINY)
    began = time.monotonic()
    code, _, lines = Job(2, generate(tiny, "--tp", "2"), generate(str(tmp_path), "--tp", "2")).end()
    assert code != 0
    assert lines == ["longcat: [parallel] rank 1 has other checkpoint files than rank 0: give all ranks the same"]
    assert time.monotonic() - began < LIMIT_SECONDS


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_in_a_script(tiny, rank):
    began = time.monotonic()
    code, _, lines = Job(2, program("raise_on", str(rank), tiny)).end()
    assert code != 0 and "Traceback (most recent call last):" in lines
    assert any("RuntimeError: something went wrong here" in line for line in lines)
    assert time.monotonic() - began < LIMIT_SECONDS


# --- serving -------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tiny):
    server = LiveServer(
        tiny, "--tp", "2", "--num-threads", "1", env=job_environment(), launcher=[*MPIRUN, "-n", "2"]
    )  # fmt: skip
    try:
        server.wait_ready()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def ranks(server: LiveServer) -> dict[int, int]:
    found = ranks_of(server.process.pid)
    assert sorted(found) == [0, 1]
    return found


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR1], ids=["rank 0", "mpirun"])
def test_the_openai_client(served, how):
    pids = ranks(served)
    client = OpenAI(base_url=served.url + "/v1", api_key="none")
    answer = client.chat.completions.create(
        model="longcat-tiny", messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=30, seed=1
    )
    assert answer.choices[0].message.content and answer.usage.completion_tokens > 0
    stream = client.completions.create(model="longcat-tiny", prompt="Once", max_tokens=20, temperature=0, stream=True)
    text = "".join(chunk.choices[0].text for chunk in stream)
    again = client.completions.create(model="longcat-tiny", prompt="Once", max_tokens=20, temperature=0, logprobs=3)
    assert again.choices[0].text == text and len(again.choices[0].logprobs.tokens) == 20

    # SIGTERM to rank 0, or SIGUSR1 to the launcher: what runs is finished on all ranks, and all leave.
    answers = []
    body = {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True}
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(served.url + "/v1/completions", json=body, timeout=60).json())
    )
    asking.start()
    until(lambda: served.metric("num_requests_running") > 0)
    os.kill(pids[0] if how == signal.SIGTERM else served.process.pid, how)
    assert served.process.wait(40) == 0
    asking.join()
    assert answers[0]["usage"]["completion_tokens"] == 1500
    assert_gone(pids.values())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank(served, how, rank):
    """Clients get an error, one line says which rank, and nothing is left."""
    pids = ranks(served)
    ends = []

    def ask():
        body = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True, "n": 8}
        try:
            with httpx.stream("POST", served.url + "/v1/completions", json=body, timeout=30) as answer:
                ends.append([line for line in answer.iter_lines() if '"finish_reason":"error"' in line])
        except httpx.TransportError as error:
            ends.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: served.metric("num_requests_running") > 0)
    began = time.monotonic()
    os.kill(pids[rank], how)
    assert served.process.wait(LIMIT_SECONDS) != 0
    assert time.monotonic() - began < LIMIT_SECONDS
    asking.join(LIMIT_SECONDS)
    assert ends and ends[0], "the client waits for ever"
    if rank == 1 and how == signal.SIGSTOP:  # mpirun kills rank 0 at once when another was killed
        assert len(ends[0]) == 8  # in the stream
    assert_gone(pids.values())
    until(lambda: any("[parallel]" in line for line in served.lines), 2)
    what = "has ended without a word" if how == signal.SIGKILL else "has not answered for"
    lines = [line for line in served.lines if line.startswith("longcat: [parallel]")]
    assert len(lines) == 1 and f"rank {rank} {what}" in lines[0]


def test_ctrl_c_leaves_nothing(served):
    pids = ranks(served)
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(LIMIT_SECONDS) != 0
    assert_gone(pids.values())
