"""Names, keys and limits of a server."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from longcat.support.hub import cached_name

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")


@dataclass(frozen=True)
class ServerSettings:
    """Names, keys and limits of a server.

    Args:
        model_names: names of the model; answers have the first, and requests may have any.
        api_keys: each of them opens the server; none: open to all.
        cors_origins: web pages that may call, as "https://example.org"; "*" for all.
        max_body_bytes, max_header_bytes: of a request.
        max_prompts: of one completions request.
        max_completions: of one completions request with several prompts: the share of the queue that one call gets.
        max_stop_strings, max_logprobs: of one request.
        grammar_timeout: to compile a grammar [s].
        send_timeout: time after which a client that reads nothing loses its connection, and its request ends [s].
        shutdown_timeout: time for requests to finish after SIGTERM [s].
        retry_after: Retry-After of a server that is full or not ready [s].
        access_log: log a line for each request.
        allowed_hosts: accepted values of the Host header, without port; none or "*": all.
        max_connections: open at once; a new one displaces the one that has waited longest for its request.
        header_timeout: for the headers of a request, counted from the connection's first moment [s].
        body_timeout, body_rate: a body takes at most body_timeout [s] and 1 s for each body_rate bytes of it.
        max_stored_bytes: of all responses that are kept for previous_response_id.
        max_waiting_bytes: of all bodies that are received, parsed, rendered or tokenized at one time.
        traces_endpoint: URL for spans of requests by OTLP; None: no spans.
        keepalive_interval: time without an event after which a stream gets a comment [s].
    """

    model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 32 << 20
    max_header_bytes: int = 16 << 10
    max_prompts: int = 1024
    max_completions: int = 2048
    max_stop_strings: int = 16
    max_logprobs: int = 20
    grammar_timeout: float = 2.0
    send_timeout: float = 30.0
    shutdown_timeout: float = 30.0
    retry_after: int = 1
    access_log: bool = True
    allowed_hosts: tuple[str, ...] = ()
    max_connections: int = 16384
    header_timeout: float = 30.0
    body_timeout: float = 60.0
    body_rate: int = 64 << 10
    max_waiting_bytes: int = 128 << 20
    max_stored_bytes: int = 64 << 20
    traces_endpoint: str | None = None
    keepalive_interval: float = 5.0

    def __post_init__(self) -> None:
        if not all(key.strip() for key in self.api_keys):
            raise ValueError("an API key is empty: expected some text, or no key for a server that is open to all")

    def allows_origin(self, origin: str, host: str | None) -> bool:
        """Returns whether a page of `origin` may call without a preflight: it is listed, or this server's own."""
        if "*" in self.cors_origins or origin in self.cors_origins:
            return True
        return host is not None and origin.partition("://")[2].lower() == host.lower()


def origins(values: Sequence[str]) -> tuple[str, ...]:
    """Returns the origins of `--cors-origin`: "*", origins, or vLLM's JSON list of them.

    Raises:
        ValueError: a value is none of these.
    """
    found: list[str] = []
    for value in values:
        try:
            listed = json.loads(value) if value.lstrip().startswith("[") else [value]
        except ValueError:
            listed = [None]
        for origin in listed:
            if not isinstance(origin, str) or (origin != "*" and not _ORIGIN.fullmatch(origin)):
                raise ValueError(
                    f'--cors-origin is {value}; expected *, origins as https://example.org, or a JSON list as ["*"].'
                )
            found.append(origin)
    return tuple(found)


def served_name(folder: str) -> str:
    """Returns the served name of a folder: "org/name" for a snapshot in the Hub's cache, or the path's last part."""
    return cached_name(folder) or os.path.basename(os.path.abspath(folder)) or "model"
