"""GPTQ: int4 weights rounded for the least change of a layer's outputs (Frantar et al. 2022, arXiv:2210.17323).

This is algorithm 1 of the paper, with columns in their order. Each column is rounded in turn, and the later columns
compensate its error, as far as the inputs of a calibration text correlate. The scale of 32 columns is searched when
the first of them is reached.
"""

from __future__ import annotations

import numpy as np

import longcat._core as _core

BLOCK = 32  # columns that share a scale
_DAMPING = 0.1  # relative to the moments' mean diagonal; limits the influence of a short text


def round_int4(weight: np.ndarray, propagation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds a matrix to int4 for inputs like those of a text. Each row is rounded alone, so rows may come in parts.

    Args:
        weight: [out_features, in_features].
        propagation: [in_features, in_features], of error_propagation().
    Returns:
        q [out_features, in_features] int8 in [-8, 7], and scales [out_features, ceil(in_features / 32)] float32, which
        are exact in bf16. The matrix is q times the scale of each 32 columns.
    """
    out_features, in_features = weight.shape
    columns = np.ascontiguousarray(weight.T, dtype=np.float32)  # [in, out]; the columns not rounded yet are adjusted
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


def error_propagation(moments: np.ndarray) -> np.ndarray:
    """The upper triangular U with U^T U = (moments + damping)^-1.

    Row k distributes the error of column k to the later columns.

    Args:
        moments: [in_features, in_features], X^T X of inputs X [tokens, in_features].
    Returns:
        [in_features, in_features] float32.
    """
    h = moments.astype(np.float64)
    h[np.diag_indices_from(h)] += _DAMPING * np.mean(np.diag(h)) or 1.0  # 1.0 when all inputs are zero
    upper = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]  # h = upper upper^T
    return _inverse_of_upper(upper).astype(np.float32)


def _inverse_of_upper(u: np.ndarray) -> np.ndarray:
    """The inverse of an upper triangular matrix by halves, which is faster than the inverse of any matrix."""
    n, half = len(u), len(u) // 2
    if n <= 128:
        return np.linalg.inv(u)
    inverse = np.zeros_like(u)
    inverse[:half, :half] = _inverse_of_upper(u[:half, :half])
    inverse[half:, half:] = _inverse_of_upper(u[half:, half:])
    inverse[:half, half:] = -inverse[:half, :half] @ u[:half, half:] @ inverse[half:, half:]
    return inverse
