"""Allows one writer per folder at a time.

The lock is a kernel lock (flock) on a file in the folder, so it ends with its process, even a killed one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import warnings
from pathlib import Path

from longcat._core import Error

LOCK_FILE = ".longcat.lock"
# Errors of file systems without flock, such as Lustre mounted without it.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
# Other writers may rename the folder between two steps, but not as often as this.
_MOST_TRIES = 100


class FolderLock:
    """An exclusive lock on a folder for writing, until `release`.

    The folder may be renamed while the lock is held; `release` then takes its new name.

    Args:
        command: opens the messages.
        folder: created when it does not exist.
    Raises:
        longcat.Error: another process or thread holds the lock.
        OSError: the folder cannot be written.
    """

    def __init__(self, command: str, folder: Path):
        self.created = False
        for tries in range(1, _MOST_TRIES + 1):
            self.created = _make(folder) or self.created
            path = folder / LOCK_FILE
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # another writer has just renamed the folder, or it holds no files, as in /proc
                if tries == _MOST_TRIES:
                    raise
                continue
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._file)
                raise Error(
                    f"[{command}] another process is writing {folder}; expected one writer at a time. "
                    "Wait until it ends"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(self._file)
                    raise
                warnings.warn(
                    f"[{command}] the file system of {folder} has no locks: do not start another writer", stacklevel=3
                )
            if _is_at(self._file, path):
                return
            os.close(self._file)  # another writer has removed this file, and a new one may be locked by now
        raise OSError(errno.EAGAIN, f"other writers remove {LOCK_FILE} again and again")

    def release(self, folder: Path) -> None:
        """Removes the lock file from `folder`, which releases the lock."""
        if self._file < 0:
            return
        path = folder / LOCK_FILE
        if _is_at(self._file, path):
            path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1


def _make(folder: Path) -> bool:
    if folder.is_dir():
        return False
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if folder.is_dir():  # another writer was faster
            return False
        raise
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    held = os.fstat(file)
    return (held.st_dev, held.st_ino) == (found.st_dev, found.st_ino)
