"""Parses the text of a completion into a chat message: reasoning, content and tool calls. Uses `tool_stream.py`.

The algorithm is that of GLM-4.6's published helper with LongCat's tags, with these differences:

* If the schema allows an argument to be text, it is the text as written, with its white space.
* A call that lacks a required argument, or is not understood, is content. Only text between and after calls is lost.
* Other forms that models write are read too. `call_forms.py` lists some. Others are a `functions.` prefix, white space
  around the name, missing start and end tags, and one JSON object in place of all pairs.
* A missing `</longcat_tool_call>` at the end of the text is no fault if all values have their end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longcat.chat.tool_stream import StreamingResponseParser
from longcat.support.json_types import JsonObject


def parse_model_response(response: str, tools: Sequence[Mapping[str, object]] | None = None) -> JsonObject:
    """Parses the text of a completion into a chat message.

    Args:
        response: the decoded completion, without special tokens.
        tools: the declared tools, as {"type": "function", "function": {...}} or flat. An argument whose schema allows
            the text as written is that text. Every other argument is read as JSON, or stays text if it is no JSON.
    Returns:
        {"role": "assistant"} and, when not empty, "reasoning_content", "content" (both stripped) and "tool_calls":
        [{"type": "function", "function": {"name": str, "arguments": dict}}]. Text between and after calls is dropped;
        a call that was cut off or is not understood is content.
    """
    parser = StreamingResponseParser(tools)
    parser.push(response)
    parser.finish()
    return parser.message
