"""What every command that loads a model shares: its options, and the progress bar."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longcat.cli.parser import add_other_engine_flags, integer, number
from longcat.cli.progress import ByteBar
from longcat.support.other_engines import format_name

if TYPE_CHECKING:
    from longcat.engine.engine import Engine


def add_engine_arguments(parser: argparse.ArgumentParser, is_server: bool = False) -> None:
    """The options that engine_keywords reads.

    Args:
        is_server: the checkpoint may also be named by --model or --model-path, and there may be replicas.
    """
    text = "checkpoint folder in the Hugging Face layout"
    if is_server:
        parser.add_argument("model", nargs="?", metavar="FOLDER", help=text)
        parser.add_argument(
            "--model",
            "--model-path",
            dest="model_path",
            metavar="FOLDER",
            help="the checkpoint folder, in place of the first argument",
        )
    else:
        parser.add_argument("model", metavar="FOLDER", help=text)
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--device", default="auto", metavar="NAME", help="device to run on: auto, cpu, cuda or cuda:N (default auto)"
    )
    group.add_argument("--tensor-parallel-size", "--tp", "--tp-size", type=integer(1), default=1, metavar="N",
                       help="ranks that share attention and dense FFNs (under mpirun)")  # fmt: skip
    group.add_argument("--expert-parallel-size", "--ep", "--ep-size", type=integer(1), default=1, metavar="N",
                       help="ranks that share the experts; the job has as many as the larger of both")  # fmt: skip
    if is_server:
        group.add_argument("--data-parallel-size", "--dp", "--dp-size", type=integer(1), default=1, metavar="N",
                           help="copies of the model, each on ranks of its own and on the next port")  # fmt: skip
    else:
        parser.set_defaults(data_parallel_size=1)
    group.add_argument(
        "--dtype",
        type=_format("--dtype"),
        default="auto",
        metavar="TYPE",
        help="format of f32 and f16 weights and the latent cache: auto, f32 or bf16 (default auto)",
    )
    group.add_argument("--quantization", choices=["fp8"], help="keep the experts as fp8, in half the memory")
    group.add_argument(
        "--max-model-len",
        "--context-length",
        type=integer(1),
        metavar="N",
        help="most tokens of prompt and answer together",
    )
    group.add_argument(
        "--kv-cache-dtype",
        type=_format("--kv-cache-dtype"),
        default="auto",
        metavar="TYPE",
        help="format of the latent cache: auto, f32, bf16, fp8 or int8 (default auto)",
    )
    group.add_argument(
        "--kv-cache-memory",
        "--kv-cache-memory-bytes",
        default="auto",
        metavar="SIZE",
        help='size of the latent cache, as "4GiB" (default auto)',
    )
    group.add_argument(
        "--gpu-memory-utilization",
        "--mem-fraction-static",
        type=number(0, 1, above=True),
        metavar="SHARE",
        help="share of a GPU's free memory to take (default: all but 1.5 GiB)",
    )
    group.add_argument(
        "--ngram-placement",
        default="auto",
        metavar="PLACE",
        help="place of the N-gram tables: auto, disk (CPU), host or device (CUDA) (default auto)",
    )
    group.add_argument("--speculative-config", type=_json, metavar="JSON",
                       help='draft next tokens by {"method": "mtp"} or {"method": "ngram"}')  # fmt: skip
    group.add_argument(
        "--num-threads", type=integer(1), metavar="N", help="threads of the CPU backend (default: one a core)"
    )
    group.add_argument(
        "--tokenizer",
        "--tokenizer-path",
        metavar="PATH",
        help="a tokenizer.json, or its folder (default: the checkpoint's)",
    )
    add_other_engine_flags(parser)


def _format(flag: str) -> Callable[[str], str]:
    """A type of arguments: a number format, by our name or another engine's."""

    def parse(text: str) -> str:
        try:
            return format_name(flag, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).partition("=")[2].replace('"', "")) from None

    return parse


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}; expected JSON: {error}") from None


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that sampling_options reads."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=integer(1), default=256, metavar="N", help="most new tokens (default 256)")
    kinds: list[tuple[str, Callable[[str], float], str]] = [
        ("temperature", number(0), "divide logits by this; 0 is greedy"),
        ("top-k", integer(-1), "keep the k most likely tokens; 0 is off"),
        ("top-p", number(0, 1, above=True), "keep the most likely tokens that make up this probability"),
        ("min-p", number(0, 1), "drop tokens below this share of the most likely one; 0 is off"),
        ("repetition-penalty", number(0, above=True), "divide the logits of tokens that occurred; 1 is off"),
    ]
    for name, kind, text in kinds:
        group.add_argument(
            f"--{name}", type=kind, metavar="X", help=f"{text} (default: the model's generation_config.json)"
        )
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text; repeatable")
    group.add_argument(
        "--seed",
        type=integer(),
        metavar="N",
        help="seed of the draws: the same seed gives the same text (default: random)",
    )


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords for SamplingParams."""
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed")
    return {name: getattr(args, name) for name in names}


def engine_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords for Engine, but for the model."""
    names = (
        "device", "tensor_parallel_size", "expert_parallel_size", "data_parallel_size", "dtype", "quantization",
        "max_model_len", "kv_cache_dtype", "kv_cache_memory", "gpu_memory_utilization", "ngram_placement",
        "speculative_config", "num_threads", "tokenizer",
    )  # fmt: skip
    return {name: getattr(args, name) for name in names}


@dataclass(frozen=True)
class Place:
    """Of this process in its job: which replica of the model it belongs to, and which rank of that it is."""

    replica: int = 0
    rank: int = 0


def join_ranks(args: argparse.Namespace) -> Place:
    """Joins the job that the options ask for, before anything slow begins.

    Raises:
        ValueError: the launcher started another number of processes.
    """
    from longcat.parallel.launch import find_launch

    tp, ep, dp = args.tensor_parallel_size, args.expert_parallel_size, args.data_parallel_size
    if max(tp, ep, dp) == 1:
        launch = find_launch()
        if launch is not None and launch.size > 1:
            raise ValueError(
                f"{launch.launcher} started {launch.size} processes, and --tp 1 --ep 1 is one: pass --tp {launch.size} "
                f"or --ep {launch.size}, or start one"
            )
        return Place()
    from longcat.parallel.job import join_job

    job = join_job(tp, ep, dp)
    assert job is not None
    job.watch()
    replica, rank = divmod(job.launch.rank, max(tp, ep))
    # Rank 0 says when it is over. A launcher that gets SIGTERM kills its ranks at once, but hands SIGUSR1 on to them.
    if rank > 0:
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(ignored, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    return Place(replica, rank)


def open_engine(args: argparse.Namespace, **more: Any) -> Engine:
    """The engine that the options and `more` describe, with a progress bar while it loads. After join_ranks."""
    from longcat.engine.engine import Engine
    from longcat.parallel.job import current_job

    job = current_job()
    if args.ignored and (job is None or job.launch.rank == 0):
        flags = ", ".join(dict.fromkeys(args.ignored))
        print(f"longcat: [{args.command}] ignored, without effect here: {flags}", file=sys.stderr)
    if job is not None and job.launch.rank > 0:
        return Engine(args.model, **engine_keywords(args), **more)
    with ByteBar("loading") as bar:
        return Engine(args.model, progress=bar.update, **engine_keywords(args), **more)


def follow(engine: Engine) -> int:
    """What every command does on another rank than 0."""
    engine.follow()
    return 0
