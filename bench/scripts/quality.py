"""Measures the quality that a format costs: perplexity, exact tool calls, and agreement with the original weights.

python bench/scripts/quality.py examples/longcat-tiny heldout.json tool_calls.json [--formats bf16 int8 int4 ...]

Where the core is int4, it is rounded for a text, and the perplexity of that text is printed beside the others.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import longcat
import numpy as np
from longcat.checkpoint.calibration.texts import default_token_ids
from longcat.checkpoint.convert import COMPONENTS, PRESETS, convert_checkpoint

# The presets, and each component alone in few bits, to see which one costs quality.
MIXED = {"int4, head int4": PRESETS["int4"] | {"head": "int4"}}
NO_TEXT = ", no text"  # ends the name of a format whose weights are rounded one by one
ALONE = {f"{c} {q}": {c: q} for q in ("int8", "int4") for c in COMPONENTS} | {"tables fp8": {"tables": "fp8"}}
# The checkpoint as it is, with the latent cache in fewer bits.
LATENTS = {f"latents {dtype}": dtype for dtype in ("f32", "bf16", "fp8", "int8")}


def nats_per_token(engine: longcat.Engine, texts: list[list[int]]) -> tuple[float, list[np.ndarray]]:
    """The mean over all tokens but the first of each text, and the greedy token after each token."""
    nats = count = 0
    best = []
    for ids in texts:
        logits = engine.forward(ids)
        rows = logits[:-1].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        logprobs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        nats -= logprobs[np.arange(len(ids) - 1), ids[1:]].sum()
        count += len(ids) - 1
        best.append(logits.argmax(axis=1))
    return nats / count, best


def measure(
    model: Path, texts: list[list[int]], calibration: list[list[int]], tools: list[dict[str, Any]],
    original: list[np.ndarray] | None, kv_cache_dtype: str = "auto",
):  # fmt: skip
    """Returns nats a token of the texts and of the calibration text, exact tool calls, greedy share, greedy tokens."""
    exact = 0
    with longcat.Engine(model, enable_prefix_caching=False, kv_cache_dtype=kv_cache_dtype) as engine:
        nats, best = nats_per_token(engine, texts)
        of_calibration, _ = nats_per_token(engine, calibration)
        prompts = [engine.encode(case["prompt"]) for case in tools]
        completions = engine.generate(
            prompt_token_ids=prompts, max_tokens=200, temperature=0, repetition_penalty=1, skip_special_tokens=False
        )
        for case, completion in zip(tools, completions, strict=True):
            exact += completion.text.split("</longcat_s>")[0] == case["expected_text"].split("</longcat_s>")[0]
    same = np.mean(np.concatenate(best) == np.concatenate(original)) if original else 1.0
    return nats, of_calibration, exact, same, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, help='JSON with a list of {"text": ...}')
    parser.add_argument("tools", type=Path, help='JSON with a list of {"prompt": ..., "expected_text": ...}')
    parser.add_argument(
        "--formats", nargs="+", default=[*PRESETS, f"int4{NO_TEXT}", *MIXED, *ALONE, f"core int4{NO_TEXT}", *LATENTS]
    )
    parser.add_argument("--calibrate", type=Path, help="a text to round int4 for (default: longcat's own)")
    args = parser.parse_args()
    with longcat.Engine(args.model) as engine:
        texts = [engine.encode(entry["text"]) for entry in listed(args.texts)]
        calibration = engine.encode(args.calibrate.read_text())[:16384] if args.calibrate else None
    if calibration is None:
        calibration = default_token_ids(args.model)
    parts = [calibration[i : i + 512] for i in range(0, len(calibration) - 1, 512)]
    size = sum(shard[1] for shard in longcat._core.Checkpoint(str(args.model)).shards())
    tools = listed(args.tools)
    nats, own, exact, _, original = measure(args.model, texts, parts, tools, None)
    print(f"{len(texts)} texts, {sum(map(len, texts))} tokens; {len(calibration)} of calibration; {len(tools)} calls\n")
    print("| format | MB | perplexity | change | calibration text | tool calls exact | top-1 as the original |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(f"| original | {size / 1e6:.1f} | {math.exp(nats):.4f} | | {math.exp(own):.4f} | {exact} | |", flush=True)
    for name in args.formats:
        with tempfile.TemporaryDirectory() as folder:
            out, num_bytes = args.model, size
            if name not in LATENTS:
                out, formats = Path(folder) / "model", (PRESETS | MIXED | ALONE)[name.removesuffix(NO_TEXT)]
                ids = calibration if formats.get("core") == "int4" and not name.endswith(NO_TEXT) else None
                num_bytes = convert_checkpoint(args.model, out, formats, calibration=ids).num_bytes
            found, found_own, exact, same, _ = measure(out, texts, parts, tools, original, LATENTS.get(name, "auto"))
        change, own_change = math.expm1(found - nats), math.expm1(found_own - own)
        print(
            f"| {name} | {num_bytes / 1e6:.1f} | {math.exp(found):.4f} | {change:+.2%} | {own_change:+.2%} | {exact} "
            f"| {same:.2%} |",
            flush=True,
        )


def listed(path: Path) -> list[dict[str, Any]]:
    """The only list in a JSON file."""
    return next(value for value in json.loads(path.read_text()).values() if isinstance(value, list))


if __name__ == "__main__":
    main()
