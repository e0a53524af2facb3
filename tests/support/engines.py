"""Engines whose steps the tests make themselves, and everything they computed for a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from longcat import _core
from longcat import _testing as testing

IGNORED_EOS: list[int] = []


def sampling(max_tokens: int, seed: int = 0, temperature: float = 0.0, **fields) -> _core.SamplingParams:
    """Parameters for the core: greedy, or drawn when a temperature is given; no token ends a completion."""
    params = _core.SamplingParams()
    params.max_tokens = max_tokens
    params.seed = seed
    params.temperature = temperature
    params.stop_token_ids = IGNORED_EOS
    for name, value in fields.items():
        setattr(params, name, value)
    return params


def make_engine(folder: str, **options) -> testing.Engine:
    """An engine without a thread of its own; options as in _core.EngineOptions."""
    core = _core.EngineOptions()
    core.max_num_seqs = 8
    core.num_threads = 2
    core.overlap = True
    core.kv_cache_memory = 1 << 26
    for name, value in options.items():
        setattr(core, name, value)
    return testing.Engine(folder, core)


@dataclass
class Outcome:
    """One completion, and what was computed for it."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str = ""
    record: dict = field(default_factory=dict)
    stats: _core.RequestStats | None = None


class Steps:
    """Collects outputs by request while a test makes steps.

    Args:
        engine: of make_engine.
    """

    def __init__(self, engine: testing.Engine):
        self.engine = engine
        self.outcomes: dict[int, Outcome] = {}

    def add(self, token_ids: Sequence[int], params: _core.SamplingParams, n: int = 1) -> list[int]:
        first = self.engine.add_request(list(token_ids), params, n)
        for request_id in range(first, first + n):
            self.outcomes[request_id] = Outcome()
        return list(range(first, first + n))

    def step(self) -> None:
        for output in self.engine.step():
            outcome = self.outcomes[output.request_id]
            assert outcome.finish_reason is None, f"request {output.request_id} got a token after its end"
            if output.token_id >= 0:
                outcome.token_ids.append(output.token_id)
            if output.finish_reason is not None:
                outcome.finish_reason, outcome.error = output.finish_reason, output.error
                outcome.stats = output.stats
                outcome.record = self.engine.record(output.request_id)

    def run(self, most: int = 100_000) -> dict[int, Outcome]:
        """Steps until nothing is left to do."""
        for _ in range(most):
            if not self.engine.has_work():
                return self.outcomes
            self.step()
        raise AssertionError(f"work is left after {most} steps")


def assert_same(found: Outcome, expected: Outcome, what: str = "") -> None:
    """Same tokens, and the same bits of every latent, logit and N-gram id that was computed."""
    assert found.finish_reason == expected.finish_reason, f"{what}: {found.finish_reason} {found.error}"
    assert found.token_ids == expected.token_ids, what
    mine, theirs = found.record, expected.record
    assert mine["num_tokens"] == theirs["num_tokens"] > 0, what
    for sub_layer, (a, b) in enumerate(zip(mine["latents"], theirs["latents"], strict=True)):
        assert a == b, f"{what}: latents of sub-layer {sub_layer} differ"
    assert np.isfinite(np.frombuffer(mine["latents"][0], np.float32)).all(), what
    for position, logits in mine["logits"].items():
        assert logits == theirs["logits"][position], f"{what}: logits at position {position} differ"
    for position, ids in mine["ngram_ids"].items():
        assert ids == theirs["ngram_ids"][position], f"{what}: N-gram ids at position {position} differ"


def completions(outputs: Sequence) -> list:
    """All of what longcat.Engine.generate returned for several prompts that must not depend on how it came about."""
    return [
        [
            (completion.text, completion.token_ids, completion.finish_reason, completion.logprobs)
            for completion in output.outputs
        ]
        for output in outputs
    ]
