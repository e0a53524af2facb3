"""Checks the prompts of callers (texts, token ids or vLLM's dicts), and gives each its sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, Union

from longcat.request.keywords import SamplingKeywords
from longcat.request.sampling_params import SamplingParams

Prompt: TypeAlias = Union[str, Sequence[int], Mapping[str, object]]  # noqa: UP007
Params: TypeAlias = Union[SamplingParams, Mapping[str, object]]  # noqa: UP007
Conversation: TypeAlias = Sequence[Mapping[str, object]]  # messages
Tools: TypeAlias = Sequence[Mapping[str, object]]
ToolChoice: TypeAlias = Union[str, Mapping[str, object]]  # noqa: UP007

_EXPECTED = 'expected a text, a list of token ids, {"prompt": text} or {"prompt_token_ids": [...]}'


class GenerateKeywords(SamplingKeywords, total=False):
    """The keywords of Engine.generate that do not change the type of its result."""

    use_tqdm: bool


class ChatKeywords(SamplingKeywords, total=False):
    """The keywords of Engine.chat that do not change the type of its result, without use_tqdm."""

    tools: Tools | None
    tool_choice: ToolChoice | None
    add_generation_prompt: bool
    continue_final_message: bool
    chat_template_kwargs: Mapping[str, object] | None


def to_prompts(prompts: Any, prompt_token_ids: Any) -> tuple[list[str | list[int]], bool]:
    """Returns the prompts as a list, and whether the caller gave a single one.

    Raises:
        TypeError: the prompts are neither texts nor token ids.
        ValueError: a token id is no integer, or a dict has a key that this engine does not read.
    """
    if (prompts is None) == (prompt_token_ids is None):
        raise TypeError("generate needs prompts or prompt_token_ids, one of them")
    if prompts is None:
        if len(prompt_token_ids) and hasattr(prompt_token_ids[0], "__len__"):
            return [as_token_ids(ids) for ids in prompt_token_ids], False
        return [as_token_ids(prompt_token_ids)], True
    if _is_one(prompts):
        return [_prompt("prompts", prompts)], True
    if not _is_list(prompts):
        raise TypeError(f"prompts is a {type(prompts).__name__}; {_EXPECTED}, or a list of them")
    return [_prompt(f"prompts[{index}]", prompt) for index, prompt in enumerate(prompts)], False


def _is_list(value: object) -> bool:
    """Returns whether the value is a list, a tuple or an array."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, Mapping))


def _is_one(value: Any) -> bool:
    """Returns whether the value is one prompt and not a list of prompts."""
    if not _is_list(value):
        return isinstance(value, (str, Mapping))
    return len(value) > 0 and hasattr(value[0], "__index__") and not hasattr(value[0], "__len__")


def _prompt(name: str, value: Any) -> str | list[int]:
    """Returns one prompt, checked. `name` stands for it in messages."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        given = {key: part for key, part in value.items() if part is not None}
        for key in given:
            if key not in ("prompt", "prompt_token_ids"):
                raise ValueError(f'{name} has "{key}", which this engine does not read; {_EXPECTED}')
        if "prompt_token_ids" in given:
            return as_token_ids(given["prompt_token_ids"])
        if isinstance(text := given.get("prompt"), str):
            return text
    elif _is_list(value):
        return as_token_ids(value)
    raise TypeError(f"{name} is {value!r}; {_EXPECTED}"[:400])


def params_of_each(
    given: Params | Sequence[Params] | None,
    overrides: Mapping[str, object],
    num_prompts: int,
) -> list[SamplingParams]:
    """Returns the sampling parameters of each prompt, from one for all or a list with one for each.

    Raises:
        ValueError: the list has another length than the prompts, or SamplingParams.of raises it.
        TypeError: as SamplingParams.of.
    """
    if isinstance(given, (list, tuple)):
        if len(given) != num_prompts:
            raise ValueError(
                f"sampling_params has {len(given)} entries for {num_prompts} prompts; expected one for each, or one"
            )
        return [SamplingParams.of(params, overrides) for params in given]
    one: Any = given
    return [SamplingParams.of(one, overrides)] * num_prompts


def as_token_ids(value: Sequence[int]) -> list[int]:
    """Returns `value`, which may be a NumPy array, as a list of ints.

    Raises:
        ValueError: an element is not an integer that fits 32 bits.
    """
    if type(value) is list and set(map(type, value)) == {int} and min(value) >= -(2**31) and max(value) < 2**31:
        return list(value)  # the usual case, much faster than one by one
    ids = []
    for index, item in enumerate(value):
        try:
            number = item.__index__()
        except (AttributeError, TypeError):  # TypeError: an array
            raise ValueError(f"token id at index {index} is {item!r}: expected an integer") from None
        if not -(2**31) <= number < 2**31:
            raise ValueError(f"token id {number} at index {index} does not fit 32 bits")
        ids.append(number)
    return ids
