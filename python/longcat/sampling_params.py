"""How an answer's tokens are chosen and when it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longcat.names import unknown_name


@dataclass
class SamplingParams:
    """Sampling parameters of a request; None means the model's own default (generation_config.json).

    The order is that of transformers' `generate`: repetition penalty, temperature, top-k, top-p, one draw.

    Args:
        max_tokens: most new tokens; the model's context may end an answer earlier.
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens, ties with the k-th included; 0 or -1 is off.
        top_p: keep the most likely tokens that make up this probability, in (0, 1]; 1 is off.
        repetition_penalty: divides (or, below zero, multiplies) the logit of every token that occurred; 1 is off.
        seed: the same seed gives the same answer, whatever else is in the batch. None: a new one each request.
        stop_token_ids: ids that end the answer, besides the end token.
        ignore_eos: go on after the end token.
        skip_special_tokens: leave special tokens out of the text.
    """

    max_tokens: int = 1024
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True

    @classmethod
    def of(cls, params: SamplingParams | Mapping[str, Any] | None, overrides: Mapping[str, Any]) -> SamplingParams:
        """An object, a dict or nothing, with keywords on top.

        Raises:
            TypeError: an unknown name, answered with the nearest, or params of another type.
        """
        if params is None:
            params = {}
        if isinstance(params, SamplingParams):
            given = {f.name: getattr(params, f.name) for f in dataclasses.fields(params)}
        elif isinstance(params, Mapping):
            given = dict(params)
        else:
            raise TypeError(f"sampling_params is a {type(params).__name__}: expected SamplingParams or a dict")
        given.update(overrides)
        known = [f.name for f in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise unknown_name("SamplingParams", name, known)
        return cls(**given)
