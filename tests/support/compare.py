"""Comparison of arrays by row."""

import numpy as np


def assert_rows_close(found, expected, tolerance: float) -> None:
    """Each element's error is at most `tolerance` times the largest magnitude of its row; prints the worst place."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.isfinite(found).all(), f"{np.sum(~np.isfinite(found))} values are not finite"
    scale = np.maximum(np.abs(expected).max(axis=-1, keepdims=True), 1e-30)
    error = np.abs(found - expected) / scale
    place = np.unravel_index(error.argmax(), error.shape)
    assert error.max() <= tolerance, (
        f"at {place}: {found[place]}, expected {expected[place]}, error {error.max():.2e} of the row"
    )
