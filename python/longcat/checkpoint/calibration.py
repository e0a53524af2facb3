"""What the matrices of a model are multiplied with while it reads a text."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import longcat._core as _core
from longcat.support.files import read_json

_SEQUENCE = 512  # tokens that see each other
_STEP = 4096  # tokens of a step: each reads all weights
_MIN_MEMORY = 2 << 30  # bytes of moments that are always taken to fit


def check_text(folder: str | os.PathLike[str], token_ids: Sequence[int]) -> None:
    """Raises:
    ValueError: there is no token, or one that is not in the vocabulary.
    """
    vocab_size = read_json(Path(folder) / "config.json", "[config]")["vocab_size"]
    if bad := [id for id in token_ids if not 0 <= id < vocab_size]:
        raise ValueError(f"calibration has token {bad[0]}: expected ids from 0 to {vocab_size - 1}")
    if not token_ids:
        raise ValueError("calibration has no tokens: expected a text, or None")


class InputMoments:
    """X^T X of the inputs X of the matrices of a checkpoint, over all tokens of a text.

    The text is read once for as many matrices as a quarter of the available memory has room for: 300 MB for the inputs
    of each attention and its dense layer in LongCat-Flash-Lite.

    Args:
        folder: of the checkpoint; read by the CPU, whatever its size.
        token_ids: the text; see check_text.
        widths: input width of each tensor that will be asked for, in that order.
        log: called with a line before the text is read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        token_ids: Sequence[int],
        widths: dict[str, int],
        log: Callable[[str], None] | None = None,
    ):
        self._token_ids = list(token_ids)
        self._observer = _core.InputObserver(os.fspath(folder), _STEP, _STEP // _SEQUENCE)
        known = set(self._observer.names())
        self._widths = {name: width for name, width in widths.items() if name in known}
        self._moments: dict[str, np.ndarray] = {}
        self._log = log or (lambda line: None)

    def of(self, name: str) -> np.ndarray | None:
        """[in_features, in_features] float32; None for a matrix that the text does not reach as a whole."""
        if name not in self._widths:
            return None
        source = _source(name)
        if source not in self._moments:
            self._read(list(self._widths)[list(self._widths).index(name) :])
        return self._moments[source]

    def _read(self, names: list[str]) -> None:
        """The moments of as many of `names` as fit, in place of those there are."""
        self._moments = {}  # the old ones go before the memory is counted
        free = max(_MIN_MEMORY, _core.available_memory() // 4)
        for name in names:
            source, size = _source(name), 4 * self._widths[name] ** 2
            if source in self._moments:
                continue
            if size > free and self._moments:
                break
            free -= size
            self._moments[source] = np.zeros((self._widths[name],) * 2, np.float32)
        self._log(f"reading {len(self._token_ids)} tokens for {len(self._moments)} inputs of {len(names)} matrices")
        for step in range(0, len(self._token_ids), _STEP):
            ids = self._token_ids[step : step + _STEP]
            sequences = [ids[begin : begin + _SEQUENCE] for begin in range(0, len(ids), _SEQUENCE)]
            self._observer.read(sequences, list(self._moments), self._add)

    def _add(self, name: str, x: np.ndarray) -> None:
        self._moments[name] += x.T @ x


def _source(name: str) -> str:
    """The matrix whose input is meant: gate_proj and up_proj have the same."""
    return name.replace(".up_proj.", ".gate_proj.")
