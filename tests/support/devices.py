"""Devices the tests of the CUDA backend run on: its kernels walked on the host, and a GPU where there is one."""

import os

import pytest
from longcat import _core
from longcat._core import testing

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
needs_gpu = pytest.mark.skipif(_MISSING is not None, reason=_MISSING or "")

EMULATED_F32 = "cuda-emulated-f32"
EMULATED = "cuda-emulated"
EMULATED_FP8 = "cuda-emulated-fp8"
DEVICES = [EMULATED_F32, EMULATED, pytest.param("cuda", marks=needs_gpu)]
