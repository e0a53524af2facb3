"""Writes the reference pages, and keywords for type checkers, from the code that defines what they describe.

    python docs/make_reference.py

tests/test_reference.py compares the files with what this would write.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from longcat.cli import COMMANDS, make_parser
from longcat.cli.engine_options import flag_of
from longcat.engine import option_checks
from longcat.engine.config import EngineConfig, Option, options
from longcat.request.sampling_params import Parameter, SamplingParams, parameters

ROOT = Path(__file__).resolve().parents[1]

_ENGINE_HEAD = """\
# Options of an engine

<!-- Written by docs/make_reference.py from python/longcat/engine/config.py. Change them there. -->

`longcat.Engine(model, max_num_seqs=4)`, `longcat.Engine(longcat.EngineConfig(model, max_num_seqs=4))` and
`longcat serve MODEL --max-num-seqs 4` are the same options. Other names work as keywords and as flags, so that programs
and launch lines of vLLM and SGLang work. An unknown keyword is refused, and the message names the nearest one.

"""


def engine_page() -> str:
    """The page of all options: a table, and a paragraph each."""
    known = options()
    sentences = {
        name: [_sentence(option.help), option.details, *_facts(name, option)] for name, option in known.items()
    }
    return _ENGINE_HEAD + _fields(EngineConfig, "option", known, sentences)


_SAMPLING_HEAD = """\
# Sampling parameters

<!-- Written by docs/make_reference.py from python/longcat/request/sampling_params.py. Change them there. -->

`engine.generate(prompt, temperature=0.7)`, `engine.generate(prompt, longcat.SamplingParams(temperature=0.7))` and
`longcat generate MODEL PROMPT --temperature 0.7` are the same parameters. The names are vLLM's, also in the bodies of
the server's requests. An unknown keyword is refused, and the message names the nearest one.

They apply in the order of transformers' `generate`. First come logit bias, repetition penalty, presence and frequency
penalties, and removals (bad words, allowed ids, mask). Then come temperature, top-k, top-p, min-p and one draw.

"""


def sampling_page() -> str:
    """The page of all sampling parameters: a table, and a paragraph each."""
    known = parameters()
    sentences = {
        name: [_sentence(parameter.help), parameter.details, f"Unit: {parameter.unit}." if parameter.unit else ""]
        for name, parameter in known.items()
    }
    return _SAMPLING_HEAD + _fields(SamplingParams, "parameter", known, sentences)


def _fields(
    config: type, noun: str, known: dict[str, Option] | dict[str, Parameter], sentences: dict[str, list[str]]
) -> str:
    """A table of a dataclass's fields, and a paragraph each."""
    kinds = {field.name: _cell(str(field.type)) for field in dataclasses.fields(config)}
    rows = [
        [f"[`{name}`](#{name})", f"`{kinds[name]}`", facts.default or f"`{getattr(config, name)!r}`"]
        for name, facts in known.items()
    ]
    page = _table([noun, "type", "default"], rows)
    for name, said in sentences.items():
        page += f"\n## {name}\n\n{' '.join(filter(None, said))}\n"
    return page


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _facts(name: str, option: Option) -> Iterator[str]:
    """Unit, other names and flags, a sentence each."""
    if option.unit:
        yield f"Unit: {option.unit}."
    if option.aliases:
        yield f"Other names: {_listed(option.aliases)}."
    if not option.metavar:
        return
    commands = f" of {_listed(option.commands)}" if option.commands else ""
    yield f"Flags{commands}: {_listed(map(flag_of, (name, *option.aliases)))}."
    if option.check is option_checks.switch:
        yield f"Off: {_listed((f'--no-{flag_of(name)[2:]}', *option.off_flags))}."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _sentence(text: str) -> str:
    """A help line as a sentence. Names such as num_layers keep their case."""
    first = text.split()[0].rstrip(":,")
    return (text[0].upper() + text[1:] if first.isalpha() else text) + "."


_KEYWORDS_HEAD = '''\
"""Keywords that stand for fields of {of}, for type checkers.

Written by docs/make_reference.py from {source}. Change them there.
"""

from __future__ import annotations

{imports}


class {name}(TypedDict, total=False):
'''


def engine_keywords() -> str:
    """The module of EngineKeywords: all fields of EngineConfig but the model, by all their names."""
    fields = {field.name: field.type for field in dataclasses.fields(EngineConfig)}
    names = {alias: fields[name] for name, option in options().items() for alias in (name, *option.aliases)}
    del names["model"]
    imports = "import os\nfrom collections.abc import Callable, Mapping\nfrom typing import TypedDict"
    head = _KEYWORDS_HEAD.format(
        of="EngineConfig", source="longcat/engine/config.py", imports=imports, name="EngineKeywords"
    )
    return head + "".join(f"    {name}: {kind}\n" for name, kind in names.items())


def sampling_keywords() -> str:
    """The module of SamplingKeywords: all fields of SamplingParams."""
    imports = """from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import numpy as np

    from longcat.request.structured import Grammar, StructuredOutputs"""
    head = _KEYWORDS_HEAD.format(
        of="SamplingParams", source="longcat/request/sampling_params.py", imports=imports, name="SamplingKeywords"
    )
    return head + "".join(f"    {field.name}: {field.type}\n" for field in dataclasses.fields(SamplingParams))


_COMMANDS_HEAD = """\
# Commands and flags

<!-- Written by docs/make_reference.py from python/longcat/cli. Change them there. -->

`longcat COMMAND --help` prints the same. [commands.md](../commands.md) has examples, [engine.md](engine.md) and
[sampling.md](sampling.md) say more about options and sampling parameters. `longcat serve` also takes the flags of vLLM
and SGLang in [migrating.md](../migrating.md).

"""
# Units of values, by their metavar.
_UNITS = {"SECONDS": "s", "SIZE": "bytes", "GB/S": "GB/s", "RATE": "requests/s", "GPUS": "GPUs"} | {
    noun.upper(): noun
    for noun in ("batches", "bytes", "connections", "completions", "requests", "starts", "texts", "tokens")
}
# Groups that several commands share, and their sections.
_SHARED = {"engine": "Flags of the engine", "sampling": "Flags of sampling"}


def commands_page() -> str:
    """The page of the command line: for each command a table of its arguments and flags."""
    parser = make_parser()
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    rows = [[f"[`longcat {name}`](#longcat-{name})", _sentence(text)] for name, (_, text) in COMMANDS.items()]
    page = _COMMANDS_HEAD + _table(["command", "action"], rows)
    for command in commands.choices.values():
        page += _command(command)
    for title, heading in _SHARED.items():
        page += f"\n## {heading}\n\n" + _shared_flags(commands, title)
    return page


def _leaves(commands: argparse._SubParsersAction) -> Iterator[argparse.ArgumentParser]:
    """The commands that have no commands of their own."""
    for parser in commands.choices.values():
        nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        yield from _leaves(nested[0]) if nested else [parser]


def _shared_flags(commands: argparse._SubParsersAction, title: str) -> str:
    """The flags of a group that several commands share, each with the commands that have it."""
    rows: dict[tuple[str, ...], list[str]] = {}
    users = []
    for parser in _leaves(commands):
        for group in parser._action_groups:
            if group.title == title:
                users.append(parser.prog)
                for row in _rows(parser, group):
                    rows.setdefault(tuple(row), []).append(parser.prog.removeprefix("longcat "))
    shown = [
        [*row, "all" if len(names) == len(users) else ", ".join(f"`{name}`" for name in names)]
        for row, names in rows.items()
    ]
    return _table(["flag", "default", "unit", "", "commands"], shown)


def _command(parser: argparse.ArgumentParser) -> str:
    """The section of a command, and those of its own commands."""
    parser.format_help()  # sets the usage line
    section = f"\n## {parser.prog}\n\n{parser.description}\n\n```\n{parser.format_usage()[len('usage: ') :]}```\n"
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if nested:
        return section + "".join(map(_command, nested[0].choices.values()))
    shared = []
    for group in parser._action_groups:
        title = group.title or ""
        if title in _SHARED:
            shared.append(f"[{_SHARED[title].lower()}](#{_SHARED[title].lower().replace(' ', '-')})")
        elif rows := _rows(parser, group):
            section += "\n" + _table([_GROUPS.get(title, title), "default", "unit", ""], rows)
    return section + (f"\nAnd the {' and the '.join(shared)}.\n" if shared else "")


def _rows(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> list[list[str]]:
    """A row for each argument and flag of a group that the help shows."""
    shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
    return [_flag_row(parser, action) for action in shown if "--help" not in action.option_strings]


_GROUPS = {"positional arguments": "argument", "options": "flag", "server": "flag"}  # argparse's titles, and ours


def _flag_row(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    """Names, default, unit and help of an argument or flag."""
    formatter = argparse.HelpFormatter(parser.prog)
    help, default = split_default(formatter._expand_help(action))
    if default is None:
        default = "required" if action.required and action.nargs != "?" else ""
    value = "" if action.nargs == 0 else " " + formatter._format_args(action, _metavar(action))
    names = ", ".join(f"`{name}`" for name in action.option_strings[:-1])
    last = f"`{action.option_strings[-1]}{value}`" if action.option_strings else f"`{_metavar(action)}`"
    known = options().get(action.dest) or parameters().get(action.dest)
    unit = (known.unit if known else "") or _UNITS.get(_metavar(action), "")
    return [", ".join(filter(None, [names, _cell(last)])), _cell(default), unit, _cell(_sentence(help))]


def _metavar(action: argparse.Action) -> str:
    if action.choices is not None and action.metavar is None:
        return "{" + ",".join(action.choices) + "}"
    return str(action.metavar or (action.dest.upper() if action.option_strings else action.dest))


def split_default(help: str) -> tuple[str, str | None]:
    """The help of a flag without its default, and the default, which stands in brackets at its end."""
    found = re.fullmatch(r"(.*?) \(default:? ([^()]*(?:\([^()]*\)[^()]*)*)\)(.*)", help)
    return (found[1] + found[3], found[2]) if found else (help, None)


_METRICS_HEAD = """\
# Metrics

<!-- Written by docs/make_reference.py from python/longcat/server/metrics.py. Change them there. -->

`GET /metrics` gives them in Prometheus' text format, or as OpenMetrics to clients that ask for it. All have the label
`{label}`, the first served name. The last column says which names are also vLLM's, behind the prefix `vllm:`. The
figures of the process itself (`process_resident_memory_bytes`, `process_cpu_seconds_total`, `process_open_fds`) are
those of Prometheus' own library.

"""


def metrics_page() -> str:
    """The page of the server's metrics: a table."""
    from longcat.server.metrics import METRICS, MODEL_LABEL

    rows = [
        [
            f"`{info.shown_name}`",
            info.kind,
            "; ".join(f"`{name}`: {values}" for name, values in info.labels),
            info.unit,
            _cell(info.help),
            "yes" if info.is_vllms else "no",
        ]
        for info in METRICS
    ]
    head = ["name", "type", "more labels", "unit", "meaning", "vLLM's"]
    return _METRICS_HEAD.format(label=MODEL_LABEL) + _table(head, rows)


FILES = {
    "docs/reference/engine.md": engine_page,
    "docs/reference/sampling.md": sampling_page,
    "docs/reference/command_line.md": commands_page,
    "docs/reference/metrics.md": metrics_page,
    "python/longcat/engine/keywords.py": engine_keywords,
    "python/longcat/request/keywords.py": sampling_keywords,
}

if __name__ == "__main__":
    for name, text in FILES.items():
        (ROOT / name).write_text(text(), encoding="utf-8")
