"""Writes the grammar of forced tool calls (tool_choice "required" or a tool's name), in the model's own syntax.

Arguments that may be text are written as they are, all others as JSON. `tool_schema.py` reads both back the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longcat.chat.messages import normalize_tools
from longcat.chat.tool_schema import ToolSchema
from longcat.chat.tool_text import CALL, CALL_END, KEY, KEY_END, TAG_STARTS, VALUE, VALUE_END, spells_tag
from longcat.request.patterns import is_empty, without
from longcat.request.schema.branches import ANYTHING, Branch, Node, Object, Text
from longcat.request.schema.document import SchemaError
from longcat.request.schema.reader import SchemaReader
from longcat.request.schema.writer import SchemaWriter
from longcat.request.structured import JSON_STYLE, MAX_GRAMMAR_CHARS, StructuredOutputs

_TEXT = without(list(TAG_STARTS))
# A name that is read back as it was written: no white space around it, no line break, no tag.
_NAME = r"[^\s\x00-\x1f\x7f-\x9f<]([^\n\x00-\x1f\x7f-\x9f<]*[^\s\x00-\x1f\x7f-\x9f<])?"


@dataclass(frozen=True)
class CallForm(StructuredOutputs):
    """The form of a completion that consists of tool calls, or has another form.

    Args:
        functions: each {"name", "parameters"}.
        several: whether more calls may follow the first.
        form: the form of a completion without calls; then a tool whose schema cannot be enforced is called freely.
    """

    grammar: str | None = "calls"
    functions: tuple[Mapping[str, Any], ...] = ()
    several: bool = True
    form: StructuredOutputs | None = None

    def source(self) -> str:
        rules = call_grammar(self.functions, self.several, other="@form" if self.form is not None else None)
        if len(rules) > MAX_GRAMMAR_CHARS:
            raise ValueError(
                f"[tools] found schemas that make a grammar of {len(rules)} characters; "
                f"expected at most {MAX_GRAMMAR_CHARS}. Declare fewer tools, or smaller ones."
            )
        if self.form is None:
            return rules
        form = self.form.source()
        inner = json.loads(form)["grammars"][0] if form.startswith("{") else {"lark_grammar": form}
        return json.dumps({"grammars": [{"name": "main", "lark_grammar": rules}, inner | {"name": "form"}]})


def calls_or_form(
    tools: Sequence[Mapping[str, object]] | None,
    tool_choice: object,
    parallel: bool = True,
    form: StructuredOutputs | None = None,
) -> StructuredOutputs | None:
    """Returns the form of a completion that must call a tool, or may call one in place of another form.

    Args:
        tools: the declared tools.
        tool_choice: None, "auto", "none", "required", or a tool: its name in {"function": {"name": ...}}.
        parallel: whether several calls are allowed, but for a named tool.
        form: the form of a completion without calls; a forced call goes before it.
    Returns:
        None when the completion is free text.
    Raises:
        ValueError: there is no such tool, or the choice is none of the above.
    """
    if tool_choice == "none":
        return form
    declared = [tool["function"] for tool in normalize_tools(tools) or [] if "function" in tool]
    if tool_choice in (None, "auto"):
        may_call = form is not None and declared
        return CallForm(functions=tuple(declared), several=parallel, form=form) if may_call else form
    if tool_choice == "required":
        if not declared:
            raise ValueError('tool_choice is "required" without tools: declare some, or leave it out')
        return CallForm(functions=tuple(declared), several=parallel)
    name = _chosen_name(tool_choice)
    chosen = [function for function in declared if function["name"] == name]
    if not chosen:
        names = ", ".join(function["name"] for function in declared) or "none"
        raise ValueError(f'tool_choice names the tool "{name}", which is not declared: declared are {names}')
    return CallForm(functions=tuple(chosen[:1]), several=False)


def _chosen_name(tool_choice: object) -> str:
    function = tool_choice.get("function", tool_choice) if isinstance(tool_choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(
            f'tool_choice is {str(tool_choice)[:100]!r}: expected "auto", "none", "required" or '
            '{"type": "function", "function": {"name": ...}}'
        )
    return name


def call_grammar(functions: Sequence[Mapping[str, Any]], several: bool, other: str | None = None) -> str:
    """Writes a Lark grammar for calls of these functions.

    Args:
        other: a rule that may stand in place of all calls; then calls are held to a schema only as far as possible.
    Raises:
        ValueError: a schema or a name cannot be enforced.
    """
    names = [f"f{i}" for i in range(len(functions))]
    rules = [
        f"start: call{'+' if several else ''}{f' | {other}' if other else ''}",
        f"TEXT: /{_TEXT}/",
        f"NAME: /{_NAME}/",
        f'call: {CALL} ({" | ".join(names)}) {CALL_END} "\\n"',
    ]
    for rule, function in zip(names, functions, strict=True):
        tool = ToolSchema(function["name"], function.get("parameters"))
        try:
            rules += _ToolRules(rule, tool).rules()
        except SchemaError:
            if other is None:
                raise
            rules.append(f'{rule}: {_quoted(tool.name)} "\\n" ({_pair("NAME", "TEXT")})*')
    return "\n".join(rules) + "\n"


class _ToolRules:
    """Writes the rules of one tool's call."""

    def __init__(self, rule: str, tool: ToolSchema):
        self._rule = rule
        self._tool = tool
        self._reader: SchemaReader = tool.strict()
        self._writer = SchemaWriter(self._reader, text_pattern=_TEXT, plain_numbers=True)
        self._values: dict[Node, str] = {}
        self._rules: list[str] = []

    def rules(self) -> list[str]:
        name = self._tool.name
        if name != name.strip() or name[0] in "[`" or any(char in name for char in "\n<({"):
            self._refuse(f"a name that a call cannot carry: {name[:64]!r}", "letters, digits, _ and -", "Rename it")
        objects = self._reader.objects(self._reader.root)
        if not objects:
            self._refuse("arguments that no object fits", '"type": "object"', "Correct its schema")
        bodies = dict.fromkeys(self._body(one) for one in objects)
        head = f'{self._rule}: {_quoted(name)} "\\n" '
        return [head + (next(iter(bodies)) if len(bodies) == 1 else f"({' | '.join(bodies)})"), *self._rules]

    def _body(self, one: Object) -> str:
        pairs = []
        for name, node in one.properties.items():
            if node is None:
                continue
            if spells_tag(name):
                self._refuse(f'"properties" with the name {name[:64]!r}', "a name without a tag of calls", "Rename it")
            pair = _pair(_quoted(name), self._value(node))
            pairs.append(pair if name in one.required else f"({pair})?")
        extra = self._extras(one)
        if extra and one.most != len(one.required):
            least = max(one.least - len(one.required), 0)
            most = "" if one.most is None else str(one.most - len(one.required))
            pairs.append(f"({' | '.join(extra)}){{{least},{most}}}")
        return " ".join(pairs) or '""'

    def _extras(self, one: Object) -> list[str]:
        """Writes the rules of pairs whose names the schema does not list."""
        listed = [name for name in one.properties if name.strip()]
        not_listed = "".join(f" & ~{_quoted(name)}" for name in listed)
        patterns = [pattern for pattern, _ in one.by_pattern]
        found = []
        for i, (pattern, node) in enumerate(one.by_pattern):
            others = "".join(f" & ~/{other}/" for j, other in enumerate(patterns) if j != i)
            found.append(self._extra(f"/{_NAME}/ & /{pattern}/{others}{not_listed}", node))
        is_needed = one.least > len(one.required)
        if one.others is not None and (one.others != ANYTHING or is_needed):
            others = "".join(f" & ~/{other}/" for other in patterns)
            found.append(self._extra(f"/{_NAME}/{others}{not_listed}", one.others))
        return found

    def _extra(self, names: str, node: Node) -> str:
        terminal = f"{self._rule.upper()}_N{len(self._rules)}"
        self._rules.append(f"{terminal}: {names}")
        return _pair(terminal, self._value(node))

    def _value(self, node: Node) -> str:
        """Returns the name of the rule for a value."""
        if node not in self._values:
            rule = self._values[node] = f"{self._rule}_v{len(self._values)}"
            branches = self._reader.branches(node)
            forms = [form for branch in branches if isinstance(branch, Text) for form in self._text(branch)]
            others = [branch for branch in branches if not isinstance(branch, Text)]
            if others:
                forms.append(self._json(others))
            if not forms:
                self._refuse(
                    "an argument whose schema (pattern, minLength and the like) no value fits",
                    "one that allows some",
                    "Loosen it",
                )
            self._rules.append(f"{rule}: {' | '.join(forms)}")
        return self._values[node]

    def _text(self, text: Text) -> list[str]:
        if text.choices is not None:
            for choice in text.choices:
                if spells_tag(choice):
                    self._refuse(f'"enum" with {choice[:64]!r}', "texts without a tag of calls", "Leave it out")
            return [_quoted(choice) for choice in text.choices]
        if text.is_free():
            return ["TEXT"]
        if is_empty((*text.patterns, _TEXT), text.least, text.most):
            return []
        terminal = f"{self._rule.upper()}_T{len(self._rules)}"
        length = f" & /(?s:.{{{text.least},{'' if text.most is None else text.most}}})/"
        parts = "".join(f" & /{pattern}/" for pattern in text.patterns)
        self._rules.append(f"{terminal}: /{_TEXT}/{length if text.least or text.most is not None else ''}{parts}")
        return [terminal]

    def _json(self, branches: Sequence[Branch]) -> str:
        written = json.dumps(self._writer.document(branches) | {"x-guidance": JSON_STYLE})
        if spells_tag(written):
            self._refuse('"properties", "const" or "enum" with a tag of calls', "names and values without", "Rename it")
        return f"%json {written}"

    def _refuse(self, found: str, expected: str, remedy: str) -> None:
        raise SchemaError(f'[tool "{self._tool.name[:64]}"] found {found}; expected {expected}. {remedy}.')


def _pair(name: str, value: str) -> str:
    return f'{KEY} {name} {KEY_END} "\\n" {VALUE} {value} {VALUE_END} "\\n"'


def _quoted(text: str) -> str:
    """Writes a text as a Lark literal."""
    return json.dumps(text, ensure_ascii=False)
