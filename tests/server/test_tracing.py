"""Spans of OpenTelemetry: one for each request for a completion."""

import asyncio

import pytest
from longcat.server.http.tracing import Tracing

pytest.importorskip("opentelemetry.sdk", reason="needs the extra `otel`")

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def spans_of(path, status, log, headers=()):
    """The spans of one POST to an application that answers with `status`."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def app(scope, receive, send):
        scope.setdefault("state", {}).update({"log": log, "request_id": "r1"})
        await send({"type": "http.response.start", "status": status})

    async def send(message):
        pass

    scope = {"type": "http", "path": path, "method": "POST", "headers": list(headers)}
    asyncio.run(Tracing(app, provider.get_tracer("t"), "m")(scope, None, send))
    return exporter.get_finished_spans()


@pytest.mark.parametrize(
    ("path", "operation"),
    [("/v1/chat/completions", "chat"), ("/v1/messages", "chat"), ("/v1/responses/", "chat"),
     ("/v1/completions", "text_completion")],
)  # fmt: skip
def test_a_span_has_the_names_for_generative_ai(path, operation):
    log = {"prompt_tokens": 3, "completion_tokens": 5, "finish_reason": ["stop"]}
    [span] = spans_of(path, 200, log, [(b"traceparent", PARENT)])
    assert span.name == f"{operation} m" and span.parent.span_id == 0xB7AD6B7169203331
    assert span.attributes["gen_ai.operation.name"] == operation and span.attributes["gen_ai.request.model"] == "m"
    assert span.attributes["gen_ai.usage.input_tokens"] == 3 and span.attributes["gen_ai.usage.output_tokens"] == 5
    assert span.attributes["gen_ai.response.finish_reasons"] == ("stop",) and "error.type" not in span.attributes


def test_refusals_have_an_error_and_other_paths_no_span():
    [span] = spans_of("/v1/messages", 503, {})
    assert span.attributes["error.type"] == "503" and not span.status.is_ok and span.parent is None
    assert "gen_ai.usage.input_tokens" not in span.attributes
    assert spans_of("/tokenize", 200, {}) == () and spans_of("/v1/messages/count_tokens", 200, {}) == ()
