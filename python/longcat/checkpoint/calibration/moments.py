"""Second moments of the inputs of a model's matrices over a calibration text."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import longcat._core as _core
from longcat.support.files import read_json

_SEQUENCE = 512  # tokens per sequence; only these attend to each other
_STEP = 4096  # tokens per step; each step reads all weights
_MIN_MEMORY = 2 << 30  # [bytes] for moments, assumed to be available


def check_text(folder: str | os.PathLike[str], token_ids: Sequence[int]) -> None:
    """Checks the token ids of a calibration text.

    Raises:
        ValueError: there is no token, or a token is not in the vocabulary.
    """
    vocab_size = read_json(Path(folder) / "config.json", "[config]")["vocab_size"]
    if bad := [id for id in token_ids if not 0 <= id < vocab_size]:
        raise ValueError(f"calibration has token {bad[0]}; expected ids from 0 to {vocab_size - 1}")
    if not token_ids:
        raise ValueError("calibration has no tokens; expected a text, or None")


class InputMoments:
    """X^T X of the inputs X of a checkpoint's matrices, over all tokens of a text.

    A quarter of the available memory holds moments: 300 MB for the inputs of each attention and its dense layer in
    LongCat-Flash-Lite. The text is read again for each group of matrices that fits.

    Args:
        folder: of the checkpoint, which the CPU runs whatever its size.
        token_ids: the text; see check_text.
        widths: tensor name -> input width, in the order in which the moments will be requested.
        log: called with a line before each pass over the text.
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
        """[in_features, in_features] float32, or None for a matrix whose inputs are only some of the text's tokens."""
        if name not in self._widths:
            return None
        source = _source(name)
        if source not in self._moments:
            self._read(list(self._widths)[list(self._widths).index(name) :])
        return self._moments[source]

    def _read(self, names: list[str]) -> None:
        """Computes the moments of as many of `names` as fit, and drops the earlier ones."""
        self._moments = {}  # frees the old ones before the memory is counted
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
    """The matrix under which the moments of `name` are stored: up_proj has the input of gate_proj."""
    return name.replace(".up_proj.", ".gate_proj.")
