"""kv_b_proj from the two stacks of heads that MLX stores in place of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longcat._core import Error
from longcat.checkpoint.sources.quantized.matrix import Matrix


class JoinedHeads:
    """kv_b_proj [heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank].

    Args:
        keys: embed_q of each head, [kv_lora_rank, qk_nope_head_dim].
        values: unembed_out of each head, [v_head_dim, kv_lora_rank].
        sizes: kv_lora_rank, qk_nope_head_dim, v_head_dim.
    """

    grid = None

    def __init__(self, keys: Sequence[Matrix], values: Sequence[Matrix], sizes: tuple[int, int, int]):
        self._keys, self._values, self._sizes = keys, values, sizes
        self.format = f"{keys[0].format}, by heads"
        self.num_bytes = sum(matrix.num_bytes for matrix in (*keys, *values))
        self.dtype = keys[0].dtype if keys[0].dtype == values[0].dtype else None

    def rows(self, begin: int, end: int) -> np.ndarray:
        rank, nope, value = self._sizes
        of_head = nope + value
        first, last = begin // of_head, -(-end // of_head)
        parts: list[np.ndarray] = []
        for head in range(first, last):
            parts += [self._keys[head].rows(0, rank).T, self._values[head].rows(0, value)]
        return np.concatenate(parts)[begin - first * of_head : end - first * of_head]

    def grid_rows(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        raise Error(f"[internal] {self.format} has no grid")
