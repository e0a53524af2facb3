"""Keeps the checkpoints that engines made of files in other formats, so that each file is converted once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longcat._core import Error
from longcat.checkpoint.sources.importing import import_weights
from longcat.checkpoint.sources.opening import open_source
from longcat.support.text import bytes_text

_VERSION = 1  # of the formats that are written: a change makes all files be converted again


def cached_checkpoint(path: str) -> str:
    """The checkpoint folder of a file in another format, made at the first call.

    It lies in $XDG_CACHE_HOME/longcat, under the file's name and a hash of its name, size and time of change. Another
    process that makes the same folder is waited for. A line on standard error tells of the work.

    Raises:
        longcat.Error: the file is damaged, or the folder does not fit on the disk.
    """
    source = open_source(path)
    if source is None:
        raise ValueError(f"{path} is in no other format")
    key = hashlib.sha256(json.dumps([_VERSION, source.identity]).encode()).hexdigest()[:12]
    target = _cache_folder() / f"{Path(path).stem}-{key}"
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _alone(target.with_name(f"{target.name}.lock")):
                if not target.exists():
                    size = sum(tensor.num_bytes for tensor in source.tensors().values())
                    print(f"[gguf] converting {path} ({bytes_text(size)}) once, into {target}", file=sys.stderr)
                    import_weights(source, target)
    except OSError as error:
        raise Error(
            f"[gguf] {error.filename or target}: {error.strerror or error}. Set XDG_CACHE_HOME, or run longcat convert "
            f"{path} FOLDER"
        ) from None
    return str(target)


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "longcat"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits for the lock on `path`, which ends with its process."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
