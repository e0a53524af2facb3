"""Checks whether this machine is fit to run a checkpoint. Each verdict is one line with its remedy."""

from __future__ import annotations

import importlib
import os
import re
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import longcat._core as _core
from longcat._core import Error, OutOfMemoryError
from longcat.checkpoint.sources.opening import is_gguf
from longcat.support.names import install_command
from longcat.support.text import count

_SERVER_PACKAGES = (
    "fastapi",
    "httptools",
    "llguidance",
    "orjson",
    "prometheus_client",
    "pydantic",
    "uvicorn",
)
_NETWORK_DISKS = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "lustre")
_MIN_FILES = 1024  # connections of a busy server
_PINNED_BYTES = 64 << 30  # the N-gram tables of the real model


@dataclass(frozen=True)
class Verdict:
    """One line of the report. `status` is "ok", "warn" (it runs, but slower) or "FAIL"; `fix` is empty for "ok"."""

    name: str
    status: str
    finding: str
    fix: str = ""


@dataclass
class System:
    """The sources of the checks; tests replace them.

    Args:
        root: the folder with proc, sys and dev.
    """

    root: str = "/"
    num_threads: int = field(default_factory=_core.available_threads)
    num_processors: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    isa: str = field(default_factory=_core.cpu_isa)
    cuda_is_built: bool = field(default_factory=_core.cuda_is_built)
    limit: Callable[[int], tuple[int, int]] = resource.getrlimit

    def read(self, path: str) -> str | None:
        try:
            return Path(self.root, path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        return Path(self.root, path).exists()

    @property
    def has_gpu(self) -> bool:
        return self.exists("dev/nvidia0") or self.exists("dev/nvidiactl")


def examine(model: str | None = None, system: System | None = None) -> list[Verdict]:
    """All verdicts on this machine, and with a checkpoint folder on running that checkpoint here."""
    system = system or System()
    checks = [_build, _cpu, _threads, _gpu, _pinned_memory, _numa, _address_space, _overcommit, _files, _packages]
    verdicts = [verdict for check in checks for verdict in check(system)]
    if model is not None:
        verdicts += _checkpoint(model, system)
    return verdicts


def _build(system: System) -> Iterator[Verdict]:
    cuda = "with CUDA" if system.cuda_is_built else "without CUDA"
    yield Verdict("build", "ok", f"longcat {_core.__version__}, {cuda}")


def _cpu(system: System) -> Iterator[Verdict]:
    cpuinfo = system.read("proc/cpuinfo") or ""
    name = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    finding = f"{name[1] if name else 'unknown'}, kernels for {system.isa}"
    if system.isa == "portable":
        yield Verdict("cpu", "warn", finding, "a CPU with AVX2 is several times faster; a virtual machine may hide it")
    else:
        yield Verdict("cpu", "ok", finding)


def _threads(system: System) -> Iterator[Verdict]:
    finding = f"{system.num_threads} for the CPU backend"
    if system.num_threads < system.num_processors:
        finding += f", as a quota of the control group allows, on {count(system.num_processors, 'processor')}"
    yield Verdict("threads", "ok", finding)


def _gpu(system: System) -> Iterator[Verdict]:
    driver = system.read("proc/driver/nvidia/version")
    version = re.search(r"\b(\d{3}\.[\d.]+)", driver or "")
    if not system.has_gpu and driver is None:
        yield Verdict("gpu", "ok", "none: the CPU computes")
    elif driver is None:
        yield Verdict(
            "gpu",
            "FAIL",
            "a device and no driver",
            "load it (modprobe nvidia) or install it; in a container, start that with --gpus all",
        )
    elif not system.has_gpu:
        yield Verdict(
            "gpu",
            "FAIL",
            f"driver {version[1] if version else '?'} and no device",
            "start the container with --gpus all, or check that /dev/nvidia0 may be opened",
        )
    elif not system.cuda_is_built:
        yield Verdict(
            "gpu",
            "warn",
            f"driver {version[1] if version else '?'}, which this build cannot use: the CPU computes",
            "make cuda builds one with CUDA, whose kernels have not run on a GPU yet",
        )
    else:
        yield Verdict("gpu", "ok", f"driver {version[1] if version else '?'}")


def _pinned_memory(system: System) -> Iterator[Verdict]:
    if not (system.has_gpu and system.cuda_is_built):
        return
    soft, _ = system.limit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY and soft < _PINNED_BYTES:
        yield Verdict(
            "pinned memory",
            "warn",
            f"at most {soft >> 20} MiB, and the N-gram tables take up to 58.5 GiB",
            "ulimit -l unlimited (containers: --ulimit memlock=-1)",
        )
    else:
        yield Verdict("pinned memory", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"{soft >> 30} GiB")


def _numa(system: System) -> Iterator[Verdict]:
    nodes = len(_numbers(system.read("sys/devices/system/node/has_memory") or "0"))
    if nodes <= 1:
        yield Verdict("numa", "ok", "one node")
        return
    allowed = re.search(r"Mems_allowed_list:\s*(\S+)", system.read("proc/self/status") or "")
    if allowed and len(_numbers(allowed[1])) == 1:
        yield Verdict("numa", "ok", f"bound to one of {nodes} nodes")
    else:
        yield Verdict(
            "numa",
            "warn",
            f"{nodes} nodes: half the reads and more cross between them",
            "numactl --cpunodebind=0 --membind=0 longcat ..., or --interleave=all when one node is too small",
        )


def _numbers(text: str) -> list[int]:
    """The numbers in a list such as "0-1,4"."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            numbers += range(int(first), int(last or first) + 1)
    return numbers


def _address_space(system: System) -> Iterator[Verdict]:
    soft, _ = system.limit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield Verdict(
            "address space", "warn", f"limited to {soft / 1e9:.1f} GB: files are mapped whole", "ulimit -v unlimited"
        )
    else:
        yield Verdict("address space", "ok", "no limit")


def _overcommit(system: System) -> Iterator[Verdict]:
    if (system.read("proc/sys/vm/overcommit_memory") or "0").strip() == "2":
        yield Verdict(
            "overcommit",
            "warn",
            "vm.overcommit_memory is 2: the latent cache counts before it is used",
            "sysctl vm.overcommit_memory=0, or pass a smaller --kv-cache-memory",
        )
    else:
        yield Verdict("overcommit", "ok", "memory counts when it is used")


def _files(system: System) -> Iterator[Verdict]:
    _, hard = system.limit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _MIN_FILES:
        yield Verdict(
            "open files",
            "warn",
            f"at most {hard}: each client of a server is one",
            f"ulimit -Hn {_MIN_FILES} or more (containers: --ulimit nofile=65536)",
        )
    else:
        yield Verdict("open files", "ok", "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard}")


def _packages(system: System) -> Iterator[Verdict]:
    missing = []
    for name in _SERVER_PACKAGES:
        try:
            importlib.import_module(name)
        except Exception:  # a broken package may raise anything
            missing.append(name)
    if missing:
        yield Verdict("server packages", "warn", f"cannot be imported: {', '.join(missing)}", install_command("server"))
    else:
        yield Verdict("server packages", "ok", "all there")


# --- with a checkpoint ---------------------------------------------------------------------------------------------


def _checkpoint(model: str, system: System) -> Iterator[Verdict]:
    from longcat.planning.plan import plan

    model = os.path.expanduser(model)
    if is_gguf(model):
        yield Verdict("checkpoint", "FAIL", f"{model} is a GGUF file", f"longcat convert {model} FOLDER")
        return
    try:
        made = plan(model, bandwidth=1.0)
    except OutOfMemoryError as error:
        yield Verdict("memory", "FAIL", str(error), "free some memory, or give the container more")
        return
    except Error as error:
        yield Verdict(
            "checkpoint", "FAIL", str(error), "longcat verify says more; download the files that are named again"
        )
        return
    if not made.has_weights:
        yield Verdict(
            "checkpoint",
            "FAIL",
            f"{model} has a config.json and no weights",
            "download the *.safetensors files and model.safetensors.index.json beside it",
        )
        return
    yield Verdict("checkpoint", "ok", f"{made.architecture}, {made.parameters / 1e9:.2f} B parameters, headers whole")
    for name, what in [("tokenizer.json", "texts"), ("chat_template.jinja", "conversations")]:
        if name == "chat_template.jinja" and _has_template(model):
            continue
        if not os.path.exists(os.path.join(model, name)):
            yield Verdict(name, "warn", f"missing: {what} need it", f"download {name} into {model}")
    yield from _memory(made.peak - made.process, made.available)
    yield from _disk(model, system)


def _has_template(model: str) -> bool:
    from longcat.chat.template import ChatTemplate

    try:
        ChatTemplate.from_checkpoint(model)
    except Error:
        return False
    return True


def _memory(needed: int, available: int) -> Iterator[Verdict]:
    finding = f"{available / 1e9:.1f} GB free, {needed / 1e9:.1f} GB at the peak"
    if needed > available:
        yield Verdict(
            "memory",
            "warn",
            f"{finding}: weights will be read from disk again and again",
            "longcat plan shows what takes it; lower --kv-cache-memory or --max-model-len, or use more memory",
        )
    else:
        yield Verdict("memory", "ok", finding)


def _disk(model: str, system: System) -> Iterator[Verdict]:
    kind = _filesystem(os.path.realpath(model), system)
    if kind in _NETWORK_DISKS:
        yield Verdict(
            "disk",
            "warn",
            f"{model} is on {kind}: pages that are read again cross the network",
            "copy the checkpoint to a disk of this machine",
        )
    else:
        yield Verdict("disk", "ok", f"{model} is on {kind or 'an unknown file system'}")


def _filesystem(path: str, system: System) -> str | None:
    """Type of the file system of `path`: the longest mount point above it, and the last mount on that."""
    best, kind = -1, None
    for line in (system.read("proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        words = left.split()
        if len(words) < 5 or not right:
            continue
        point = words[4].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, kind = len(point), right.split()[0]
    return kind
