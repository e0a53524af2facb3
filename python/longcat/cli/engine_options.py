"""The options and the progress bar that all commands with a model share."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longcat.cli.parser import add_other_engine_flags, integer, number
from longcat.cli.progress import ByteBar
from longcat.engine import option_checks as checks
from longcat.engine.config import EngineConfig, options
from longcat.request.sampling_params import parameters
from longcat.support.other_engines import format_name
from longcat.support.values import positive, share

if TYPE_CHECKING:
    from longcat.engine.engine import Engine


def add_engine_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Adds the checkpoint folder and the engine's options, which engine_keywords reads.

    Args:
        command: "serve" takes the folder also by --model or --model-path. Some options belong to some commands only.
    """
    text = options()["model"].help
    if command == "serve":
        parser.add_argument("model", nargs="?", metavar="FOLDER", help=text)
        parser.add_argument(
            "--model",
            "--model-path",
            dest="model_path",
            metavar="FOLDER",
            help="the checkpoint folder, in place of the first argument",
        )
    else:
        parser.add_argument("model", metavar="FOLDER", help=text)
    group = parser.add_argument_group("engine")
    names = [name for name, one in options().items() if one.metavar and command in (one.commands or (command,))]
    for name in names:
        add_option(group, name)
    parser.set_defaults(engine_options=names)
    add_other_engine_flags(parser)


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of all engine options, whatever commands have them."""
    for name, one in options().items():
        if one.metavar:
            add_option(parser, name)


def add_option(group: argparse._ActionsContainer, name: str, default: str = "") -> None:
    """Adds the flags of one engine option, by all its names.

    Args:
        default: the default in words, where it differs from the engine's.
    """
    option, value = options()[name], getattr(EngineConfig, name)
    flags = [flag_of(alias) for alias in (name, *option.aliases)]
    if option.check is checks.switch:
        shown = option.default or ("on" if value else "off")
        group.add_argument(
            *flags, dest=name, action="store_true", default=value, help=f"{option.help} (default {shown})"
        )
        off_flags = [f"--no-{flags[0][2:]}", *option.off_flags]
        group.add_argument(*off_flags, dest=name, action="store_false", help=f"turn off {flags[0]}")
        return
    shown = default or option.default or value
    parse = _number_format(flags[0]) if option.check is checks.number_format else _PARSERS.get(option.check, str)
    group.add_argument(
        *flags,
        dest=name,
        type=parse,
        default=value,
        metavar=option.unit.upper() if option.metavar == "N" and option.unit else option.metavar,
        choices=option.choices or None,
        help=f"{option.help} (default{':' if option.default else ''} {shown})".replace("%", "%%"),
    )


def flag_of(name: str) -> str:
    """Returns the flag of a keyword."""
    return "--" + name.replace("_", "-")


def _number_format(flag: str) -> Callable[[str], str]:
    """Returns an argument type: a number format, by our name or another engine's."""

    def parse(text: str) -> str:
        try:
            return format_name(flag, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).partition("=")[2].replace('"', "")) from None

    return parse


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}; expected JSON: {error}") from None


# Argument types by the check of their option. Other options are texts, which their checks parse.
_PARSERS: dict[Callable[[str, Any], object], Callable[[str], object]] = {
    positive: integer(1),
    share: number(0, 1, above=True),
    checks.seed: integer(),
    checks.speculation: _json,
    checks.milliseconds: number(0, above=True),
}


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that sampling_options reads."""
    group = parser.add_argument_group("sampling")
    helps = {name: parameter.help for name, parameter in parameters().items()}
    group.add_argument(
        "--max-tokens", type=integer(1), default=256, metavar="TOKENS", help=f"{helps['max_tokens']} (default 256)"
    )
    kinds: list[tuple[str, Callable[[str], float]]] = [
        ("temperature", number(0)),
        ("top_k", integer(-1)),
        ("top_p", number(0, 1, above=True)),
        ("min_p", number(0, 1)),
        ("repetition_penalty", number(0, above=True)),
    ]
    for name, kind in kinds:
        text = f"{helps[name]} (default: the model's generation_config.json)"
        group.add_argument(flag_of(name), type=kind, metavar="X", help=text)
    group.add_argument("--stop", action="append", metavar="TEXT", help=f"{helps['stop']}; repeatable")
    group.add_argument("--seed", type=integer(), metavar="N", help=f"{helps['seed']} (default: random)")


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the keywords for SamplingParams."""
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed")
    return {name: getattr(args, name) for name in names}


def engine_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the keywords for Engine, without the model."""
    return {name: getattr(args, name) for name in args.engine_options}


@dataclass(frozen=True)
class Place:
    """The place of this process in its job: the index of its replica of the model, and its rank in the replica."""

    replica: int = 0
    rank: int = 0


def join_ranks(args: argparse.Namespace) -> Place:
    """Joins the job that the options ask for, before anything slow begins.

    Raises:
        ValueError: the launcher started another number of processes.
    """
    from longcat.parallel.launch import find_launch

    tp, ep, dp = args.tensor_parallel_size, args.expert_parallel_size, getattr(args, "data_parallel_size", 1)
    if max(tp, ep, dp) == 1:
        launch = find_launch()
        if launch is not None and launch.size > 1:
            raise ValueError(
                f"{launch.launcher} started {launch.size} processes, and --tp 1 --ep 1 is one: pass --tp {launch.size} "
                f"or --ep {launch.size}, or start one"
            )
        return Place()
    from longcat.parallel.job import join_job

    job = join_job(tp, ep, dp)
    assert job is not None
    job.watch()
    replica, rank = divmod(job.launch.rank, max(tp, ep))
    # Rank 0 decides when the job ends. A launcher that gets SIGTERM kills its ranks at once, but it forwards SIGUSR1.
    if rank > 0:
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(ignored, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    return Place(replica, rank)


def open_engine(args: argparse.Namespace, **more: object) -> Engine:
    """Opens the engine of the options and `more`, with a progress bar. Call join_ranks before."""
    from longcat.engine.engine import Engine
    from longcat.parallel.job import current_job

    job = current_job()
    if args.ignored and (job is None or job.launch.rank == 0):
        flags = ", ".join(dict.fromkeys(args.ignored))
        print(f"longcat: [{args.command}] ignored, without effect here: {flags}", file=sys.stderr)
    keywords = engine_keywords(args) | more
    if job is not None and job.launch.rank > 0:
        return Engine(args.model, **keywords)
    with ByteBar("loading") as bar:
        return Engine(args.model, progress=bar.update, **keywords)


def follow(engine: Engine) -> int:
    """Computes the steps of rank 0, as every command does on the other ranks. Returns the exit code."""
    engine.follow()
    return 0
