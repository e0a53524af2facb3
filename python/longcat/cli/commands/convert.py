"""`longcat convert`: writes a checkpoint in the formats that the CPU kernels read."""

from __future__ import annotations

import argparse
import os
import sys

from longcat.cli.progress import ByteBar

_MIN_TOKENS = 1024
_MAX_TEXT_BYTES = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from longcat.checkpoint.convert import COMPONENTS, FORMATS, PRESETS

    parser.add_argument("model", metavar="PATH", help="folder of a checkpoint")
    parser.add_argument("out", metavar="OUT", help="folder to make; must not exist, or be empty")
    parser.add_argument(
        "--quant",
        required=True,
        choices=PRESETS,
        help="int4 (4.5 bits a weight, 8.5 in head and embedding: the smallest), int8 (8.5 bits) or bf16 (the same "
        "values, faster to read)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="a text like those the model will read; int4 is rounded for it (default: one that comes with longcat; "
        "none: no text, which is faster and far worse)",
    )
    parser.add_argument(
        "--calibration-tokens",
        type=int,
        default=16384,
        metavar="TOKENS",
        help="tokens of the text to read, from its start (default: %(default)s)",
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
    from longcat.checkpoint.convert import COMPONENTS, PRESETS, convert_checkpoint
    from longcat.checkpoint.texts import default_token_ids
    from longcat.support.text import bytes_text, count

    formats = PRESETS[args.quant] | {c: getattr(args, c) for c in COMPONENTS if getattr(args, c)}
    calibration = None
    if args.calibrate not in (None, "none"):
        calibration = _token_ids(args.model, args.calibrate, args.calibration_tokens)
    with ByteBar("converting") as bar:
        if args.calibrate is None and formats["core"] == "int4":
            if os.path.exists(os.path.join(args.model, "tokenizer.json")):
                calibration = default_token_ids(args.model)[: max(0, args.calibration_tokens)]
            else:
                bar.print(f"{args.model} has no tokenizer.json: int4 is rounded without a text")
        try:
            made = convert_checkpoint(
                args.model, args.out, formats, calibration=calibration, progress=bar.update, log=bar.print
            )
        except KeyboardInterrupt:
            bar.print(f"[stopped; the same command goes on from {args.out}.partial]", sys.stderr)
            return 130
    resumed = f", {count(made.resumed_files, 'file')} found finished" if made.resumed_files else ""
    print(
        f"{args.out}: {bytes_text(made.num_bytes)} in {count(made.files, 'file')}, of {bytes_text(made.source_bytes)}"
        f"{resumed}, {made.seconds:.1f} s"
    )
    return 0


def _token_ids(model: str, file: str, count: int) -> list[int]:
    """Returns the first tokens of a text file.

    Raises:
        longcat.Error: there is no tokenizer, or the file is no text.
        ValueError: the text is too short for a calibration.
    """
    from longcat.request.tokenizer import Tokenizer
    from longcat.support.files import read_text

    text = read_text(file, "[convert] --calibrate", _MAX_TEXT_BYTES)
    ids = Tokenizer(model).encode(text)[: max(0, count)]
    if len(ids) < _MIN_TOKENS:
        raise ValueError(f"--calibrate {file} gives {len(ids)} tokens: expected at least {_MIN_TOKENS}")
    return ids
