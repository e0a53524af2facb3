"""`longcat convert`: writes a checkpoint in the formats that the CPU kernels read."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from longcat.cli.progress import ByteBar

if TYPE_CHECKING:
    from longcat.checkpoint.convert import Converted
    from longcat.checkpoint.sources.importing import Imported
    from longcat.checkpoint.sources.source import WeightSource

_MIN_TOKENS = 1024
_MAX_TEXT_BYTES = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from longcat.checkpoint.convert import COMPONENTS, PRESETS
    from longcat.checkpoint.formats import formats_of

    parser.add_argument("model", metavar="PATH", help="checkpoint folder, or a GGUF file")
    parser.add_argument("out", metavar="OUT", help="folder to make; must not exist, or be empty")
    parser.add_argument(
        "--quant",
        choices=PRESETS,
        help="int4 (4.5 bits a weight, 8.5 in head and embedding: the smallest), int8 (8.5 bits) or bf16 (the same "
        "values, faster to read). A GGUF file needs none: each tensor gets the nearest format that keeps its error",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="text like yours, for which int4 is rounded (default: one that comes with longcat; none: no text, which "
        "is faster and far worse)",
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
        formats = formats_of(component)
        parser.add_argument(f"--{component}", choices=formats, help=f"another format for {what[component]}")


def run(args: argparse.Namespace) -> int:
    from longcat.checkpoint.convert import COMPONENTS, PRESETS
    from longcat.checkpoint.sources.opening import open_source

    formats = {c: getattr(args, c) for c in COMPONENTS if getattr(args, c)}
    if args.quant:
        formats = PRESETS[args.quant] | formats
    source = open_source(args.model)
    try:
        with ByteBar("converting") as bar:
            return _import(source, args, formats, bar) if source else _convert(args, formats, bar)
    except KeyboardInterrupt:
        print(f"[stopped; the same command goes on from {args.out}.partial]", file=sys.stderr)
        return 130


def _convert(args: argparse.Namespace, formats: Mapping[str, str], bar: ByteBar) -> int:
    from longcat.checkpoint.calibration.texts import default_token_ids
    from longcat.checkpoint.convert import convert_checkpoint

    if not args.quant:
        raise ValueError("--quant is missing; expected bf16, int8 or int4")
    calibration = None
    if args.calibrate not in (None, "none"):
        calibration = _token_ids(args.model, args.calibrate, args.calibration_tokens)
    if args.calibrate is None and formats["core"] == "int4":
        if os.path.exists(os.path.join(args.model, "tokenizer.json")):
            calibration = default_token_ids(args.model)[: max(0, args.calibration_tokens)]
        else:
            bar.print(f"{args.model} has no tokenizer.json: int4 is rounded without a text")
    made = convert_checkpoint(
        args.model, args.out, formats, calibration=calibration, progress=bar.update, log=bar.print
    )
    bar.print(_summary(args.out, made))
    return 0


def _import(source: WeightSource, args: argparse.Namespace, formats: Mapping[str, str], bar: ByteBar) -> int:
    from longcat.checkpoint.sources.importing import import_weights
    from longcat.support.text import count

    if args.calibrate not in (None, "none"):
        raise ValueError(
            f"--calibrate needs a checkpoint in the Hugging Face layout; found {args.model}, which is quantised "
            "already. Leave it out"
        )
    made = import_weights(source, args.out, formats, progress=bar.update)
    for note in made.notes:
        bar.print(f"{args.model}: {note}")
    for (read, written), added in made.added.items():
        error = f"adds a relative RMS error of {100 * added.relative:.3f} %" if added.error else "exact"
        bar.print(f"{read} -> {written}: {error} ({count(added.tensors, 'tensor')})")
    bar.print(_summary(args.out, made))
    return 0


def _summary(out: str, made: Converted | Imported) -> str:
    from longcat.support.text import bytes_text, count

    resumed = f", {count(made.resumed_files, 'file')} found finished" if made.resumed_files else ""
    return (
        f"{out}: {bytes_text(made.num_bytes)} in {count(made.files, 'file')}, of {bytes_text(made.source_bytes)}"
        f"{resumed}, {made.seconds:.1f} s"
    )


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
