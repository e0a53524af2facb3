"""The server's log on standard error: a banner, a line for each request, a summary while requests run."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longcat._core import __version__
from longcat.server.metrics import BLOCK_TOKENS
from longcat.server.served_engine import ServedEngine
from longcat.server.settings import ServerSettings
from longcat.support.json_types import JsonObject
from longcat.support.text import bytes_text, count, printable

log = logging.getLogger("longcat.server")
_access = logging.getLogger("longcat.access")

PROBES = frozenset({"/health", "/ready", "/metrics", "/render"})  # asked for all the time: not logged
_SUMMARY_SECONDS = 10.0


@dataclass(frozen=True)
class LogOptions:
    """The options of the log.

    Args:
        level: the lowest severity that is logged: debug, info, warning, error or critical.
        format: "text", or "json" for one object on each line.
        summary: a line every 10 s while requests run.
    """

    level: str = "info"
    format: str = "text"
    summary: bool = True


class TextFormatter(logging.Formatter):
    """ "2026-01-31 12:00:00 INFO listening on http://127.0.0.1:8000"."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, message, and the facts of a request."""

    def format(self, record: logging.LogRecord) -> str:
        line: JsonObject = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, "facts", {}))


class StderrHandler(logging.Handler):
    """Writes whole lines to the current sys.stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)


def set_up(options: LogOptions) -> None:
    """Sends this package's log to standard error, and other packages' from warnings on."""
    root, handler = logging.getLogger(), StderrHandler()
    handler.setFormatter(JsonFormatter() if options.format == "json" else TextFormatter())
    for other in [one for one in root.handlers if isinstance(one, StderrHandler)]:
        root.removeHandler(other)
    root.addHandler(handler)
    level = logging.getLevelName(options.level.upper())
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("longcat").setLevel(level)


def log_request(facts: Mapping[str, object]) -> None:
    """Writes one line for a request: `facts` as JSON, or a short text of them."""
    if _access.isEnabledFor(logging.INFO):
        _access.info("%s", request_text(facts), extra={"facts": facts})


def request_text(facts: Mapping[str, Any]) -> str:
    """ "POST /v1/completions 200, 81.3 ms, 5 + 16 tokens, length, from 127.0.0.1, id 0ab1"."""
    parts = [f"{facts['method']} {printable(facts['path'], 200)} {facts['status']}", f"{facts['duration_ms']} ms"]
    if "prompt_tokens" in facts:
        parts.append(f"{facts['prompt_tokens']} + {facts['completion_tokens']} tokens")
        parts.append(" ".join(dict.fromkeys(str(reason) for reason in facts["finish_reason"])))
    parts += [
        f"{name.replace('_', ' ')} {printable(str(facts[name]), 400)}"
        for name in ("ignored", "slow_reader")
        if name in facts
    ]
    return ", ".join([*parts, f"from {facts['client']}", f"id {facts['request_id']}"])


def banner(model: str, info: Mapping[str, Any], settings: ServerSettings, max_num_seqs: int) -> list[str]:
    """Returns the lines of the start: the model, its memory and the limits.

    Args:
        model: the checkpoint folder.
        info: of Engine.info().
        max_num_seqs: requests that run at once.
    """
    names = ", ".join(printable(name, 200) for name in settings.model_names)
    weights = bytes_text(info["weight_bytes"])
    tables = f", {bytes_text(info['table_bytes'])} of it N-gram tables" if info["table_bytes"] else ""
    tokens = info["num_kv_blocks"] * BLOCK_TOKENS
    return [
        f"longcat {__version__} serves {names}",
        f"model {printable(model)}: {info['architecture']}, {info['dtype'].lower()}, {weights} of weights{tables}",
        f"context {info['max_model_len']:,} tokens, {count(max_num_seqs, 'request')} at once; latent cache "
        f"{bytes_text(info['kv_cache_bytes'])} in {info['kv_cache_dtype'].lower()}: {tokens:,} tokens",
        f"device {info['device']}, {count(info['num_threads'], 'thread')}"
        + (f", {info['world_size']} ranks" if info["world_size"] > 1 else "")
        + (f", {info['all_reduce']}" if info.get("all_reduce") else ""),
    ]


def address_lines(sock: socket.socket, scheme: str, settings: ServerSettings) -> tuple[list[str], str | None]:
    """Returns lines with the server's addresses, and a warning when the whole network can use it."""
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    lines = [f"listening on {scheme}://{shown}:{port}", "page /, OpenAI's API under /v1, its description /docs"]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        lines.insert(
            1, f"on this machine {scheme}://127.0.0.1:{port}, from others {scheme}://{socket.gethostname()}:{port}"
        )
    if address.is_loopback or settings.api_keys:
        return lines, None
    return lines, f"--host {host} without --api-key: every machine that reaches port {port} can use the model"


class Summary:
    """Computes tokens a second and cache use between two calls of Engine.metrics()."""

    def __init__(self, engine: ServedEngine):
        self._engine = engine
        self._before: dict[str, float] | None = None
        self._time = 0.0

    def line(self, now: float) -> str | None:
        """Returns the line for the time since the last call; None when nothing ran.

        Args:
            now: time of a monotonic clock [s].
        """
        try:
            values = self._engine.metrics()
        except RuntimeError:  # the engine is closed
            return None
        before, seconds = self._before, now - self._time
        self._before, self._time = values, now
        if before is None or seconds <= 0:
            return None
        prompt, output = (values[name] - before[name] for name in ("num_prompt_tokens", "num_generated_tokens"))
        if not (prompt or output or values["num_running"] or values["num_waiting"]):
            return None
        used = 1 - values["num_free_blocks"] / max(values["num_kv_blocks"], 1)
        return (
            f"{values['num_running']} running, {values['num_waiting']} waiting; "
            f"prompts {prompt / seconds:.1f} tokens/s, answers {output / seconds:.1f} tokens/s; "
            f"{used:.1%} of the latent cache in use"
        )

    async def run(self) -> None:
        """Logs a line every 10 s while requests run, until it is cancelled."""
        while True:
            if (line := self.line(time.monotonic())) is not None:
                log.info("%s", line)
            await asyncio.sleep(_SUMMARY_SECONDS)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03}Z"
