"""int4 weights rounded so that a layer's outputs change least, not its weights (GPTQ, Frantar et al. 2022,
arXiv:2210.17323, algorithm 1, columns in their order).

Columns are rounded one after the other; what one loses, those that follow make up for, as far as the inputs of a
calibration text go together. Scales are searched for each 32 columns when their turn comes.
"""

from __future__ import annotations

import numpy as np

import longcat._core as _core

BLOCK = 32  # columns that share a scale
_DAMPING = 0.1  # of the moments' mean diagonal: holds back what a short text seems to say


def round_int4(weight: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds a matrix to int4 for inputs like those of a text.

    Args:
        weight: [out_features, in_features].
        moments: [in_features, in_features], X^T X of inputs X [tokens, in_features].
    Returns:
        q [out_features, in_features] int8 in [-8, 7], and scales [out_features, ceil(in_features / 32)] float32 that
        bf16 holds exactly; the matrix is q times the scale of each 32 columns.
    """
    out_features, in_features = weight.shape
    propagation = _propagation(moments)
    columns = np.ascontiguousarray(weight.T, dtype=np.float32)  # [in, out]: what is not rounded yet makes up
    q = np.empty((in_features, out_features), np.int8)
    scales = np.empty((out_features, -(-in_features // BLOCK)), np.float32)
    for begin in range(0, in_features, BLOCK):
        end = min(begin + BLOCK, in_features)
        values = np.zeros((out_features, BLOCK), np.float32)
        values[:, : end - begin] = columns[begin:end].T
        scale = _core.search_int4_scales(values)
        scales[:, begin // BLOCK] = scale
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
        lost = np.empty((end - begin, out_features), np.float32)
        for k in range(begin, end):
            rounded = np.rint(columns[k] * inverse).clip(-8, 7)
            q[k] = rounded
            lost[k - begin] = (columns[k] - rounded * scale) / propagation[k, k]
            columns[k + 1 : end] -= propagation[k, k + 1 : end, None] * lost[k - begin]
        columns[end:] -= propagation[begin:end, end:].T @ lost
    return np.ascontiguousarray(q.T), scales


def _propagation(moments: np.ndarray) -> np.ndarray:
    """The upper triangular U with U^T U = (moments + damping)^-1: row k says what the loss of column k means for those
    after it."""
    h = moments.astype(np.float64)
    h[np.diag_indices_from(h)] += _DAMPING * np.mean(np.diag(h)) or 1.0  # inputs that are all zero ask for nothing
    upper = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]  # h = upper upper^T
    return np.linalg.inv(upper).astype(np.float32)
