"""A running request: turns the core's tokens into text, log-probabilities and a finish reason."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longcat._core import Error
from longcat.engine.request_table import RequestGroup, RequestTable
from longcat.request.outputs import CompletionOutput, Logprob, PromptScore, RequestMetrics, RequestOutput, StreamChunk

if TYPE_CHECKING:
    import longcat._core as _core
    from longcat.request.sampling_params import SamplingParams
    from longcat.request.structured import Grammar
    from longcat.request.tokenizer import StreamDecoder


class StopStrings:
    """Finds the first of some strings in a text that arrives in pieces. Holds back text that may begin a string."""

    def __init__(self, strings: Sequence[str], include: bool = False):
        self._strings = list(strings)
        self._include = include
        self._held = ""
        self.found: str | None = None

    def push(self, text: str, armed: bool = True) -> str:
        """Adds a piece of text; returns what surely belongs to the completion. Once `found` is set, returns "".

        With armed=False whole strings pass. Text that may begin a string is still held back.
        """
        if self.found is not None:
            return ""
        text = self._held + text
        hits = [(text.find(string), -len(string), string) for string in self._strings if armed and string in text]
        if hits:
            start, _, self.found = min(hits)
            self._held = ""
            return text[: start + len(self.found)] if self._include else text[:start]
        keep = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Returns the text that was held back and is no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Returns the length of the longest end of `text` that is a proper beginning of `string`."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if string.startswith(text[len(text) - length :]):
            return length
    return 0


class Completion:
    """One of the n completions of a prompt. The core has a sequence for it."""

    def __init__(
        self,
        request: Request,
        index: int,
        params: SamplingParams,
        decoder: StreamDecoder | None,
    ):
        self.request = request
        self._wants_prompt_logprobs = params.prompt_logprobs is not None
        self.output = CompletionOutput(index, logprobs=None if params.logprobs is None else [])
        self._decoder = decoder
        self._stop = StopStrings(params.stop_strings(), params.include_stop_str_in_output)
        self._min_tokens = params.min_tokens

    def take(self, step: _core.StepOutput, eos_token_id: int) -> StreamChunk:
        """Adds one token; returns a chunk with the text that the token completed, and the finish reason if it ends."""
        self.request.record_time()
        token_ids = [step.token_id] if step.token_id >= 0 else []
        self.output.token_ids += token_ids
        ends = step.finish_reason == "stop" and step.token_id not in (eos_token_id, -1)  # -1: a grammar's end
        if ends:
            self.output.stop_reason = step.token_id
        logprobs = self._take_logprobs(step)
        if self._wants_prompt_logprobs:
            self.request.take_prompt_logprobs(step.prompt_logprobs)

        delta = self._stop_at_strings(self._decoder.push(token_ids)) if self._decoder else ""
        reason = "stop" if self._stop.found is not None else step.finish_reason
        if reason is not None:
            delta += self.finish(reason)
            self.output.error = step.error or None
            self.request.take_stats(step, self.output.index)
        self.output.text += delta
        done = reason is not None and self.request.is_done()
        return StreamChunk(
            delta,
            token_ids,
            self.request.prompt_index,
            self.output.index,
            reason,
            logprobs,
            self.request.output if done else None,
            self.request.output.request_id,
            self.output.stop_reason if reason is not None else None,
            self.output.error,
        )

    def _stop_at_strings(self, text: str) -> str:
        text = self._stop.push(text, armed=len(self.output.token_ids) >= self._min_tokens)
        if self._stop.found is not None:
            self.output.stop_reason = self._stop.found
        return text

    def _take_logprobs(self, step: _core.StepOutput) -> list[dict[int, Logprob]] | None:
        if self.output.logprobs is None or step.logprobs is None:
            return None
        entry = self.request.named_logprobs(step.logprobs)
        self.output.logprobs.append(entry)
        self.output.cumulative_logprob = (self.output.cumulative_logprob or 0.0) + entry[step.token_id].logprob
        return [entry]

    def finish(self, reason: str) -> str:
        """Ends the completion; returns the text that was held back."""
        self.output.finish_reason = reason
        if self._decoder is None or self._stop.found is not None:
            return ""
        return self._stop_at_strings(self._decoder.finish()) + self._stop.finish()


class Request:
    """One prompt and its n completions.

    Args:
        table: the requests of the engine that will run this one.
        prompt_index: index of the prompt in the call.
        core: parameters for the core.
        name: the caller's own id, in place of the core's.
        grammar: the grammar that the completions must follow.
        group: the requests of the same call; default: this one alone.
    """

    def __init__(
        self,
        table: RequestTable,
        prompt_index: int,
        prompt: str | None,
        prompt_token_ids: list[int],
        params: SamplingParams,
        core: _core.SamplingParams,
        name: str | None = None,
        grammar: Grammar | None = None,
        group: RequestGroup | None = None,
    ):
        self._group = group or RequestGroup()
        self.prompt_index = prompt_index
        self.core = core
        # If tokens are masked, each completion has a mask function: each is at another place of the grammar.
        self._token_masks: list[Any] = [grammar.new_mask() if grammar else params.token_mask for _ in range(params.n)]
        self._table = table
        self._name = name
        self._start = time.perf_counter()
        self.output = RequestOutput(-1 if name is None else name, prompt, prompt_token_ids, [], RequestMetrics())
        optional_text = prompt is None and not params.stop
        self._completions = [
            Completion(self, index, params, table.text.decoder(optional_text, params.skip_special_tokens))
            for index in range(params.n)
        ]
        self.output.outputs = [completion.output for completion in self._completions]

    def submit(self, queue: _core.OutputQueue) -> dict[int, Completion]:
        """Hands the request to the core, once.

        Returns:
            Its completions by the core's ids. The request keeps none: that would be a reference cycle.
        Raises:
            longcat.QueueFullError: too many requests wait; another try is possible.
            ValueError: a request with that name runs.
        """
        ids = self._table.add(
            self.output.prompt_token_ids, self.core, self._token_masks, queue, self._group, self._name
        )
        if self._name is None:
            self.output.request_id = ids[0]
        completions, self._completions = self._completions, []
        return dict(zip(ids, completions, strict=True))

    def is_done(self) -> bool:
        return all(output.finish_reason is not None for output in self.output.outputs)

    def record_time(self) -> None:
        metrics = self.output.metrics
        metrics.total_s = time.perf_counter() - self._start
        if metrics.first_token_s is None:
            metrics.first_token_s = metrics.total_s

    def take_stats(self, step: _core.StepOutput, index: int) -> None:
        metrics, stats = self.output.metrics, step.stats
        metrics.queue_ms, metrics.prefill_ms = stats.queue_ms, stats.prefill_ms
        metrics.decode_ms = max(metrics.decode_ms, stats.decode_ms)
        metrics.num_preemptions += stats.num_preemptions
        if index == 0:  # the others may find blocks that this one computed
            self.output.num_cached_tokens = stats.num_cached_tokens

    def named_logprobs(self, one: _core.TokenLogprobs) -> dict[int, Logprob]:
        """Returns {token id: Logprob} of a token and the most likely ones."""
        entry = {
            token_id: Logprob(logprob, rank, self._table.text.token_text(token_id))
            for rank, (token_id, logprob) in enumerate(zip(one.ids[1:], one.logprobs[1:], strict=True), start=1)
        }
        chosen = one.ids[0]
        entry.pop(chosen, None)
        return {chosen: Logprob(one.logprobs[0], one.rank, self._table.text.token_text(chosen)), **entry}

    def take_prompt_logprobs(self, entries: Sequence[_core.TokenLogprobs]) -> None:
        if self.output.prompt_logprobs is None and len(entries) == len(self.output.prompt_token_ids) - 1:
            self.output.prompt_logprobs = [None, *(self.named_logprobs(entry) for entry in entries)]


def score_of(output: RequestOutput) -> PromptScore:
    """Returns the log-probabilities of a prompt, from the output of a request with prompt_logprobs=0.

    Raises:
        longcat.Error: the request ended before its prompt was computed.
    """
    ids = output.prompt_token_ids
    if output.prompt_logprobs is None:
        completion = output.outputs[0]
        raise Error(
            f"[engine] request {output.request_id} has no score: {completion.error or completion.finish_reason}"
        )
    entries = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
    return PromptScore(ids, [entry[token_id].logprob for entry, token_id in entries if entry is not None])
