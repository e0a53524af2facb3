"""Parses the text of a completion into a chat message: reasoning, content and tool calls. Uses `tool_stream.py`.

The algorithm is that of GLM-4.6's published helper with LongCat's tags, with these differences:

* an argument that the schema lets be text is the text as written, white space and all;
* a call that lacks a required argument, or is not understood, is content: nothing vanishes but text between calls;
* what models write besides the documented form is read: see `call_forms.py`, a `functions.` prefix of the name, one
  JSON object in place of all pairs, missing start and end tags, white space around the name;
* a missing `</longcat_tool_call>` at the end of the text is no fault if all values have their end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longcat.chat.tool_stream import StreamingResponseParser
from longcat.support.json_types import JsonObject


def parse_model_response(response: str, tools: Sequence[Mapping[str, object]] | None = None) -> JsonObject:
    """Parses the text of a completion into a chat message.

    Args:
        response: the decoded completion, without special tokens.
        tools: the tools that were declared, as {"type": "function", "function": {...}} or flat. An argument whose
            schema allows the text as it is written is that text; every other one is read as JSON and stays text when
            it is none.
    Returns:
        {"role": "assistant"} and, when not empty, "reasoning_content", "content" (both stripped) and "tool_calls":
        [{"type": "function", "function": {"name": str, "arguments": dict}}]. Text between and after calls is dropped;
        a call that was cut off or is not understood is content.
    """
    parser = StreamingResponseParser(tools)
    parser.push(response)
    parser.finish()
    return parser.message
