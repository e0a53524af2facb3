"""What generate() returns."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RequestMetrics:
    """Wall times of one request [s], from the moment it was submitted."""

    first_token_s: float | None = None
    total_s: float = 0.0

    def tokens_per_second(self, num_tokens: int) -> float:
        """Rate of the tokens after the first, or of all when there is only one."""
        if self.first_token_s is not None and num_tokens > 1 and self.total_s > self.first_token_s:
            return (num_tokens - 1) / (self.total_s - self.first_token_s)
        return num_tokens / self.total_s if self.total_s > 0 else 0.0


@dataclass
class CompletionOutput:
    """One answer. `finish_reason`: "stop", "length", "abort" or "error", None only while streaming."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | None = None  # the stop id that ended it, unless that was the end token


@dataclass
class RequestOutput:
    """One prompt and its answers; `str(output)` is the first answer's text."""

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics

    @property
    def text(self) -> str:
        return self.outputs[0].text

    def __str__(self) -> str:
        return self.text


@dataclass
class StreamChunk:
    """New text of one request. `delta` is whole characters; the last chunk carries `finish_reason`."""

    delta: str
    token_ids: list[int]
    prompt_index: int = 0
    finish_reason: str | None = None
    output: RequestOutput | None = None  # the whole result, with the last chunk

    def __str__(self) -> str:
        return self.delta
