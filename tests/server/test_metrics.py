"""The metrics that Prometheus reads are those of METRICS, which docs/reference/metrics.md lists."""

import re

from longcat.request.outputs import CompletionOutput, RequestMetrics, RequestOutput
from longcat.server.metrics import FINISHED_REASONS, METRICS, ServerMetrics

from support.stub_engine import StubEngine

VALUES = {
    "num_running": 3, "num_waiting": 2, "num_kv_blocks": 8, "num_free_blocks": 6, "num_prompt_tokens": 50,
    "num_generated_tokens": 40, "prefix_cache_queries": 30, "prefix_cache_hits": 20, "num_draft_tokens": 12,
    "num_accepted_tokens": 9, "num_swaps": 4, "num_recomputes": 1,
}  # fmt: skip


class Counting(StubEngine):
    def metrics(self):
        return VALUES


class Closed(StubEngine):
    def metrics(self):
        raise RuntimeError("closed")


def served(engine):
    """Metrics after one request of two completions, answered with 200."""
    metrics = ServerMetrics(engine, "tiny")
    completions = [CompletionOutput(i, token_ids=[1] * n, finish_reason="stop") for i, n in enumerate((2, 5))]
    times = RequestMetrics(first_token_s=1.0, total_s=3.0, queue_ms=100, prefill_ms=400, decode_ms=2000)
    metrics.observe(RequestOutput(7, None, [1, 2, 3], completions, times), max_tokens=16)
    metrics.count_response(200)
    return metrics


def samples(metrics):
    """{name: {labels: value}} of the text that Prometheus reads."""
    found = {}
    for name, labels, value in re.findall(r"^([\w:]+)\{(.*)\} (\S+)$", metrics.text().decode(), re.MULTILINE):
        found.setdefault(name, {})[labels] = float(value)
    return found


def test_the_text_has_what_the_table_says():
    metrics = served(Counting())
    text, shown = metrics.text().decode(), samples(metrics)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    created = {name for name in kinds if name.endswith("_created")}  # prometheus_client adds these
    assert kinds.keys() - created == {info.shown_name for info in METRICS}
    for info in METRICS:
        assert (kinds[info.shown_name], helps[info.shown_name]) == (info.kind, info.help)
        name = info.shown_name + ("_count" if info.kind == "histogram" else "")
        labels = [re.findall(r'(\w+)="', text) for text in shown[name]]
        assert all(sorted(found) == sorted(info.label_names) for found in labels), name


def test_values():
    shown = {name: list(values.values()) for name, values in samples(served(Counting())).items()}
    expected = {
        "num_requests_running": 3, "num_requests_waiting": 2, "kv_cache_usage_perc": 0.25, "prompt_tokens_total": 50,
        "generation_tokens_total": 40, "prefix_cache_queries_total": 30, "prefix_cache_hits_total": 20,
        "num_preemptions_total": 5, "spec_decode_num_draft_tokens_total": 12,
        "spec_decode_num_accepted_tokens_total": 9, "http_requests_total": 1, "time_to_first_token_seconds_sum": 1,
        "request_time_per_output_token_seconds_sum": 0.5, "e2e_request_latency_seconds_sum": 3,
        "request_queue_time_seconds_sum": 0.1, "request_prefill_time_seconds_sum": 0.4,
        "request_decode_time_seconds_sum": 2, "request_prompt_tokens_sum": 3, "request_generation_tokens_sum": 7,
        "request_params_max_tokens_sum": 16, "request_params_n_sum": 2,
    }  # fmt: skip
    assert {name: shown[f"longcat:{name}"] for name in expected} == {name: [n] for name, n in expected.items()}
    finished = samples(served(Counting()))["longcat:request_success_total"]
    assert finished == {
        f'finished_reason="{reason}",model_name="tiny"': 2 * (reason == "stop") for reason in FINISHED_REASONS
    }


def test_a_closed_engine_leaves_the_servers_own_metrics():
    shown = samples(served(Closed()))
    assert "longcat:request_success_total" in shown and "longcat:num_requests_running" not in shown
