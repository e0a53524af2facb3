"""Turns a caller's prompts and parameters into requests that the core has checked."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import longcat._core as _core
from longcat.engine.request import Request
from longcat.engine.request_table import RequestGroup, RequestTable
from longcat.request.sampling_params import SamplingParams, core_params

# Parameters with a default of the model's or of ours. max_tokens has another one in chats.
_WITH_DEFAULT = "temperature top_p top_k min_p repetition_penalty presence_penalty frequency_penalty min_tokens".split()

if TYPE_CHECKING:
    from longcat.request.structured import Grammar


class Intake:
    """Makes the requests of one engine.

    Args:
        core: checks the requests.
        table: runs the requests.
        defaults: the model's sampling parameters, from generation_config.json.
        eos_token_ids: ids that end a completion.
        seed: makes the seeds of requests without one.
    """

    def __init__(
        self,
        core: _core.Engine,
        table: RequestTable,
        defaults: Mapping[str, object],
        eos_token_ids: Sequence[int],
        seed: int,
    ):
        self._core = core
        self._table = table
        self._text = table.text
        self._defaults = defaults
        self._eos_token_ids = eos_token_ids
        self._seeds = random.Random(seed)

    def sampling_defaults(self) -> dict[str, float]:
        """Returns the parameters of a request that gives none."""
        core = core_params(SamplingParams(), self._defaults, self._eos_token_ids, 0, lambda: self._text.tokenizer)
        return {name: getattr(core, name) for name in _WITH_DEFAULT}

    def with_ids(self, prompt: str | list[int]) -> tuple[str | None, list[int]]:
        """Returns a prompt's text, or None if it came as token ids, and its token ids."""
        return (prompt, self._text.tokenizer.encode(prompt)) if isinstance(prompt, str) else (None, prompt)

    def requests(
        self,
        prompts: Sequence[tuple[str | None, list[int]]],
        params: Sequence[SamplingParams],
        name: str | None = None,
        group: RequestGroup | None = None,
    ) -> list[Request]:
        """Makes the requests of a call and checks all of them. If one prompt is wrong, none is queued."""
        self._table.check_open()
        requests: list[Request] = []
        group = group or RequestGroup()
        grammars: dict[int, Grammar] = {}  # by parameters, which all prompts may share
        for index, ((text, ids), own) in enumerate(zip(prompts, params, strict=True)):
            if own.structured_outputs is not None and id(own) not in grammars:
                grammars[id(own)] = self._text.compile_grammar(own.structured_outputs)
            seed = self._seeds.getrandbits(64)
            core = core_params(own, self._defaults, self._eos_token_ids, seed, lambda: self._text.tokenizer)
            self._core.check_request(ids, core)
            requests.append(Request(self._table, index, text, ids, own, core, name, grammars.get(id(own)), group))
        return requests

    async def compiled(self, params: SamplingParams) -> SamplingParams:
        """Returns `params` with its grammar compiled on another thread, so that the event loop goes on."""
        import asyncio

        from longcat.request.structured import Grammar

        if params.structured_outputs is None or isinstance(params.structured_outputs, Grammar):
            return params  # without a pause: the caller's next step queues the request
        grammar = await asyncio.to_thread(self._text.compile_grammar, params.structured_outputs)
        return dataclasses.replace(params, structured_outputs=grammar)


def eos_token_ids(defaults: Mapping[str, object], eos_token_id: int) -> list[int]:
    """Returns the model's end token and the end tokens that generation_config.json lists."""
    listed = defaults.get("eos_token_id", [])
    return sorted({eos_token_id, *(listed if isinstance(listed, list) else [listed])})
