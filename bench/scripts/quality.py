"""Measures the quality that a format costs: perplexity, exact tool calls, and agreement with the original weights.

python bench/scripts/quality.py examples/longcat-tiny heldout.json tool_calls.json [--formats bf16 int8 int4 ...]
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
from longcat.checkpoint.convert import COMPONENTS, PRESETS, convert_checkpoint

# The presets, and each component alone in few bits, to see which one costs quality.
ALONE = {f"{c} {q}": {c: q} for q in ("int8", "int4") for c in COMPONENTS}
# The checkpoint as it is, with the latent cache in fewer bits.
LATENTS = {f"latents {dtype}": dtype for dtype in ("f32", "bf16", "fp8", "int8")}


def measure(
    model: Path, texts: list[list[int]], tools: list[dict[str, Any]], original: list[np.ndarray] | None,
    kv_cache_dtype: str = "auto",
):  # fmt: skip
    """Returns (nats a token, exact tool calls, share of greedy tokens as in `original`, greedy tokens of each text)."""
    nats = count = exact = 0
    best = []
    with longcat.Engine(model, enable_prefix_caching=False, kv_cache_dtype=kv_cache_dtype) as engine:
        for ids in texts:
            logits = engine.forward(ids)
            rows = logits[:-1].astype(np.float64)
            rows -= rows.max(axis=1, keepdims=True)
            logprobs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
            nats -= logprobs[np.arange(len(ids) - 1), ids[1:]].sum()
            count += len(ids) - 1
            best.append(logits.argmax(axis=1))
        prompts = [engine.encode(case["prompt"]) for case in tools]
        completions = engine.generate(
            prompt_token_ids=prompts, max_tokens=200, temperature=0, repetition_penalty=1, skip_special_tokens=False
        )
        for case, completion in zip(tools, completions, strict=True):
            exact += completion.text.split("</longcat_s>")[0] == case["expected_text"].split("</longcat_s>")[0]
    same = np.mean(np.concatenate(best) == np.concatenate(original)) if original else 1.0
    return nats / count, exact, same, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, help='JSON with a list of {"text": ...}')
    parser.add_argument("tools", type=Path, help='JSON with a list of {"prompt": ..., "expected_text": ...}')
    parser.add_argument("--formats", nargs="+", default=[*PRESETS, *ALONE, *LATENTS])
    parser.add_argument("--calibrate", type=Path, help="a text to round int4 for")
    args = parser.parse_args()
    with longcat.Engine(args.model) as engine:
        texts = [engine.encode(entry["text"]) for entry in listed(args.texts)]
        calibration = engine.encode(args.calibrate.read_text())[:16384] if args.calibrate else None
        size = sum(shard[1] for shard in longcat._core.Checkpoint(str(args.model)).shards())
    tools = listed(args.tools)
    nats, exact, _, original = measure(args.model, texts, tools, None)
    print(f"{len(texts)} texts, {sum(map(len, texts))} tokens, {len(tools)} tool calls\n")
    print("| format | MB | perplexity | change | tool calls exact | top-1 as the original |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| original | {size / 1e6:.1f} | {math.exp(nats):.4f} | | {exact} | |")
    for name in args.formats:
        with tempfile.TemporaryDirectory() as folder:
            out, num_bytes = args.model, size
            if name not in LATENTS:
                out, formats = Path(folder) / "model", PRESETS.get(name) or ALONE[name]
                num_bytes = convert_checkpoint(args.model, out, formats, calibration=calibration).num_bytes
            found, exact, same, _ = measure(out, texts, tools, original, LATENTS.get(name, "auto"))
        change = math.expm1(found - nats)
        print(
            f"| {name} | {num_bytes / 1e6:.1f} | {math.exp(found):.4f} | {change:+.2%} | {exact} | {same:.2%} |",
            flush=True,
        )


def listed(path: Path) -> list[dict[str, Any]]:
    """The only list in a JSON file."""
    return next(value for value in json.loads(path.read_text()).values() if isinstance(value, list))


if __name__ == "__main__":
    main()
