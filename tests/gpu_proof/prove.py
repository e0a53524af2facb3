"""Proves the tensor-core kernels on the CPU: each as it is, then each barrier, wait, map, mask and index broken.

`make gpu-proof` runs it; it needs g++ and nothing else. docs/cuda.md explains how a kernel is registered here:

    python tests/gpu_proof/prove.py [--short] [--jobs N] [--seeds N] [--only TEXT] [KERNEL ...]

Every file NAME.py beside this one registers a kernel, and NAME.cpp has its cases:

- KERNELS: the C++ types that are launched.
- RANK_KERNELS: those that launch_on_ranks() launches; may be left out.
- SOURCES: the files that mutations change.
- MUTATIONS: name -> (what is there exactly once, what replaces it). White space may differ.

Besides, each barrier, wait and arrival in SOURCES is removed in turn.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "gpu-proof"
HEADER = BUILD / "emulator.h"  # included first, and precompiled: mutations do not change the emulator
EMULATOR = [
    "bank_conflicts", "fibers", "findings", "hopper", "proof", "simt_barriers", "simt_copies", "simt_emulator",
    "simt_memory", "tensor_core",
]  # fmt: skip
CXX = shlex.split(os.environ.get("CXX", "g++"))
FLAGS = ["-std=c++20", "-ffp-contract=off", "-w", f"-I{ROOT / 'cpp'}", f"-I{ROOT}"]

# Calls whose removal alone must be found. They return nothing, so that what is left compiles.
ORDERING = re.compile(
    r"(?<![\w.])(?:simt::)?(sync_threads|sync_warp|named_barrier_sync|named_barrier_arrive|cp_async_wait<[^>]*>|cp_async_commit|"
    r"mbarrier_init|mbarrier_wait|mbarrier_arrive_expect|mbarrier_arrive|cp_async_arrive|wait_at_least|wait_for_prior_grid|"
    r"signal_peer|wait_for_peer)"
    r"\s*\(([^;{}]*)\)\s*;"
)


@dataclass
class Registration:
    """A kernel's proof: see the module's text."""

    name: str
    kernels: list[str]
    rank_kernels: list[str]
    sources: list[str]
    mutations: dict[str, tuple[str, str]]


@dataclass
class Mutant:
    kernel: Registration
    name: str
    file: str
    text: str  # of the whole file


def registrations(names: list[str]) -> list[Registration]:
    """The registered kernels of these names, or all.

    Raises:
        SystemExit: a name is not registered.
    """
    known = sorted(path.stem for path in HERE.glob("*.py") if path.with_suffix(".cpp").exists())
    if missing := set(names) - set(known):
        sys.exit(f"[gpu-proof] found no kernel {sorted(missing)}, expected some of {known}")
    found = []
    for name in names or known:
        spec = spec_from_file_location(name, HERE / f"{name}.py")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        on_ranks = getattr(module, "RANK_KERNELS", [])
        found.append(Registration(name, module.KERNELS, on_ranks, module.SOURCES, module.MUTATIONS))
    return found


def mutants(kernel: Registration) -> list[Mutant]:
    """Every mutation of a kernel's sources.

    Raises:
        SystemExit: a pattern does not stand exactly once in the sources.
    """
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file in kernel.sources}
    found = []
    for file, text in texts.items():
        for match in ORDERING.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            comment = text.rfind("//", text.rfind("\n", 0, match.start()) + 1, match.start()) >= 0
            if not comment:
                name = f"{Path(file).name}:{line}: without {match.group(1)}"
                found.append(Mutant(kernel, name, file, text[: match.start()] + ";" + text[match.end() :]))
    for name, (old, new) in kernel.mutations.items():
        pattern = re.compile(r"\s+".join(map(re.escape, old.split())))  # formatting may break lines elsewhere
        places = [(file, match) for file, text in texts.items() for match in pattern.finditer(text)]
        if len(places) != 1:
            sys.exit(
                f"[gpu-proof] {kernel.name}: {name!r} stands {len(places)} times in {kernel.sources}, "
                f"expected once: {old!r}"
            )
        [(file, match)] = places
        text = texts[file]
        found.append(Mutant(kernel, name, file, text[: match.start()] + new + text[match.end() :]))
    return found


def compile_file(source: Path, to: Path, *flags: str) -> str:
    """Compiles unless `to` is newer than all that it was made of. Returns the compiler's errors."""
    depends = to.with_suffix(".d")
    if to.exists() and depends.exists():
        files = depends.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        if all(Path(f).exists() and Path(f).stat().st_mtime <= to.stat().st_mtime for f in files):
            return ""
    to.parent.mkdir(parents=True, exist_ok=True)
    to.unlink(missing_ok=True)
    command = [*CXX, *flags, *FLAGS, "-MMD", "-c", str(source), "-o", str(to)]
    began = time.time()
    errors = subprocess.run(command, capture_output=True, text=True).stderr
    if to.exists():
        os.utime(to, (began, began))  # a source that changes meanwhile is newer
        return ""
    return errors


def kernel_unit(kernel: Registration, folder: Path) -> Path:
    """The source file of what mutations change: the kernels, compiled for the emulator."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f'#include "{file}"' for file in [HEADER, *kernel.sources]]
    lines += [
        f"template void longcat::emulation::SimtEmulator::launch(int64_t, const {k}&, bool);" for k in kernel.kernels
    ]
    lines += [
        f"template void longcat::emulation::SimtEmulator::launch_on_ranks(const std::vector<std::vector<Grid<{k}>>>&);"
        for k in kernel.rank_kernels
    ]
    unit = folder / "kernel.cpp"
    text = "\n".join(lines) + "\n"
    if not unit.exists() or unit.read_text() != text:
        unit.write_text(text)
    return unit


def link(objects: list[Path], to: Path) -> str:
    return subprocess.run([*CXX, *map(str, objects), "-o", str(to)], capture_output=True, text=True).stderr


def build_common(kernels: list[Registration], jobs: int) -> list[Path]:
    """The emulator and the cases of each kernel: compiled once."""
    objects = [BUILD / f"{name}.o" for name in EMULATOR]
    BUILD.mkdir(parents=True, exist_ok=True)
    if not HEADER.exists():
        HEADER.write_text('#include "cuda/emulation/simt_emulator.h"\n')
    if errors := compile_file(HEADER, HEADER.with_suffix(".h.gch"), "-O1", "-x", "c++-header"):
        sys.exit("[gpu-proof] does not compile:\n" + errors)
    work = [
        (ROOT / "cuda" / "emulation" / f"{name}.cpp", to, "-O2") for name, to in zip(EMULATOR, objects, strict=True)
    ]
    work += [(HERE / f"{k.name}.cpp", BUILD / k.name / "cases.o", "-O2") for k in kernels]
    work += [(kernel_unit(k, BUILD / k.name), BUILD / k.name / "kernel.o", "-O1") for k in kernels]
    with ThreadPoolExecutor(jobs) as pool:
        errors = list(pool.map(lambda w: compile_file(*w), work))
    if failed := [error for error in errors if error]:
        sys.exit("[gpu-proof] does not compile:\n" + "\n".join(failed))
    return objects


def run(program: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output. A program that takes all its seconds of CPU, and so does not end, counts as a deadlock."""
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return 1, done.stdout + "FOUND deadlock: no end\n"
    if done.returncode < 0:
        return 1, done.stdout + f"FOUND crash: signal {-done.returncode}\n"
    return done.returncode, done.stdout + done.stderr


def prove_as_is(kernel: Registration, common: list[Path], seeds: int) -> tuple[bool, str]:
    folder = BUILD / kernel.name
    program = folder / "proof"
    if error := link([*common, folder / "cases.o", folder / "kernel.o"], program):
        return False, error
    code, output = run(program, "--seeds", str(seeds))
    return code == 0, output


def try_mutant(number: int, mutant: Mutant, common: list[Path], seeds: int) -> tuple[bool, str]:
    """Whether the proof notices, and by what."""
    folder = BUILD / mutant.kernel.name / f"mutant{number}"
    changed = folder / mutant.file
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_text(mutant.text, encoding="utf-8")
    unit = kernel_unit(mutant.kernel, folder)
    (folder / "kernel.o").unlink(missing_ok=True)
    if error := compile_file(unit, folder / "kernel.o", "-O1", f"-I{folder}"):
        return False, "does not compile: " + error.strip().split("\n")[0]
    program = folder / "proof"
    if error := link([*common, BUILD / mutant.kernel.name / "cases.o", folder / "kernel.o"], program):
        return False, "does not link: " + error.strip().split("\n")[0]
    code, output = run(program, "--seeds", str(seeds), "--first")
    for file in (program, folder / "kernel.o"):
        file.unlink(missing_ok=True)
    ways = list(dict.fromkeys(re.findall(r"^FOUND (\w+):", output, re.MULTILINE)))
    return code != 0 and bool(ways), " and ".join(ways) or f"exit code {code}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Proves the tensor-core kernels on the CPU.", allow_abbrev=False)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help="kernels to prove (default: all)")
    parser.add_argument("--short", action="store_true", help="2 seeds, and a few mutations of each kernel")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="programs at once (default: cores)")
    parser.add_argument("--seeds", type=int, help="schedules of each case (default 20; 2 with --short)")
    parser.add_argument("--only", default="", help="only mutations whose name contains this text")
    options = parser.parse_args()
    seeds = options.seeds or (2 if options.short else 20)
    began = time.monotonic()
    kernels = registrations(options.kernels)
    common = build_common(kernels, options.jobs)
    print(f"compiled the emulator and {len(kernels)} proofs in {time.monotonic() - began:.0f} s", flush=True)
    missed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        if not options.only:
            for kernel, (ok, output) in zip(
                kernels, pool.map(lambda k: prove_as_is(k, common, seeds), kernels), strict=True
            ):
                print(
                    f"{kernel.name}: {'proven' if ok else 'FAILED'}\n  " + output.strip().replace("\n", "\n  "),
                    flush=True,
                )
                if not ok:
                    return 1
        work = [m for kernel in kernels for m in mutants(kernel) if options.only in m.name]
        if options.short:
            # Of each kernel six, spread over the list.
            work = [m for kernel in kernels for m in spread([m for m in work if m.kernel is kernel], 6)]
        results = pool.map(lambda item: try_mutant(*item, common, min(seeds, 4)), enumerate(work))
        for mutant, (ok, way) in zip(work, results, strict=True):
            print(f"{'found ' if ok else 'MISSED'} {mutant.kernel.name}: {mutant.name}: {way}", flush=True)
            if not ok:
                missed.append(mutant)
    print(f"took {time.monotonic() - began:.0f} s")
    print(f"mutations found: {len(work) - len(missed)} of {len(work)}")
    return 1 if missed else 0


def spread(items: list[Mutant], count: int) -> list[Mutant]:
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else items


if __name__ == "__main__":
    sys.exit(main())
