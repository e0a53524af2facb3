"""Ranks that are processes: the same results, and an end within ten seconds whatever happens to one of them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from longcat import Engine
from openai import OpenAI

from support.checkpoints import make_checkpoint, random_token_ids, read_config
from support.launcher import LEFT_CODE
from support.layouts import MAX_ERROR, SMALL, TINY
from support.live import LiveServer, until
from support.processes import (
    LAUNCHERS,
    LIMIT_SECONDS,
    MPICH,
    OPEN_MPIRUN,
    Job,
    all_launchers,
    assert_nothing_left,
    both_launchers,
    job_environment,
    needs_mpi,
    needs_mpich,
    processes_of,
    ranks_of,
)

pytestmark = pytest.mark.ranks

NEW_TOKENS = 64  # test_layouts.py goes on to 200, with the same ranks as threads


def program(name: str, *arguments: str) -> list[str]:
    return ["-m", "support.rank_programs", name, *arguments]


def generate(folder: str, *arguments: str) -> list[str]:
    return ["-m", "longcat", "generate", folder, "Once upon a time", "--num-threads", "1", *arguments]


@pytest.mark.parametrize(
    "launcher, size",
    [
        *(pytest.param("mpirun", size, marks=needs_mpi) for size in (2, 3, 4)),
        *(("torchrun", size) for size in (2, 3, 4)),
        pytest.param("mpich", 3, marks=needs_mpich),
    ],
)
def test_collectives(launcher, size):
    code, out, lines = Job(launcher, size, program("collectives")).end()
    assert (code, lines) == (0, [])
    assert sorted(re.findall(r"rank \d is well", out)) == [f"rank {r} is well" for r in range(size)]


@needs_mpich
def test_the_standard_abi(monkeypatch):
    monkeypatch.setenv("LONGCAT_MPI", str(MPICH / "lib/libmpi_abi.so.1"))
    code, out, lines = Job("mpich", 2, program("collectives")).end()
    assert (code, lines, out.count("is well")) == (0, [], 2)


@all_launchers
def test_what_was_given_up_is_not_written_to(launcher, tmp_path):
    """A rank that leaves the job has freed what others may still send to."""
    code, out, lines = Job(launcher, 2, program("give_up", str(tmp_path))).end()
    assert code not in (0, LEFT_CODE) and "rank 1 is well" in out
    assert [line for line in lines if "longcat: " in line] == ["longcat: [parallel] rank 1 failed: given up"]


def test_ranks_that_pause_together_are_not_lost(tmp_path):
    """As in a container that is frozen for a while: one rank goes on before the other."""
    job = Job("torchrun", 2, program("pause", str(tmp_path)))
    until(lambda: len(list(tmp_path.glob("ready *"))) == 2)
    pids = ranks_of(job.environment)
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1.5)
    for pid in pids.values():
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.5)
    (tmp_path / "end").touch()
    code, out, lines = job.end()
    assert (code, lines) == (0, []) and out.count("is well") == 2


@needs_mpi
@needs_mpich
def test_the_library_of_another_launcher(tiny, monkeypatch):
    """Each of its ranks is alone, it finds. MPICH's library notices Open MPI's launcher itself."""
    monkeypatch.setenv("LONGCAT_MPI", str(Path(OPEN_MPIRUN).parents[1] / "lib/libmpi.so.40"))
    code, _, lines = Job("mpich", 2, generate(tiny, "--tp", "2")).end()
    assert code != 0 and re.fullmatch(
        r"longcat: \[parallel\] mpirun says rank 0 of 2, and Open MPI v\S+ rank 0 of 1: start the job with the "
        "launcher of that library",
        lines[0],
    )


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
        output = engine.generate(prompt_token_ids=prompt, max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
        token_ids = list(output.outputs[0].token_ids)
        return folder, prompt, token_ids, engine.forward([*prompt, *token_ids])


@pytest.mark.parametrize(
    "launcher, tp, ep",
    [
        *(pytest.param("mpirun", *layout, marks=needs_mpi) for layout in [(2, 1), (1, 2), (4, 1), (1, 4), (2, 4)]),
        ("torchrun", 2, 1),
        ("torchrun", 2, 4),
    ],
)
def test_greedy_tokens_and_logits(launcher, case, tp, ep, tmp_path):
    folder, prompt, token_ids, logits = case
    path = str(tmp_path / "logits.npy")
    command = program("generate", folder, str(tp), str(ep), json.dumps(prompt), str(NEW_TOKENS), path)
    code, out, lines = Job(launcher, max(tp, ep), command).end(120)
    assert (code, lines) == (0, [])
    assert json.loads(out) == token_ids
    assert np.abs(np.load(path) - logits).max() <= MAX_ERROR


@all_launchers
def test_generate_prints_once(launcher, tiny):
    options = ["--max-tokens", "20", "--temperature", "0"]
    code, out, _ = Job(launcher, 2, generate(tiny, "--tp", "2", *options)).end()
    alone = subprocess.run([sys.executable, *generate(tiny, *options)], env=job_environment(), capture_output=True)
    assert code == 0 and out == alone.stdout.decode()


@both_launchers
def test_the_same_script_on_every_rank(launcher, tiny):
    code, out, lines = Job(launcher, 2, program("spmd", tiny)).end()
    assert (code, lines) == (0, [])
    first, second = map(json.loads, out.splitlines())
    assert first == second and all(first[0]) and first[2]


@both_launchers
@pytest.mark.parametrize("tp, dp", [(2, 2), (1, 3)])
def test_replicas(launcher, tiny, tp, dp):
    """Each with requests of its own, and the tokens of a model alone."""
    code, out, lines = Job(launcher, tp * dp, program("replicas", tiny, str(tp), str(dp))).end()
    assert (code, lines) == (0, [])
    with Engine(tiny, num_threads=1, kv_cache_memory="64MiB", dtype="f32") as engine:
        expected = []
        for length in range(10, 13):
            output = engine.generate(prompt_token_ids=range(3, 3 + length), max_tokens=30, temperature=0)
            expected.append([(length - 10) % dp, length, list(output.outputs[0].token_ids)])
    assert sorted(map(json.loads, out.splitlines()), key=lambda answer: answer[1]) == expected


@both_launchers
@pytest.mark.parametrize(
    "size, arguments, line",
    [
        (2, ["--tp", "4"], "[parallel] tensor_parallel_size=4 and expert_parallel_size=1 are 4 ranks, and {} "
                           "started 2: start 4"),
        (2, [], "{} started 2 processes, and --tp 1 --ep 1 is one: pass --tp 2 or --ep 2, or start one"),
        (3, ["--tp", "3"], "[parallel] tp=3 does not divide num_attention_heads=4: use 1, 2 or 4"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be(launcher, tiny, size, arguments, line):
    began = time.monotonic()
    code, _, lines = Job(launcher, size, generate(tiny, *arguments)).end()
    assert code not in (0, LEFT_CODE) and lines == [f"longcat: {line.format(launcher)}"]
    assert time.monotonic() - began < LIMIT_SECONDS


@both_launchers
def test_a_rank_that_cannot_load(launcher, tiny, tmp_path):
    began = time.monotonic()
    code, _, lines = Job(launcher, 2, generate(tiny, "--tp", "2"), generate(str(tmp_path / "x"), "--tp", "2")).end()
    assert code not in (0, LEFT_CODE) and len(lines) == 1
    assert re.fullmatch(r"longcat: \[parallel\] rank 1 failed: \[config\] \S+ does not exist: .*", lines[0])
    assert time.monotonic() - began < LIMIT_SECONDS


@both_launchers
def test_checkpoints_that_differ(launcher, tiny, tmp_path):
    make_checkpoint(tmp_path, config_overrides=TINY)
    began = time.monotonic()
    code, _, lines = Job(launcher, 2, generate(tiny, "--tp", "2"), generate(str(tmp_path), "--tp", "2")).end()
    assert code not in (0, LEFT_CODE)
    assert lines == ["longcat: [parallel] rank 1 has other checkpoint files than rank 0: give all ranks the same"]
    assert time.monotonic() - began < LIMIT_SECONDS


@both_launchers
@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_in_a_script(launcher, tiny, rank):
    began = time.monotonic()
    code, _, lines = Job(launcher, 2, program("raise_on", str(rank), tiny)).end()
    assert code not in (0, LEFT_CODE) and "Traceback (most recent call last):" in lines
    assert any("RuntimeError: something went wrong here" in line for line in lines)
    assert time.monotonic() - began < LIMIT_SECONDS


@both_launchers
def test_bench_prints_once(launcher, tiny):
    options = ["--num-prompts", "4", "--input-len", "8", "--output-len", "4", "--num-threads", "1", "--json"]
    code, out, lines = Job(launcher, 2, ["-m", "longcat", "bench", "throughput", tiny, "--tp", "2", *options]).end()
    assert (code, lines) == (0, []) and json.loads(out)["requests_per_second"] > 0


@both_launchers
@pytest.mark.parametrize("command", [["plan"], ["verify"], ["convert", "--quant", "int8"], ["bench", "startup"]])
def test_the_work_of_one_process(launcher, tiny, tmp_path, command):
    out = [str(tmp_path / "out")] if command[0] == "convert" else []
    code, _, lines = Job(launcher, 2, ["-m", "longcat", *command, tiny, *out]).end()
    what = " ".join(command[: 1 + (command[0] == "bench")])
    assert code != 0 and lines == [f"longcat: {what} is the work of one process, and {launcher} started 2: start one"]


@both_launchers
def test_replicas_in_the_wrong_number(launcher, tiny):
    code, _, lines = Job(launcher, 3, ["-m", "longcat", "serve", tiny, "--tp", "2", "--dp", "2"]).end()
    assert code != 0 and lines == [
        "longcat: [parallel] data_parallel_size=2 times the larger of tensor_parallel_size=2 and "
        f"expert_parallel_size=1 are 4 ranks, and {launcher} started 3: start 4"
    ]


@both_launchers
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("after", ["busy", "ends"])
def test_an_engine_that_fails(launcher, tiny, rank, after):
    """Its script does not say so: all ranks end all the same, none of them with 0, and rank 0 says why."""
    began = time.monotonic()
    code, _, lines = Job(launcher, 2, program("break_on", str(rank), after, tiny)).end()
    assert code not in (0, LEFT_CODE)
    own = [line for line in lines if line.startswith("longcat: ")]
    assert own == [f"longcat: [parallel] rank {rank} failed: [engine] it is broken"]
    assert time.monotonic() - began < LIMIT_SECONDS + 5


# --- serving -------------------------------------------------------------------------------------------------------


class Served(LiveServer):
    """Two ranks that serve."""

    def __init__(self, launcher: str, model: str, *layout: str):
        self.environment = job_environment()
        words = [*LAUNCHERS[launcher], "-n", "2"]
        super().__init__(model, *layout, "--num-threads", "1", env=self.environment, launcher=words)

    def ranks(self) -> dict[int, int]:
        found = ranks_of(self.environment)
        assert sorted(found) == [0, 1]
        return found


@pytest.fixture
def served(launcher, tiny):
    server = Served(launcher, tiny, "--tp", "2")
    try:
        server.wait_ready()
        yield server
    finally:
        for pid in processes_of(server.environment):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        server.process.wait()


@both_launchers
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGUSR1], ids=["rank 0", "the launcher"])
def test_the_openai_client(launcher, served, how):
    pids = served.ranks()
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
    body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True}
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(served.url + "/v1/completions", json=body, timeout=60).json())
    )
    asking.start()
    until(lambda: served.metric("num_requests_running") > 0)
    os.kill(pids[0] if how == signal.SIGTERM else served.process.pid, how)
    assert served.process.wait(40) == 0
    asking.join()
    assert answers[0]["usage"]["completion_tokens"] == 400
    assert_nothing_left(served.environment)


@all_launchers
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank(launcher, served, how, rank):
    """Clients get an error, one line says which rank, and nothing is left."""
    pids = served.ranks()
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
    assert served.process.wait(LIMIT_SECONDS + 5) not in (0, LEFT_CODE), served.lines
    assert time.monotonic() - began < LIMIT_SECONDS + 5
    asking.join(LIMIT_SECONDS)
    assert ends and ends[0], "the client waits for ever"
    if rank == 1 and (how == signal.SIGSTOP or launcher == "torchrun"):  # mpirun kills rank 0 when another was killed
        assert len(ends[0]) == 8  # in the stream
    assert_nothing_left(served.environment)
    # MPICH kills all ranks when one was killed, and may be faster than the rank that would tell.
    may_be_silent = launcher == "mpich" and how == signal.SIGKILL
    if not may_be_silent:
        until(lambda: any("[parallel]" in line for line in served.lines), 2)
    what = "has ended without a word" if how == signal.SIGKILL else "has not answered for"
    lines = [line for line in served.lines if line.startswith("longcat: [parallel]")]
    assert len(lines) == 1 or (may_be_silent and not lines)
    assert all(f"rank {rank} {what}" in line for line in lines)


@both_launchers
def test_ctrl_c_leaves_nothing(launcher, served):
    """Open MPI kills its ranks; a terminal would tell torchrun's ranks, and rank 0 drains."""
    served.process.send_signal(signal.SIGINT)
    code = served.process.wait(LIMIT_SECONDS)
    assert code != LEFT_CODE and (code == 0 or launcher == "mpirun")
    assert_nothing_left(served.environment)


@both_launchers
def test_servers_of_replicas(launcher, tiny):
    """One a replica, each on a port of its own; both drain when they are asked, by mpirun or one by one."""
    with Served(launcher, tiny, "--dp", "2") as server:

        def urls():
            return re.findall(r"listening on (http[^\s\"]+)", "".join(server.lines))

        until(lambda: len(urls()) == 2)
        body = {"prompt": "Once", "max_tokens": 20, "temperature": 0}
        for url in urls():
            until(lambda url=url: httpx.get(url + "/ready").status_code == 200)
        first, second = (httpx.post(url + "/v1/completions", json=body, timeout=30).json() for url in urls())
        assert first["choices"][0]["text"] == second["choices"][0]["text"] != ""
        assert first["id"] != second["id"]
        for pid in [server.process.pid] if launcher == "mpirun" else server.ranks().values():
            os.kill(pid, signal.SIGUSR1)
        assert server.process.wait(40) == 0
        assert_nothing_left(server.environment)
