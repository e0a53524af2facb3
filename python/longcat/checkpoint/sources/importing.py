"""Writes a checkpoint of ours from a source in another format, row by row."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from longcat.checkpoint.sources.source import WeightSource
from longcat.checkpoint.writer import MAX_SHARD_BYTES


@dataclass
class Imported:
    """The written files, the time they took, and what rounding added."""

    num_bytes: int  # of all safetensors files
    source_bytes: int
    files: int
    resumed_files: int  # complete from an earlier run
    seconds: float
    errors: dict[tuple[str, str], float]  # (format of the source, format written) -> relative RMS error added; 0: exact


def import_weights(
    source: WeightSource,
    out: str | os.PathLike[str],
    formats: Mapping[str, str] | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Writes the checkpoint of a source. An interrupted run continues, as `convert_checkpoint`.

    Args:
        source: the reader of the other format.
        out: must not exist, or be empty.
        formats: component -> "keep", "bf16", "int8" or "int4", as `convert_checkpoint` takes. None or "keep": each
            tensor in the nearest format that keeps its error, which is exact for grids and floats.
        max_shard_bytes: maximum tensor bytes per file.
        progress: called with (bytes done, total bytes) of the source.
    Raises:
        longcat.Error: the source is damaged, `out` is not empty, another process writes to it, or the disk is too
            small.
        ValueError: a component or format is unknown.
    """
    raise NotImplementedError
