"""Shared by the tests of the file parsers.

The folder is no package: one named `io` would hide the standard library's.
"""

import time

import longcat
import pytest


def _refused(call, *args, within_ms=1000) -> str:
    """Runs `call(*args)`, which must raise longcat.Error; returns its message, checked to be fit for a log.

    Prints the time taken; the goal is 100 ms, the assertion is wide because machines are shared.
    """
    start = time.perf_counter()
    with pytest.raises(longcat.Error) as info:
        call(*args)
    elapsed_ms = (time.perf_counter() - start) * 1e3
    message = str(info.value)
    print(f"{elapsed_ms:7.1f} ms  {message}")
    assert message.startswith("[")
    assert len(message.splitlines()) == 1 and message.isprintable()
    assert len(message.encode()) < 8192
    assert elapsed_ms < within_ms
    return message


@pytest.fixture
def refused():
    return _refused
