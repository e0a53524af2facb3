"""`longcat bench`: measures the speed of an engine or a server, the start of an engine, and llama.cpp beside it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from longcat.cli.engine_options import add_engine_arguments, engine_keywords, follow, join_ranks, open_engine
from longcat.cli.parser import integer, number
from longcat.parallel.launch import require_alone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(
        dest="kind", metavar="BENCHMARK", required=True, help="latency, throughput, serve, startup or peers"
    )
    latency = kinds.add_parser(
        "latency", help="time one batch of requests", description="Time one batch of requests, several times."
    )
    add_engine_arguments(latency, "bench")
    _add_lengths(latency, input_len=32, output_len=128)
    latency.add_argument(
        "--batch-size", type=integer(1), default=1, metavar="REQUESTS", help="requests at once (default 1)"
    )
    latency.add_argument(
        "--num-iters", type=integer(1), default=10, metavar="BATCHES", help="timed batches (default 10)"
    )
    latency.add_argument(
        "--num-iters-warmup",
        type=integer(0),
        default=2,
        metavar="BATCHES",
        help="untimed batches before the timed ones (default 2)",
    )
    throughput = kinds.add_parser(
        "throughput", help="time many requests at once", description="Time many requests that arrive at the same time."
    )
    add_engine_arguments(throughput, "bench")
    _add_lengths(throughput, input_len=128, output_len=64)
    throughput.add_argument(
        "--num-prompts", type=integer(1), default=100, metavar="REQUESTS", help="requests in all (default 100)"
    )
    serve = kinds.add_parser(
        "serve", help="send requests to a running server", description="Send requests to a running server."
    )
    serve.add_argument("--base-url", metavar="URL", help="address of the server (default http://HOST:PORT)")
    serve.add_argument("--host", default="127.0.0.1", help="host of the server (default 127.0.0.1)")
    serve.add_argument(
        "--port", type=integer(1, 65535), default=8000, metavar="N", help="port of the server (default 8000)"
    )
    serve.add_argument(
        "--model",
        dest="served_model",
        metavar="NAME",
        help="model to ask for (default: the first that the server names)",
    )
    serve.add_argument("--api-key", metavar="KEY", help="key of the server")
    serve.add_argument(
        "--num-prompts", type=integer(1), default=100, metavar="REQUESTS", help="requests in all (default 100)"
    )
    serve.add_argument(
        "--random-input-len",
        "--input-len",
        type=integer(1),
        default=128,
        metavar="TOKENS",
        help="tokens of a prompt (default 128)",
    )
    serve.add_argument(
        "--random-output-len",
        "--output-len",
        type=integer(1),
        default=64,
        metavar="TOKENS",
        help="tokens of a completion (default 64)",
    )
    serve.add_argument(
        "--request-rate",
        type=number(0, above=True, infinite=True),
        default=float("inf"),
        metavar="RATE",
        help="requests that arrive in a second, at random times (default inf: all at once)",
    )
    serve.add_argument(
        "--max-concurrency",
        type=integer(1),
        metavar="REQUESTS",
        help="maximum number of running requests (default: no limit)",
    )
    serve.add_argument(
        "--temperature", type=number(0), default=0.0, metavar="X", help="temperature of the requests (default 0)"
    )
    serve.add_argument(
        "--seed", type=integer(), default=0, metavar="N", help="seed of prompts and arrivals (default 0)"
    )
    startup = kinds.add_parser(
        "startup", help="time the start of an engine", description="Time the start of an engine, several times."
    )
    add_engine_arguments(startup, "bench")
    startup.add_argument("--num-iters", type=integer(1), default=5, metavar="STARTS", help="starts to time (default 5)")
    peers = kinds.add_parser(
        "peers",
        help="compare with llama.cpp",
        description="Run an engine and llama.cpp's llama-bench in turn; print both speeds and their ratio.",
    )
    add_engine_arguments(peers, "bench")
    peers.add_argument("--llama-bench", required=True, metavar="PATH", help="the program llama-bench")
    peers.add_argument("--gguf", required=True, metavar="FILE", help="the model in llama.cpp's format")
    _add_lengths(peers, input_len=512, output_len=128)
    peers.add_argument(
        "--rounds", type=integer(1), default=5, metavar="ROUNDS", help="runs of each program, in turn (default 5)"
    )
    for kind in kinds.choices.values():
        kind.add_argument("--json", action="store_true", help="print one JSON object in place of lines")


def _add_lengths(parser: argparse.ArgumentParser, *, input_len: int, output_len: int) -> None:
    parser.add_argument(
        "--input-len",
        type=integer(1),
        default=input_len,
        metavar="TOKENS",
        help="tokens of a prompt (default %(default)s)",
    )
    parser.add_argument(
        "--output-len",
        type=integer(1),
        default=output_len,
        metavar="TOKENS",
        help="tokens of a completion (default %(default)s)",
    )
    parser.add_argument("--seed", type=integer(), default=0, metavar="N", help="seed of the prompts (default 0)")


def run(args: argparse.Namespace) -> int:
    if args.kind in ("serve", "startup", "peers"):
        require_alone(f"bench {args.kind}")
    kinds = {"latency": _latency, "throughput": _throughput, "serve": _serve, "startup": _startup, "peers": _peers}
    return kinds[args.kind](args)


def _latency(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from longcat.bench.in_process import latency

    warmup = args.num_iters_warmup
    rank = join_ranks(args).rank
    with open_engine(args, max_num_seqs=args.batch_size, enable_prefix_caching=False) as engine:
        if rank > 0:
            return follow(engine)
        with tqdm(total=warmup + args.num_iters, unit="batch", delay=0.5, leave=False, disable=None) as bar:
            result = latency(
                engine,
                batch_size=args.batch_size,
                input_len=args.input_len,
                output_len=args.output_len,
                num_iters=args.num_iters,
                num_iters_warmup=warmup,
                seed=args.seed,
                progress=bar.update,
            )
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    print(f"Avg latency: {result['avg_latency']:.4g} seconds")
    for name, value in result["percentiles"].items():
        print(f"{name}% percentile latency: {value:.4g} seconds")
    return 0


def _throughput(args: argparse.Namespace) -> int:
    from longcat.bench.in_process import throughput

    rank = join_ranks(args).rank
    with open_engine(args, enable_prefix_caching=False) as engine:
        if rank > 0:
            return follow(engine)
        result = throughput(
            engine, num_prompts=args.num_prompts, input_len=args.input_len, output_len=args.output_len, seed=args.seed
        )
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    figures = [result[f"{name}_per_second"] for name in ("requests", "tokens", "output_tokens")]
    print("Throughput: {:.2f} requests/s, {:.2f} total tokens/s, {:.2f} output tokens/s".format(*figures))
    return 0


def _serve(args: argparse.Namespace) -> int:
    import asyncio

    from tqdm import tqdm

    from longcat.bench.load_generator import Load, summary
    from longcat.bench.load_generator import run as send

    load = Load(
        args.base_url or f"http://{args.host}:{args.port}",
        args.served_model,
        args.api_key,
        args.num_prompts,
        args.random_input_len,
        args.random_output_len,
        args.request_rate,
        args.max_concurrency,
        args.temperature,
        args.seed,
    )
    with tqdm(total=load.num_prompts, unit="request", delay=0.5, leave=False, disable=None) as bar:
        seconds, outcomes = asyncio.run(send(load, lambda outcome: bar.update()))
    result = summary(seconds, outcomes)
    for error in sorted({outcome.error for outcome in outcomes if outcome.error})[:3]:
        print(f"longcat: {error}", file=sys.stderr)
    print(json.dumps(result, indent=2) if args.json else serve_text(result))
    return int(bool(result["failed"]))


def serve_text(result: dict[str, float]) -> str:
    """Returns the figures of a run as vLLM prints them."""
    lines = [f"{' Serving Benchmark Result ':=^50}"]
    for label, name, digits in [
        ("Successful requests:", "completed", 0),
        ("Failed requests:", "failed", 0),
        ("Benchmark duration (s):", "duration", 2),
        ("Total input tokens:", "total_input_tokens", 0),
        ("Total generated tokens:", "total_output_tokens", 0),
        ("Request throughput (req/s):", "request_throughput", 2),
        ("Output token throughput (tok/s):", "output_throughput", 2),
        ("Total token throughput (tok/s):", "total_token_throughput", 2),
    ]:
        lines.append(f"{label:<40} {result[name]:<9.{digits}f}")
    for title, name in [
        ("Time to First Token", "ttft"),
        ("Time per Output Token (excl. 1st token)", "tpot"),
        ("Inter-token Latency", "itl"),
        ("End-to-end Latency", "e2el"),
    ]:
        lines.append(f"{title:-^50}")
        for label, figure in (("Mean", "mean"), ("Median", "median"), ("P99", "p99")):
            lines.append(f"{f'{label} {name.upper()} (ms):':<40} {result[f'{figure}_{name}_ms']:<9.2f}")
    return "\n".join([*lines, "=" * 50])


# A program that prints the seconds until it has imported, loaded, and made a token, from its own first line.
_START = """
import time
start = time.perf_counter()
import json, sys, longcat
times = [time.perf_counter() - start]
engine = longcat.Engine(sys.argv[1], **json.loads(sys.argv[2]))
times.append(time.perf_counter() - start)
engine.generate(prompt_token_ids=[0], max_tokens=1, ignore_eos=True)
print(json.dumps([*times, time.perf_counter() - start]))
"""


def _startup(args: argparse.Namespace) -> int:
    import os
    import time

    from longcat.support.child_process import run_program

    options = json.dumps(engine_keywords(args))
    runs: dict[str, list[float]] = {"import": [], "load": [], "first token": [], "whole process": []}
    for _ in range(args.num_iters):
        start = time.perf_counter()
        output = run_program("bench", _START, os.path.expanduser(args.model), options)
        seconds = time.perf_counter() - start
        imported, loaded, first = json.loads(output.splitlines()[-1])
        for name, value in zip(runs, (imported, loaded - imported, first - loaded, seconds), strict=True):
            runs[name].append(value)
    result = {name: _figures(values) for name, values in runs.items()}
    if args.json:
        print(json.dumps({name.replace(" ", "_"): figures for name, figures in result.items()}, indent=2))
        return 0
    print(f"{args.num_iters} starts [s]      mean    median       p99")
    for name, figures in result.items():
        print(f"{name:<14} {figures['mean']:9.3f} {figures['median']:9.3f} {figures['p99']:9.3f}")
    return 0


def _peers(args: argparse.Namespace) -> int:
    import os

    from tqdm import tqdm

    import longcat._core as _core
    from longcat.bench.peers import compare, summary, table
    from longcat.support.text import count

    options = engine_keywords(args)
    num_threads = options.pop("num_threads", None) or _core.available_threads()
    with tqdm(total=2 * args.rounds, unit="run", delay=0.5, leave=False, disable=None) as bar:
        ours, theirs = compare(
            os.path.expanduser(args.model),
            options,
            os.path.expanduser(args.llama_bench),
            os.path.expanduser(args.gguf),
            num_threads=num_threads,
            input_len=args.input_len,
            output_len=args.output_len,
            rounds=args.rounds,
            seed=args.seed,
            progress=bar.update,
        )
    rows = summary(ours, theirs, args.input_len, args.output_len)
    if args.json:
        print(json.dumps({"num_threads": num_threads, "peer": theirs.about, "tests": rows}, indent=2))
        return 0
    print(f"{args.model}, {count(num_threads, 'thread')}; {theirs.about}\n")
    print(table(rows, args.rounds))
    return 0


def _figures(values: Sequence[float]) -> dict[str, float]:
    import statistics

    from longcat.bench.load_generator import percentile

    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "p99": percentile(sorted(values), 99),
    }
