"""The `longcat` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="longcat", description="Run LongCat-Flash-Lite.")
    parser.add_argument("--version", action="store_true", help="print version and build features")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    generate = commands.add_parser(
        "generate", help="continue a prompt", description="Continue a prompt, as it is generated."
    )
    generate.add_argument("model", help="checkpoint folder in the Hugging Face layout")
    generate.add_argument("prompt", help="text to continue; - reads standard input")
    generate.add_argument("--max-tokens", type=int, default=256, help="most new tokens (default 256)")
    for name, kind, text in [
        ("temperature", float, "0 is greedy"),
        ("top-k", int, "keep the k most likely tokens; 0 is off"),
        ("top-p", float, "keep the most likely tokens that make up this probability"),
        ("repetition-penalty", float, "on tokens that occurred; 1 is off"),
    ]:
        generate.add_argument(f"--{name}", type=kind, help=f"{text} (default: the model's generation_config.json)")
    generate.add_argument("--seed", type=int, help="the same seed gives the same text")
    _add_engine_arguments(generate)
    generate.set_defaults(run=_generate)
    return parser


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--dtype", default="auto", help="auto, f32 or bf16")
    group.add_argument("--max-model-len", type=int, help="most tokens of prompt and answer together")
    group.add_argument("--kv-cache-memory", default="auto", help='latent cache, as "4GiB"')
    group.add_argument("--num-threads", type=int, help="threads of the CPU backend")


def _open_engine(args: argparse.Namespace) -> Any:
    from longcat.engine import Engine

    with _LoadBar() as bar:
        return Engine(
            args.model,
            device=args.device,
            dtype=args.dtype,
            max_model_len=args.max_model_len,
            kv_cache_memory=args.kv_cache_memory,
            num_threads=args.num_threads,
            progress=bar.update,
        )


class _LoadBar:
    """A progress bar on standard error, when loading takes longer than a moment."""

    def __enter__(self) -> _LoadBar:
        from tqdm import tqdm

        self._bar = tqdm(desc="loading", total=0, unit="B", unit_scale=True, delay=0.5, leave=False)
        return self

    def update(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __exit__(self, *exc: object) -> None:
        self._bar.close()


def _generate(args: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    names = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
    with _open_engine(args) as engine:
        stream = engine.generate(prompt, stream=True, **{name: getattr(args, name) for name in names})
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


def _print_version() -> int:
    from longcat import _core

    features = ["cpu", "cuda" if _core.cuda_is_built() else "no cuda"]
    print(f"longcat {_core.__version__} ({', '.join(features)})")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code (1: it failed, 2: the arguments are wrong)."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.version:
        return _print_version()
    if args.command is None:
        parser.print_help()
        return 2
    run: Callable[[argparse.Namespace], int] = args.run
    from longcat._core import Error

    try:
        return run(args)
    except Error as error:
        print(f"longcat: {error}", file=sys.stderr)
        return 1
    except (ValueError, TypeError) as error:
        print(f"longcat: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
