"""Finds the reader of a file or folder in another format."""

from __future__ import annotations

import os

from longcat._core import Error
from longcat.checkpoint.sources.gguf.model import GgufModel
from longcat.checkpoint.sources.quantized.opening import open_quantized
from longcat.checkpoint.sources.source import WeightSource

_GGUF = b"GGUF"


def open_source(path: str | os.PathLike[str]) -> WeightSource | None:
    """The reader of `path`; None for a folder that `convert_checkpoint` reads.

    Raises:
        longcat.Error: the file or folder is damaged, holds another model, or is quantised in an unknown way.
    """
    return GgufModel(path) if is_gguf(path) else open_quantized(path)


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a regular file with the name or the first bytes of GGUF."""
    if not os.path.isfile(path):
        return False
    if os.fspath(path).endswith(".gguf"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(len(_GGUF)) == _GGUF
    except OSError:
        return False


def refuse_gguf(path: str | os.PathLike[str], command: str) -> None:
    """Raises longcat.Error for a GGUF file, which `command` does not read."""
    if is_gguf(path):
        name = os.fspath(path)
        raise Error(
            f"[{command}] {name} is a GGUF file; expected a checkpoint folder. Make one: longcat convert {name} FOLDER"
        )
