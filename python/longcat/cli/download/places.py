"""Where downloaded files go: a folder of their own, or the cache of huggingface_hub."""

from __future__ import annotations

import os
from pathlib import Path

from longcat.cli.download.sources import Listing, RemoteFile
from longcat.support.hub import hub_folder


class Folder:
    """A plain folder, which holds each file under its name."""

    def __init__(self, root: Path):
        self.root = self.checkpoint = root

    def path(self, file: RemoteFile) -> Path:
        """Returns the place of the file's bytes."""
        return self.root / file.name

    def enter(self, file: RemoteFile) -> None:
        """Shows a complete file in the checkpoint."""

    def finish(self) -> None:
        """Records that the checkpoint is complete."""


class HubCache(Folder):
    """The cache of huggingface_hub: bytes lie in blobs/ under their hash, and a snapshot links to them.

    Source: huggingface_hub's guide "Understand caching".
    """

    def __init__(self, listing: Listing, revision: str):
        super().__init__(hub_folder(listing.name))
        self.checkpoint = self.root / "snapshots" / listing.revision
        self._ref = self.root / "refs" / revision
        self._commit = listing.revision

    def path(self, file: RemoteFile) -> Path:
        return self.root / "blobs" / (file.digest or file.name.replace("/", "--"))

    def enter(self, file: RemoteFile) -> None:
        link = self.checkpoint / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(self.path(file), link.parent)
        if not (link.is_symlink() and os.readlink(link) == target):
            link.unlink(missing_ok=True)
            link.symlink_to(target)

    def finish(self) -> None:
        self._ref.parent.mkdir(parents=True, exist_ok=True)
        self._ref.write_text(self._commit, encoding="utf-8")
