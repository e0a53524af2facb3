"""The application: the endpoints, and the layers around them."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from longcat._core import __version__
from longcat.server.api import chat, completions, pages, service_routes
from longcat.server.api.messages import routes as messages
from longcat.server.api.playground import routes as playground
from longcat.server.api.responses import routes as responses
from longcat.server.api.responses.store import ResponseStore
from longcat.server.generation import Service
from longcat.server.http.errors import add_error_handlers
from longcat.server.http.guard import Guard, RequestLog
from longcat.server.http.tracing import Tracing, tracer
from longcat.server.lifecycle import Lifecycle
from longcat.server.logs import log_request
from longcat.server.metrics import ServerMetrics
from longcat.server.served_engine import ServedEngine
from longcat.server.settings import ServerSettings


class Application:
    """`asgi` is what a web server runs, `api` the FastAPI application in it.

    Args:
        engine: a longcat.Engine, or an object with its methods.
        settings: names, keys and limits.
        on_end: called when the server has to stop: it is drained, or the engine died.
        write_log: takes the facts of each request, for the access log.
    """

    def __init__(
        self,
        engine: ServedEngine,
        settings: ServerSettings,
        on_end: Callable[[], None] = lambda: None,
        write_log: Callable[[dict[str, object]], object] = log_request,
    ):
        self.lifecycle = Lifecycle(engine, settings, on_end)
        metrics = ServerMetrics(engine, settings.model_names[0])
        self.api = FastAPI(
            title="longcat",
            version=__version__,
            description="OpenAI's and Anthropic's APIs over one LongCat model.",
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        self.api.state.service = Service(engine, settings, self.lifecycle, metrics)
        self.api.state.started = int(time.time())
        add_error_handlers(self.api)
        self.api.state.responses = ResponseStore(settings.max_stored_bytes)
        for module in (chat, completions, responses, messages, service_routes, playground, pages):
            self.api.include_router(module.router)
        app: ASGIApp = Guard(self.api, settings)
        if settings.cors_origins:
            app = CORSMiddleware(
                app,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["X-Request-Id", "Retry-After", "X-Ignored-Fields"],
            )
        self.asgi: ASGIApp = RequestLog(app, settings, self.lifecycle, metrics, write_log)
        if settings.traces_endpoint is not None:
            self.asgi = Tracing(self.asgi, tracer(settings.traces_endpoint), settings.model_names[0])
