"""Measures what fp8 costs on the emulated GPU: perplexities of a checkpoint in bf16, with fp8 experts, and all in fp8.

python bench/scripts/fp8_quality.py examples/longcat-tiny

Tokens are read as a prompt and as generated tokens, whose arithmetic differs. Only layers of whole blocks of 128 x 128
take prompts as fp8, so a smaller model is padded first: zeros behind its values, which change no result in exact
arithmetic. It needs longcat._testing (CONTRIBUTING.md, Build).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from pathlib import Path

import numpy as np
from longcat import _core
from longcat import _testing as testing
from longcat.checkpoint.calibration.texts import default_token_ids
from longcat.checkpoint.writer import header

BLOCK = 128
CHUNK = 512  # tokens of a text
DEVICES = {"prompt": ("cuda-emulated-fp8", 0), "generated": ("cuda-emulated-fp8", 1)}


def values_of(raw: bytes, dtype: str, shape: list[int]) -> np.ndarray:
    if dtype == "F32":
        return np.frombuffer(raw, "<f4").reshape(shape)
    bits = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(shape)


def padded_size(size: int, multiple: int = BLOCK) -> int:
    return -(-size // multiple) * multiple


def pad(folder: Path, out: Path) -> None:
    """Writes a bf16 checkpoint whose widths are multiples of 128, without its MTP layer, as f32."""
    config = json.loads((folder / "config.json").read_text())
    old = dict(config)
    tables = (config["emb_neighbor_num"] - 1) * config["emb_split_num"]
    config["hidden_size"] = padded_size(old["hidden_size"], math.lcm(BLOCK, tables))
    for width in ("q_lora_rank", "kv_lora_rank", "ffn_hidden_size", "expert_ffn_hidden_size"):
        config[width] = padded_size(old[width])
    # A norm's mean has more values: eps and weights make up for it. Those of the inner norms keep their eps of 1e-6.
    config["rms_norm_eps"] = old["rms_norm_eps"] * old["hidden_size"] / config["hidden_size"]
    shapes = {name: shape for name, shape, _ in _core.expected_tensors(json.dumps(config))}
    checkpoint = _core.Checkpoint(str(folder))
    files = [(folder / path).read_bytes() for path, _ in checkpoint.shards()]
    arrays = {}
    for name, dtype, shape, shard, begin, end in checkpoint.tensors():
        if name not in shapes:
            continue
        values = values_of(files[shard][begin:end], dtype, list(shape))
        if name.endswith("kv_a_proj_with_mqa.weight"):  # latent values, then those of RoPE
            latent, rope = values[: old["kv_lora_rank"]], values[old["kv_lora_rank"] :]
            gap = np.zeros((config["kv_lora_rank"] - len(latent), values.shape[1]), np.float32)
            values = np.concatenate([latent, gap, rope])
        if values.ndim == 1 and "norm" in name:
            values = values * norm_factor(name, old, config)
        widths = [(0, new - size) for new, size in zip(shapes[name], values.shape, strict=True)]
        arrays[name] = np.pad(values, widths).astype("<f4")
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    with open(out / "model.safetensors", "wb") as stream:
        stream.write(header((name, "F32", array.shape, array.nbytes) for name, array in arrays.items()))
        for array in arrays.values():
            stream.write(array.tobytes())


def norm_factor(name: str, old: dict[str, int], new: dict[str, int]) -> float:
    found = re.search(r"(q|kv)_a_layernorm", name)
    width = "hidden_size" if found is None else f"{found[1]}_lora_rank"
    factor = math.sqrt(old[width] / new[width])
    if found is not None and old.get(f"mla_scale_{found[1]}_lora", True):  # the engine scales by both sizes
        factor *= math.sqrt(old["hidden_size"] / old[width] * new[width] / new["hidden_size"])
    return factor


def nats_per_token(folder: str, device: str, generated: int, quantization: str, ids: list[int]) -> float:
    model = testing.DeviceModel(folder, device, max_tokens=CHUNK, num_blocks=CHUNK // 64 + 1, quantization=quantization)
    nats = count = 0
    for begin in range(0, len(ids) - 1, CHUNK):
        part = ids[begin : begin + CHUNK]
        if len(part) < 2:
            break
        rows = model.forward([(list(range(1, CHUNK // 64 + 1)), 0, part)], num_generated=generated)[:-1]
        rows = rows.astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        logprobs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        nats -= logprobs[np.arange(len(part) - 1), part[1:]].sum()
        count += len(part) - 1
    return nats / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=8192, help="of longcat's own calibration text (default 8192)")
    args = parser.parse_args()
    ids = default_token_ids(args.model)[: args.tokens]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "padded"
        pad(args.model, folder)
        exact = [nats_per_token(str(path), "cpu", 0, "", ids) for path in (args.model, folder)]
        print(f"{len(ids)} tokens; on the CPU {math.exp(exact[0]):.4f}, padded {math.exp(exact[1]):.4f}\n")
        print("| weights | prompt tokens | change | generated tokens | change |\n| --- | --: | --: | --: | --: |")
        first: dict[str, float] = {}
        for name, quantization in (("bf16", ""), ("fp8-experts", "fp8-experts"), ("fp8", "fp8")):
            cells = []
            for kind, (device, generated) in DEVICES.items():
                nats = nats_per_token(str(folder), device, generated, quantization, ids)
                first.setdefault(kind, nats)
                cells += [f"{math.exp(nats):.4f}", f"{math.expm1(nats - first[kind]):+.2%}" if quantization else ""]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
