"""The command line's parser: exact flags, numbers with ranges, errors of one line with the nearest name."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
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

# What argparse says -> what is said here. The first group of the later ones is the flag with all its aliases.
_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_CHOICE = re.compile(r"argument (.+?): invalid choice: (.+?) \(choose from (.+)\)$")
_ARGUMENT = re.compile(r"argument (.+?): (.+)")
_PLAIN = (
    (re.compile("expected one argument"), "has no value; expected one"),
    (re.compile("expected at least one argument"), "has no value; expected one or more"),
    (re.compile("not allowed with argument (.+)"), r"and \1 exclude each other; expected one of them"),
    (re.compile("ignored explicit argument '?(.*?)'?$"), r"takes no value; found \1"),
)

_LISTED = 6  # choices that are listed in a message; of more the nearest is named


class UsageError(ValueError):
    """The command line is wrong."""


class Parser(argparse.ArgumentParser):
    """argparse without prefixes of flags and without usage dumps: what is wrong is told in one line."""

    _given: Sequence[str] = ()

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def format_help(self) -> str:
        """The help, with a usage line of the arguments alone: the flags follow, each with its own line."""
        if self.usage is None:
            usage = "%(prog)s [flags]"
            for action in self._actions:
                name = str(action.metavar or action.dest)
                usage += "" if action.option_strings else f" [{name}]" if action.nargs == "?" else f" {name}"
            self.usage = usage
        return super().format_help()

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As argparse does it, but arguments that are left over are an error of the command that left them."""
        self._given = [self._spelled(text) for text in (sys.argv[1:] if args is None else args)]
        namespace, rest = super().parse_known_args(self._given, namespace)
        flags = [text for text in rest if text.startswith("-") and text != "--"]
        if flags:
            self._unknown_flag(flags[0].partition("=")[0])
        if rest := [text for text in rest if text != "--"]:
            self.error(f'"{rest[0]}" is one argument too many; {self._help()}')
        return namespace, []

    def _spelled(self, text: str) -> str:
        """An argument with short flags and underscores written out: -tp, --max_model_len."""
        name, equals, value = text.partition("=")
        full = _SHORT_FLAGS.get(name) or (name.replace("_", "-") if name.startswith("--") else name)
        known = self._option_string_actions
        return full + equals + value if name not in known and full in known else text

    def _flags(self) -> list[str]:
        return [flag for flag in self._option_string_actions if flag.startswith("--")]

    def _help(self) -> str:
        return f'"{self.prog} --help" lists what there is'

    def _unknown_flag(self, flag: str) -> NoReturn:
        if found := nearest(flag, self._flags()):
            self.error(f"unknown flag {flag}; did you mean {found}?")
        self.error(f"unknown flag {flag}; {self._help()}")

    def error(self, message: str) -> NoReturn:
        """Raises UsageError with a line of ours in place of argparse's."""
        if _REQUIRED.match(message):  # a flag may be missing since it is misspelt
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
        """Of a flag's aliases the one on the command line."""
        given = {text.partition("=")[0] for text in self._given}
        names = argument.split("/")
        return next((name for name in names if name in given), names[0])


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was meant: one that begins so, or one that is spelt nearly so."""
    names = sorted(known)
    longer = [other for other in names if len(name) > 3 and other.startswith(name)]
    near = longer or difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return near[0] if near else None


def integer(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """A type of arguments: an integer in a range, both ends included."""

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
    """A type of arguments: a number in a range.

    Args:
        above: `least` itself does not count.
        infinite: inf may be given.
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
    """A flag of another engine: remembered to be told as ignored, or refused with the remedy."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        flag = self.option_strings[0]
        try:
            OTHER_OPTIONS[flag[2:]].check(flag, values)
        except ValueError as error:
            parser.error(str(error))
        namespace.ignored = [*(getattr(namespace, "ignored", None) or []), flag]


def add_other_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Takes launch lines of vLLM and SGLang as they are; what is said of it stands in `args.ignored`."""
    known = parser._option_string_actions
    for name, option in OTHER_OPTIONS.items():
        if f"--{name}" not in known:
            nargs = None if option.takes_value else 0
            parser.add_argument(
                f"--{name}", action=OtherEngineFlag, nargs=nargs, dest="ignored", default=None, help=argparse.SUPPRESS
            )
    parser.set_defaults(ignored=None)
