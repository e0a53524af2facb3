"""The `longcat` command. Each subcommand has a module with `add_arguments(parser)` and `run(args) -> exit code`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence

from longcat.cli.parser import Parser, UsageError

# command -> (module, one line of help). Only the module of the given command is imported.
COMMANDS = {
    "generate": ("longcat.cli.commands.generate", "continue a prompt"),
    "chat": ("longcat.cli.commands.chat", "talk with the model in the terminal"),
    "serve": ("longcat.cli.commands.serve", "serve the model over HTTP, by the APIs of OpenAI and Anthropic"),
    "bench": ("longcat.cli.commands.bench", "measure an engine, its start, or a server"),
    "plan": ("longcat.cli.commands.plan", "print the memory that a checkpoint needs, and where it fits"),
    "doctor": ("longcat.cli.commands.doctor", "check this machine, and name a remedy for each fault"),
    "verify": ("longcat.cli.commands.verify", "check a checkpoint: files, tensors, values, hashes"),
    "convert": ("longcat.cli.commands.convert", "quantise and pack a checkpoint"),
    "make-checkpoint": (
        "longcat.cli.commands.make_checkpoint",
        "write a checkpoint with random weights, for tests and benchmarks",
    ),
    "pull": (
        "longcat.cli.commands.pull",
        "download a checkpoint, check its hashes, and resume where it was interrupted",
    ),
    "top": ("longcat.cli.commands.top", "watch a running server: requests, tokens/s, cache, memory"),
    "completion": ("longcat.cli.commands.completion", "print the script that completes longcat commands in a shell"),
}

_OF_SEVERAL_RANKS = ("generate", "chat", "serve", "bench")
_RANK_0_SPEAKS_SECONDS = 2.0


def make_parser(loaded: Collection[str] = COMMANDS) -> Parser:
    """Makes the parser of the command line.

    Args:
        loaded: the commands that get their arguments; importing all of them takes a while.
    """
    parser = Parser(prog="longcat", description="Run LongCat-Flash-Lite.")
    parser.add_argument("--version", action="store_true", help="print version and build features")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name in loaded:
            importlib.import_module(module).add_arguments(command)
            for _, leaf in command.leaves():
                leaf.add_argument(
                    "--config", metavar="FILE", help="settings in TOML (default ~/.config/longcat/config.toml)"
                )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code (1: it failed, 2: the arguments are wrong)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser(arguments[:1])
    try:
        _check_utf8(arguments)
        _apply_settings(parser, arguments)
        args = parser.parse_args(arguments)
    except UsageError as error:
        return _fail(error, 2)
    if args.version:
        return _print_version()
    if args.command is None:
        parser.print_help()
        return 2
    return _run(args)


def _apply_settings(parser: Parser, arguments: Sequence[str]) -> None:
    """Gives the flags of the command their defaults from the settings file and the environment."""
    from longcat.cli import settings
    from longcat.cli.engine_options import add_engine_flags, add_sampling_arguments

    path, leaf = parser.chosen(arguments)
    if path and "--help" not in arguments and "-h" not in arguments:
        tables = {name: _adder(module) for name, (module, _) in COMMANDS.items()}
        tables |= {"engine": add_engine_flags, "sampling": add_sampling_arguments}
        settings.apply_settings(leaf, path, arguments, tables)


def _adder(module: str) -> Callable[[Parser], None]:
    return lambda parser: importlib.import_module(module).add_arguments(parser)


def _run(args: argparse.Namespace) -> int:
    from longcat._core import Error
    from longcat.parallel.launch import require_alone
    from longcat.support.hub import local_checkpoint

    try:
        if args.command not in _OF_SEVERAL_RANKS:
            require_alone(args.command)
        if getattr(args, "model", None) is not None:
            args.model = local_checkpoint(os.path.expanduser(args.model))
        return int(importlib.import_module(COMMANDS[args.command][0]).run(args))
    except Error as error:
        return _fail(error, 1)
    except (ValueError, TypeError) as error:
        return _fail(error, 2)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        return _fail(error, 1)


def _check_utf8(arguments: Sequence[str]) -> None:
    """Raises UsageError for an argument that is not UTF-8, which the core and the tokenizer cannot take."""
    for text in arguments:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"the argument {os.fsencode(text)!r} is not UTF-8; expected UTF-8. Rename the file or folder it names."
            ) from None


def _fail(error: Exception, code: int) -> int:
    """Prints one line. In a job of several ranks only rank 0 prints; the other ranks send it their line."""
    from longcat.parallel.launch import find_launch

    parallel = sys.modules.get("longcat.parallel.job")
    job = parallel.current_job() if parallel is not None else None
    launch = find_launch()
    if job is not None:
        job.fail(str(error))
    elif launch is None or launch.rank == 0:
        print(f"longcat: {error}", file=sys.stderr)
    else:  # the launcher ends all processes when one has ended, so wait until rank 0 has printed its line
        time.sleep(_RANK_0_SPEAKS_SECONDS)
    return code


def _print_version() -> int:
    import longcat._core as _core

    cuda = "cuda" if _core.cuda_is_built() else "no cuda"
    print(f"longcat {_core.__version__} (cpu {_core.cpu_isa()}, {cuda})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
