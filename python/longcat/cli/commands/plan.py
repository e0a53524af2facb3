"""`longcat plan`: prints the memory that a checkpoint needs, and the machines where it fits."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from longcat.cli.engine_options import add_option
from longcat.cli.parser import integer, number
from longcat.engine.config import EngineConfig
from longcat.support.json_types import JsonObject

if TYPE_CHECKING:
    from longcat.planning.cost import Hardware
    from longcat.planning.plan import Plan

_CARDS = {24: 23.5, 32: 31.4, 48: 47, 80: 78, 141: 139}  # nominal memory of a GPU [GB]: free memory [GiB]
_STATES = {"today": "", "untried": " **", "later": " *"}
_STEP_TOKENS = "max_num_batched_tokens"
_OPTIONS = (
    *("dtype", "quantization", "kv_cache_dtype", "index_cache_dtype", "max_model_len", "max_num_seqs"),
    *("kv_cache_memory", _STEP_TOKENS, "speculative", "tensor_parallel_size", "expert_parallel_size"),
)
_BATCHES = [1, 16]
_CONTEXTS = [1024, 32768]
_GPU_BATCHES, _GPU_CONTEXT = [1, 16, 128], 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FOLDER", help="checkpoint folder, or a folder with a config.json alone")
    for name in _OPTIONS:
        add_option(parser, name, default="512, or max_num_seqs when that is more" if name == _STEP_TOKENS else "")
    parser.add_argument(
        "--num-tokens",
        type=integer(1),
        metavar="TOKENS",
        help="tokens computed before the peak of memory (default: what the latent cache holds)",
    )
    parser.add_argument(
        "--bandwidth", type=number(0, above=True), metavar="GB/S", help="bandwidth of the memory (default: measured)"
    )
    parser.add_argument(
        "--gpus",
        type=integer(1, 64),
        metavar="GPUS",
        help="print only the predicted speeds of this many GPUs, by layout",
    )
    parser.add_argument(
        "--gpu",
        default="h100",
        choices=["h100", "h200", "a100", "rtx5090", "rtx4090"],
        help="model of the GPUs, with --gpus: h100, h200, a100, rtx5090 or rtx4090 (default h100)",
    )
    parser.add_argument(
        "--ngram-placement",
        default="host",
        choices=["host", "device"],
        help="place of the N-gram tables, with --gpus: host or device (default host)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of lines")


def run(args: argparse.Namespace) -> int:
    from longcat.planning.advice import advise
    from longcat.planning.plan import plan

    options = {name: getattr(args, name) for name in _OPTIONS}
    made = plan(
        args.model,
        num_tokens=args.num_tokens,
        bandwidth=None if args.bandwidth is None else args.bandwidth * 1e9,
        **options,
    )
    if args.gpus is not None:
        from longcat.planning.cost import GPUS

        gpu = GPUS[args.gpu]
        rows = gpu_rows(made, gpu, args.gpus, args.ngram_placement)
        print(json.dumps(rows, indent=2) if args.json else gpu_text(made, gpu, args.gpus, args.ngram_placement, rows))
        return 0
    advice = advise(made, {name: value for name, value in options.items() if value != getattr(EngineConfig, name)})
    if args.json:
        print(json.dumps(made.as_dict() | {"advice": asdict(advice)}, indent=2))
    else:
        print("\n".join([text(made), "", f"{advice.says}:" if advice.commands else advice.says, *advice.commands]))
    return 0


def text(plan: Plan) -> str:
    """Returns the plan as tables."""
    from longcat.planning.plan import GIB, GPU_BANDWIDTH
    from longcat.support.text import bytes_text

    contexts = sorted({min(context, plan.max_model_len) for context in _CONTEXTS})
    source = "its headers" if plan.has_weights else "config.json alone, as bf16: there are no weights here"
    lines = [f"{plan.model}: {plan.architecture}, {plan.parameters / 1e9:.2f} B parameters, from {source}", ""]
    per_token = bytes_text(plan.kv_bytes_per_token)
    if plan.num_ranks > 1:
        held = ", ".join(bytes_text(size) for size in plan.rank_weights)
        lines += [
            f"{plan.num_ranks} ranks, --tp {plan.tensor_parallel_size} --ep {plan.expert_parallel_size}, with "
            f"weights of {held}; here is the one with the most",
            "",
        ]
    lines += _table(
        ["memory on this CPU", "in files", "in memory", "read a token"],
        [
            *(
                [part.name, bytes_text(part.stored), bytes_text(part.touched + part.copied), bytes_text(part.read)]
                for part in plan.parts
            ),
            ["latent cache", "", bytes_text(plan.kv_cache), f"{per_token} a token of context"],
            ["activations and logits", "", bytes_text(plan.activations), ""],
            ["Python and libraries", "", bytes_text(plan.process), ""],
            ["peak", "", bytes_text(plan.peak), ""],
        ],
    )
    lines += [
        "",
        f"{plan.max_num_seqs} requests of up to {plan.max_model_len} tokens, {plan.max_num_batched_tokens} tokens a "
        f"step, latent cache in {plan.kv_cache_dtype}; the peak after {plan.num_tokens:,} tokens of random text",
    ]
    if plan.fits:
        lines.append(f"fits: {bytes_text(plan.available)} are free")
    else:
        lines.append(
            f"does not fit: {bytes_text(plan.available)} are free; weights that find no room are read from disk again "
            "as they are needed, at its speed"
        )
    if tables := plan.tables():
        lines += ["", "N-gram tables by format (`longcat convert --tables`), on disk or all in memory:"]
        lines += _table(
            ["format", "in files", "in memory at the peak", "all in memory"],
            [
                [row.format, bytes_text(row.num_bytes), bytes_text(row.resident), "fits" if row.fits else "too large"]
                for row in tables
            ],
        )
    lines += ["", "at most, where reading memory is all that takes time:"]
    lines += _table(
        [f"tokens/s at {plan.bandwidth / 1e9:.1f} GB/s", *(f"context {context}" for context in contexts)],
        [
            [f"{batch} at once", *(f"{plan.tokens_per_second(batch, context):.1f}" for context in contexts)]
            for batch in _BATCHES
        ],
    )
    lines += ["", "tokens of latent cache beside the weights, by memory in GB (* not in this version,"]
    lines += ["** in a build with CUDA, whose kernels have not run on a GPU yet);"]
    lines += [f"tokens/s as above, one at once, context {contexts[0]}; of a GPU at {GPU_BANDWIDTH / 1e12:.1f} TB/s:"]
    rows = []
    for row in plan.placements():
        sizes = [_tokens(plan.cache_tokens(row, int(gib * GIB))) for gib in _CARDS.values()]
        name = row.placement + _STATES[row.state]
        host = bytes_text(row.host_bytes) if row.host_bytes else ""
        rate = f"{plan.tokens_per_second(1, contexts[0], row):.1f}"
        rows.append([name, row.format, bytes_text(row.fast_bytes), host, *sizes, rate])
    head = ["placement", "weights", "size", "and tables", *(f"{gb} GB" for gb in _CARDS), "tokens/s"]
    lines += _table(head, rows)
    return "\n".join(lines)


def gpu_rows(plan: Plan, gpu: Hardware, num_gpus: int, ngram_placement: str) -> list[JsonObject]:
    """Returns the layouts on several GPUs, the fastest for one request first: bytes of a rank, times of steps [ms].

    Raises:
        ValueError: no layout has `num_gpus` ranks.
    """
    from longcat.planning.cost import decode_step, layouts
    from longcat.planning.plan import gpu_formats

    if not 1 <= num_gpus <= 64:
        raise ValueError(f"--gpus {num_gpus}: expected 1 to 64")
    if not (found := layouts(num_gpus, plan.config)):
        raise ValueError(f"--gpus {num_gpus}: no layout divides this model's heads, experts and vocabulary by it")
    rows = []
    context, on_device = min(_GPU_CONTEXT, plan.max_model_len), ngram_placement == "device"
    held = plan.held_bits()
    formats = {"as stored": held} if held else gpu_formats(plan)
    for name, bits in formats.items():
        tables = bits.tables if on_device else 0
        for tp, ep in found:
            steps = {
                batch: decode_step(plan, gpu, tp, ep, batch, context, bits.experts, bits.core, tables, bits.embedding)
                for batch in _GPU_BATCHES
            }
            room = gpu.memory - plan.gpu_buffers(tp, ep)
            if steps[1].weights + steps[1].latents > room:
                continue
            rows.append(
                {
                    "experts": name,
                    "tp": tp,
                    "ep": ep,
                    "context": context,
                    "weights": int(steps[1].weights),
                    "steps": [
                        {
                            "batch": batch,
                            "ms": 1e3 * step.seconds,
                            "sums_ms": 1e3 * step.sums,
                            "fits": step.weights + step.latents <= room,
                        }
                        for batch, step in steps.items()
                    ],
                }
            )
    return sorted(rows, key=lambda row: row["steps"][0]["ms"])


def gpu_text(plan: Plan, gpu: Hardware, num_gpus: int, ngram_placement: str, rows: list[JsonObject]) -> str:
    from longcat.support.text import bytes_text

    context = min(_GPU_CONTEXT, plan.max_model_len)
    where = {"host": "host memory", "device": "the GPUs' memory"}[ngram_placement]
    lines = [
        f"{plan.model}: decode steps on {num_gpus} {gpu.name}, context {context}, N-gram tables in {where};",
        "computed from rates that were not measured here: docs/parallel.md",
        "",
    ]
    if not rows:
        return "\n".join([*lines, "the weights find no room: more GPUs, or fewer bits"])
    body = []
    for row in rows:
        cells = [
            f"{step['ms']:.2f} ms, {1e3 * step['batch'] / step['ms']:,.0f} tok/s" if step["fits"] else "-"
            for step in row["steps"]
        ]
        share = f"{row['steps'][0]['sums_ms'] / row['steps'][0]['ms']:.0%}"
        body.append([f"--tp {row['tp']} --ep {row['ep']}", row["experts"], bytes_text(row["weights"]), *cells, share])
    head = ["layout", "format", "a GPU", *(f"{batch} at once" for batch in _GPU_BATCHES), "sums at 1"]
    return "\n".join([*lines, *_table(head, body)])


def _tokens(count: int) -> str:
    return "-" if count <= 0 else f"{count / 1e6:.1f}M" if count >= 10**6 else f"{count // 1000}k"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in [head, *rows]
    ]
