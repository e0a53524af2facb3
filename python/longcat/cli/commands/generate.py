"""`longcat generate`: continues a prompt, and prints the text as it is generated."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from longcat.cli.engine_options import (
    add_engine_arguments,
    add_sampling_arguments,
    follow,
    join_ranks,
    open_engine,
    sampling_options,
)
from longcat.cli.parser import UsageError, integer
from longcat.request.totals import timings, usage
from longcat.support.json_types import JsonObject

if TYPE_CHECKING:
    from longcat.engine.streams import ChatStream, TokenStream
    from longcat.request.outputs import RequestOutput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser, "generate")
    parser.add_argument("prompt", nargs="?", help="text to continue; without it, or with -, standard input is read")
    add_sampling_arguments(parser)
    parser.add_argument(
        "-n", type=integer(1, 128), default=1, metavar="COMPLETIONS", help="number of completions (default 1)"
    )
    parser.add_argument(
        "--json-schema", metavar="SCHEMA", help="hold the completion to this JSON schema, given as JSON or as a file"
    )
    parser.add_argument("--chat", action="store_true", help="take the prompt as a user's message and print the reply")
    parser.add_argument("--system", metavar="TEXT", help="system message, with --chat")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: texts, token ids, finish reasons, counts, times"
    )


def run(args: argparse.Namespace) -> int:
    rank = join_ranks(args).rank
    sampling = {**sampling_options(args), "n": args.n}
    if args.json_schema is not None:
        sampling["structured_outputs"] = {"json": _schema(args.json_schema)}
    if args.system is not None and not args.chat:
        raise UsageError("[generate] --system goes with --chat; expected both, or neither.")
    prompt = _prompt(args.prompt) if rank == 0 else ""
    with open_engine(args) as engine:
        if rank > 0:
            return follow(engine)
        messages = _messages(args.system, prompt) if args.chat else None
        if args.json or args.n > 1:
            output: RequestOutput
            if messages is not None:
                output = engine.chat(messages, use_tqdm=False, **sampling)
            else:
                output = engine.generate(prompt, use_tqdm=False, **sampling)
            if args.json:
                print(json.dumps(_as_json(output), ensure_ascii=False, indent=2))
            else:
                for index, text in enumerate(_texts(output), start=1):
                    print(f"[{index}] {text}")
        else:
            # With a schema the completion is a whole document, so the prompt is not printed before it.
            shown = "" if args.json_schema is not None or args.chat else prompt
            stream = (
                engine.generate(prompt, stream=True, **sampling)
                if messages is None
                else engine.chat(messages, stream=True, **sampling)
            )
            streamed = _print_stream(stream, shown)
            if streamed is None:
                return 130
            output = streamed
        _tell(output)
        return 1 if any(completion.finish_reason == "error" for completion in output.outputs) else 0


def _prompt(given: str | None) -> str:
    """Returns the prompt of the command line, or standard input without the line end that `echo` adds.

    Raises:
        UsageError: there is no prompt, and standard input is a terminal.
    """
    if given not in (None, "-"):
        return given or ""
    if given is None and sys.stdin.isatty():
        raise UsageError(
            '[generate] found no prompt; expected a text, as in: longcat generate MODEL "Once upon a time"'
        )
    text = sys.stdin.read()
    return text.removesuffix("\n").removesuffix("\r")


def _schema(given: str) -> JsonObject:
    """Returns a JSON schema that is given as JSON or as a file.

    Raises:
        UsageError: the text is neither JSON nor a file.
    """
    try:
        if os.path.isfile(given):
            with open(given, encoding="utf-8") as file:
                given = file.read()
        schema = json.loads(given)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"[generate] --json-schema {given[:200]}: {error}; expected a JSON schema or its file"
        ) from None
    if not isinstance(schema, dict):
        raise UsageError(f"[generate] --json-schema holds a {type(schema).__name__}; expected a JSON object")
    return schema


def _messages(system: str | None, prompt: str) -> list[JsonObject]:
    user = {"role": "user", "content": prompt}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def _print_stream(stream: TokenStream | ChatStream, shown: str) -> RequestOutput | None:
    """Prints a completion as it is generated. Returns None when the user interrupts it.

    Args:
        shown: text to print before it.
    """
    print(shown, end="", flush=True)
    output = None
    try:
        for chunk in stream:
            print(chunk.delta, end="", flush=True)
            output = chunk.output
    except KeyboardInterrupt:
        stream.close()
        print("\n[stopped]", file=sys.stderr)
        return None
    print(flush=True)
    return output


def _texts(output: RequestOutput) -> list[str]:
    """Returns the texts of the completions; with --chat, the contents of the messages."""
    messages = getattr(output, "messages", None)
    if messages is not None:
        return [str(message.get("content", "")) for message in messages]
    return [completion.text for completion in output.outputs]


def _as_json(output: RequestOutput) -> JsonObject:
    completions = [
        {
            "index": completion.index,
            "text": text,
            "token_ids": completion.token_ids,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
            "error": completion.error,
        }
        for completion, text in zip(output.outputs, _texts(output), strict=True)
    ]
    first, total = output.metrics.first_token_s, output.metrics.total_s
    times = {"first_token_ms": None if first is None else 1000 * first, "total_ms": 1000 * total}
    return {
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        "outputs": completions,
        "usage": usage([output]),
        "timings": timings(output) | times,
    }


def _tell(output: RequestOutput) -> None:
    """Prints counts and times on standard error."""
    metrics, reasons = output.metrics, dict.fromkeys(str(completion.finish_reason) for completion in output.outputs)
    num_tokens = sum(len(completion.token_ids) for completion in output.outputs)
    first = f"first token after {1000 * metrics.first_token_s:.0f} ms; " if metrics.first_token_s is not None else ""
    print(
        f"[{len(output.prompt_token_ids)} prompt tokens, {first}{num_tokens} tokens at "
        f"{metrics.tokens_per_second(num_tokens):.1f} tok/s; {', '.join(reasons)}]",
        file=sys.stderr,
    )
    for completion in output.outputs:
        if completion.error is not None:
            print(f"longcat: {completion.error}", file=sys.stderr)
