"""Prints the limits of a machine's GPU: driver, attributes, and the speeds of copies and products.

    python bench/scripts/ceilings.py [--check]

Other benchmarks print shares of these limits. PyTorch, if installed, measures copies and products, so that our kernels
are not compared with themselves. `--check` runs without a GPU, to see that the script works.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import sys
import time
from collections.abc import Callable

# CUdevice_attribute of cuda.h: its number, its unit, and the value that the backend relies on.
ATTRIBUTES = {
    "compute capability, major": (75, "", 9),
    "compute capability, minor": (76, "", 0),
    "multiprocessors": (16, "", "-"),
    "clock": (13, "kHz", "-"),
    "memory clock": (36, "kHz", "-"),
    "memory bus": (37, "bits", "-"),
    "L2 cache": (38, "bytes", "-"),
    "shared memory of a block": (97, "bytes", 227 << 10),
    "kernels read registered host memory at its own address": (91, "", 1),
    "kernels read pageable memory": (88, "", "-"),
    "kernels follow the host's page tables": (100, "", "-"),
}
FLOPS_A_CYCLE = 4096  # FLOP of a multiprocessor of 9.0 in a cycle, dense bf16
# The shares of the nominal peaks that a good copy and a good product reach.
COPY_SHARE, PRODUCT_SHARE = 0.85, 0.78


def row(what: str, found: object, unit: str = "", expected: object = "-") -> None:
    print(f"| {what} | {found} | {unit} | {expected} |", flush=True)


def seconds_of(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def read_attributes() -> dict[str, int]:
    """Prints the driver's attributes of device 0; returns them by name."""
    driver = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        if code := getattr(driver, name)(*arguments):
            raise RuntimeError(f"{name} of the CUDA driver returned error {code}")

    version, device, value = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    row("cuInit", f"{seconds_of(lambda: call('cuInit', 0)):.2f}", "s")
    call("cuDriverGetVersion", ctypes.byref(version))
    row("CUDA version of the driver", f"{version.value // 1000}.{version.value % 1000 // 10}", "", "13.0")
    call("cuDeviceGet", ctypes.byref(device), 0)
    found = {}
    for name, (number, unit, expected) in ATTRIBUTES.items():
        call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        found[name] = value.value
        row(name, value.value, unit, expected)
    return found


def open_package(device: str) -> None:
    from importlib import import_module

    for module in ("longcat._core", "longcat._testing"):
        row(f"import {module}", f"{seconds_of(lambda name=module: import_module(name)):.2f}", "s")
    testing = import_module("longcat._testing")
    row(f"open {device}", f"{seconds_of(lambda: testing.DeviceOps(device)):.2f}", "s")


def measure(attributes: dict[str, int]) -> None:
    """Measures copies and a product of random bf16 values by PyTorch, beside the nominal peaks."""
    try:
        import torch
    except (ImportError, OSError):
        print("\nPyTorch is not here: copies and products are not measured")
        return

    def median_ms(work: Callable[[], object], repeats: int = 10) -> float:
        work()
        times = []
        for _ in range(repeats):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return sorted(times)[repeats // 2]

    row("PyTorch", torch.__version__)
    source = torch.randn(1 << 30, device="cuda").to(torch.bfloat16)
    target = torch.empty_like(source)
    size = source.numel() * 2
    peak = 2e3 * attributes["memory clock"] * attributes["memory bus"] / 8
    found = 2 * size / median_ms(lambda: target.copy_(source)) / 1e6
    row("copy, read and written", f"{found:.0f}", "GB/s", f"{COPY_SHARE * peak / 1e9:.0f}" if peak else "-")
    pinned = torch.empty(1 << 28, dtype=torch.bfloat16, pin_memory=True)
    part = target[: pinned.numel()]
    found = pinned.numel() * 2 / median_ms(lambda: part.copy_(pinned), 3) / 1e6
    row("from pinned host memory", f"{found:.1f}", "GB/s")
    left, right = (values.view(8192, 8192) for values in source[: 2 << 26].split(1 << 26))
    peak = 1e3 * attributes["clock"] * attributes["multiprocessors"] * FLOPS_A_CYCLE
    found = 2 * 8192**3 / median_ms(lambda: left @ right) / 1e9
    row("product, 8192 cubed", f"{found:.0f}", "TFLOP/s", f"{PRODUCT_SHARE * peak / 1e12:.0f}" if peak else "-")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="without a GPU, to see that the script works")
    check = parser.parse_args().check
    print("| what | found | unit | expected |\n| --- | --- | --- | --- |")
    row("Python", platform.python_version())
    row("C library", " ".join(platform.libc_ver()))
    attributes = {} if check else read_attributes()
    open_package("cuda-emulated" if check else "cuda")
    if not check:
        measure(attributes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
