"""The results of generate(): outputs, completions, chunks, log-probabilities and times."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

_SHOWN = 60  # characters of a text in a repr
_SHOWN_ITEMS = 8  # items of a list in a repr


class ShortRepr:
    """A repr on one line. It cuts long texts and lists and shows their length. It omits fields that are not set.

    Dataclasses take it with repr=False.
    """

    def __repr__(self) -> str:
        shown = [
            f"{f.name}={_short(value)}"
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if (value := getattr(self, f.name)) is not None and value != f.default and value != []
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def _short(value: object) -> str:
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]!r}... ({len(value):,} characters)"
    if isinstance(value, Sequence) and not isinstance(value, str):
        most = 1 if isinstance(next(iter(value), None), dict) else _SHOWN_ITEMS
        items = ", ".join(map(_short, value[:most]))
        return f"[{items}]" if len(value) <= most else f"[{items}, ... ({len(value):,} in all)]"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        items = ", ".join(f"{key!r}: {_short(item)}" for key, item in list(value.items())[:_SHOWN_ITEMS])
        return f"{{{items}}}" if len(value) <= _SHOWN_ITEMS else f"{{{items}, ... ({len(value):,} in all)}}"
    return repr(value)


@dataclass(repr=False)
class RequestMetrics(ShortRepr):
    """The times of one request.

    `first_token_s` and `total_s` are wall times from the submission, measured at the caller. The engine measures the
    others: waiting for the first step, computing the prompt, generating.
    """

    first_token_s: float | None = None
    total_s: float = 0.0
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    num_preemptions: int = 0  # how often the scheduler preempted one of its sequences

    def tokens_per_second(self, num_tokens: int) -> float:
        """Returns the rate of the tokens after the first, or of all tokens when there is only one."""
        if self.first_token_s is not None and num_tokens > 1 and self.total_s > self.first_token_s:
            return (num_tokens - 1) / (self.total_s - self.first_token_s)
        return num_tokens / self.total_s if self.total_s > 0 else 0.0


@dataclass
class Logprob:
    """Log-probability [nats] of a token under the model's own logits, before penalties and temperature."""

    logprob: float
    rank: int  # 1: the most likely
    decoded_token: str | None = None


@dataclass(repr=False)
class CompletionOutput(ShortRepr):
    """One completion of a prompt.

    `finish_reason` is "stop", "length", "tool_calls", "abort" or "error"; None only while streaming.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None  # for each token: its own and those of the most likely ids
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None  # the stop id or string that ended it, unless that was the end token
    error: str | None = None  # what went wrong, when finish_reason is "error"


@dataclass(repr=False)
class RequestOutput(ShortRepr):
    """One prompt and its completions. `str(output)` is the text of the first completion."""

    request_id: int | str  # the name given to agenerate, else the core's id of the first completion
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # None for the first token
    num_cached_tokens: int = 0  # prompt tokens found in the cache

    @property
    def text(self) -> str:
        return self.outputs[0].text

    def __str__(self) -> str:
        return self.text


@dataclass(repr=False)
class StreamChunk(ShortRepr):
    """New text of one completion. `delta` is whole characters; a completion's last chunk carries `finish_reason`."""

    delta: str
    token_ids: list[int]
    prompt_index: int = 0  # index of the prompt in the call
    index: int = 0  # index of the completion among the n of its prompt
    finish_reason: str | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    output: RequestOutput | None = None  # the whole result; only the last chunk of a request has it
    request_id: int | str = -1  # for Engine.abort
    stop_reason: int | str | None = None  # with the last chunk, as CompletionOutput has them
    error: str | None = None

    def __str__(self) -> str:
        return self.delta


@dataclass(repr=False)
class PromptScore(ShortRepr):
    """The log-probabilities of a text's tokens, each given the tokens before it. The first token has none."""

    token_ids: list[int]
    logprobs: list[float]  # [num_tokens - 1] [nats]; entry i is of token i + 1

    @property
    def total(self) -> float:
        """Log-probability of all tokens after the first [nats]."""
        return sum(self.logprobs)
