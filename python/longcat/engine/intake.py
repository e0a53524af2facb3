"""From a caller's prompts and parameters to requests that the core has checked."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import longcat._core as _core
from longcat.engine.request import Request
from longcat.engine.request_table import RequestGroup, RequestTable
from longcat.request.sampling_params import SamplingParams, core_params

if TYPE_CHECKING:
    from longcat.request.structured import Grammar


class Intake:
    """Makes the requests of one engine.

    Args:
        core: checks them.
        table: runs them.
        defaults: the model's sampling parameters, of generation_config.json.
        eos_token_ids: ids that end a completion.
        seed: of the requests that bring none.
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

    def with_ids(self, prompt: str | list[int]) -> tuple[str | None, list[int]]:
        """A prompt's text, where it has one, and its token ids."""
        return (prompt, self._text.tokenizer.encode(prompt)) if isinstance(prompt, str) else (None, prompt)

    def requests(
        self,
        prompts: Sequence[tuple[str | None, list[int]]],
        params: Sequence[SamplingParams],
        name: str | None = None,
        group: RequestGroup | None = None,
    ) -> list[Request]:
        """Requests for the prompts, all checked before the first is queued: a bad prompt in a list fails as a whole."""
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
        """`params` with their grammar compiled, away from the event loop."""
        import asyncio

        from longcat.request.structured import Grammar

        if params.structured_outputs is None or isinstance(params.structured_outputs, Grammar):
            return params  # without a pause: the caller's next step queues the request
        grammar = await asyncio.to_thread(self._text.compile_grammar, params.structured_outputs)
        return dataclasses.replace(params, structured_outputs=grammar)


def eos_token_ids(defaults: Mapping[str, object], eos_token_id: int) -> list[int]:
    """The model's end token, and those that generation_config.json lists."""
    listed = defaults.get("eos_token_id", [])
    return sorted({eos_token_id, *(listed if isinstance(listed, list) else [listed])})
