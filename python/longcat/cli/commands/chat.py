"""`longcat chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys

from longcat._core import Error
from longcat.cli.engine_options import (
    add_engine_arguments,
    add_sampling_arguments,
    follow,
    join_ranks,
    open_engine,
    sampling_options,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser, "chat")
    parser.add_argument("--system", default="", help="system message")
    parser.add_argument("--tools", metavar="FILE", help="JSON file with a list of tools")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from longcat.cli.chat.conversation import COMMANDS, Conversation, help_text, load_tools
    from longcat.cli.chat.turns import open_turns
    from longcat.cli.chat.views import PlainView, TerminalView

    rank = join_ranks(args).rank
    tools = load_tools(args.tools) if args.tools else None
    with open_engine(args) as engine:
        if rank > 0:
            return follow(engine)
        view = TerminalView() if sys.stdout.isatty() else PlainView()
        conversation = Conversation(engine, args.system, tools, sampling_options(args), view)
        conversation.check()
        turns = open_turns(list(COMMANDS))
        if sys.stdin.isatty():
            print(f"{engine}\n{help_text()}\n")
        failed, draft = False, ""
        while (text := turns.read(draft)) is not None:
            draft = ""
            try:
                if text.startswith("/"):
                    if not conversation.command(text):
                        return 0
                else:
                    conversation.say("user", text)
            except (ValueError, TypeError, Error, OSError) as error:
                failed, draft = True, text  # the text stands in the next prompt, to be mended
                print(f"longcat: {error}", file=sys.stderr)
    return 1 if failed and not sys.stdin.isatty() else 0
