"""Files that are derived from the source say what the source says."""

import argparse
import ast
import importlib.util
from pathlib import Path

import longcat
import pytest
from longcat import _core
from longcat.cli import make_parser
from longcat.support.values import parse_bytes

ROOT = Path(__file__).resolve().parents[1]
_SPEC = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
make_reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make_reference)


@pytest.mark.parametrize("name", make_reference.FILES)
def test_derived_files_are_up_to_date(name):
    if name.endswith("metrics.md"):
        pytest.importorskip("prometheus_client", reason="needs the extra `server`")
    assert (ROOT / name).read_text(encoding="utf-8") == make_reference.FILES[name](), (
        f"{name} differs from the source; expected the same. Run: python docs/make_reference.py"
    )


def flags(parser):
    """All flags of a parser and of its commands, each with the command's name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from flags(command)
        elif action.option_strings:
            yield parser, action


def test_help_names_the_default():
    """The help of a flag says the default in words of its own: a number in it is the parser's."""
    num_numbers = 0
    for parser, action in flags(make_parser()):
        if action.help == argparse.SUPPRESS or action.default in (None, argparse.SUPPRESS) or action.nargs == 0:
            continue
        said = make_reference.split_default(argparse.HelpFormatter(parser.prog)._expand_help(action))[1]
        what = f"{parser.prog} {action.option_strings[0]}: the help says {said!r}"
        if isinstance(action.default, (int, float)):
            number = said.partition(":")[0]
            found = parse_bytes(what, number) if number.endswith("iB") else float(number)
            assert found == action.default, f"{what}; the parser has {action.default}"
            num_numbers += 1
        elif action.default not in ("", []):
            assert said.startswith(str(action.default)), f"{what}; the parser has {action.default}"
    assert num_numbers > 20


def test_split_default():
    assert make_reference.split_default("port (default 80)") == ("port", "80")
    assert make_reference.split_default("a (b) c (default: d (e)); f") == ("a (b) c; f", "d (e)")
    assert make_reference.split_default("no (brackets)") == ("no (brackets)", None)


@pytest.mark.parametrize("kind", [_core.EngineOptions, _core.SamplingParams])
def test_the_stub_lists_what_the_core_binds(kind):
    """_core.pyi is written by hand; the fields of these two are the keywords of callers."""
    tree = ast.parse((Path(longcat.__file__).parent / "_core.pyi").read_text(encoding="utf-8"))
    [stub] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__]
    fields = [node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)]
    methods = [node.name for node in stub.body if isinstance(node, ast.FunctionDef)]
    assert sorted(fields + methods) == sorted(name for name in vars(kind) if not name.startswith("_"))
