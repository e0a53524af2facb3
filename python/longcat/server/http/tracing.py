"""Spans of OpenTelemetry for requests for completions, with the names of its conventions for generative AI.

Needs the extra `otel`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longcat.server.http.errors import CLIENT_LEFT
from longcat.support.names import install_command

_OPERATIONS = {  # the rest of the server makes no tokens
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}


class Tracing:
    """Around the whole application: a span for each POST of a completion, below the caller's own if it sends one.

    Args:
        tracer: of OpenTelemetry.
        model: the name that is served.
    """

    def __init__(self, app: ASGIApp, tracer: Any, model: str):
        self._app = app
        self._tracer = tracer
        self._model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = _OPERATIONS.get(scope.get("path", "").rstrip("/"))
        if scope["type"] != "http" or operation is None or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        state = scope.setdefault("state", {})
        start, status = time.time_ns(), CLIENT_LEFT

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_look)
        finally:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._write(operation, headers, start, status, state.get("log", {}), str(state.get("request_id", "")))

    def _write(
        self, operation: str, headers: Mapping[str, str], start: int, status: int, log: Mapping[str, Any], id: str
    ) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "longcat",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.id": id,
            "http.response.status_code": status,
        }
        if "prompt_tokens" in log:
            attributes["gen_ai.usage.input_tokens"] = log["prompt_tokens"]
            attributes["gen_ai.usage.output_tokens"] = log["completion_tokens"]
            attributes["gen_ai.response.finish_reasons"] = [str(reason) for reason in log["finish_reason"]]
        if status >= 400:
            attributes["error.type"] = str(status)
        context = TraceContextTextMapPropagator().extract(headers)
        span = self._tracer.start_span(
            f"{operation} {self._model}",
            context=context,
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=start,
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()


def tracer(endpoint: str) -> Any:
    """A tracer that sends spans by OTLP over HTTP, from a thread of its own.

    Args:
        endpoint: such as http://127.0.0.1:4318/v1/traces.
    Raises:
        ValueError: the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ValueError(
            f"[serve] --otlp-traces-endpoint needs more packages ({error}): {install_command('otel')}"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "longcat"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider.get_tracer("longcat")
