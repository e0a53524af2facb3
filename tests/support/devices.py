"""Devices the tests of the CUDA backend run on: its kernels walked on the host, and a GPU where there is one."""

import os

import longcat
import pytest
from longcat import _core
from longcat import _testing as testing

# Several devices are open in one run, each with an arena of its own.
os.environ.setdefault("LONGCAT_GPU_MEMORY", "0.1")


def cuda_missing() -> str | None:
    """Why no CUDA device can be used here, or None."""
    if not _core.cuda_is_built():
        return "this build has no CUDA backend"
    try:
        testing.DeviceOps("cuda")
    except _core.Error as error:
        return str(error)
    return None


_MISSING = cuda_missing()
# bench/gpu_gate.sh sets this: tests that all skip would prove nothing.
if _MISSING and "LONGCAT_TESTS_NEED_GPU" in os.environ:
    raise RuntimeError(f"LONGCAT_TESTS_NEED_GPU is set, but {_MISSING}")
needs_gpu = pytest.mark.skipif(_MISSING is not None, reason=_MISSING or "")

# Names that longcat._testing knows; the product does not.
EMULATED_F32 = "cuda-emulated-f32"
EMULATED = "cuda-emulated"
EMULATED_FP8 = "cuda-emulated-fp8"
EMULATED_REVERSED = "cuda-emulated-reversed"
EMULATED_SMALL = "cuda-emulated-small"
CPU_PADDED = "cpu-padded"
DEVICES = [EMULATED_F32, EMULATED, pytest.param("cuda", marks=needs_gpu)]


class DeviceEngine(longcat.Engine):
    """longcat.Engine on any device, emulated ones among them."""

    def _open_core(self, options, progress, communicator):
        if not options.device.startswith(EMULATED):
            return super()._open_core(options, progress, communicator)
        return testing.open_engine(self.model, options, progress, communicator)
