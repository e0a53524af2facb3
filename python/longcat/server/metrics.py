"""The server's metrics, for Prometheus. METRICS defines each of them; docs/reference/metrics.md is made from it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from longcat.request.outputs import RequestOutput
from longcat.server.served_engine import ServedEngine

PREFIX = "longcat:"
MODEL_LABEL = "model_name"  # every metric has it: the first served name
FINISHED_REASONS = ("stop", "length", "tool_calls", "abort", "error")

BLOCK_TOKENS = 64  # of the KV cache

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 256_000)
_COUNTS = (1, 2, 5, 10, 20, 50, 128)


@dataclass(frozen=True)
class MetricInfo:
    """One metric.

    Args:
        name: without the prefix. vLLM's name, where vLLM has the metric. Prometheus adds `_total` to a counter's.
        kind: Prometheus' type.
        help: the meaning, a sentence.
        unit: of the value.
        engine_value: computes the value from Engine.metrics(); None: the server counts.
        labels: beside MODEL_LABEL; each with its values in words.
        buckets: upper bounds of a histogram, in `unit`.
        is_vllms: whether vLLM has the metric.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    unit: str
    engine_value: Callable[[Mapping[str, float]], float] | None = None
    labels: tuple[tuple[str, str], ...] = ()
    buckets: tuple[float, ...] = ()
    is_vllms: bool = True

    @property
    def shown_name(self) -> str:
        """The name in the text that Prometheus reads."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")

    @property
    def label_names(self) -> list[str]:
        return [MODEL_LABEL, *(name for name, _ in self.labels)]


def _cache_usage(values: Mapping[str, float]) -> float:
    return 1 - values["num_free_blocks"] / max(values["num_kv_blocks"], 1)


METRICS = (
    MetricInfo(
        "num_requests_running",
        "gauge",
        "Sequences that run; a request has one for each completion.",
        "sequences",
        itemgetter("num_running"),
    ),
    MetricInfo("num_requests_waiting", "gauge", "Sequences that wait.", "sequences", itemgetter("num_waiting")),
    MetricInfo("kv_cache_usage_perc", "gauge", "Share of the KV cache in use; 1 is all of it.", "share", _cache_usage),
    MetricInfo(
        "cache_config_info",
        "gauge",
        "1, with the size of the KV cache in its labels.",
        "",
        labels=(("block_size", "tokens of a cache block"), ("num_gpu_blocks", "cache blocks, on any device")),
    ),
    MetricInfo(
        "prompt_tokens",
        "counter",
        "Tokens of the prompts that began to run, with those found in the prefix cache.",
        "tokens",
        itemgetter("num_prompt_tokens"),
    ),
    MetricInfo("generation_tokens", "counter", "Tokens generated.", "tokens", itemgetter("num_generated_tokens")),
    MetricInfo(
        "prefix_cache_queries",
        "counter",
        "Prompt tokens looked up in the prefix cache.",
        "tokens",
        itemgetter("prefix_cache_queries"),
    ),
    MetricInfo(
        "prefix_cache_hits",
        "counter",
        "Prompt tokens found in the prefix cache.",
        "tokens",
        itemgetter("prefix_cache_hits"),
    ),
    MetricInfo(
        "num_preemptions",
        "counter",
        "Preemptions: sequences swapped out or recomputed to free cache blocks.",
        "sequences",
        lambda values: values["num_swaps"] + values["num_recomputes"],
    ),
    MetricInfo(
        "spec_decode_num_draft_tokens", "counter", "Draft tokens proposed.", "tokens", itemgetter("num_draft_tokens")
    ),
    MetricInfo(
        "spec_decode_num_accepted_tokens",
        "counter",
        "Draft tokens accepted.",
        "tokens",
        itemgetter("num_accepted_tokens"),
    ),
    MetricInfo(
        "spec_decode_draft_tokens_now",
        "gauge",
        "Most draft tokens that the MTP layer makes for a sequence of the newest step; 0: none in the newest step.",
        "tokens",
        itemgetter("draft_tokens_now"),
        is_vllms=False,
    ),
    MetricInfo(
        "spec_decode_draft_acceptance",
        "gauge",
        "Share of the MTP layer's recent draft tokens that were accepted.",
        "share",
        itemgetter("draft_acceptance"),
        is_vllms=False,
    ),
    MetricInfo(
        "spec_decode_draft_cost",
        "gauge",
        "Time that a draft token of the MTP layer adds, as a share of the time of a step without draft tokens.",
        "steps",
        itemgetter("draft_cost"),
        is_vllms=False,
    ),
    MetricInfo(
        "request_success",
        "counter",
        "Completions that ended, by finish reason.",
        "completions",
        labels=(("finished_reason", ", ".join(FINISHED_REASONS)),),
    ),
    MetricInfo(
        "http_requests",
        "counter",
        "HTTP requests answered, by status.",
        "requests",
        labels=(("status", "the HTTP status"),),
        is_vllms=False,
    ),
    MetricInfo(
        "time_to_first_token_seconds",
        "histogram",
        "Time from a request's arrival to its first token.",
        "s",
        buckets=_SECONDS,
    ),
    MetricInfo(
        "request_time_per_output_token_seconds",
        "histogram",
        "Mean time between the tokens of a request's longest completion.",
        "s",
        buckets=_SECONDS,
    ),
    MetricInfo(
        "inter_token_latency_seconds",
        "histogram",
        "Time between two tokens of a completion, as the server takes them from the engine.",
        "s",
        buckets=_SECONDS,
    ),
    MetricInfo(
        "e2e_request_latency_seconds",
        "histogram",
        "Time from a request's arrival to its last token.",
        "s",
        buckets=_SECONDS,
    ),
    MetricInfo(
        "request_queue_time_seconds",
        "histogram",
        "Time that a request waited for its first step.",
        "s",
        buckets=_SECONDS,
    ),
    MetricInfo(
        "request_prefill_time_seconds",
        "histogram",
        "Time from the first step to the first token.",
        "s",
        buckets=_SECONDS,
    ),
    MetricInfo(
        "request_decode_time_seconds", "histogram", "Time from the first token to the last.", "s", buckets=_SECONDS
    ),
    MetricInfo("request_prompt_tokens", "histogram", "Tokens of a request's prompt.", "tokens", buckets=_TOKENS),
    MetricInfo(
        "request_generation_tokens",
        "histogram",
        "Tokens generated for a request, all completions together.",
        "tokens",
        buckets=_TOKENS,
    ),
    MetricInfo(
        "request_max_num_generation_tokens",
        "histogram",
        "Tokens of a request's longest completion.",
        "tokens",
        buckets=_TOKENS,
    ),
    MetricInfo("request_params_max_tokens", "histogram", "max_tokens of a request.", "tokens", buckets=_TOKENS),
    MetricInfo("request_params_n", "histogram", "n of a request.", "completions", buckets=_COUNTS),
)
_INTERVALS = "inter_token_latency_seconds"
_CACHE = "cache_config_info"
_BY_NAME = {info.name: info for info in METRICS}


class ServerMetrics:
    """The metrics of one server.

    Args:
        engine: its metrics() are shown, too.
        model_name: the value of the label `model_name`.
    """

    def __init__(self, engine: ServedEngine, model_name: str):
        self._engine = engine
        self._labels = {MODEL_LABEL: model_name}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self.intervals = TokenIntervals(_BY_NAME[_INTERVALS].buckets)
        self._histograms = {
            info.name: Histogram(
                PREFIX + info.name, info.help, info.label_names, buckets=info.buckets, registry=self._registry
            ).labels(**self._labels)
            for info in METRICS
            if info.kind == "histogram" and info.name != _INTERVALS
        }
        self._finished = self._counter("request_success")
        self._responses = self._counter("http_requests")
        for reason in FINISHED_REASONS:
            self._finished.labels(**self._labels, finished_reason=reason)

    def _counter(self, name: str) -> Counter:
        info = _BY_NAME[name]
        return Counter(PREFIX + name, info.help, info.label_names, registry=self._registry)

    def observe(self, output: RequestOutput, max_tokens: int) -> None:
        """Counts a request that has ended."""
        m = output.metrics
        lengths = [len(completion.token_ids) for completion in output.outputs]
        values = {
            "e2e_request_latency_seconds": m.total_s,
            "request_queue_time_seconds": m.queue_ms / 1000,
            "request_prefill_time_seconds": m.prefill_ms / 1000,
            "request_decode_time_seconds": m.decode_ms / 1000,
            "request_prompt_tokens": len(output.prompt_token_ids),
            "request_generation_tokens": sum(lengths),
            "request_max_num_generation_tokens": max(lengths),
            "request_params_max_tokens": max_tokens,
            "request_params_n": len(output.outputs),
        }
        if m.first_token_s is not None:
            values["time_to_first_token_seconds"] = m.first_token_s
            if max(lengths) > 1:
                values["request_time_per_output_token_seconds"] = (m.total_s - m.first_token_s) / (max(lengths) - 1)
        for name, value in values.items():
            self._histograms[name].observe(value)
        for completion in output.outputs:
            self.count_end(completion.finish_reason or "abort")

    def count_end(self, reason: str) -> None:
        """Counts a completion that has ended, by its finish reason."""
        self._finished.labels(**self._labels, finished_reason=reason).inc()

    def count_response(self, status: int) -> None:
        """Counts an HTTP response."""
        self._responses.labels(**self._labels, status=str(status)).inc()

    def collect(self) -> Iterator[Metric]:
        """The engine's metrics and the intervals; prometheus_client calls this for each text."""
        info = _BY_NAME[_INTERVALS]
        intervals = HistogramMetricFamily(PREFIX + info.name, info.help, labels=list(self._labels))
        intervals.add_metric(list(self._labels.values()), self.intervals.buckets(), self.intervals.sum)
        yield intervals
        try:
            values = self._engine.metrics()
        except RuntimeError:  # the engine is closed
            return
        for info in METRICS:
            if info.engine_value is not None:
                family = GaugeMetricFamily if info.kind == "gauge" else CounterMetricFamily
                metric = family(PREFIX + info.name, info.help, labels=list(self._labels))
                metric.add_metric(list(self._labels.values()), info.engine_value(values))
                yield metric
        info = _BY_NAME[_CACHE]
        cache = GaugeMetricFamily(PREFIX + info.name, info.help, labels=info.label_names)
        cache.add_metric([*self._labels.values(), str(BLOCK_TOKENS), str(values["num_kv_blocks"])], 1)
        yield cache

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics and their media type.

        Args:
            accept: the client's header; Prometheus asks for OpenMetrics by it.
        """
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type


class TokenIntervals:
    """A histogram of the seconds between tokens, counted at little cost: every token comes by here.

    Args:
        bounds: upper bounds of the buckets [s], in rising order.
    """

    def __init__(self, bounds: Sequence[float]):
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Counts one interval."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """The number of intervals up to each bound, as Prometheus shows them."""
        names = [*map(str, map(float, self._bounds)), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True))


class TokenClock:
    """The time since the last token of each completion of a request.

    Args:
        intervals: where the times go.
    """

    def __init__(self, intervals: TokenIntervals):
        self._intervals = intervals
        self._last: dict[int, float] = {}

    def tick(self, index: int, now: float) -> None:
        """Takes a completion's next token.

        Args:
            index: of the completion in its request.
            now: of a clock [s].
        """
        last = self._last.get(index)
        if last is not None:
            self._intervals.add(now - last)
        self._last[index] = now
