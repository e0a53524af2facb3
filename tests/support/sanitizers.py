"""The sanitizer that `make sanitize` loads into each process of the tests."""

import ctypes


def sanitizer() -> str | None:
    """The name of the sanitizer in this process; None without one."""
    process = ctypes.CDLL(None)
    names = {"AddressSanitizer": "__asan_init", "ThreadSanitizer": "__tsan_init"}
    return next((name for name, function in names.items() if hasattr(process, function)), None)
