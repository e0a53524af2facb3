"""`longcat generate`: continue a prompt, as it is generated."""

from __future__ import annotations

import argparse
import sys

from longcat.cli.engine_options import (
    add_engine_arguments,
    add_sampling_arguments,
    follow,
    join_ranks,
    open_engine,
    sampling_options,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    parser.add_argument("prompt", help="text to continue; - reads standard input")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    rank = join_ranks(args).rank
    prompt = sys.stdin.read() if args.prompt == "-" and rank == 0 else args.prompt
    with open_engine(args) as engine:
        if rank > 0:
            return follow(engine)
        stream = engine.generate(prompt, stream=True, **sampling_options(args))
        print(prompt, end="", flush=True)
        try:
            for chunk in stream:
                print(chunk.delta, end="", flush=True)
        except KeyboardInterrupt:
            stream.close()
            print("\n[stopped]", file=sys.stderr)
            return 130
        print(flush=True)
        output = chunk.output
        answer, metrics = output.outputs[0], output.metrics
        rate = metrics.tokens_per_second(len(answer.token_ids))
        print(
            f"[{len(output.prompt_token_ids)} prompt tokens, first token after {1000 * metrics.first_token_s:.0f} ms; "
            f"{len(answer.token_ids)} tokens at {rate:.1f} tok/s; {answer.finish_reason}]",
            file=sys.stderr,
        )
        return 0 if answer.finish_reason != "error" else 1
