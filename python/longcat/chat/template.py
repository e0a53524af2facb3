"""Renders messages to a prompt by the checkpoint's own chat template.

A template is a program that comes with a checkpoint, so it runs in a worker, in a sandbox (`sandbox.py`). What users
write is data, so none of it may act as a tag. `render_segments` keeps the template's tags apart from text that looks
the same. `encode_segments` turns tags into their ids, and all other text into ordinary tokens.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longcat._core import Error
from longcat.chat.cut_calls import TaggedText
from longcat.chat.messages import normalize_messages, normalize_tools, plain
from longcat.support.files import read_json_object, read_text
from longcat.support.json_types import JsonObject
from longcat.support.worker import JobFailed, Limits, Pool

if TYPE_CHECKING:
    import tokenizers

_MAX_FILE_BYTES = 1 << 24
_LIMITS = Limits(cpu_seconds=1, memory_bytes=64 << 20, wall_seconds=60)  # of a render
_WORKERS = Pool("longcat.chat.sandbox", {}, num_workers=2)
_TOKEN_VARIABLES = ("bos_token", "eos_token", "pad_token", "unk_token")
# Private-use characters that stand for others while a template runs; those that occur in the data are not used.
_STAND_INS = range(0x100000, 0x10FFFE)
_PIECE = 64 << 10  # characters that are searched at once
_STAND_IN = re.compile("[\U00100000-\U0010fffd]")


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: jinja2, at most 65536 characters.
        tool_source: another template for chats with tools.
        variables: names that the template may use besides, e.g. {"eos_token": "</longcat_s>"}.
    Raises:
        longcat.Error: the source is no template, or jinja2 is not installed.
    """

    def __init__(self, source: str, *, tool_source: str | None = None, variables: Mapping[str, str] | None = None):
        self.source = source
        self.tool_source = tool_source
        self._variables = dict(variables or {})
        if importlib.util.find_spec("jinja2") is None:
            raise Error("[chat template] jinja2 is needed: pip install 'jinja2>=3.1'")
        for one in filter(None, [source, tool_source]):
            _run(one, None)

    @classmethod
    def from_checkpoint(cls, folder: str | os.PathLike[str]) -> ChatTemplate:
        """Finds a checkpoint's template: chat_template.jinja, chat_template.json, or the one in tokenizer_config.json.

        Raises:
            longcat.Error: the folder has none, or a file is not what its name says.
        """
        folder = os.fspath(folder)
        config = _read_json(os.path.join(folder, "tokenizer_config.json"))
        path = os.path.join(folder, "chat_template.jinja")
        found: Any = _read_text(path)
        if found is None:
            path = os.path.join(folder, "chat_template.json")
            found = _read_json(path).get("chat_template")
        if found is None:
            path = os.path.join(folder, "tokenizer_config.json")
            found = config.get("chat_template")
        if found is None:
            raise Error(
                f"[chat template] {folder} has no chat_template.jinja and no chat_template in tokenizer_config.json: "
                "add the checkpoint's template, or pass chat_template"
            )
        default, tool_use = _named_templates(path, found)
        variables = {}
        for name in _TOKEN_VARIABLES:
            token = config.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                variables[name] = token
        return cls(default, tool_source=tool_use, variables=variables)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        tool_choice: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: object,
    ) -> str:
        """Returns the prompt as one text. To encode it, use `render_segments`: here a user's tags look like ours.

        Args:
            messages: {"role": "system" | "user" | "assistant" | "tool", "content": str or list of text parts, ...};
                "arguments" of an assistant's "tool_calls" may be objects or JSON text.
            tools: {"type": "function", "function": {"name", "description", "parameters"}}, or the inner part alone.
            tool_choice: None or "auto"; "none" leaves the tools out.
            add_generation_prompt: end with the tag that opens the completion.
            continue_final_message: end inside the last message, an assistant's, so that the completion continues it. No
                generation prompt is added then.
            kwargs: further variables of the template, e.g. enable_thinking=True.
        Raises:
            ValueError: a message, tool or argument is wrong; says which.
            longcat.Error: the template failed, takes more than a second, or writes more than 2^20 characters.
        """
        variables = _variables(messages, tools, tool_choice, kwargs)
        return self._render(variables, add_generation_prompt, continue_final_message)

    def render_segments(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tags: Iterable[str],
        tools: Sequence[Mapping[str, object]] | None = None,
        tool_choice: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: object,
    ) -> list[tuple[str, bool]]:
        """Returns the prompt in segments: tags that the template wrote, and text.

        While the template runs, the character that opens a tag ("<") is replaced by an unused one in everything that
        messages, tools and kwargs contain. The template may cut, join or quote these strings: no tag can come
        out of them. So a tag in the output is the template's. Afterwards the character is put back.
        A template that looks for tags in messages finds none.

        Args:
            tags: texts of the tokenizer's added tokens (`tag_texts`). Other arguments as for `render`.
        Returns:
            [(text, is_tag)]; concatenated, the texts are the prompt. True: one tag. False: text, to be encoded as such.
        Raises: as `render`.
        """
        variables = _variables(messages, tools, tool_choice, kwargs)
        tags = sorted(set(tags), key=len, reverse=True)
        openers = {opener for tag in tags if (opener := _opener(tag))}
        stand_ins = dict(zip(openers, self._unused_characters(variables, len(openers)), strict=True))
        text = self._render(_map_strings(variables, stand_ins), add_generation_prompt, continue_final_message)
        back = {stand_in: opener for opener, stand_in in stand_ins.items()}
        if not tags:
            return [(text, False)] if text else []
        pieces = re.split(f"({'|'.join(map(re.escape, tags))})", text)  # text and tags in turn
        return [(_replaced(piece, back), i % 2 == 1) for i, piece in enumerate(pieces) if piece]

    def _render(self, variables: dict[str, Any], add_generation_prompt: bool, continue_final_message: bool) -> str:
        end_mark = ""
        if continue_final_message:
            add_generation_prompt = False
            end_mark = self._unused_characters(variables, 1)[0]
            variables = variables | {"messages": _mark_end(variables["messages"], end_mark + " ")}
        has_tools = variables["tools"] is not None
        text = self._text(
            self.tool_source if has_tools and self.tool_source is not None else self.source,
            self._variables | variables | {"add_generation_prompt": add_generation_prompt},
        )
        return _cut_at_mark(text, end_mark) if end_mark else text

    def _unused_characters(self, variables: dict[str, object], count: int) -> list[str]:
        """Private-use characters that occur neither in what the template gets nor in the template."""
        given = [variables, self._variables, self.source, self.tool_source]
        used: set[str] = set()
        for text in _strings(given):
            if not text.isascii():
                for at in range(0, len(text), _PIECE):  # a search holds the GIL
                    used.update(_STAND_IN.findall(text[at : at + _PIECE]))
        unused = [char for char in map(chr, _STAND_INS[: len(used) + count]) if char not in used]
        if len(unused) < count:
            raise ValueError("messages use up the private characters of Unicode's last plane: leave some out")
        return unused[:count]

    def _text(self, source: str, variables: dict[str, Any]) -> str:
        try:
            return _run(source, variables)
        except Error:
            for index, tool in enumerate(variables.get("tools") or ()):
                if "function" not in tool:  # which some templates know by themselves
                    raise ValueError(
                        f'[tools] found tool {index} of type "{str(tool.get("type"))[:64]}", which the chat template '
                        'does not know; expected {"type": "function", "function": {"name": ..., ...}}. Leave it out.'
                    ) from None
            raise


def _run(source: str, variables: Mapping[str, object] | None) -> str:
    """Returns the text that a template renders, from a worker. Without variables it is only compiled."""
    job = json.dumps([source, variables], ensure_ascii=False).encode(errors="surrogatepass")
    try:
        answer = _WORKERS.call(job, _LIMITS)
    except JobFailed as failure:
        found = {
            "time": f"rendering takes longer than {_LIMITS.cpu_seconds:g} s",
            "memory": f"rendering takes more than {_LIMITS.memory_bytes >> 20} MiB of memory",
        }
        raise Error(f"[chat template] {found.get(failure.reason, 'the process that renders was ended')}") from None
    text = answer[1:].decode(errors="surrogatepass")
    if answer[:1] == b"!":
        raise Error(f"[chat template] {text}")
    return text


def tag_texts(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Returns the texts of the added tokens: bos, eos, the tags of roles and tools."""
    return [token.content for token in tokenizer.get_added_tokens_decoder().values()]


def encode_segments(tokenizer: tokenizers.Tokenizer, segments: Iterable[tuple[str, bool]]) -> list[int]:
    """Returns the token ids of a prompt: tags become their ids, text stays text.

    Args:
        segments: from `ChatTemplate.render_segments` with `tag_texts(tokenizer)`.
    Returns:
        The ids of the whole text encoded at once, if no text contains a tag.
    Raises:
        longcat.Error: a tag is not in the vocabulary.
    """
    added = frozenset(tokenizer.get_added_tokens_decoder())
    token_ids: list[int] = []
    for text, is_tag in segments:
        if not is_tag:
            token_ids += _encode_plain(tokenizer, text, added)
            continue
        token_id = tokenizer.token_to_id(text)
        if token_id is None:
            raise Error(f"[chat template] the tokenizer has no token {text!r}, which the template writes")
        token_ids.append(token_id)
    return token_ids


def encode_plain(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """Encodes `text` as if there were no added tokens: a typed `<longcat_user>` is a `<`, letters and a `>`."""
    return _encode_plain(tokenizer, text, frozenset(tokenizer.get_added_tokens_decoder()))


def _encode_plain(tokenizer: tokenizers.Tokenizer, text: str, added: frozenset[int]) -> list[int]:
    # For one text `encode` gives the same ids, but holds the GIL all the time.
    token_ids = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    if added.isdisjoint(token_ids):
        return token_ids
    return _without_added_tokens(tokenizer).encode_batch_fast([text], add_special_tokens=False)[0].ids


@functools.lru_cache(4)
def _without_added_tokens(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Returns the tokenizer without its added tokens, at which the library splits every text, special or not."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"added_tokens": [], "post_processor": None}))


# --- variables and stand-in characters -------------------------------------------------------------------------------


def _variables(messages: Any, tools: Any, tool_choice: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables of a template, in JSON's types."""
    if tool_choice not in (None, "auto", "none"):
        raise ValueError(f'tool_choice is {tool_choice!r}: expected "auto" or "none"')
    variables = {name: plain(value, name) for name, value in kwargs.items()}
    variables |= {"messages": normalize_messages(messages), "tools": normalize_tools(tools), "documents": None}
    if tool_choice == "none":
        variables["tools"] = None
    if tool_choice is not None:
        variables["tool_choice"] = tool_choice
    return variables


def _opener(tag: str) -> str | None:
    """Returns a character that `tag` cannot be spelled without."""
    return next((char for char in tag if not char.isspace()), None)


def _replaced(text: str, table: Mapping[str, str]) -> str:
    """Replaces characters by others; much faster than str.translate where these are not ASCII."""
    for old, new in table.items():
        text = text.replace(old, new)
    return text


def _strings(value: object) -> Iterator[str]:
    """Yields all texts in a JSON value, also keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _strings(name)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _map_strings(value: object, table: Mapping[str, str]) -> Any:
    """Returns a copy of `value` with all its texts replaced, also keys."""
    if isinstance(value, TaggedText):
        return value.translated(str.maketrans(dict(table)))
    if isinstance(value, str):
        return _replaced(value, table)
    if isinstance(value, dict):
        return {_replaced(name, table): _map_strings(item, table) for name, item in value.items()}
    return [_map_strings(item, table) for item in value] if isinstance(value, list) else value


def _mark_end(messages: list[JsonObject], mark: str) -> list[JsonObject]:
    """Returns `messages` with `mark` behind the text of the last one."""
    last = messages[-1]
    if last["role"] != "assistant" or last["content"] is None or last.get("tool_calls"):
        raise ValueError("continue_final_message needs an assistant's text without tool_calls as the last message")
    return [*messages[:-1], last | {"content": last["content"] + mark}]


def _cut_at_mark(text: str, mark: str) -> str:
    """Returns `text` up to the mark. A space followed the mark: where it is gone, the template trims, and so do we."""
    before, found, after = text.rpartition(mark)
    if not found:
        raise Error("[chat template] continue_final_message: the template leaves out or changes the last message")
    return before if after.startswith(" ") else before.rstrip()


# --- files ----------------------------------------------------------------------------------------------


def _named_templates(path: str, found: object) -> tuple[str, str | None]:
    """Returns (default template, template for tools) from a text or a list of {"name", "template"}."""
    if isinstance(found, str):
        return found, None
    named: dict[str, str] = {}
    for entry in found if isinstance(found, list) else ():
        name, source = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if isinstance(name, str) and isinstance(source, str):
            named[name] = source
    default = named.get("default") or named.get("tool_use")
    if default is None:
        raise Error(f'[chat template] {path}: chat_template is no text and has no template named "default"')
    return default, named.get("tool_use")


def _read_text(path: str) -> str | None:
    """Returns a file's text, or None if there is no such file."""
    return read_text(path, "[chat template]", _MAX_FILE_BYTES) if os.path.exists(path) else None


def _read_json(path: str) -> JsonObject:
    """Returns a file's JSON object, empty if there is no such file."""
    return read_json_object(path, "[chat template]", _MAX_FILE_BYTES)
