"""`longcat completion`: prints the completion of commands, flags and values for a shell."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from longcat.cli.parser import OtherEngineFlag, Parser

_FILES = ("FILE", "PATH", "SCHEMA")  # metavars of values that are files
_FOLDERS = ("FOLDER", "OUT")
SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"{', '.join(SHELLS)}")


def run(args: argparse.Namespace) -> int:
    from longcat.cli import make_parser

    commands = list(_commands(make_parser()))
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell](commands), end="")
    return 0


@dataclass(frozen=True)
class Flag:
    """A flag with all its names. `kind` is of its value: "" (it has none), word, file, folder or choice."""

    names: tuple[str, ...]
    help: str
    kind: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """A command: the words that name it, what may follow as a command, its arguments (kinds) and its flags."""

    path: tuple[str, ...]
    help: str
    nested: tuple[tuple[str, str], ...]  # (name, help)
    arguments: tuple[Flag, ...]
    flags: tuple[Flag, ...]

    @property
    def words(self) -> str:
        return " ".join(self.path)


def _commands(parser: Parser, path: tuple[str, ...] = (), help: str = "") -> Iterator[Command]:
    nested, arguments, flags = [], [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            nested = [(name, helps.get(name, "")) for name in action.choices]
        elif not action.option_strings:
            arguments.append(_flag(action, parser))
        elif action.help != argparse.SUPPRESS and not isinstance(action, OtherEngineFlag):
            flags.append(_flag(action, parser))
    yield Command(path, help, tuple(nested), tuple(arguments), tuple(flags))
    for name, text in nested:
        child = (parser._commands() or {})[name]
        yield from _commands(child, (*path, name), text)


def _flag(action: argparse.Action, parser: Parser) -> Flag:
    help = argparse.HelpFormatter(parser.prog)._expand_help(action) if action.help else ""
    choices = tuple(map(str, action.choices or ()))
    metavar = str(action.metavar or "")
    kind = "word"
    if action.nargs == 0:
        kind = ""
    elif choices:
        kind = "choice"
    elif metavar in _FILES:
        kind = "file"
    elif metavar in _FOLDERS:
        kind = "folder"
    return Flag(tuple(action.option_strings), help, kind, choices)


# --- bash -------------------------------------------------------------------------------------------------------------

_BASH = """\
# Completion of longcat for bash, printed by: longcat completion bash
_longcat() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" command="" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "$command ${{COMP_WORDS[i]}}" in
{walk}
    esac
  done
  case "$command:$previous" in
{values}
  esac
  if [[ $word == -* ]]; then
    case "$command" in
{flags}
    esac
    return
  fi
  case "$command" in
{arguments}
  esac
}}
complete -o filenames -F _longcat longcat
"""


def _bash(commands: list[Command]) -> str:
    walk = [f'      "{" ".join(c.path[:-1])} {c.path[-1]}") command="{c.words}" ;;' for c in commands if c.path]
    values, flags, arguments = [], [], []
    for command in commands:
        for flag in command.flags:
            pattern = "|".join(f'"{command.words}:{name}"' for name in flag.names)
            if flag.kind:
                values.append(f"    {pattern}) {_bash_words(flag)}; return ;;")
        names = " ".join(name for flag in command.flags for name in flag.names)
        flags.append(f'      "{command.words}") COMPREPLY=($(compgen -W "{names}" -- "$word")) ;;')
        if command.nested:
            names = " ".join(name for name, _ in command.nested)
            arguments.append(f'    "{command.words}") COMPREPLY=($(compgen -W "{names}" -- "$word")) ;;')
        elif command.arguments:
            arguments.append(f'    "{command.words}") {_bash_words(command.arguments[0])} ;;')
    return _BASH.format(
        walk="\n".join(walk), values="\n".join(values), flags="\n".join(flags), arguments="\n".join(arguments)
    )


def _bash_words(flag: Flag) -> str:
    action = {
        "file": "-f",
        "folder": "-d",
        "choice": f'-W "{" ".join(flag.choices)}"',
    }.get(flag.kind)
    return f'COMPREPLY=($(compgen {action} -- "$word"))' if action else "COMPREPLY=()"


# --- zsh --------------------------------------------------------------------------------------------------------------


def _zsh(commands: list[Command]) -> str:
    lines = ["#compdef longcat", "# Completion of longcat for zsh, printed by: longcat completion zsh", ""]
    for command in commands:
        specs = [_zsh_flag(flag, name) for flag in command.flags for name in flag.names]
        if command.nested:
            specs += ["'1:command:->command'", "'*::argument:->argument'"]
        for index, argument in enumerate(command.arguments, start=1):
            specs.append(_zsh_quoted(f"{index}:{_zsh_text(argument.help)}:{_zsh_action(argument)}"))
        lines += [f"{_zsh_name(command.path)}() {{", "  local line state", "  _arguments -C \\"]
        lines += [f"    {spec} \\" for spec in specs[:-1]] + [f"    {specs[-1]}"]
        if command.nested:
            names = [_zsh_quoted(f"{name}:{_zsh_text(text)}") for name, text in command.nested]
            calls = [f"      {name}) {_zsh_name((*command.path, name))} ;;" for name, _ in command.nested]
            lines += ["  case $state in", f"    command) local -a names=({' '.join(names)})"]
            lines += ["      _describe command names ;;", "    argument) case $line[1] in", *calls, "    esac ;;"]
            lines += ["  esac"]
        lines += ["}", ""]
    return "\n".join([*lines, 'if [ "$funcstack[1]" = "_longcat" ]; then', '  _longcat "$@"', "else"]) + (
        "\n  compdef _longcat longcat\nfi\n"
    )


def _zsh_name(path: tuple[str, ...]) -> str:
    return "_".join(["_longcat", *path]).replace("-", "_")


def _zsh_flag(flag: Flag, name: str) -> str:
    value = f": :{_zsh_action(flag)}" if flag.kind else ""
    return _zsh_quoted(f"{name}[{_zsh_text(flag.help)}]{value}")


def _zsh_action(flag: Flag) -> str:
    return {"file": "_files", "folder": "_directories", "choice": f"({' '.join(flag.choices)})"}.get(flag.kind, " ")


def _zsh_text(text: str) -> str:
    for mark in "\\:[]":
        text = text.replace(mark, "\\" + mark)
    return text


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish -------------------------------------------------------------------------------------------------------------


def _fish(commands: list[Command]) -> str:
    lines = ["# Completion of longcat for fish, printed by: longcat completion fish", "complete -c longcat -f"]
    for command in commands:
        seen = [f"__fish_seen_subcommand_from {name}" for name in command.path]
        names = " ".join(name for name, _ in command.nested)
        at = "; and ".join([*seen, f"not __fish_seen_subcommand_from {names}"] if names else seen)
        head = f"complete -c longcat -n {shlex.quote(at)}"
        lines += [f"{head} -a {name} -d {_fish_quoted(text)}" for name, text in command.nested]
        if command.arguments:
            lines += [head + _fish_value(command.arguments[0])]
        for flag in command.flags:
            options = "".join(f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}" for name in flag.names)
            lines.append(f"{head}{options}{' -r' if flag.kind else ''}{_fish_value(flag)} -d {_fish_quoted(flag.help)}")
    return "\n".join(lines) + "\n"


def _fish_value(flag: Flag) -> str:
    return {
        "file": " -F",
        "folder": " -a '(__fish_complete_directories)'",
        "choice": f" -a '{' '.join(flag.choices)}'",
    }.get(flag.kind, "")


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
