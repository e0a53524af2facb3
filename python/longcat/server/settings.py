"""What a server is told to do, and its limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Names, keys and limits of a server.

    Args:
        model_names: what the model is called; the first in answers, all in requests.
        api_keys: any of them opens; none: open to all.
        cors_origins: web pages that may call, as "https://example.org"; "*" for all.
        max_body_bytes, max_header_bytes: of a request.
        max_prompts: of one completions request.
        max_stop_strings, max_logprobs: of one request.
        grammar_timeout: to compile a grammar [s].
        send_timeout: a client that takes nothing for so long loses its connection, and its request ends [s].
        shutdown_timeout: how long requests may go on after SIGTERM [s].
        retry_after: what clients are told when the server is full or not ready [s].
        access_log: write a line of JSON for each request.
    """

    model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 32 << 20
    max_header_bytes: int = 16 << 10
    max_prompts: int = 1024
    max_stop_strings: int = 16
    max_logprobs: int = 20
    grammar_timeout: float = 2.0
    send_timeout: float = 30.0
    shutdown_timeout: float = 30.0
    retry_after: int = 1
    access_log: bool = True

    def __post_init__(self) -> None:
        if not all(key.strip() for key in self.api_keys):
            raise ValueError("an API key is empty: expected some text, or no key for a server that is open to all")
