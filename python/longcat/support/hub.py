"""Finds checkpoints by their names on the Hub or on ModelScope, among those on this machine. Downloads nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

from longcat._core import Error

_FOLDER = re.compile(r"models--(?:(?P<org>.+?)--)?(?P<name>.+)")
_NAME = re.compile(r"(?P<org>[A-Za-z0-9][\w.-]*)/(?P<name>[A-Za-z0-9][\w.-]*)")


def local_checkpoint(model: str) -> str:
    """Returns the folder of a checkpoint.

    Args:
        model: a path, which is returned as it is; or a name such as "meituan-longcat/LongCat-Flash-Lite".
    Returns:
        Of a name the newest snapshot in the Hub's cache, or else the folder in ModelScope's.
    Raises:
        longcat.Error: no path exists, and neither cache has the name.
    """
    if not is_name(model) or os.path.exists(model):
        return model
    for folder in (hub_snapshot(model), modelscope_folder(model)):
        if folder is not None and folder.is_dir():
            return str(folder)
    raise Error(
        f"[model] {model} is no folder, and not in the cache {hub_cache()}; expected a checkpoint. "
        f"Download it: longcat pull {model}"
    )


def is_name(model: str) -> bool:
    """Returns whether a text has the form of a name on the Hub: "org/name"."""
    return _NAME.fullmatch(model) is not None


def hub_cache() -> Path:
    """Returns the folder of huggingface_hub's cache, by the same variables."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home, "hub").expanduser()


def hub_folder(name: str) -> Path:
    """Returns the folder of a model in the Hub's cache: blobs/, refs/, snapshots/."""
    return hub_cache() / f"models--{name.replace('/', '--')}"


def hub_snapshot(name: str) -> Path | None:
    """Returns the snapshot of "main" in the Hub's cache, or the newest one."""
    folder = hub_folder(name)
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        revision = ""
    if revision and (folder / "snapshots" / revision).is_dir():
        return folder / "snapshots" / revision
    found = sorted(folder.glob("snapshots/*"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def modelscope_folder(name: str) -> Path:
    """Returns the folder of a model in ModelScope's cache."""
    cache = os.environ.get("MODELSCOPE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "modelscope")
    return Path(cache, "hub", "models", *name.replace(".", "___").split("/")).expanduser()


def cached_name(folder: str) -> str | None:
    """Returns the name of a snapshot in the Hub's cache, "org/name", or None for another folder."""
    parts = os.path.abspath(folder).split(os.sep)
    if len(parts) > 2 and parts[-2] == "snapshots" and (found := _FOLDER.fullmatch(parts[-3])):
        return "/".join(filter(None, [found["org"], found["name"]]))
    return None
