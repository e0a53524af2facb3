"""The metrics that Prometheus reads are those of METRICS, which docs/reference/metrics.md lists."""

import json
import re
from pathlib import Path

from longcat.request.outputs import CompletionOutput, RequestMetrics, RequestOutput
from longcat.server.metrics import FINISHED_REASONS, METRICS, ServerMetrics, TokenClock

from support.stub_engine import StubEngine

VALUES = {
    "num_running": 3, "num_waiting": 2, "num_kv_blocks": 8, "num_free_blocks": 6, "num_prompt_tokens": 50,
    "num_generated_tokens": 40, "prefix_cache_queries": 30, "prefix_cache_hits": 20, "num_draft_tokens": 12,
    "num_accepted_tokens": 9, "num_swaps": 4, "num_recomputes": 1, "draft_tokens_now": 2, "draft_acceptance": 0.75,
    "draft_cost": 0.5,
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
    for name, labels, value in re.findall(r"^([\w:]+)\{(.*)\} (\S+)$", metrics.text()[0].decode(), re.MULTILINE):
        found.setdefault(name, {})[labels] = float(value)
    return found


def test_the_text_has_what_the_table_says():
    metrics = served(Counting())
    text, shown = metrics.text()[0].decode(), samples(metrics)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    # prometheus_client adds these.
    others = {name for name in kinds if name.endswith("_created") or name.startswith("process_")}
    assert kinds.keys() - others == {info.shown_name for info in METRICS}
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
        "spec_decode_num_accepted_tokens_total": 9, "spec_decode_draft_tokens_now": 2,
        "spec_decode_draft_acceptance": 0.75, "spec_decode_draft_cost": 0.5,
        "http_requests_total": 1, "time_to_first_token_seconds_sum": 1,
        "request_time_per_output_token_seconds_sum": 0.5, "e2e_request_latency_seconds_sum": 3,
        "request_queue_time_seconds_sum": 0.1, "request_prefill_time_seconds_sum": 0.4,
        "request_decode_time_seconds_sum": 2, "request_prompt_tokens_sum": 3, "request_generation_tokens_sum": 7,
        "request_max_num_generation_tokens_sum": 5, "cache_config_info": 1, "inter_token_latency_seconds_count": 0,
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


def test_intervals_between_tokens():
    metrics = served(Counting())
    clock = TokenClock(metrics.intervals)
    for index, now in ((0, 1.0), (0, 1.002), (1, 1.002), (1, 1.5), (0, 701.0)):
        clock.tick(index, now)
    shown = samples(metrics)
    buckets = {
        float(re.search(r'le="(.*?)"', labels)[1]): count
        for labels, count in shown["longcat:inter_token_latency_seconds_bucket"].items()
    }
    assert buckets[0.001] == 0 and buckets[0.0025] == 1 and buckets[0.5] == 2 and buckets[600] == 2
    assert buckets[float("inf")] == 3 == list(shown["longcat:inter_token_latency_seconds_count"].values())[0]


def test_formats():
    metrics = served(Counting())
    text, media_type = metrics.text("")
    assert media_type.startswith("text/plain") and b"# EOF" not in text and b"process_resident_memory_bytes" in text
    text, media_type = metrics.text("application/openmetrics-text; version=1.0.0,text/plain;q=0.5")
    assert media_type.startswith("application/openmetrics-text") and text.endswith(b"# EOF\n")


# Of vLLM's own dashboard, and of the Gateway API's inference extension.
NAMES = """num_requests_running num_requests_waiting kv_cache_usage_perc cache_config_info prompt_tokens_total
generation_tokens_total request_success_total e2e_request_latency_seconds_bucket time_to_first_token_seconds_bucket
inter_token_latency_seconds_bucket request_prompt_tokens_bucket request_generation_tokens_bucket
request_queue_time_seconds_sum request_prefill_time_seconds_sum request_decode_time_seconds_sum
request_max_num_generation_tokens_sum"""


def test_the_names_of_dashboards_and_gateways():
    assert {f"longcat:{name}" for name in NAMES.split()} <= samples(served(Counting())).keys()


def test_the_dashboard_asks_for_what_is_there():
    dashboard = json.loads((Path(__file__).parents[2] / "examples/monitoring/dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {name for query in queries for name in re.findall(r"(?:longcat:|process_)\w+", query)}
    text = served(Counting()).text()[0].decode()
    shown = set(re.findall(r"^([\w:]+)[{ ]", text, re.MULTILINE))
    assert len(queries) > 30 and names <= shown, names - shown
