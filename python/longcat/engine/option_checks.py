"""Checks of single engine options. Each takes a name and a value, and returns the value for the core."""

from __future__ import annotations

from collections.abc import Mapping

from longcat.support.names import unknown_name
from longcat.support.other_engines import format_name
from longcat.support.values import parse_bytes, positive

# The further options of each method of speculative decoding, with their defaults.
_SPECULATIVE_DEFAULTS: dict[object, dict[str, object]] = {
    "ngram": {"num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 2},
    "mtp": {"num_speculative_tokens": 3, "adaptive": True, "draft_vocab": None},
}
_MOST_SPECULATIVE = 64
QUANTIZATIONS = ("fp8", "fp8-experts")


def text(name: str, value: object) -> str:
    """Checks a text, whose meaning the core checks."""
    if not isinstance(value, str):
        raise TypeError(f'{name}={value!r} is a {type(value).__name__}: expected a name such as "auto"')
    return value


def number_format(name: str, value: object) -> str:
    """Checks the name of a number format, ours or another engine's; returns ours."""
    return format_name(name, text(name, value))


def switch(name: str, value: object) -> bool:
    """Checks a switch. A text is none: "false" would switch it on."""
    if isinstance(value, str) or value not in (0, 1):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected True or False")
    return bool(value)


def seed(name: str, value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected an integer")
    return value


def milliseconds(name: str, value: float) -> float:
    """Checks a time above zero [s], which may be inf; returns milliseconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name}={value!r}; expected seconds above 0, or inf")
    return 1000.0 * value


def swap_bytes(name: str, value: int | str) -> int:
    """Checks a size of host memory; returns bytes, and -1 for "auto"."""
    return -1 if value == "auto" else parse_bytes(name, value, least=0)


def quantization(name: str, value: object) -> str:
    """Checks the name of a quantisation made while loading; returns "" for None."""
    if value not in (None, *QUANTIZATIONS):
        raise ValueError(f'{name}={value!r} is not known: use None, "fp8" or "fp8-experts"')
    return str(value or "")


def function(name: str, value: object) -> None:
    """Checks a function."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected a function")


def anything(name: str, value: object) -> None:
    """Checks nothing: the code that reads the option does."""


def speculation(name: str, value: object) -> tuple[str, int, int, int, bool, int]:
    """Checks the options of speculative decoding.

    Returns:
        (method, most draft tokens, most and fewest tokens that must agree, whether fewer are drafted where they do not
        pay, draft_vocab). No draft_vocab is 0.
    Raises:
        ValueError, TypeError: it is malformed.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f'{name}={value!r}: expected {{"method": "mtp", "num_speculative_tokens": 3}}')
    method = value.get("method")
    if not isinstance(method, str) or method not in _SPECULATIVE_DEFAULTS:
        raise ValueError(f'{name} method {method!r} is not known: use "mtp" or "ngram"')
    defaults = _SPECULATIVE_DEFAULTS[method]
    for part in value:
        if part != "method" and part not in defaults:
            raise unknown_name(name, str(part), ["method", *defaults])
    given = {part: count for part, count in value.items() if part != "method" and count is not None}
    parts = defaults | given
    adaptive, ids = switch("adaptive", parts.pop("adaptive", False)), parts.pop("draft_vocab", None)
    draft_vocab = 0 if ids is None else positive("draft_vocab", ids)
    counts = {part: positive(part, count) for part, count in parts.items()}
    for part, count in counts.items():
        if count > _MOST_SPECULATIVE:
            raise ValueError(f"{part}={count}; expected at most {_MOST_SPECULATIVE}")
    if method == "mtp":
        return "mtp", counts["num_speculative_tokens"], 1, 1, adaptive, draft_vocab
    if counts["prompt_lookup_min"] > counts["prompt_lookup_max"]:
        raise ValueError(
            f"prompt_lookup_min={counts['prompt_lookup_min']} is more than "
            f"prompt_lookup_max={counts['prompt_lookup_max']}"
        )
    return "ngram", counts["num_speculative_tokens"], counts["prompt_lookup_max"], counts["prompt_lookup_min"], False, 0
