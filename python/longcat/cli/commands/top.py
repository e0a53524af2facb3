"""`longcat top`: watches a running server."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from dataclasses import asdict, dataclass

from longcat._core import Error
from longcat.cli.parser import number
from longcat.support.json_types import JsonObject
from longcat.support.text import bytes_text

_URL = "http://127.0.0.1:8000"
_TIMEOUT = 5.0  # [s]
_SAMPLE = re.compile(r"(?:longcat:)?(\w+)(?:\{(.*)\})? (\S+)(?: \S+)?$")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", default=_URL, metavar="URL", help=f"address of the server (default {_URL})")
    parser.add_argument(
        "--interval",
        type=number(0, above=True),
        default=1.0,
        metavar="SECONDS",
        help="seconds between readings (default 1)",
    )
    parser.add_argument("--once", action="store_true", help="print one reading and end")
    parser.add_argument("--json", action="store_true", help="print each reading as a JSON object on one line")
    parser.add_argument("--api-key", metavar="KEY", help="key of the server; also LONGCAT_API_KEY")


def run(args: argparse.Namespace) -> int:
    server = Server(args.url, args.api_key or os.environ.get("LONGCAT_API_KEY"))
    before = server.read()
    live = sys.stdout.isatty() and not args.once and not args.json
    try:
        while True:
            time.sleep(args.interval)
            after = server.read()
            found = reading(before, after)
            if args.json:
                print(json.dumps({"model": server.model, **asdict(found)}), flush=True)
            elif live:
                print("\x1b[H\x1b[2J" + "\n".join(table(server, found)), flush=True)
            else:
                print(line(found), flush=True)
            if args.once:
                return 0
            before = after
    except KeyboardInterrupt:
        return 0


@dataclass(frozen=True)
class Sample:
    """The metrics of a server at one time: sums over labels, by name without the prefix."""

    at: float  # [s]
    values: dict[str, float]

    def get(self, name: str) -> float:
        return self.values.get(name, 0.0)


@dataclass(frozen=True)
class Reading:
    """The state of a server over one interval.

    Rates are tokens a second. Shares are from 0 to 1; None: nothing was counted.
    """

    running: int
    waiting: int
    generated_per_second: float
    prompt_per_second: float
    requests_finished: int  # since the server's start
    cache_usage: float
    prefix_hit_share: float | None
    draft_acceptance: float | None
    preemptions: int
    memory_bytes: int
    seconds_to_first_token: float | None  # mean of the interval


def reading(before: Sample, after: Sample) -> Reading:
    """Returns the state between two samples."""
    seconds = max(after.at - before.at, 1e-9)

    def grown(name: str) -> float:
        return after.get(name) - before.get(name)

    def share(part: str, whole: str) -> float | None:
        """Of the interval, or of all time while the interval has none."""
        for count in (grown, after.get):
            if count(whole) > 0:
                return count(part) / count(whole)
        return None

    return Reading(
        running=int(after.get("num_requests_running")),
        waiting=int(after.get("num_requests_waiting")),
        generated_per_second=grown("generation_tokens_total") / seconds,
        prompt_per_second=grown("prompt_tokens_total") / seconds,
        requests_finished=int(after.get("request_success_total")),
        cache_usage=after.get("kv_cache_usage_perc"),
        prefix_hit_share=share("prefix_cache_hits_total", "prefix_cache_queries_total"),
        draft_acceptance=share("spec_decode_num_accepted_tokens_total", "spec_decode_num_draft_tokens_total"),
        preemptions=int(after.get("num_preemptions_total")),
        memory_bytes=int(after.get("process_resident_memory_bytes")),
        seconds_to_first_token=share("time_to_first_token_seconds_sum", "time_to_first_token_seconds_count"),
    )


class Server:
    """A running server.

    Raises:
        longcat.Error: it is not there, or not a longcat server.
    """

    def __init__(self, url: str, api_key: str | None):
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        props: JsonObject = {}
        try:
            props = json.loads(self._get("/props"))
        except ValueError:
            pass
        if not isinstance(props, dict) or "model_alias" not in props:
            raise Error(f"[top] {self.url} is no longcat server; expected the address of longcat serve.")
        self.model = str(props["model_alias"])
        self.build = str(props.get("build_info", ""))
        self.context = int(props.get("default_generation_settings", {}).get("n_ctx", 0))

    def read(self) -> Sample:
        values: dict[str, float] = {}
        for row in self._get("/metrics").splitlines():
            if found := _SAMPLE.match(row):
                values[found[1]] = values.get(found[1], 0.0) + float(found[3])
        return Sample(time.monotonic(), values)

    def _get(self, path: str) -> str:
        import urllib.error
        import urllib.request

        try:
            request = urllib.request.Request(self.url + path, headers=self._headers)
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            if error.code == 401:
                raise Error(f"[top] {self.url} asks for a key; expected --api-key or LONGCAT_API_KEY.") from None
            raise Error(f"[top] {self.url}{path} answers {error.code}; expected a longcat server.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            reason = getattr(reason, "strerror", None) or reason
            raise Error(f"[top] no server at {self.url}: {reason}. Start one: longcat serve FOLDER") from None


def line(found: Reading) -> str:
    """Returns a reading as one line."""
    parts = [
        f"running {found.running}",
        f"waiting {found.waiting}",
        f"{found.generated_per_second:.1f} tokens/s",
        f"prompts {found.prompt_per_second:.1f} tokens/s",
        f"cache {found.cache_usage:.0%}",
        f"prefix hits {_share(found.prefix_hit_share)}",
        f"drafts accepted {_share(found.draft_acceptance)}",
        f"memory {bytes_text(found.memory_bytes)}",
    ]
    return ", ".join(parts)


def table(server: Server, found: Reading) -> list[str]:
    """Returns a reading as the lines of a screen."""
    first = found.seconds_to_first_token
    rows = [
        ("requests", f"{found.running} running, {found.waiting} waiting, {found.requests_finished:,} finished"),
        ("generated", f"{found.generated_per_second:.1f} tokens/s"),
        ("prompts", f"{found.prompt_per_second:.1f} tokens/s"),
        ("first token", "-" if first is None else f"{1000 * first:.0f} ms"),
        ("cache", f"{_bar(found.cache_usage)} {found.cache_usage:.0%}, {found.preemptions} preemptions"),
        ("prefix hits", _share(found.prefix_hit_share)),
        ("drafts", f"{_share(found.draft_acceptance)} accepted"),
        ("memory", bytes_text(found.memory_bytes)),
    ]
    head = f"{server.model} at {server.url}, {server.build}, context {server.context:,}"
    return [head, "", *(f"{name:<12} {text}" for name, text in rows), "", "Ctrl-C ends this."]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _bar(value: float, width: int = 20) -> str:
    full = round(min(max(value, 0.0), 1.0) * width)
    return "\u2588" * full + "\u2591" * (width - full)
