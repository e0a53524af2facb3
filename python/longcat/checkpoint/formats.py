"""Formats of a packed checkpoint: the format of each tensor, and the place of the tensors in the files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

import longcat._core as _core
from longcat.checkpoint.writer import split

COMPONENTS = ("core", "experts", "head", "embedding", "tables")
FORMATS = ("keep", "bf16", "int8", "int4")
_LOOKED_UP = ("embedding", "tables")  # components of which single rows are read
# The formats of --quant NAME per component. Few bits cost more quality in the word embedding than in the N-gram tables,
# and in the head no calibration helps: int4 keeps both in int8. It also does so with the few rows that make the latents
# (kv_a_proj), which every later token reads.
PRESETS: dict[str, dict[str, str]] = {
    "bf16": dict.fromkeys(("core", "experts", "head"), "bf16") | {"embedding": "keep", "tables": "keep"},
    "int8": dict.fromkeys(COMPONENTS, "int8"),
    "int4": {"core": "int4", "experts": "int4", "head": "int8", "embedding": "int8", "tables": "int4"},
}


def component_of(name: str) -> str:
    """The component of a tensor that may be packed: core, experts, head, embedding or tables."""
    if ".mlp.experts." in name:
        return "experts"
    if name.startswith("lm_head."):
        return "head"
    if name.startswith(("model.embed_tokens.", "model.mtp.embed_tokens.")):
        return "embedding"
    return "tables" if name.startswith(("model.ngram_embeddings.embedders.", "model.oe_embed_tokens")) else "core"


def formats_of(component: str) -> tuple[str, ...]:
    """The formats that a component may have."""
    return (*FORMATS, "fp8") if component in _LOOKED_UP else FORMATS


def spellings(name: str) -> tuple[str, str]:
    """A tensor's name and its name in the other of LongCat-Flash-Lite and -Sparse, which is empty for most tensors."""
    return name, _core.other_spelling(name)


def checked_formats(formats: Mapping[str, str]) -> dict[str, str]:
    """component -> format for every component; "keep" where none is given.

    Raises:
        ValueError: a component or format is unknown.
    """
    for component, name in formats.items():
        if component not in COMPONENTS:
            raise ValueError(f'component "{component}"; expected {", ".join(COMPONENTS)}')
        if name not in formats_of(component):
            raise ValueError(f'{component}="{name}"; expected {", ".join(formats_of(component))}')
    return dict.fromkeys(COMPONENTS, "keep") | dict(formats)


def use_of(uses: Mapping[str, str], name: str) -> str | None:
    """ "matrix" or "table" of `uses`, under either name of the tensor; None: it may not be packed."""
    return next((uses[spelling] for spelling in spellings(name) if spelling in uses), None)


def packed_as(uses: Mapping[str, str], name: str, formats: Mapping[str, str]) -> str | None:
    """The packed format of a tensor, as in "int4_x8"; None: it is stored as it is.

    Args:
        uses: tensor -> "matrix" or "table", of the tensors that may be packed (`_core.packable_tensors`).
        name: the tensor.
        formats: component -> one of `formats_of`.
    Raises:
        ValueError: the word embedding is to be fp8, and it is the head, too.
    """
    use = use_of(uses, name)
    if use is None:
        return None
    wanted = formats[component_of(name)]
    if wanted == "fp8" and use == "matrix":
        raise ValueError('embedding="fp8"; expected another format, because the head is the same matrix')
    if wanted == "int4" and ".kv_a_proj_with_mqa." in name:
        wanted = "int8"
    if wanted == "keep" or (wanted == "bf16" and use == "table"):
        return None
    return f"{wanted}_{'x8' if use == 'matrix' else 'row'}"


class Stored(Protocol):
    """A tensor as a file of a packed checkpoint has it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


AnyStored = TypeVar("AnyStored", bound=Stored)


def place(tensors: Iterable[AnyStored], max_shard_bytes: int) -> dict[str, list[AnyStored]]:
    """file name -> its tensors, so that all tensors are aligned. `tensors` are in the order of their source names."""
    by_name = {tensor.name: tensor for tensor in tensors}
    files = split({tensor.name: tensor.num_bytes for tensor in by_name.values()}, max_shard_bytes)
    shards = {file: [by_name[name] for name in names] for file, names in files.items()}
    for members in shards.values():  # multiples of 64 bytes first, then of 4
        members.sort(
            key=lambda t: (0 if t.num_bytes % 64 == 0 else 1 if t.num_bytes % 4 == 0 else 2, t.dtype == "BF16")
        )
    return shards
