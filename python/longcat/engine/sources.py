"""Checks the paths that an engine is made from, before anything slow begins."""

from __future__ import annotations

import os

from longcat._core import Error
from longcat.support.hub import local_checkpoint


def folder_path(model: object) -> str:
    """Returns the path of the checkpoint folder for the core; of a name on the Hub, the folder in its cache.

    A GGUF file is converted at the first call.

    Raises:
        longcat.Error: the GGUF file is damaged, its checkpoint does not fit on the disk, or a name is not in the cache.
        TypeError: the value is no path.
        ValueError: the path is not UTF-8.
    """
    if not isinstance(model, (str, bytes, os.PathLike)):
        raise TypeError(f"model={model!r} is a {type(model).__name__}; expected the path of a checkpoint folder")
    path = os.path.expanduser(os.fsdecode(model))
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"[model] the folder name {os.fsencode(path)!r} is not UTF-8; expected UTF-8. Rename the folder."
        ) from None
    if os.path.isfile(path):  # the readers of other formats are imported where they are needed
        from longcat.checkpoint.sources.cache import cached_checkpoint
        from longcat.checkpoint.sources.opening import is_gguf

        if is_gguf(path):
            return cached_checkpoint(path)
    return local_checkpoint(path)


def check_sources(tokenizer: str | os.PathLike[str] | None, chat_template: str | os.PathLike[str] | None) -> None:
    """Raises longcat.Error when a tokenizer or a template that replaces the checkpoint's is not there."""
    if tokenizer is not None and not os.path.exists(tokenizer):
        raise Error(f"[tokenizer] {os.fspath(tokenizer)} does not exist; expected a tokenizer.json, or its folder")
    if chat_template is None or os.path.isfile(chat_template) or "{" in os.fspath(chat_template):
        return
    found = "is no regular file" if os.path.exists(chat_template) else "does not exist"
    raise Error(f"[chat template] {os.fspath(chat_template)} {found}; expected a jinja file, or a template's text")


class Uncopied:
    """A base of classes that own native state. It refuses `copy` and `pickle`: a dropped copy would free the state."""

    def __reduce_ex__(self, protocol: object) -> str:
        name = type(self).__name__
        raise TypeError(f"[engine] copying or pickling {name} is not supported. Share one {name} by reference.")
