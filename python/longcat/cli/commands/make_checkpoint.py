"""`longcat make-checkpoint`: writes random weights of any scale in the official layout."""

from __future__ import annotations

import argparse
import json
import sys

from longcat.cli.progress import ByteBar
from longcat.support.json_types import Json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from longcat.checkpoint.random_weights import PACKED, PRESETS, TABLES

    parser.add_argument("out", metavar="OUT", help="folder to make; must not exist, or be empty")
    parser.add_argument(
        "--preset",
        required=True,
        choices=PRESETS,
        help="tiny (0.3 M parameters), small (225 M), medium (3.65 B: real widths, 6 layers, 24 experts), "
        "lite (68.5 B, 137 GB: the shape of LongCat-Flash-Lite), tiny-sparse (0.3 M), or lite-sparse (68.6 B, 137 GB: "
        "the shape of LongCat-Flash-Lite-Sparse)",
    )
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "f32"], help="format of the weights (default bf16)")
    parser.add_argument(
        "--quant",
        choices=PACKED,
        help="write what `longcat convert --quant` makes of the checkpoint, without the checkpoint itself (lite in "
        "int4: 38 GB, of which 16 GB are N-gram tables)",
    )
    parser.add_argument("--tables", choices=TABLES, help="another format for the N-gram tables, with --quant")
    parser.add_argument(
        "--sparse-tables",
        action="store_true",
        help="N-gram tables of zeros that take no room on the disk, to measure speed",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same bytes (default 0)")
    parser.add_argument("--layers", type=int, help="num_layers in place of the preset's")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="fields of config.json in place of the preset's; values are JSON (--set moe_topk=4 rope_scaling=null)",
    )
    parser.add_argument("--mtp", action="store_true", help="with the multi-token-prediction layer")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="copy the tokenizer files of this folder")


def run(args: argparse.Namespace) -> int:
    from longcat.checkpoint.random_weights import preset_config, write_checkpoint
    from longcat.support.text import bytes_text, count

    fields = dict(_field(text) for text in args.set)
    if args.layers is not None:
        fields["num_layers"] = args.layers
    config = preset_config(args.preset, fields)
    with ByteBar("writing") as bar:
        try:
            made = write_checkpoint(
                args.out,
                config,
                dtype=args.dtype,
                quant=args.quant,
                tables=args.tables,
                sparse_tables=args.sparse_tables,
                seed=args.seed,
                mtp=args.mtp,
                tokenizer=args.tokenizer,
                progress=bar.update,
            )
        except KeyboardInterrupt:
            bar.print("[stopped]", sys.stderr)
            return 130
    on_disk = f" ({bytes_text(made.disk_bytes)} on the disk)" if args.sparse_tables else ""
    rate = made.disk_bytes / made.seconds / 1e6
    print(
        f"{args.out}: {made.parameters:,} parameters, {bytes_text(made.num_bytes)}{on_disk} of "
        f"{args.quant or args.dtype} in {count(made.files, 'file')}, {made.seconds:.1f} s ({rate:.0f} MB/s)"
    )
    return 0


def _field(text: str) -> tuple[str, Json]:
    """Returns the name and the value of a text such as "moe_topk=4". A value that is not JSON is a string.

    Raises:
        ValueError: there is no "=".
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f'--set {text}: expected FIELD=VALUE, as in "--set moe_topk=4"')
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
