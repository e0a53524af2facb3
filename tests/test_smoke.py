"""An installed wheel on a new machine: version, text, ranks, one request to a server, and the machine's check.

`make test-wheel` runs this file alone, in the environment of the wheel. It imports nothing of tests/.
"""

import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import longcat
import pytest

pytestmark = pytest.mark.smoke


def run(*arguments: str) -> str:
    """Standard output of `longcat ARGUMENTS`, which must succeed."""
    command = [sys.executable, "-m", "longcat", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_version():
    assert run("--version").startswith(f"longcat {longcat.__version__} (cpu ")


def test_instruction_set():
    """The best that the processor has. A compiler's runtime library may know none, and all would run on `portable`."""
    if platform.machine() != "x86_64":
        pytest.skip("the flags are those of x86-64")
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    best = ["portable", *(name for name, needed in INSTRUCTION_SETS.items() if needed <= flags)][-1]
    assert longcat._core.cpu_isa() == os.environ.get("LONGCAT_ISA", best)


AVX2 = {"avx2", "bmi1", "bmi2", "fma"}
AVX512 = AVX2 | {"avx512bw", "avx512dq", "avx512f", "avx512vl"}
INSTRUCTION_SETS = {
    "avx2": AVX2,
    "avx_vnni": AVX2 | {"avx_vnni"},
    "avx512": AVX512,
    "avx512_vnni": AVX512 | {"avx512_vnni"},
    "avx512_bf16": AVX512 | {"avx512_vnni", "avx512_bf16"},
}


def test_generate(tiny):
    with longcat.Engine(tiny) as engine:
        output = engine.generate("Once upon a time", max_tokens=8, temperature=0)
    assert len(output.text.split()) > 2
    printed = run("generate", tiny, "Once upon a time", "--max-tokens", "8", "--temperature", "0")
    assert printed.strip() == ("Once upon a time" + output.text).strip()


LATE_THREAD = """
import sys, threading, time, longcat

class Late:
    def __del__(self, sleep=time.sleep):  # of this module's end, when threads no longer get the GIL
        print("late", flush=True)
        sleep(0.3)

late = Late()
engine = longcat.Engine(sys.argv[1], num_threads=1)
stream = engine.generate("Once", max_tokens=1500, ignore_eos=True, stream=True)
next(stream)
threading.Thread(target=list, args=(stream,), daemon=True).start()
"""


def test_a_program_ends_while_a_thread_waits(tiny):
    """Python ends the thread by the unwinder of glibc, which a compiler's own C++ library may not survive."""
    command = [sys.executable, "-c", LATE_THREAD, tiny]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, "late\n"), result.stderr


MPIRUN = {
    "Open MPI": Path(sys.executable).with_name("mpirun"),
    "MPICH": Path(__file__).parents[1] / "build/mpich/bin/mpirun",
}
OPEN_MPI_ENVIRONMENT = {  # as root, and with more ranks than cores
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


@pytest.mark.parametrize("name", MPIRUN)
def test_ranks(tiny, name):
    """Two under each launcher, with its own library, and the text of one."""
    if not MPIRUN[name].exists():
        pytest.skip(f"no mpirun of {name}")
    words = ["-m", "longcat", "generate", tiny, "Once upon a time", "--max-tokens", "20", "--temperature", "0"]
    command = [MPIRUN[name], "--bind-to", "none", "-n", "2", sys.executable, *words, "--tp", "2"]
    environment = {**os.environ, **OPEN_MPI_ENVIRONMENT}
    ranks = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert ranks.returncode == 0, ranks.stdout + ranks.stderr
    assert ranks.stdout == run(*words[2:])


def test_doctor(tiny):
    verdicts = {verdict["name"]: verdict["status"] for verdict in json.loads(run("doctor", tiny, "--json"))}
    assert verdicts["build"] == verdicts["checkpoint"] == verdicts["server packages"] == "ok"


def wait_ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url + "/ready", timeout=60).close()
            return
        except urllib.error.HTTPError:  # 503 while the server warms up
            assert time.monotonic() < deadline, "the server is not ready after a minute"
            time.sleep(0.05)


def test_a_served_request(tiny):
    command = [sys.executable, "-m", "longcat", "serve", tiny, "--served-model-name", "tiny", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = next(match[1] for line in server.stderr if (match := re.search(r"listening on (http\S+)", line)))
            threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop the server
            wait_ready(url)
            body = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
            head = {"Content-Type": "application/json"}
            request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), head)
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)
        finally:
            server.terminate()
    assert server.returncode == 0
    assert answer["usage"]["completion_tokens"] == 8 and answer["choices"][0]["text"]
