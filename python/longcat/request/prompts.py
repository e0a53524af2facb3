"""Prompts as callers give them, texts or token ids, checked and in one form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def to_prompts(prompts: Any, prompt_token_ids: Any) -> tuple[list[str | list[int]], bool]:
    """The prompts as a list, and whether a single one was given."""
    if (prompts is None) == (prompt_token_ids is None):
        raise TypeError("generate needs prompts or prompt_token_ids, one of them")
    if prompts is not None:
        if isinstance(prompts, str):
            return [prompts], True
        if not isinstance(prompts, Sequence) or not all(isinstance(p, str) for p in prompts):
            raise TypeError("prompts is neither a text nor a list of texts: for token ids use prompt_token_ids")
        return list(prompts), False
    if len(prompt_token_ids) and hasattr(prompt_token_ids[0], "__len__"):
        return [as_token_ids(ids) for ids in prompt_token_ids], False
    return [as_token_ids(prompt_token_ids)], True


def as_token_ids(value: Sequence[int]) -> list[int]:
    """`value` as a list of ints (NumPy arrays too).

    Raises:
        ValueError: an element is not an integer that fits 32 bits.
    """
    if type(value) is list and set(map(type, value)) == {int} and min(value) >= -(2**31) and max(value) < 2**31:
        return list(value)  # the usual case, much faster than one by one
    ids = []
    for index, item in enumerate(value):
        try:
            number = item.__index__()
        except AttributeError:
            raise ValueError(f"token id at index {index} is {item!r}: expected an integer") from None
        if not -(2**31) <= number < 2**31:
            raise ValueError(f"token id {number} at index {index} does not fit 32 bits")
        ids.append(number)
    return ids
