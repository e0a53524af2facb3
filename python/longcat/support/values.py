"""Checks values from callers and converts them to one form."""

from __future__ import annotations

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def positive(name: str, value: int | None) -> int:
    """Checks an optional count. The core takes 0 for its default."""
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise ValueError(f"{name}={value!r}; expected a positive integer")
    return value


def share(name: str, value: float) -> float:
    """Checks a share above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"{name}={value!r}; expected a share above 0 and at most 1, such as 0.9")
    return float(value)


def parse_bytes(name: str, value: int | str, least: int = 1) -> int:
    """The size in bytes of 4294967296, "4GiB" or "500 MB"; "auto" is 0."""
    if value == "auto":
        return 0
    if isinstance(value, str):
        digits = value.strip().rstrip("BbKkMmGgIi ")
        unit = value.strip()[len(digits) :].strip().upper()
        try:
            value = int(float(digits) * _UNITS[unit if unit != "B" else ""])
        except (KeyError, ValueError, OverflowError):
            raise ValueError(f'{name}="{value}"; expected a size in bytes, "500MB" or "4GiB"') from None
    if not isinstance(value, int) or not least <= value < 2**63:
        raise ValueError(f"{name}={value!r}; expected a positive number of bytes")
    return value
