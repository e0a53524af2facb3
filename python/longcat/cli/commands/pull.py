"""`longcat pull`: downloads a checkpoint by its name, resumes, and checks it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from longcat.cli.progress import ByteBar
from longcat.support.text import bytes_text, count

if TYPE_CHECKING:
    from longcat.cli.download.places import Folder
    from longcat.cli.download.sources import Listing

_SMALL = 1 << 20  # bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the model, as meituan-longcat/LongCat-Flash-Lite")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit (default main, of ModelScope master)")
    parser.add_argument(
        "--local-dir", metavar="FOLDER", help="folder for the files (default: the cache of huggingface_hub)"
    )
    parser.add_argument(
        "--from",
        dest="source",
        choices=["hub", "modelscope"],
        default="hub",
        help="source of the model: hub or modelscope (default hub)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command. It prints the folder on standard output, and all else on standard error."""
    from longcat.cli.download.places import Folder, HubCache
    from longcat.cli.download.sources import hub_listing, modelscope_listing
    from longcat.cli.download.transfer import missing_bytes, require_room
    from longcat.support.hub import is_name, modelscope_folder

    if not is_name(args.name):
        raise ValueError(f'[pull] {args.name} is no name of a model; expected "org/name".')
    from_hub = args.source == "hub"
    revision = args.revision or ("main" if from_hub else "master")
    listing = hub_listing(args.name, revision) if from_hub else modelscope_listing(args.name, revision)
    if args.local_dir is not None:
        place = Folder(Path(args.local_dir).expanduser())
    else:
        place = HubCache(listing, revision) if from_hub else Folder(modelscope_folder(args.name))
    require_room(listing, place)
    try:
        _fetch(listing, place)
    except KeyboardInterrupt:
        missing = missing_bytes(listing.files, place)
        print(f"longcat: [pull] stopped; {bytes_text(missing)} are missing. Run it again to resume.", file=sys.stderr)
        return 130
    size = sum(file.size for file in listing.files)
    print(
        f"{args.name}: {count(len(listing.files), 'file')}, {bytes_text(size)}, each with the hash that "
        f"{listing.endpoint} lists",
        file=sys.stderr,
    )
    if not _is_whole(place.checkpoint):
        return 1
    print(place.checkpoint)
    return 0


def _fetch(listing: Listing, place: Folder) -> None:
    """Fetches all files as the only writer: the small ones first, so that a model of another kind is refused early."""
    import longcat._core as _core
    from longcat.cli.download.transfer import Transfer
    from longcat.support.folder_lock import FolderLock

    try:
        lock = FolderLock("pull", place.root)
    except OSError as error:
        raise _core.Error(f"[pull] {place.root} cannot be written: {error.strerror or error}") from None
    files = sorted(listing.files, key=lambda file: file.size)
    small = [file for file in files if file.size < _SMALL]
    try:
        with ByteBar("downloading") as bar:
            transfer = Transfer(listing, place, bar.update)
            transfer.fetch(small)
            if any(file.name == "config.json" for file in small):
                _core.config_warnings(str(place.checkpoint))  # raises for a model that longcat does not run
            transfer.fetch(files[len(small) :])
        place.finish()
    finally:
        lock.release(place.root)


def _is_whole(folder: Path) -> bool:
    """Checks headers, index, tensors and tokenizer as `longcat verify --headers` does; the hashes are checked."""
    from longcat.checkpoint.verify import verify_checkpoint

    report = verify_checkpoint(folder, headers_only=True)
    for check in report.checks:
        if check.status == "FAIL":
            print(f"longcat: [pull] {check.name}: {check.detail}", file=sys.stderr)
    return report.ok
