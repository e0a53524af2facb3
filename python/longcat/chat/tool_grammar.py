"""A grammar for tool calls in the model's own syntax: what tool_choice "required", or a tool's name, holds answers to.

Arguments of type string are written as they are, all others as JSON of their schema. See tool_parser.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from longcat.chat.messages import normalize_tools
from longcat.request.structured import StructuredOutputs

# Text without the tags that would end it. Single tags are tokens of their own, which a text cannot contain.
_TEXT = r"TEXT: /(.|\n)*/ & ~/(.|\n)*<\/?longcat_(.|\n)*/"


def forced_calls(
    tools: Sequence[Mapping[str, Any]] | None, tool_choice: Any, parallel: bool = True
) -> StructuredOutputs | None:
    """The form of an answer that has to call.

    Args:
        tools: the declared tools.
        tool_choice: None, "auto", "none", "required", or a tool: its name in {"function": {"name": ...}}.
        parallel: whether "required" allows several calls.
    Returns:
        None when nothing is forced.
    Raises:
        ValueError: there is no such tool, or the choice is none of the above.
    """
    if tool_choice in (None, "auto", "none"):
        return None
    declared = [tool["function"] for tool in normalize_tools(tools) or [] if "function" in tool]
    if tool_choice == "required":
        if not declared:
            raise ValueError('tool_choice is "required" without tools: declare some, or leave it out')
        return StructuredOutputs(grammar=call_grammar(declared, several=parallel))
    name = _chosen_name(tool_choice)
    chosen = [function for function in declared if function["name"] == name]
    if not chosen:
        names = ", ".join(function["name"] for function in declared) or "none"
        raise ValueError(f'tool_choice names the tool "{name}", which is not declared: declared are {names}')
    return StructuredOutputs(grammar=call_grammar(chosen[:1], several=False))


def _chosen_name(tool_choice: Any) -> str:
    function = tool_choice.get("function", tool_choice) if isinstance(tool_choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise ValueError(
            f'tool_choice is {str(tool_choice)[:100]!r}: expected "auto", "none", "required" or '
            '{"type": "function", "function": {"name": ...}}'
        )
    return name


def call_grammar(functions: Sequence[Mapping[str, Any]], several: bool) -> str:
    """A Lark grammar for calls of these functions, each {"name", "parameters"}."""
    rules = [f"start: call{'+' if several else ''}", _TEXT]
    names = [f"f{i}" for i in range(len(functions))]
    rules.append(f'call: <longcat_tool_call> ({" | ".join(names)}) </longcat_tool_call> "\\n"')
    for rule, function in zip(names, functions, strict=True):
        rules += _function_rules(rule, function)
    return "\n".join(rules) + "\n"


def _function_rules(rule: str, function: Mapping[str, Any]) -> list[str]:
    parameters = function.get("parameters") or {}
    properties = parameters.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    required = parameters.get("required")
    required = required if isinstance(required, list) else []
    shared = {name: parameters[name] for name in ("$defs", "definitions") if name in parameters}
    head, rules = [_quoted(function["name"] + "\n")], []
    for i, (key, schema) in enumerate(properties.items()):
        pair = f"{rule}_p{i}"
        head.append(pair if key in required else f"{pair}?")
        rules.append(
            f"{pair}: <longcat_arg_key> {_quoted(key)} </longcat_arg_key> "
            f'"\\n" <longcat_arg_value> {pair}_v </longcat_arg_value> "\\n"'
        )
        rules.append(f"{pair}_v: {_value(schema, shared)}")
    return [f"{rule}: {' '.join(head)}", *rules]


def _value(schema: Any, shared: Mapping[str, Any]) -> str:
    schema = schema if isinstance(schema, Mapping) else {}
    if schema.get("type") != "string":
        return "%json " + json.dumps({**schema, **shared, "x-guidance": {"whitespace_flexible": False}})
    texts = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(texts, list) and texts and all(isinstance(text, str) and text for text in texts):
        return " | ".join(_quoted(text) for text in texts)
    return "TEXT"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
