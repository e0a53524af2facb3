"""`longcat verify`: checks whether a checkpoint is whole, and reports its contents."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from longcat.cli.progress import ByteBar

if TYPE_CHECKING:
    from longcat.checkpoint.facts import Fact
    from longcat.checkpoint.verify import Check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FOLDER", help="checkpoint folder in the Hugging Face layout")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--headers",
        action="store_true",
        help="read no tensor data; report instead what descriptions of the model leave open, as this folder has it",
    )
    mode.add_argument(
        "--write-hashes",
        action="store_true",
        help="store SHA-256 hashes in SHA256SUMS (when no check fails), so that later runs find every changed bit",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of lines")


def run(args: argparse.Namespace) -> int:
    from longcat.checkpoint.verify import verify_checkpoint

    with ByteBar("reading") as bar:
        try:
            report = verify_checkpoint(
                args.model,
                headers_only=args.headers,
                write_hashes=args.write_hashes,
                on_check=None if args.json else lambda check: bar.print(_check_line(check)),
                progress=bar.update,
            )
        except KeyboardInterrupt:
            bar.print("[stopped]", sys.stderr)
            return 130
    if args.json:
        print(json.dumps(report.as_dict(), indent=2))
        return 0 if report.ok else 1
    for fact in report.facts:
        print(_fact_line(fact))
    failed = sum(check.status == "FAIL" for check in report.checks)
    if failed:
        print(f"{args.model}: {failed} check{'' if failed == 1 else 's'} failed")
    elif report.suspect:
        print(f"{args.model}: weights may be missing (see the warning of values). Compare the files with their source")
    else:
        print(f"{args.model}: no check failed")
    return 0 if report.ok else 1


def _check_line(check: Check) -> str:
    return f"{check.status:<5} {check.name:<14} {check.detail}"


def _fact_line(fact: Fact) -> str:
    note = f" ({fact.note})" if fact.note else ""
    return f"{'fact' if fact.as_assumed else 'note':<5} {fact.topic}: {fact.found}{note}"
