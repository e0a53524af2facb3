"""Fixtures of the tests that compare each device with the CPU."""

import pytest
from longcat import _testing as testing

from support.devices import DEVICES
from support.tolerances import BF16_OPS, F32_TRANSCENDENTAL


@pytest.fixture(scope="module", params=DEVICES)
def ops(request):
    return testing.DeviceOps(request.param)


@pytest.fixture(scope="module")
def tolerance(ops):
    return F32_TRANSCENDENTAL if ops.activation_dtype() == "F32" else BF16_OPS
