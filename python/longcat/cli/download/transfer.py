"""The transfer of files: resumed where an earlier one ended, hashed, and refused before it fills a disk."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from longcat._core import Error
from longcat.cli.download.places import Folder
from longcat.cli.download.sources import Listing, RemoteFile
from longcat.support.text import bytes_text

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 15  # without a byte [s]; also what Ctrl-C may have to wait for
_TRIES = 5  # of a file without any progress
_FILES_AT_ONCE = 4
RETRY_SECONDS = 1.0  # the wait after a lost connection, doubled each time that brings no byte


class Stopped(Exception):
    """The user ended the transfer."""


def missing_bytes(files: Sequence[RemoteFile], place: Folder) -> int:
    """Returns the bytes that a transfer of these files has to write."""
    return sum(max(0, file.size - _held(place.path(file))) for file in files)


def require_room(listing: Listing, place: Folder) -> None:
    """Raises longcat.Error when the disk has no room for the files that are missing."""
    folder = place.root
    while not folder.exists():
        folder = folder.parent
    needed, free = missing_bytes(listing.files, place), shutil.disk_usage(folder).free
    if needed > free:
        raise Error(
            f"[pull] {listing.name} needs {bytes_text(needed)} more, and {bytes_text(free)} are free in {folder}. "
            f"Free {bytes_text(needed - free)}, or name another disk by --local-dir."
        )


class Transfer:
    """Fetches files of one model.

    Args:
        progress: called with the bytes that are there and the bytes in all, from several threads.
    """

    def __init__(self, listing: Listing, place: Folder, progress: Callable[[int, int], None]):
        self._listing = listing
        self._place = place
        self._progress = progress
        self._total = sum(file.size for file in listing.files)
        self._bytes: dict[str, int] = {}  # that are there, by file
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._opener = urllib.request.build_opener(_Redirects())

    def fetch(self, files: Sequence[RemoteFile]) -> None:
        """Fetches and checks files, several at once. Files that are there are hashed, and fetched again if they differ.

        Raises:
            longcat.Error: the source refuses, the connection stays lost, the disk is full, or a hash differs twice.
            KeyboardInterrupt: as the user asks; what is there is kept.
        """
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            waiting = [pool.submit(self._fetch, file) for file in files]
            try:
                done, _ = wait(waiting, return_when=FIRST_EXCEPTION)
            except KeyboardInterrupt:
                self._stop.set()
                raise
            if any(future.exception() for future in done):
                self._stop.set()
        for future in waiting:
            error = future.exception()
            if error is not None and not isinstance(error, Stopped):
                raise error

    def _fetch(self, file: RemoteFile) -> None:
        path = self._place.path(file)
        partial = path.with_name(path.name + ".incomplete")
        self._check_stop()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() and self._is_right(path, file):
                self._place.enter(file)
                return
            for is_last in (False, True):
                self._receive(file, partial)
                if self._is_right(partial, file):
                    break
                partial.unlink()
                if is_last:
                    raise Error(
                        f"[pull] {file.name} has another hash than {self._listing.endpoint} lists, twice. "
                        "Try again later, or another source."
                    )
            partial.replace(path)
            self._place.enter(file)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Error(
                    f"[pull] the disk is full at {path}; what is there is kept. Free some room and run it again."
                ) from None
            raise Error(f"[pull] {path} cannot be written: {error.strerror or error}") from None

    def _is_right(self, path: Path, file: RemoteFile) -> bool:
        """Returns whether a file has the size and the hash that the source lists."""
        if path.stat().st_size != file.size:
            return False
        if not file.digest:
            self._count(file, file.size)
            return True
        digest = hashlib.sha1(f"blob {file.size}\0".encode()) if file.is_git else hashlib.sha256()
        with path.open("rb") as data:
            while chunk := data.read(_CHUNK):
                self._check_stop()
                digest.update(chunk)
        if digest.hexdigest() != file.digest:
            return False
        self._count(file, file.size)
        return True

    def _receive(self, file: RemoteFile, partial: Path) -> None:
        """Receives the rest of a file. After a lost connection it goes on from the last byte."""
        tries = 0
        while (held := _held(partial)) < file.size or not partial.exists():
            try:
                self._read_on(file, partial, held)
            except urllib.error.HTTPError as error:
                if error.code == 416:  # the source's file is shorter than what is here
                    partial.unlink(missing_ok=True)
                elif error.code < 500 and error.code != 429:
                    raise Error(f"[pull] {file.name}: {self._listing.endpoint} answers {error.code}.") from None
                reason: object = error.code
            except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error or type(error).__name__
            else:
                reason = "it ends early"
            if _held(partial) >= file.size:
                break
            tries = 0 if _held(partial) > held else tries + 1
            if tries >= _TRIES:
                raise Error(
                    f"[pull] {file.name}: the connection to {self._listing.endpoint} is lost ({reason}); what is "
                    "there is kept. Run it again to resume."
                )
            if self._stop.wait(RETRY_SECONDS * 2**tries):
                raise Stopped

    def _read_on(self, file: RemoteFile, partial: Path, held: int) -> None:
        headers = dict(self._listing.headers)
        if held:
            headers["Range"] = f"bytes={held}-"
        request = urllib.request.Request(file.url, headers=headers)
        with self._opener.open(request, timeout=_TIMEOUT) as answer:
            resumes = answer.status == 206
            with partial.open("ab" if resumes else "wb") as out:
                while chunk := answer.read1(_CHUNK):
                    self._check_stop()
                    out.write(chunk)
                    self._count(file, out.tell())
                    if out.tell() > file.size:  # it may have no end
                        return

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def _count(self, file: RemoteFile, num_bytes: int) -> None:
        with self._lock:
            self._bytes[file.name] = num_bytes
            self._progress(min(sum(self._bytes.values()), self._total), self._total)


def _held(path: Path) -> int:
    """Returns the bytes of a file, or of its unfinished transfer."""
    for one in (path, path.with_name(path.name + ".incomplete")):
        with suppress(OSError):
            return os.stat(one).st_size
    return 0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects. The key stays with the host that it is for, and is not sent in the clear."""

    def redirect_request(self, req: urllib.request.Request, *rest: Any) -> urllib.request.Request | None:
        new = super().redirect_request(req, *rest)
        if new is not None:
            old_url, new_url = urlsplit(req.full_url), urlsplit(new.full_url)
            if old_url.netloc != new_url.netloc or old_url.scheme != new_url.scheme == "http":
                new.remove_header("Authorization")
        return new
