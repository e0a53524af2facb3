"""The command line's parser: exact flags, numbers with ranges, errors of one line with the nearest name."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from longcat.support.other_engines import OTHER_OPTIONS

# vLLM's short flags, which have one dash and several letters.
_SHORT_FLAGS = {
    "-tp": "--tensor-parallel-size",
    "-dp": "--data-parallel-size",
    "-ep": "--expert-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-q": "--quantization",
}

# Messages of argparse and our words for them. The first group of _CHOICE and _ARGUMENT is the flag with its aliases.
_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_CHOICE = re.compile(r"argument (.+?): invalid choice: (.+?) \(choose from (.+)\)$")
_ARGUMENT = re.compile(r"argument (.+?): (.+)")
_PLAIN = (
    (re.compile("expected one argument"), "has no value; expected one"),
    (re.compile("expected at least one argument"), "has no value; expected one or more"),
    (re.compile("not allowed with argument (.+)"), r"and \1 exclude each other; expected one of them"),
    (re.compile("ignored explicit argument '?(.*?)'?$"), r"takes no value; found \1"),
)

_LISTED = 6  # most choices that a message lists; of more it names the nearest


class UsageError(ValueError):
    """The command line is wrong."""


class Parser(argparse.ArgumentParser):
    """argparse with exact flags, and with errors of one line in place of the usage."""

    _given: Sequence[str] = ()

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def format_help(self) -> str:
        """Returns the help. Its usage line has the arguments alone, because each flag has a line below."""
        if self.usage is None:
            usage = "%(prog)s [flags]"
            for action in self._actions:
                name = str(action.metavar or action.dest)
                usage += "" if action.option_strings else f" [{name}]" if action.nargs == "?" else f" {name}"
            self.usage = usage
        return super().format_help()

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parses as argparse does, but the command that leaves arguments over raises the error."""
        self._given = [self._spelled(text) for text in (sys.argv[1:] if args is None else args)]
        namespace, rest = super().parse_known_args(self._given, namespace)
        flags = [text for text in rest if text.startswith("-") and text != "--"]
        if flags:
            self._unknown_flag(flags[0].partition("=")[0])
        if rest := [text for text in rest if text != "--"]:
            self.error(f'"{rest[0]}" is one argument too many; {self._help()}')
        return namespace, []

    def _spelled(self, text: str) -> str:
        """Returns an argument in its long form: --tensor-parallel-size for -tp, --max-model-len for --max_model_len."""
        name, equals, value = text.partition("=")
        full = _SHORT_FLAGS.get(name) or (name.replace("_", "-") if name.startswith("--") else name)
        known = self._option_string_actions
        return full + equals + value if name not in known and full in known else text

    def leaves(self) -> Iterator[tuple[list[str], Parser]]:
        """Yields the parsers that have no commands of their own, each with its names, as ["bench", "latency"]."""
        nested = self._commands()
        if nested is None:
            yield [], self
        for name, parser in (nested or {}).items():
            yield from (([name, *path], leaf) for path, leaf in parser.leaves())

    def chosen(self, arguments: Sequence[str]) -> tuple[list[str], Parser]:
        """Returns the parser of the command that the arguments name, and the names; [] when they name none."""
        nested = self._commands() or {}
        for index, text in enumerate(arguments):
            if text in nested:
                path, leaf = nested[text].chosen(arguments[index + 1 :])
                return [text, *path], leaf
        return [], self

    def _commands(self) -> dict[str, Parser] | None:
        actions = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return dict(actions[0].choices) if actions else None

    def _flags(self) -> list[str]:
        return [flag for flag in self._option_string_actions if flag.startswith("--")]

    def _help(self) -> str:
        return f'"{self.prog} --help" lists what there is'

    def _unknown_flag(self, flag: str) -> NoReturn:
        if found := nearest(flag, self._flags()):
            self.error(f"unknown flag {flag}; did you mean {found}?")
        self.error(f"unknown flag {flag}; {self._help()}")

    def error(self, message: str) -> NoReturn:
        """Raises UsageError with our message in place of argparse's."""
        if _REQUIRED.match(message):  # the missing flag may be there, misspelt
            flags = [text.partition("=")[0] for text in self._given if text.startswith("--") and text != "--"]
            for flag in flags:
                if flag not in self._option_string_actions:
                    self._unknown_flag(flag)
        area = self.prog.partition(" ")[2]
        raise UsageError(f"[{area}] {self._reworded(message)}" if area else self._reworded(message))

    def _reworded(self, message: str) -> str:
        if found := _REQUIRED.match(message):
            return f"missing: {found[1]}; {self._help()}"
        if found := _CHOICE.match(message):
            value, choices = found[2].strip("'"), [choice.strip("'\" ") for choice in found[3].split(",")]
            return self._wrong_choice(found[1], value, choices)
        if found := _ARGUMENT.match(message):
            said = found[2]
            for theirs, ours in _PLAIN:
                said = theirs.sub(ours, said)
            return f"{self._as_given(found[1])} {said}"
        return message

    def _wrong_choice(self, argument: str, value: str, choices: Sequence[str]) -> str:
        near = nearest(value, choices) if len(choices) > _LISTED else None
        hint = f'did you mean "{near}"?' if near else f"expected {', '.join(choices)}"
        if not argument.startswith("-"):
            return f'unknown {argument.lower()} "{value}"; {hint}'
        return f"{self._as_given(argument)} {value}; {hint}"

    def _as_given(self, argument: str) -> str:
        """Returns the alias of a flag that the command line has."""
        given = {text.partition("=")[0] for text in self._given}
        names = argument.split("/")
        return next((name for name in names if name in given), names[0])


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that `name` probably means: one that begins with it, or one spelt nearly the same."""
    names = sorted(known)
    longer = [other for other in names if len(name) > 3 and other.startswith(name)]
    near = longer or difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return near[0] if near else None


def integer(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """Returns an argument type: an integer in a range, both ends included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}; expected {_range('an integer', least, most)}") from None
        if (least is not None and value < least) or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text}; expected {_range('an integer', least, most)}")
        return value

    return parse


def number(
    least: float, most: float | None = None, *, above: bool = False, infinite: bool = False
) -> Callable[[str], float]:
    """Returns an argument type: a number in a range.

    Args:
        above: exclude `least` itself.
        infinite: allow inf.
    """

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        high = math.inf if most is None else most
        ok = (value > least if above else value >= least) and value <= high and (infinite or math.isfinite(value))
        if not ok:
            raise argparse.ArgumentTypeError(f"{text}; expected {_range('a number', least, most, above)}")
        return value

    return parse


def _range(noun: str, least: float | None, most: float | None, above: bool = False) -> str:
    low = "" if least is None else f"above {least:g}" if above else f"from {least:g}"
    if least is not None and not above and most is None:
        return f"{noun}, {least:g} or more"
    high = "" if most is None else f" {'and at most' if above else 'to'} {most:g}"
    return f"{noun} {low}{high}".strip()


class OtherEngineFlag(argparse.Action):
    """Handles a flag of another engine: puts it on the list of ignored flags, or refuses it with a remedy."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        flag = self.option_strings[0]
        try:
            OTHER_OPTIONS[flag[2:]].check(flag, values)
        except ValueError as error:
            parser.error(str(error))
        namespace.ignored = [*(getattr(namespace, "ignored", None) or []), flag]


def add_other_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of vLLM and SGLang that have no effect here. `args.ignored` lists those that were given."""
    known = parser._option_string_actions
    for name, option in OTHER_OPTIONS.items():
        if f"--{name}" not in known:
            nargs = None if option.takes_value else 0
            parser.add_argument(
                f"--{name}", action=OtherEngineFlag, nargs=nargs, dest="ignored", default=None, help=argparse.SUPPRESS
            )
    parser.set_defaults(ignored=None)
