"""`longcat chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import json
import select
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from longcat._core import Error
from longcat.cli.engine_options import (
    add_engine_arguments,
    add_sampling_arguments,
    follow,
    join_ranks,
    open_engine,
    sampling_options,
)
from longcat.cli.parser import nearest
from longcat.support.files import read_json
from longcat.support.json_types import JsonObject

if TYPE_CHECKING:
    from longcat.engine.engine import Engine

HELP = """\
  /system TEXT   set the system message (empty: none)     /reset   forget the conversation
  /tools FILE    declare the tools of a JSON file         /help    this
                 (empty: none)                            /exit    leave (also Ctrl-D)
  /result TEXT   answer a tool call
End a line with \\ to go on in the next one; pasted lines stay together. Ctrl-C stops an answer."""

_COMMANDS = ("/system", "/tools", "/result", "/reset", "/help", "/exit", "/quit")
_PASTE_SECONDS = 0.05  # within which the next line of a pasted text is there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser, "chat")
    parser.add_argument("--system", default="", help="system message")
    parser.add_argument("--tools", metavar="FILE", help="JSON file with a list of tools")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    rank = join_ranks(args).rank
    tools = load_tools(args.tools) if args.tools else None
    with open_engine(args) as engine:
        if rank > 0:
            return follow(engine)
        conversation = Conversation(engine, args.system, tools, sampling_options(args))
        conversation.check()
        failed = False
        if sys.stdin.isatty():
            print(f"{engine}\n{HELP}\n")
        for text in user_turns():
            try:
                if text.startswith("/"):
                    if not conversation.command(text):
                        return 0
                else:
                    conversation.say("user", text)
            except (ValueError, TypeError) as error:
                failed = True
                print(f"longcat: {error}", file=sys.stderr)
    return 1 if failed and not sys.stdin.isatty() else 0


def load_tools(path: str) -> list[JsonObject]:
    """Returns the tools that a JSON file declares.

    Raises:
        ValueError: the file cannot be read or holds no list.
    """
    try:
        tools = read_json(path, "[tools]")
    except Error as error:
        raise ValueError(str(error)) from None
    if not isinstance(tools, list):
        raise ValueError(f"tools file {path} holds a {type(tools).__name__}: expected a list of tools")
    return tools


def user_turns() -> Iterator[str]:
    """Yields the user's turns until the end of the input.

    A backslash at the end of a line joins it to the next one. A terminal also joins lines that arrive at once: no
    person types so fast, so they were pasted.
    """
    interactive = sys.stdin.isatty()
    if interactive:
        try:
            import readline  # noqa: F401  (line editing and history for input())
        except ImportError:
            pass
    lines: list[str] = []
    while True:
        try:
            line = input(("... " if lines else "> ") if interactive else "")
        except EOFError:
            if interactive:
                print()
            return
        except KeyboardInterrupt:  # gives up the line, not the conversation
            print()
            lines = []
            continue
        if line.endswith("\\"):
            lines.append(line[:-1])
            continue
        if interactive and _input_waits():
            lines.append(line)
            continue
        text = "\n".join([*lines, line]).strip()
        lines = []
        if text:
            yield text


def _input_waits() -> bool:
    """Returns whether standard input has more text ready."""
    try:
        return bool(select.select([sys.stdin], [], [], _PASTE_SECONDS)[0])
    except (OSError, ValueError):  # no file
        return False


class Conversation:
    """The messages of a conversation so far, and the parameters of the next completion."""

    def __init__(self, engine: Engine, system: str, tools: list[JsonObject] | None, sampling: dict[str, Any]):
        self._engine = engine
        self._system = system
        self._tools = tools
        self._sampling = sampling
        self._history: list[JsonObject] = []

    def check(self) -> None:
        """Raises errors that every turn would have: no tokenizer or template, malformed tools or parameters."""
        hello = self._messages({"role": "user", "content": "Hello"})
        self._engine.chat(hello, tools=self._tools, stream=True, **self._sampling).close()

    def _messages(self, turn: JsonObject) -> list[JsonObject]:
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, *self._history, turn]

    def command(self, text: str) -> bool:
        """Runs a command, a line that begins with a slash. Returns False to leave the conversation."""
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name in ("/exit", "/quit"):
            return False
        if name == "/system":
            self._system = rest
            print("[system message set]" if rest else "[no system message]")
        elif name == "/tools":
            self._tools = load_tools(rest) if rest else None
            print(f"[{len(self._tools)} tools declared]" if self._tools else "[no tools]")
        elif name == "/result":
            self.say("tool", rest)
        elif name == "/reset":
            self._history.clear()
            print("[conversation forgotten]")
        elif name == "/help":
            print(HELP)
        else:
            near = nearest(name, _COMMANDS)
            print(f"[unknown command {name}; {f'did you mean {near}?' if near else '/help lists them'}]")
        return True

    def say(self, role: str, text: str) -> None:
        """Adds a message of the user or a tool, prints the completion as it arrives, and keeps both in the history."""
        turn = {"role": role, "content": text}
        stream = self._engine.chat(self._messages(turn), tools=self._tools, stream=True, **self._sampling)
        said, output, reason = "", None, None
        try:
            for chunk in stream:
                said, output, reason = said + chunk.delta, chunk.output, chunk.finish_reason
                print(chunk.delta, end="", flush=True)
        except KeyboardInterrupt:
            stream.close()
            print("\n[stopped]")
            message: JsonObject = {"role": "assistant", "content": said}
        else:
            assert output is not None
            message = output.message
            if said:
                print()
            for call in message.get("tool_calls", []):
                arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
                print(f"[calls {call['function']['name']}({arguments})]")
            if reason in ("length", "error"):
                print(f"[{reason}]")
        self._history += [turn, message]
