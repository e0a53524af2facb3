"""Writes what is derived from the fields of EngineConfig and SamplingParams: reference pages, keywords for checkers.

    python docs/make_reference.py

tests/test_reference.py compares the files with what this would write.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from longcat.cli.engine_options import flag_of
from longcat.engine import option_checks
from longcat.engine.config import EngineConfig, Option, options
from longcat.request.sampling_params import SamplingParams

ROOT = Path(__file__).resolve().parents[1]

_HEAD = """\
# Options of an engine

<!-- Written by docs/make_reference.py from python/longcat/engine/config.py. Change them there. -->

`longcat.Engine(model, max_num_seqs=4)`, `longcat.Engine(longcat.EngineConfig(model, max_num_seqs=4))` and
`longcat serve MODEL --max-num-seqs 4` are the same options. Other names work as keywords and as flags, so that programs
and launch lines of vLLM and SGLang do. A keyword that is unknown is refused with the nearest name.

| option | type | default |
| --- | --- | --- |
"""


def engine_page() -> str:
    """The page of all options: a table, and a paragraph each."""
    fields = {field.name: field for field in dataclasses.fields(EngineConfig)}
    page = _HEAD
    for name, option in options().items():
        kind = str(fields[name].type).replace("|", "\\|")
        default = option.default or f"`{getattr(EngineConfig, name)!r}`"
        page += f"| [`{name}`](#{name}) | `{kind}` | {default} |\n"
    for name, option in options().items():
        sentences = [_sentence(option.help), option.details, *_facts(name, option)]
        page += f"\n## {name}\n\n{' '.join(filter(None, sentences))}\n"
    return page


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
    return text[0].upper() + text[1:] + "."


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


FILES = {
    "docs/reference/engine.md": engine_page,
    "python/longcat/engine/keywords.py": engine_keywords,
    "python/longcat/request/keywords.py": sampling_keywords,
}

if __name__ == "__main__":
    for name, text in FILES.items():
        (ROOT / name).write_text(text(), encoding="utf-8")
