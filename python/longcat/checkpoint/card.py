"""The files that make a folder of packed weights fit to be published: model card, provenance and hashes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import longcat._core as _core
from longcat._core import Error
from longcat.checkpoint.formats import COMPONENTS, component_of
from longcat.checkpoint.writer import HASH_FILE, finish_hashes
from longcat.support.files import read_json_object
from longcat.support.json_types import JsonObject
from longcat.support.text import bytes_text, some_of

CARD_FILE = "README.md"
SOURCE_CARD_FILE = "README.source.md"  # the card of the source, under another name
PROVENANCE_FILE = "provenance.json"
_COMPONENT_TEXTS = {
    "core": "attention and dense layers",
    "experts": "experts",
    "head": "output layer",
    "embedding": "word embedding",
    "tables": "N-gram tables",
}
_REPOSITORY = re.compile(r"[\w.+-]+/[\w.+-]+")


@dataclass(frozen=True)
class Provenance:
    """What a folder of weights was made of, and how."""

    command: str  # that made it: "convert" or "make-checkpoint"
    source: str  # its name, as of `source_name`
    options: JsonObject  # of the command
    files: Mapping[str, int]  # of the source: name -> size [bytes]
    hashes: Mapping[str, str]  # SHA-256 of these files, as far as they are known


@dataclass(frozen=True)
class _Row:
    """The tensors of a component in one format."""

    component: str
    format: str
    tensors: int
    num_bytes: int


def source_name(path: Path) -> str:
    """The name of a checkpoint: that of its repository in the cache of huggingface_hub, or else of its folder."""
    path = path.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return path.name


def write_card(folder: Path, provenance: Provenance) -> None:
    """Writes the model card, provenance.json and SHA256SUMS beside the weights.

    The same weights and provenance give the same bytes.

    Args:
        folder: with all other files of the checkpoint. A card that came from the source gets another name. SHA256SUMS
            has the hashes of the shards (`writer.new_shard`).
        provenance: of the weights.
    """
    rows = _rows(_core.Checkpoint(str(folder)))
    if (folder / CARD_FILE).exists():
        (folder / CARD_FILE).rename(folder / SOURCE_CARD_FILE)
    record = {
        "format_version": _core.FORMAT_VERSION,
        "made_by": {
            "longcat": _core.__version__,
            "command": provenance.command,
            "options": provenance.options,
        },
        "source": {
            "name": provenance.source,
            "files": {
                name: {"bytes": size} | ({"sha256": provenance.hashes[name]} if name in provenance.hashes else {})
                for name, size in sorted(provenance.files.items())
            },
        },
        "formats": _sums(rows),
    }
    (folder / PROVENANCE_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (folder / CARD_FILE).write_text(_card(provenance, rows, (folder / SOURCE_CARD_FILE).exists()), encoding="utf-8")
    finish_hashes(folder)


def remove_card(folder: Path) -> None:
    """Removes what an interrupted `write_card` has left, and the source's card, which is to be copied again."""
    for name in (CARD_FILE, SOURCE_CARD_FILE, PROVENANCE_FILE):
        (folder / name).unlink(missing_ok=True)


def check_provenance(folder: Path, checkpoint: _core.Checkpoint) -> str | None:
    """Compares provenance.json with the tensors.

    Returns:
        A line on what the folder was made of; None without the file.
    Raises:
        longcat.Error: the file is damaged, of another format version, or tells of other tensors.
    """
    path = folder / PROVENANCE_FILE
    if not path.exists():
        return None
    record = read_json_object(path, "[verify]")
    made_by, source = record.get("made_by"), record.get("source")
    if record.get("format_version") != _core.FORMAT_VERSION:
        raise Error(
            f"[verify] {path}: format_version is {json.dumps(record.get('format_version'))}; expected "
            f'"{_core.FORMAT_VERSION}": install the longcat that wrote the folder, or a later one'
        )
    if not isinstance(made_by, dict) or not isinstance(source, dict):
        raise Error(f"[verify] {path} has no made_by or source; expected objects: download it again")
    found = _sums(_rows(checkpoint))
    if record.get("formats") != found:
        listed = record.get("formats")
        names = sorted(found.keys() | (listed.keys() if isinstance(listed, dict) else set()))
        other = [name for name in names if not isinstance(listed, dict) or listed.get(name) != found.get(name)]
        raise Error(
            f"[verify] {path} tells of other tensors than the folder has, in {some_of(other)}: download it again"
        )
    return f"of {source.get('name')}, by longcat {made_by.get('command')} {made_by.get('longcat')}"


def _rows(checkpoint: _core.Checkpoint) -> list[_Row]:
    sums: dict[tuple[str, str], list[int]] = {}
    for name, dtype, _, _, begin, end in checkpoint.tensors():
        base, _, suffix = name.rpartition(".")
        is_packed = suffix in _core.PACKED_FORMATS
        key = (component_of(base if is_packed else name), suffix if is_packed else dtype)
        entry = sums.setdefault(key, [0, 0])
        entry[0] += 1
        entry[1] += end - begin
    order = {component: i for i, component in enumerate(COMPONENTS)}
    return [_Row(*key, *sums[key]) for key in sorted(sums, key=lambda key: (order[key[0]], key[1]))]


def _sums(rows: list[_Row]) -> JsonObject:
    """format -> number and bytes of its tensors."""
    sums: dict[str, dict[str, int]] = {}
    for row in rows:
        entry = sums.setdefault(row.format, {"tensors": 0, "bytes": 0})
        entry["tensors"] += row.tensors
        entry["bytes"] += row.num_bytes
    return dict(sorted(sums.items()))


def _card(provenance: Provenance, rows: list[_Row], has_source_card: bool) -> str:
    total = sum(row.num_bytes for row in rows)
    packed = ", ".join(sorted({row.format for row in rows if row.format in _core.PACKED_FORMATS}))
    lines = ["---", "library_name: longcat"]
    if _REPOSITORY.fullmatch(provenance.source):
        lines += [f"base_model: {provenance.source}", "base_model_relation: quantized"]
    lines += [
        "---",
        f"# {provenance.source} for longcat",
        "",
        f"These are {bytes_text(total)} of weights in the formats of longcat, a runtime for CPUs. "
        f"`longcat {provenance.command}` {_core.__version__} made them of {provenance.source}. Other programs cannot "
        "read the packed tensors.",
        "",
        "| component | format | tensors | bytes |",
        "| --- | --- | ---: | ---: |",
        *(f"| {_COMPONENT_TEXTS[r.component]} | {r.format} | {r.tensors:,} | {r.num_bytes:,} |" for r in rows),
        "",
        f"Packed formats: {packed or 'none'}, version {_core.FORMAT_VERSION}. docs/formats.md of longcat describes "
        "each byte.",
        "",
        "## Run",
        "",
        "```sh",
        "longcat verify FOLDER",
        'longcat generate FOLDER "Once upon a time"',
        "longcat serve FOLDER",
        "```",
        "",
        "## Origin",
        "",
        f"{PROVENANCE_FILE} has the source's files and the options. {HASH_FILE} has the SHA-256 of every file. "
        f"The licence is that of the source{f', whose card is {SOURCE_CARD_FILE}' if has_source_card else ''}.",
    ]
    return "\n".join(lines) + "\n"
