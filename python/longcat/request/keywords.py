"""Keywords that stand for fields of SamplingParams, for type checkers.

Written by docs/make_reference.py from longcat/request/sampling_params.py. Change them there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import numpy as np

    from longcat.request.structured import Grammar, StructuredOutputs


class SamplingKeywords(TypedDict, total=False):
    n: int
    max_tokens: int
    min_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    include_stop_str_in_output: bool
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logit_bias: Mapping[int, float] | None
    bad_words: Sequence[str]
    allowed_token_ids: Sequence[int] | None
    logprobs: int | None
    prompt_logprobs: int | None
    token_mask: Callable[[list[int]], np.ndarray | None] | None
    structured_outputs: StructuredOutputs | Grammar | Mapping[str, object] | None
    skip_special_tokens: bool
