"""Converts a GGUF file of random blocks and prints the speed and the peak of memory.

python bench/scripts/gguf_import.py build/m.gguf --gigabytes 4 --types q4_K_M

The file has layers of the shape of LongCat-Flash-Lite, and is made unless it is there. The conversion runs in a process
of its own, for its peak of memory.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from support.gguf_files import CONFIG, TYPES, blocks, header, shapes  # noqa: E402

LITE = CONFIG | {
    **{"context_length": 327680, "embedding_length": 3072, "attention.head_count": 32, "vocab_size": 131072},
    **{"feed_forward_length": 6144, "expert_feed_forward_length": 1024, "expert_count": 256, "expert_zero_count": 128},
    **{"expert_used_count": 12, "attention.q_lora_rank": 1536, "attention.kv_lora_rank": 512},
    **{"attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64},
    **{"ngram.neighbor_num": 4, "rope.freq_base": 5e6, "rope.scaling.original_context_length": 32768},
}
# File type -> types of its tensors, by parts of their names; the first that fits.
FILES = {
    "q8_0": {"": "Q8_0"},
    "q4_0": {"": "Q4_0"},
    "q4_K_M": {"ffn_down": "Q6_K", "attn_k_b": "Q5_0", "output.weight": "Q6_K", "": "Q4_K"},
    "q3_K": {"attn_k_b": "Q5_0", "output.weight": "Q6_K", "": "Q3_K"},
    "bf16": {"": "BF16"},
}
POOL_VALUES = 1 << 24
CONVERT = """
import resource, sys
from longcat.checkpoint.sources.gguf.model import GgufModel
from longcat.checkpoint.sources.importing import import_weights
made = import_weights(GgufModel(sys.argv[1]), sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(f"{made.source_bytes / 1e9:.2f} GB in {made.seconds:.1f} s: {made.source_bytes / made.seconds / 1e6:.0f} MB/s, "
      f"peak memory {peak / 1e9:.2f} GB, {made.num_bytes / 1e9:.2f} GB written")
for (read, written), added in made.added.items():
    print(f"  {read} -> {written}: {added.tensors} tensors, adds {100 * added.relative:.3f} %")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size, by the number of rows of the N-gram tables")
    parser.add_argument("--types", choices=FILES, default="q4_K_M")
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    if not args.file.exists():
        make(args.file, args.gigabytes * 1e9, args.types, args.layers)
    out = args.file.with_name(args.file.name + ".converted")
    try:
        subprocess.run([sys.executable, "-c", CONVERT, args.file, out], check=True)
    finally:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(f"{out}.partial", ignore_errors=True)


def make(path: Path, num_bytes: float, types: str, layers: int) -> None:
    """Writes a file of about `num_bytes`, but at least of one N-gram row a token id."""
    for ratio in range(1, 200):
        config = LITE | {"block_count": 2 * layers, "ngram.vocab_size_ratio": ratio}
        tensors = [(name, type_of(name, shape, types), shape) for name, shape in shapes(config, False, False).items()]
        if sum(size(kind, shape) for _, kind, shape in tensors) >= num_bytes:
            break
    offset, entries = 0, []
    for name, kind, shape in tensors:
        entries.append((name, TYPES[kind][0], tuple(reversed(shape)), offset))
        offset += -(-size(kind, shape) // 32) * 32
    arch = "longcat-flash-ngram"
    head = header({"general.architecture": arch} | {f"{arch}.{key}": item for key, item in config.items()}, entries)
    rng = np.random.default_rng(0)
    pools = {kind: blocks(rng, kind, POOL_VALUES) for kind in {kind for _, kind, _ in tensors}}
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % 32))
        for _, kind, shape in tensors:
            left = size(kind, shape)
            padding = bytes(-left % 32)
            while left:
                file.write(pools[kind][:left])
                left -= min(left, len(pools[kind]))
            file.write(padding)


def type_of(name: str, shape: tuple[int, ...], types: str) -> str:
    if len(shape) == 1 or "gate_inp" in name:
        return "F32"
    kind = next(kind for part, kind in FILES[types].items() if part in name)
    return "Q4_0" if TYPES[kind][1] > shape[-1] else kind


def size(kind: str, shape: tuple[int, ...]) -> int:
    _, values, num_bytes, _ = TYPES[kind]
    return math.prod(shape) // values * num_bytes


if __name__ == "__main__":
    main()
