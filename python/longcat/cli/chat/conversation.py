"""A conversation: its messages, the parameters of the next completion, and the commands that change them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from longcat._core import Error
from longcat.cli.chat.views import View
from longcat.cli.engine_options import add_sampling_arguments, sampling_options
from longcat.cli.parser import Parser, UsageError, nearest
from longcat.support.files import read_json
from longcat.support.json_types import JsonObject
from longcat.support.text import count

if TYPE_CHECKING:
    from longcat.engine.engine import Engine

# command -> (what stands behind it, its help)
COMMANDS = {
    "/system": ("TEXT", "set the system message (empty: none)"),
    "/set": ("NAME VALUE", "set a sampling parameter (no value: the default; no name: list them)"),
    "/regen": ("", "another completion of the last turn"),
    "/undo": ("", "take back the last turn"),
    "/save": ("FILE", "write the conversation as JSON"),
    "/load": ("FILE", "go on with a conversation in JSON"),
    "/tools": ("FILE", "declare the tools of a JSON file (empty: none)"),
    "/result": ("TEXT", "answer a tool call"),
    "/thinking": ("", "show the reasoning of the last completion"),
    "/reset": ("", "forget the conversation"),
    "/help": ("", "this list"),
    "/exit": ("", "leave (also Ctrl-D)"),
}
_MORE = """\
End a line with \\ to go on in the next one (also Alt-Enter); pasted lines stay together.
Ctrl-C stops a completion and keeps it."""


def help_text() -> str:
    """Returns the list of commands."""
    return "\n".join([f"  {f'{name} {what}':<17} {text}" for name, (what, text) in COMMANDS.items()] + [_MORE])


def load_tools(path: str) -> list[JsonObject]:
    """Returns the tools that a JSON file declares.

    Raises:
        ValueError: the file cannot be read or holds no list.
    """
    try:
        tools = read_json(os.path.expanduser(path), "[tools]")
    except Error as error:
        raise ValueError(str(error)) from None
    if not isinstance(tools, list):
        raise ValueError(f"tools file {path} holds a {type(tools).__name__}: expected a list of tools")
    return tools


class Conversation:
    """The messages of a conversation so far, and the parameters of the next completion.

    Args:
        system: the system message; "": none.
        sampling: parameters, as `sampling_options` returns them.
    """

    def __init__(
        self, engine: Engine, system: str, tools: list[JsonObject] | None, sampling: dict[str, Any], view: View
    ):
        self._engine = engine
        self._system = system
        self._tools = tools
        self._sampling = sampling
        self._view = view
        self.history: list[JsonObject] = []

    def check(self) -> None:
        """Raises errors that every turn would have: no tokenizer or template, malformed tools or parameters."""
        hello = self._messages([{"role": "user", "content": "Hello"}])
        self._engine.chat(hello, tools=self._tools, stream=True, **self._sampling).close()

    def _messages(self, turns: Iterable[JsonObject]) -> list[JsonObject]:
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, *turns]

    def say(self, role: str, text: str) -> None:
        """Adds a message of the user or a tool, shows the completion as it arrives, and keeps both.

        Raises:
            ValueError, longcat.Error: the request is refused or fails; the conversation is as before.
        """
        self._complete([*self.history, {"role": role, "content": text}])

    def _complete(self, turns: list[JsonObject]) -> None:
        view = self._view
        stream = self._engine.chat(self._messages(turns), tools=self._tools, stream=True, **self._sampling)
        said, thought, output, reason, error = "", "", None, None, None
        try:
            for chunk in stream:
                said, thought = said + chunk.delta, thought + chunk.reasoning_delta
                output, reason, error = chunk.output, chunk.finish_reason, chunk.error
                if chunk.reasoning_delta:
                    view.reasoning(chunk.reasoning_delta)
                view.content(chunk.delta)
        except KeyboardInterrupt:
            stream.close()
            view.end()
            view.note("stopped")
            message: JsonObject = {"role": "assistant", "content": said}
            if thought:
                message["reasoning_content"] = thought
        else:
            assert output is not None
            message = output.message
            view.end()
            for call in message.get("tool_calls", []):
                arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
                view.note(f"calls {call['function']['name']}({arguments})")
            if reason == "error":
                raise Error(f"[chat] the completion failed: {error}")
            if reason == "length":
                view.note(reason)
            view.speed(output)
        self.history = [*turns, message]

    # --- commands --------------------------------------------------------------------------------------------------

    def command(self, text: str) -> bool:
        """Runs a command, a line that begins with a slash. Returns False to leave the conversation.

        Raises:
            ValueError, longcat.Error: the command fails; the conversation is as before.
        """
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name in ("/exit", "/quit"):
            return False
        if name not in COMMANDS:
            near = nearest(name, COMMANDS)
            self._view.note(f"unknown command {name}; {f'did you mean {near}?' if near else '/help lists them'}")
            return True
        run: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/set": self._set,
            "/regen": self._regenerate,
            "/undo": self._undo,
            "/save": self._save,
            "/load": self._load,
            "/tools": self._set_tools,
            "/result": lambda result: self.say("tool", result),
            "/thinking": self._show_thinking,
            "/reset": self._reset,
            "/help": lambda _: print(help_text()),
        }
        run[name](rest)
        return True

    def _set_system(self, text: str) -> None:
        self._system = text
        self._view.note("system message set" if text else "no system message")

    def _set_tools(self, path: str) -> None:
        self._tools = load_tools(path) if path else None
        self._view.note(f"{count(len(self._tools), 'tool')} declared" if self._tools else "no tools")

    def _set(self, text: str) -> None:
        """Sets a parameter as its flag would, or back to the default."""
        name, _, value = text.partition(" ")
        if name:
            parser = Parser(prog="longcat /set", add_help=False)
            add_sampling_arguments(parser)
            key, value = name.lstrip("-").replace("-", "_"), value.strip()
            known = sampling_options(parser.parse_args([]))
            if key not in known:
                near = nearest(key, known)
                hint = f"did you mean {near}?" if near else f"expected {', '.join(known)}"
                raise UsageError(f"[/set] unknown parameter {name}; {hint}")
            given = parser.parse_args([f"--{key.replace('_', '-')}={value}"] if value else [])
            self._sampling = {**self._sampling, key: getattr(given, key)}
        self._view.note(", ".join(f"{key} {value}" for key, value in self._sampling.items() if value is not None))

    def _last_turn(self) -> int:
        """Returns the index of the user's last message.

        Raises:
            ValueError: there is none.
        """
        found = [index for index, message in enumerate(self.history) if message["role"] in ("user", "tool")]
        if not found:
            raise ValueError("there is no turn yet; expected one")
        return found[-1]

    def _regenerate(self, _: str) -> None:
        self._complete(self.history[: self._last_turn() + 1])

    def _undo(self, _: str) -> None:
        last = self._last_turn()
        text = str(self.history[last]["content"])
        self.history = self.history[:last]
        self._view.note(f"took back: {text if len(text) <= 60 else text[:60] + '...'}")

    def _reset(self, _: str) -> None:
        self.history = []
        self._view.note("conversation forgotten")

    def _show_thinking(self, _: str) -> None:
        last: JsonObject = self.history[-1] if self.history else {}
        self._view.content(str(last.get("reasoning_content") or "The last completion has no reasoning."))
        self._view.end()

    def _save(self, path: str) -> None:
        if not path:
            raise ValueError("/save: found no file; expected one, as in: /save talk.json")
        saved: JsonObject = {"messages": self._messages(self.history)}
        if self._tools:
            saved["tools"] = self._tools
        with open(os.path.expanduser(path), "w", encoding="utf-8") as file:
            json.dump(saved, file, ensure_ascii=False, indent=2)
            file.write("\n")
        self._view.note(f"{count(len(self.history), 'message')} written to {path}")

    def _load(self, path: str) -> None:
        if not path:
            raise ValueError("/load: found no file; expected one, as in: /load talk.json")
        loaded = read_json(os.path.expanduser(path), "[load]")
        messages = loaded.get("messages") if isinstance(loaded, dict) else loaded
        roles = ("system", "user", "assistant", "tool")
        if not isinstance(messages, list) or not all(
            isinstance(one, dict) and one.get("role") in roles and isinstance(one.get("content") or "", str)
            for one in messages
        ):
            raise ValueError(
                f'{path} holds no conversation; expected {{"messages": [{{"role": ..., "content": ...}}]}}'
            )
        system = messages[0].get("content") or "" if messages and messages[0]["role"] == "system" else ""
        tools = loaded.get("tools") if isinstance(loaded, dict) else None
        if tools is not None and not isinstance(tools, list):
            raise ValueError(f"{path}: tools is a {type(tools).__name__}; expected a list of tools")
        self._system, self._tools = system, tools or None
        self.history = [message for message in messages if message["role"] != "system"]
        self._view.note(f"{count(len(self.history), 'message')} of {path}")
