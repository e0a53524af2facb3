"""What the server counts, for Prometheus. Names are vLLM's with the prefix `longcat:`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from longcat.request.outputs import RequestOutput
from longcat.server.served_engine import ServedEngine

_PREFIX = "longcat:"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 256_000)
_COUNTS = (1, 2, 5, 10, 20, 50, 128)

# Suffix -> (key of Engine.metrics(), description).
_ENGINE_COUNTERS = {
    "prompt_tokens": ("num_prompt_tokens", "Prompt tokens computed."),
    "generation_tokens": ("num_generated_tokens", "Tokens generated."),
    "prefix_cache_queries": ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    "prefix_cache_hits": ("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    "spec_decode_num_draft_tokens": ("num_draft_tokens", "Tokens guessed (speculative decoding)."),
    "spec_decode_num_accepted_tokens": ("num_accepted_tokens", "Tokens guessed right."),
}
_HISTOGRAMS = {
    "time_to_first_token_seconds": ("From the request to its first token.", _SECONDS),
    "request_time_per_output_token_seconds": ("Mean time between a request's tokens.", _SECONDS),
    "e2e_request_latency_seconds": ("From the request to its last token.", _SECONDS),
    "request_queue_time_seconds": ("Waiting for the first step.", _SECONDS),
    "request_prefill_time_seconds": ("Computing the prompt.", _SECONDS),
    "request_decode_time_seconds": ("Generating.", _SECONDS),
    "request_prompt_tokens": ("Tokens of a prompt.", _TOKENS),
    "request_generation_tokens": ("Tokens of an answer.", _TOKENS),
    "request_params_max_tokens": ("max_tokens of a request.", _TOKENS),
    "request_params_n": ("n of a request.", _COUNTS),
}


class ServerMetrics:
    """Counters and histograms of one server.

    Args:
        engine: whose metrics() are shown, too.
        model_name: the label of all of them.
    """

    def __init__(self, engine: ServedEngine, model_name: str):
        self._engine = engine
        self._labels = {"model_name": model_name}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._histograms = {
            name: Histogram(_PREFIX + name, text, ["model_name"], buckets=buckets, registry=self._registry).labels(
                **self._labels
            )
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        self._finished = Counter(
            _PREFIX + "request_success",
            "Answers by how they ended.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self._responses = Counter(
            _PREFIX + "http_requests", "Requests by status.", ["model_name", "status"], registry=self._registry
        )
        for reason in ("stop", "length", "tool_calls", "abort", "error"):
            self._finished.labels(**self._labels, finished_reason=reason)

    def observe(self, output: RequestOutput, max_tokens: int) -> None:
        """Takes in a request that has ended."""
        m = output.metrics
        num_tokens = sum(len(answer.token_ids) for answer in output.outputs)
        values = {
            "e2e_request_latency_seconds": m.total_s,
            "request_queue_time_seconds": m.queue_ms / 1000,
            "request_prefill_time_seconds": m.prefill_ms / 1000,
            "request_decode_time_seconds": m.decode_ms / 1000,
            "request_prompt_tokens": len(output.prompt_token_ids),
            "request_generation_tokens": num_tokens,
            "request_params_max_tokens": max_tokens,
            "request_params_n": len(output.outputs),
        }
        if m.first_token_s is not None:
            values["time_to_first_token_seconds"] = m.first_token_s
            longest = max(len(answer.token_ids) for answer in output.outputs)
            if longest > 1:
                values["request_time_per_output_token_seconds"] = (m.total_s - m.first_token_s) / (longest - 1)
        for name, value in values.items():
            self._histograms[name].observe(value)
        for answer in output.outputs:
            self.count_end(answer.finish_reason or "abort")

    def count_end(self, reason: str) -> None:
        self._finished.labels(**self._labels, finished_reason=reason).inc()

    def count_response(self, status: int) -> None:
        self._responses.labels(**self._labels, status=str(status)).inc()

    def collect(self) -> Iterator[Metric]:
        """What the engine knows, when Prometheus asks."""
        try:
            values = self._engine.metrics()
        except RuntimeError:  # it is closed
            return
        num_blocks = max(values["num_kv_blocks"], 1)
        gauges = {
            "num_requests_running": ("Requests that run.", values["num_running"]),
            "num_requests_waiting": ("Requests that wait.", values["num_waiting"]),
            "kv_cache_usage_perc": ("Share of the cache in use; 1 is all.", 1 - values["num_free_blocks"] / num_blocks),
        }
        counters = {name: (text, values[key]) for name, (key, text) in _ENGINE_COUNTERS.items()}
        num_preemptions = values["num_swaps"] + values["num_recomputes"]
        counters["num_preemptions"] = ("Requests interrupted for others.", num_preemptions)
        for family, metrics in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (text, value) in metrics.items():
                metric = family(_PREFIX + name, text, labels=list(self._labels))
                metric.add_metric(list(self._labels.values()), value)
                yield metric

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)
