"""`longcat doctor`: green where all is well, and right about what is not."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from longcat.cli import main
from longcat.planning.doctor import System, examine

from support.system_files import write_system

HEALTHY = {
    "proc/cpuinfo": "model name\t: Some CPU\n",
    "proc/self/status": "Mems_allowed_list:\t0\n",
    "proc/sys/vm/overcommit_memory": "0\n",
    "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
    "sys/devices/system/node/has_memory": "0\n",
}
DRIVER = {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05\n"}
GPU = {"dev/nvidia0": "", **DRIVER}
UNLIMITED = resource.RLIM_INFINITY


def machine(root: Path, files=(), limits=(), **others) -> System:
    """A healthy machine, except for what is given."""
    write_system(root, HEALTHY | dict(files))
    limit = lambda which: dict(limits).get(which, (UNLIMITED, UNLIMITED))  # noqa: E731
    return System(
        **{
            "root": str(root),
            "num_threads": 4,
            "num_processors": 4,
            "isa": "avx2",
            "cuda_is_built": False,
            "limit": limit,
            **others,
        }
    )


def bad(verdicts):
    return [verdict for verdict in verdicts if verdict.status != "ok"]


def test_a_healthy_machine_is_green(tmp_path, tiny):
    assert not bad(examine(tiny, machine(tmp_path)))
    assert not bad(examine(tiny, machine(tmp_path, GPU, cuda_is_built=True)))


FAULTS = {
    "slow CPU": ({}, {}, {"isa": "portable"}, "cpu", "warn", "AVX2"),
    "no driver": ({"dev/nvidia0": ""}, {}, {}, "gpu", "FAIL", "modprobe"),
    "no device": (DRIVER, {}, {}, "gpu", "FAIL", "--gpus all"),
    "build without CUDA": (GPU, {}, {}, "gpu", "warn", "make cuda"),
    "pinned memory": (GPU, {resource.RLIMIT_MEMLOCK: (8 << 20, 8 << 20)}, {"cuda_is_built": True}, "pinned memory",
                      "warn", "ulimit -l unlimited"),
    "two NUMA nodes": ({"sys/devices/system/node/has_memory": "0-1\n", "proc/self/status": "Mems_allowed_list:\t0-1\n"},
                       {}, {}, "numa", "warn", "numactl"),
    "address space": ({}, {resource.RLIMIT_AS: (1 << 30, 1 << 30)}, {}, "address space", "warn", "ulimit -v"),
    "overcommit": ({"proc/sys/vm/overcommit_memory": "2\n"}, {}, {}, "overcommit", "warn", "sysctl"),
    "few files": ({}, {resource.RLIMIT_NOFILE: (256, 256)}, {}, "open files", "warn", "ulimit -Hn"),
    "network disk": ({"proc/self/mountinfo": "1 0 8:1 / / rw - ext4 a rw\n2 1 0:1 / / rw - nfs4 server:/models rw\n"},
                     {}, {}, "disk", "warn", "a disk of this machine"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_machine_is_found_and_nothing_else(tmp_path, tiny, fault):
    files, limits, others, name, status, fix = FAULTS[fault]
    [verdict] = bad(examine(tiny, machine(tmp_path, files, limits, **others)))
    assert (verdict.name, verdict.status) == (name, status) and fix in verdict.fix, verdict


def test_a_quota_of_processor_time_is_told(tmp_path):
    verdicts = {v.name: v for v in examine(None, machine(tmp_path, num_threads=2, num_processors=64))}
    assert verdicts["threads"].status == "ok"
    expected = "2 for the CPU backend, as a quota of the control group allows, on 64 processors"
    assert verdicts["threads"].finding == expected


def test_one_node_of_two_is_no_fault(tmp_path):
    assert not bad(examine(None, machine(tmp_path, {"sys/devices/system/node/has_memory": "0-1\n"})))


def damage(folder: Path, how: str) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    if how == "truncated shard":
        shard.write_bytes(shard.read_bytes()[:-1000])
    elif how == "missing shard":
        shard.unlink()
    elif how == "no weights":
        for path in folder.glob("model*"):
            path.unlink()
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "no template":
        (folder / "chat_template.jinja").unlink()
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "name", "status", "text"),
    [
        ("truncated shard", "checkpoint", "FAIL", "model-00002-of-00002.safetensors"),
        ("missing shard", "checkpoint", "FAIL", "model-00002-of-00002.safetensors"),
        ("no weights", "checkpoint", "FAIL", "no weights"),
        ("no config", "checkpoint", "FAIL", "config.json"),
        ("no tokenizer", "tokenizer.json", "warn", "texts"),
        ("no template", "chat_template.jinja", "warn", "conversations"),
    ],
)
def test_a_fault_of_the_checkpoint_is_found(tmp_path, tiny, how, name, status, text):
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    damage(folder, how)
    [verdict] = bad(examine(str(folder), machine(tmp_path / "root")))
    assert (verdict.name, verdict.status) == (name, status) and text in verdict.finding and verdict.fix, verdict


def test_too_little_memory_is_found(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("longcat._core.available_memory", lambda: 8 << 20)
    [verdict] = bad(examine(tiny, machine(tmp_path)))
    assert verdict.name == "memory" and "longcat plan" in verdict.fix
    monkeypatch.setattr("longcat._core.available_memory", lambda: 8 << 10)
    [verdict] = bad(examine(tiny, machine(tmp_path)))
    assert (verdict.name, verdict.status) == ("memory", "FAIL") and "[kv cache] 2048 bytes" in verdict.finding


def test_a_missing_package_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orjson", None)
    [verdict] = bad(examine(None, machine(tmp_path)))
    assert verdict.name == "server packages" and "orjson" in verdict.finding and "pip install" in verdict.fix


def test_the_command(tiny, tmp_path, capsys):
    assert main(["doctor", tiny]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok    build") and any(line.startswith("ok    checkpoint") for line in lines)
    assert main(["doctor", tiny, "--json"]) == 0
    assert {"name", "status", "finding", "fix"} == set(json.loads(capsys.readouterr().out)[0])
    assert main(["doctor", str(tmp_path)]) == 1
    assert "FAIL  checkpoint" in capsys.readouterr().out


def test_a_real_limit_is_seen():
    program = (
        "import resource, longcat.planning.doctor as d; resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))\n"
    )
    program += "print([v.name for v in d.examine() if v.status != 'ok' and v.name == 'address space'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['address space']", done.stderr
