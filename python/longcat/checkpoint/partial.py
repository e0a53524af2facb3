"""A folder of weights that is written file by file, and that an interrupted run continues."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Generic

from longcat._core import Error
from longcat.checkpoint.card import Provenance, remove_card, write_card
from longcat.checkpoint.formats import AnyStored
from longcat.checkpoint.writer import (
    HASH_FILE,
    INDEX_FILE,
    check_new,
    check_room,
    header,
    new_shard,
    place_of,
    write_index,
)
from longcat.support.files import read_text
from longcat.support.folder_lock import LOCK_FILE, FolderLock
from longcat.support.json_types import JsonObject

# In the partial folder: source, formats and options of the run. It stays until the folder has its name, so that a run
# that is interrupted before then can be continued.
_PLAN_FILE = ".longcat.convert.json"


class PartialFolder(Generic[AnyStored]):
    """`target`.partial, locked; it becomes `target` when it is complete. For a with-statement.

    Args:
        target: must not exist, or be empty.
        plan: source and options of the run. An interrupted run is continued where its plan was the same.
        shards: file name -> tensors.
    Raises:
        longcat.Error: `target` is not empty, another process writes to it, the disk is too small or fails, or an
            interrupted run had another plan.
    """

    def __init__(self, target: Path, plan: JsonObject, shards: Mapping[str, Sequence[AnyStored]]):
        self._target, self.path = place_of(target)
        self._shards = shards
        self.num_bytes = sum(tensor.num_bytes for members in shards.values() for tensor in members)
        try:
            self._lock = self._open(plan)
        except OSError as error:
            raise self._failure(error) from None
        self._written = self.path  # the folder with the files: `target` at the end
        self.done = {file for file in shards if (self.path / file).exists()}  # by an earlier run

    def __enter__(self) -> PartialFolder[AnyStored]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release(self._written)
        if isinstance(error, OSError):
            raise self._failure(error) from None

    def write_shards(self, write: Callable[[BinaryIO, Sequence[AnyStored]], None]) -> None:
        """Writes the files that are not done. `write` appends the data of a file's tensors in their order."""
        for file, members in self._shards.items():
            if file in self.done:
                continue
            with new_shard(self.path / file) as stream:
                stream.write(header((t.name, t.dtype, t.shape, t.num_bytes) for t in members))
                write(stream, members)

    def finish(self, provenance: Provenance) -> None:
        """Writes index, model card and hashes, and renames the folder. Other files must be there by now."""
        if list(self._shards) != ["model.safetensors"]:
            names = {file: [tensor.name for tensor in members] for file, members in self._shards.items()}
            write_index(self.path, names, self.num_bytes)
        write_card(self.path, provenance)
        if self._target.exists():
            self._target.rmdir()  # empty, as _open checked
        self.path.rename(self._target)
        self._written = self._target
        (self._target / _PLAN_FILE).unlink()

    def _open(self, plan: JsonObject) -> FolderLock:
        check_new("convert", self._target)
        if not self.path.exists():
            check_room("convert", self._target, self.num_bytes, "free some, or name a folder on another disk")
        lock = FolderLock("convert", self.path)
        try:
            check_new("convert", self._target)  # again, because another run may have ended meanwhile
            if {path.name for path in self.path.iterdir()} <= {LOCK_FILE, _PLAN_FILE}:
                (self.path / _PLAN_FILE).write_text(json.dumps(plan))
                return lock
            try:
                earlier = json.loads(read_text(self.path / _PLAN_FILE, "[convert]"))
            except (Error, ValueError):
                earlier = None
            if earlier != plan:
                raise Error(
                    f"[convert] {self.path} belongs to an interrupted run with another source or other options. "
                    "Remove it"
                )
            remove_card(self.path)
            return lock
        except BaseException:
            lock.release(self.path)
            if lock.created:
                self.path.rmdir()
            raise

    def _failure(self, error: OSError) -> Error:
        return Error(f"[convert] {error.filename or self._target}: {error.strerror or error}")


def is_no_copy(name: str) -> bool:
    """Whether a file beside the weights belongs to the folder it is in: an index, hashes, a lock or a plan."""
    return name in (INDEX_FILE, HASH_FILE, LOCK_FILE, _PLAN_FILE)
