"""Defaults of flags from outside the command line: a file in TOML and variables such as LONGCAT_PORT.

A flag wins over a variable, a variable over the file, and the file over the built-in default.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longcat.cli.parser import OtherEngineFlag, Parser, UsageError, nearest

_PREFIX = "LONGCAT_"
# Variables that set no flag: of the core, of jobs of several ranks, and the key that `serve` adds to its keys.
_NO_FLAGS = (
    *("ALL_REDUCE", "CONFIG", "API_KEY", "CUDA", "GPU_MEMORY", "HOST_IP", "ISA", "MPI", "NCCL", "OVERLAP"),
    *("SHOW_IDS", "STREAMS", "SYNC", "TOKEN", "THOROUGH"),
)
_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_TABLE = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(?:#.*)?$")


@dataclass(frozen=True)
class Setting:
    """One value for a flag.

    Args:
        name: of the flag, without dashes.
        value: a text of the environment, or a value of TOML.
        place: opens messages, such as "[config] FILE line 3: port".
    """

    name: str
    value: object
    place: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def config_file(arguments: Sequence[str]) -> tuple[Path, bool]:
    """Returns the path of the settings file, and whether the user named it: by --config or LONGCAT_CONFIG."""
    for index, text in enumerate(arguments):
        if text == "--":
            break
        if text == "--config" and index + 1 < len(arguments):
            return Path(arguments[index + 1]).expanduser(), True
        if text.startswith("--config="):
            return Path(text.partition("=")[2]).expanduser(), True
    if named := os.environ.get("LONGCAT_CONFIG"):
        return Path(named).expanduser(), True
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "longcat", "config.toml"), False


def apply_settings(
    parser: Parser, path: Sequence[str], arguments: Sequence[str], tables: Mapping[str, Callable[[Parser], None]]
) -> None:
    """Sets the defaults of a command's flags from the file and the environment.

    Args:
        parser: of the command, as of `longcat bench latency`.
        path: names of the command, as ["bench", "latency"].
        arguments: the command line, which may have --config.
        tables: the tables that the file may have. Each has the function that adds its flags to a parser.
    Raises:
        UsageError: the file cannot be read, or a table, key or value is wrong; the message has its line.
    """
    file, is_named = config_file(arguments)
    if is_named or file.is_file():
        for setting in _of_file(file, path, tables, parser):
            _apply(parser, setting)
    for setting in _of_environment(parser, tables):
        _apply(parser, setting)


# --- the file ---------------------------------------------------------------------------------------------------------


def _of_file(
    file: Path, path: Sequence[str], tables: Mapping[str, Callable[[Parser], None]], parser: Parser
) -> Iterator[Setting]:
    """Yields the settings of the file for one command; those of its own table come last."""
    text, data = _read(file)
    for name, table in data.items():
        place = _place(file, text, "", name)
        if name not in tables and not isinstance(table, dict):
            raise UsageError(f"{place} is in no table; expected it in [engine], [sampling] or a command's, as [serve].")
        _require_known("table", name, tables, place)
        if not isinstance(table, dict):
            raise UsageError(f"{place} is {json.dumps(table)}; expected a table, [{name}].")
    shared = [(name, data[name]) for name in ("engine", "sampling") if name in data]
    for name, table in shared:
        known = _flags_of(tables[name])
        for key in table:
            _require_known("key", key, known, _place(file, text, name, key))
        # A command has some of them.
        yield from (s for s in _of_table(file, text, name, table) if s.flag in parser._option_string_actions)
    name, table = path[0], data.get(path[0], {})
    for part in path[1:]:
        inner = {key: value for key, value in table.items() if isinstance(value, dict)}
        for key in table:
            if key not in inner:
                raise UsageError(f"{_place(file, text, name, key)} is in [{name}]; expected it in [{name}.{part}].")
        name, table = f"{name}.{part}", inner.get(part, {})
    for key in table:
        _require_known("key", key, _names(parser), _place(file, text, name, key))
    yield from _of_table(file, text, name, table)


def _of_table(file: Path, text: str, name: str, table: Mapping[str, object]) -> Iterator[Setting]:
    for key, value in table.items():
        yield Setting(key, value, _place(file, text, name, key))


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    from longcat._core import Error
    from longcat.support.files import read_text

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        text = read_text(file, "[config]", 1 << 20)
        return text, tomllib.loads(text)
    except Error as error:
        raise UsageError(str(error)) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"[config] {file}: {error}; expected TOML, as: port = 8000") from None


def _place(file: Path, text: str, table: str, key: str) -> str:
    """Returns file, line and key, to open a message. Parsers of TOML do not tell lines, so they are looked for."""
    named, current = re.compile(rf"""\s*(?:{re.escape(table)}\.)?["']?{re.escape(key)}["']?\s*[=.]"""), ""
    for number, line in enumerate(text.split("\n"), 1):
        if head := _TABLE.match(line):
            current = head[1].replace('"', "").replace("'", "")
            if not table and current.split(".")[0] == key:
                return f"[config] {file} line {number}: {key}"
        elif named.match(line) and current in (table, ""):
            return f"[config] {file} line {number}: {key}"
    return f"[config] {file}: {key}"


def _require_known(kind: str, name: str, known: Collection[str], place: str) -> None:
    if name not in known and name.replace("_", "-") not in known:
        near = nearest(name.replace("_", "-"), known)
        hint = f"did you mean {near}?" if near else "longcat COMMAND --help lists the flags, which are the keys."
        raise UsageError(f"{place} is an unknown {kind}; {hint}")


def _names(parser: Parser) -> list[str]:
    """Returns the names of the flags that a setting can set, without dashes."""
    return [
        flag[2:]
        for flag, action in parser._option_string_actions.items()
        if flag.startswith("--") and action.dest not in ("help", "config") and not isinstance(action, OtherEngineFlag)
    ]


def _flags_of(add: Callable[[Parser], None]) -> list[str]:
    """Returns the names of the flags that a function adds to a parser, and to the commands that it adds."""
    parser = Parser(add_help=False)
    add(parser)
    return [name for _, leaf in parser.leaves() for name in _names(leaf)]


# --- the environment --------------------------------------------------------------------------------------------------


def _of_environment(parser: Parser, tables: Mapping[str, Callable[[Parser], None]]) -> Iterator[Setting]:
    """Yields the settings of variables. A command ignores those of other commands; a misspelt one is an error."""
    names = _names(parser)
    for variable, value in os.environ.items():
        key = variable.removeprefix(_PREFIX)
        name = key.lower().replace("_", "-")
        if key == variable or key in _NO_FLAGS:
            continue
        place = f"[environment] {variable}"
        if name in names:
            yield Setting(name, value, place)
        elif (near := nearest(name, names)) and not any(name in _flags_of(add) for add in tables.values()):
            raise UsageError(f"{place} names no flag; did you mean {_PREFIX}{near.upper().replace('-', '_')}?")


# --- the parser -------------------------------------------------------------------------------------------------------


class _Default(list[Any]):
    """The values of a flag that collects several. The first one on the command line replaces them all."""

    def __copy__(self) -> list[Any]:  # argparse adds to a copy of the default
        return []


def _apply(parser: Parser, setting: Setting) -> None:
    """Makes a setting the default of its flag, checked as the flag's own value is.

    Raises:
        UsageError: the value is wrong.
    """
    action = parser._option_string_actions[setting.flag]
    value: object
    if action.nargs == 0:
        value = _switched(action, setting)
    elif isinstance(action.default, list) or action.nargs == "+" or isinstance(action, argparse._AppendAction):
        value = _Default(_checked(action, setting, one) for one in _listed(setting.value))
    else:
        value = _checked(action, setting, setting.value)
    action.required = False
    parser.set_defaults(**{action.dest: value})


def _switched(action: argparse.Action, setting: Setting) -> object:
    given = setting.value
    on = _SWITCH.get(given.lower()) if isinstance(given, str) else given if isinstance(given, bool) else None
    if on is None:
        raise UsageError(f"{setting.place} is {_shown(given)}; expected true or false.")
    return action.const if on else not action.const


def _listed(value: object) -> Iterable[object]:
    """Returns the values of a flag that takes several. A variable has one, or a list in JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    return value if isinstance(value, list) else [value]


def _checked(action: argparse.Action, setting: Setting, given: object) -> object:
    if isinstance(given, bool) or given is None or (isinstance(given, list) and action.type is None):
        raise UsageError(f"{setting.place} is {_shown(given)}; expected a value as {setting.flag} takes it.")
    text = json.dumps(given) if isinstance(given, (dict, list)) else str(given)
    try:
        value = action.type(text) if callable(action.type) else text
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise UsageError(f"{setting.place} is {error}") from None
    if action.choices is not None and value not in action.choices:
        near = nearest(text, map(str, action.choices))
        hint = f'did you mean "{near}"?' if near else f"expected {', '.join(map(str, action.choices))}"
        raise UsageError(f"{setting.place} is {text}; {hint}")
    return value


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
