"""`longcat convert`: a checkpoint in the formats the CPU kernels read."""

from __future__ import annotations

import argparse
import sys

from longcat.cli.progress import ByteBar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from longcat.convert import COMPONENTS, FORMATS, PRESETS

    parser.add_argument("model", metavar="PATH", help="folder of a checkpoint")
    parser.add_argument("out", metavar="OUT", help="folder to make; must not exist, or be empty")
    parser.add_argument(
        "--quant",
        required=True,
        choices=PRESETS,
        help="int4 (4.5 bits a weight: the smallest), int8 (8.5 bits) or bf16 (the same values, faster to read)",
    )
    what = {
        "core": "attention and dense layers",
        "experts": "the experts",
        "head": "the output layer",
        "embedding": "the word embedding",
        "tables": "the N-gram tables",
    }
    for component in COMPONENTS:
        parser.add_argument(f"--{component}", choices=FORMATS, help=f"another format for {what[component]}")


def run(args: argparse.Namespace) -> int:
    from longcat.convert import COMPONENTS, PRESETS, convert_checkpoint
    from longcat.report_text import bytes_text, count

    formats = PRESETS[args.quant] | {c: getattr(args, c) for c in COMPONENTS if getattr(args, c)}
    with ByteBar("converting") as bar:
        try:
            made = convert_checkpoint(args.model, args.out, formats, progress=bar.update)
        except KeyboardInterrupt:
            bar.print(f"[stopped; the same command goes on from {args.out}.partial]", sys.stderr)
            return 130
    resumed = f", {count(made.resumed_files, 'file')} found finished" if made.resumed_files else ""
    print(
        f"{args.out}: {bytes_text(made.num_bytes)} in {count(made.files, 'file')}, of {bytes_text(made.source_bytes)}"
        f"{resumed}, {made.seconds:.1f} s"
    )
    return 0
