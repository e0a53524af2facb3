"""`longcat doctor`: checks whether this machine is fit, and names a remedy where it is not."""

from __future__ import annotations

import argparse
import dataclasses
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="FOLDER", help="checkpoint folder, to see whether it is whole and fits"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list in place of lines")


def run(args: argparse.Namespace) -> int:
    """Runs the command. Returns 1 when a check fails; warnings do not count."""
    from longcat.planning.doctor import examine

    verdicts = examine(args.model)
    if args.json:
        print(json.dumps([dataclasses.asdict(verdict) for verdict in verdicts], indent=2))
    for verdict in [] if args.json else verdicts:
        print(f"{verdict.status:<5} {verdict.name:<16} {verdict.finding}")
        if verdict.fix:
            print(f"{'':<22} -> {verdict.fix}")
    return int(any(verdict.status == "FAIL" for verdict in verdicts))
