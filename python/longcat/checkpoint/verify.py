"""Checks that a checkpoint is complete and undamaged, without running it.

The checks cover config, headers, index, tensors, tokenizer, values and hashes. Nothing in the folder is executed. The
engine's own native parsers read headers and config. The data is read once, for both the value scan and the hashes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import longcat._core as _core
from longcat._core import Error
from longcat.checkpoint.facts import Fact, collect_facts
from longcat.checkpoint.formats import component_of
from longcat.checkpoint.lock import FolderLock
from longcat.checkpoint.scan import FileResult, FileTensor, Hole, read_files
from longcat.checkpoint.writer import INDEX_FILE
from longcat.support.files import open_regular, read_json_object, read_text
from longcat.support.json_types import JsonObject
from longcat.support.text import bytes_text, count, printable, some_of

HASH_FILE = "SHA256SUMS"  # the format of `sha256sum`
# Files other than the shards that affect the model's completions.
_SMALL_FILES = (
    "config.json",
    INDEX_FILE,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_MAX_RECORD_BYTES = 1 << 20
_HASH_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Check:
    """One line of the report. `status` is "ok", "warn" or "FAIL"."""

    name: str
    status: str
    detail: str


@dataclass
class Report:
    """All checks of a checkpoint. `facts` is filled with `headers_only`."""

    path: str
    checks: list[Check] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)

    @property
    def suspect(self) -> bool:
        """Returns whether no check failed but weights may be lost: a tensor has zeros where weights are expected."""
        return self.ok and any(check.name == "values" and check.status == "warn" for check in self.checks)

    @property
    def ok(self) -> bool:
        """Returns whether no check failed. Warnings do not count."""
        return all(check.status != "FAIL" for check in self.checks)

    def as_dict(self) -> JsonObject:
        """The report as JSON types."""
        return {
            "path": self.path,
            "ok": self.ok,
            "suspect": self.suspect,
            "checks": [asdict(check) for check in self.checks],
            "facts": [asdict(fact) for fact in self.facts],
        }


def verify_checkpoint(
    path: str | os.PathLike[str],
    *,
    headers_only: bool = False,
    write_hashes: bool = False,
    on_check: Callable[[Check], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Checks a checkpoint folder.

    Args:
        path: a folder in the Hugging Face layout.
        headers_only: read only config, headers, index and tokenizer, and report what descriptions of the model leave
            open. The time does not depend on the model's size.
        write_hashes: store the SHA-256 of every file in SHA256SUMS, unless a check fails.
        on_check: called with each Check when it is done.
        progress: called with (bytes done, total bytes) while tensors are read, from several threads.
    Returns:
        The Report, also for a damaged checkpoint.
    Raises:
        longcat.Error: `path` is not a folder, or SHA256SUMS cannot be written.
        ValueError: both headers_only and write_hashes are set.
    """
    if headers_only and write_hashes:
        raise ValueError("headers_only reads no data, so there is nothing to hash: drop it or write_hashes")
    folder = Path(path)
    if not folder.is_dir():
        _core.config_warnings(os.fspath(path))  # raises the error
    with _right_to_write(folder) if write_hashes else nullcontext():
        verifier = _Verifier(folder, on_check)
        checkpoint = verifier.check_headers()
        verifier.check_text_files()
        if headers_only:
            verifier.report.facts = collect_facts(folder, checkpoint)
        elif checkpoint:
            verifier.check_data(checkpoint, write_hashes, progress)
    return verifier.report


@contextmanager
def _right_to_write(folder: Path) -> Iterator[None]:
    """Locks `folder` against other writers."""
    try:
        lock = FolderLock("verify", folder)
    except OSError as error:
        raise Error(f"[verify] {folder / HASH_FILE} cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release(folder)


class _Verifier:
    """Runs the checks in the order of the report."""

    def __init__(self, folder: Path, on_check: Callable[[Check], None] | None):
        self.folder = folder
        self.report = Report(str(folder))
        self._on_check = on_check

    def _add(self, name: str, status: str, detail: str) -> None:
        check = Check(name, status, printable(detail))
        self.report.checks.append(check)
        if self._on_check:
            self._on_check(check)

    # --- headers -----------------------------------------------------------------------------------------------

    def check_headers(self) -> _core.Checkpoint | None:
        """Checks config, headers, index and tensors. Returns the checkpoint unless its files are damaged."""
        config_fits = self._check_config()
        try:
            checkpoint = _core.Checkpoint(str(self.folder))
        except Error as error:
            self._add("headers", "FAIL", str(error))
            for line in _other_damaged_shards(self.folder, str(error)):
                self._add("headers", "FAIL", line)
            return None
        shards, tensors = checkpoint.shards(), checkpoint.tensors()
        size = sum(num_bytes for _, num_bytes in shards)
        self._add("headers", "ok", f"{count(len(shards), 'file')}, {count(len(tensors), 'tensor')}, {bytes_text(size)}")
        self._check_index(checkpoint)
        if config_fits:
            self._check_tensors(checkpoint)
        return checkpoint

    def _check_config(self) -> bool:
        try:
            warnings = _core.config_warnings(str(self.folder))
        except Error as error:
            self._add("config", "FAIL", str(error))
            return False
        config = read_json_object(self.folder / "config.json", "[verify]")
        name = (config.get("architectures") or [config.get("model_type")])[0]
        layers = config.get("num_layers") or config.get("num_hidden_layers", 0) // 2
        experts = f"{config.get('n_routed_experts')} + {config.get('zero_expert_num', 0)} experts"
        self._add("config", "ok", f"{name}, {count(layers, 'layer')}, {experts}")
        for line in warnings:
            self._add("config", "warn", line)
        return True

    def _check_index(self, checkpoint: _core.Checkpoint) -> None:
        # The native parser has already checked that every tensor is in the shard that the index names.
        shards = [name for name, _ in checkpoint.shards()]
        stray = sorted(p.name for p in self.folder.glob("*.safetensors") if p.name not in shards)
        if not (self.folder / INDEX_FILE).is_file():
            self._add("index", "ok", "none needed for one file")
        else:
            index = read_json_object(self.folder / INDEX_FILE, "[verify]")
            unlisted = [name for name, *_ in checkpoint.tensors() if name not in index["weight_map"]]
            metadata = index.get("metadata")
            total = metadata.get("total_size") if isinstance(metadata, dict) else None
            found = sum(end - begin for *_, begin, end in checkpoint.tensors())
            if unlisted:
                self._add("index", "warn", f"{count(len(unlisted), 'tensor')} in no entry of it: {some_of(unlisted)}")
            if isinstance(total, int) and total != found:
                self._add("index", "warn", f"metadata.total_size is {total}, the tensors take {found} bytes")
            if not unlisted:
                self._add("index", "ok", f"{count(len(index['weight_map']), 'tensor')} in the files it names")
        if stray:
            self._add("index", "warn", f"safetensors files that are not part of the checkpoint: {some_of(stray)}")

    def _check_tensors(self, checkpoint: _core.Checkpoint) -> None:
        try:
            warnings = checkpoint.check_tensors()
        except Error as error:
            self._add("tensors", "FAIL", str(error))
            return
        self._add("tensors", "ok", "every tensor that config.json asks for, each of its shape and a dtype that is read")
        for line in warnings:
            self._add("tensors", "warn", line)

    # --- text ----------------------------------------------------------------------------------------------------

    def check_text_files(self) -> None:
        """Checks tokenizer, chat template and generation config, which an engine on token ids does not need."""
        self._check_tokenizer()
        self._check_chat_template()
        path = self.folder / "generation_config.json"
        try:
            fields = read_json_object(path, "[verify]")
            if fields:
                self._add("generation", "ok", f"generation_config.json sets {', '.join(sorted(fields))}")
            else:
                self._add(
                    "generation", "warn", "no generation_config.json: sampling defaults are temperature 1, no limits"
                )
        except Error as error:
            self._add("generation", "FAIL", str(error))

    def _check_tokenizer(self) -> None:
        from longcat.request.tokenizer import Tokenizer

        if not os.path.exists(self.folder / "tokenizer.json"):
            self._add("tokenizer", "warn", "no tokenizer.json: only token ids can be given, and no text comes back")
            return
        try:
            vocab_size = Tokenizer(self.folder).vocab_size
        except Error as error:
            self._add("tokenizer", "FAIL", str(error))
            return
        self._add("tokenizer", "ok", f"{count(vocab_size, 'id')}")
        try:
            expected = read_json_object(self.folder / "config.json", "[verify]").get("vocab_size")
        except Error:
            return  # the config check has reported it
        if isinstance(expected, int) and vocab_size > expected:
            self._add("tokenizer", "FAIL", f"{vocab_size} ids, but vocab_size of config.json is {expected}")

    def _check_chat_template(self) -> None:
        from longcat.chat.template import ChatTemplate

        try:
            config = read_json_object(self.folder / "tokenizer_config.json", "[verify]")
            files = ("chat_template.jinja", "chat_template.json")
            if "chat_template" not in config and not any(os.path.exists(self.folder / name) for name in files):
                self._add("chat template", "warn", "none: Engine.chat needs one, generate does not")
                return
            template = ChatTemplate.from_checkpoint(self.folder)
            self._add("chat template", "ok", f"{len(template.source)} characters, compiles in the sandbox")
        except Error as error:
            needs_jinja = "jinja2 is needed" in str(error)
            self._add("chat template", "warn" if needs_jinja else "FAIL", str(error))

    # --- data ----------------------------------------------------------------------------------------------------

    def check_data(
        self, checkpoint: _core.Checkpoint, write_hashes: bool, progress: Callable[[int, int], None] | None
    ) -> None:
        """Checks values and hashes in one pass over the files."""
        try:
            known = known_hashes(self.folder)
        except Error as error:
            self._add("hashes", "FAIL", str(error))
            known = {}
            write_hashes = False
        shards = [name for name, _ in checkpoint.shards()]
        others = [name for name in _SMALL_FILES if (self.folder / name).is_file()] if write_hashes else []
        hashed = {*known, *(shards + others if write_hashes else [])}
        missing = sorted(name for name in known if not (self.folder / name).is_file())
        tensors: dict[str, list[FileTensor]] = {name: [] for name in [*shards, *sorted(hashed - {*shards, *missing})]}
        for name, dtype, shape, shard, begin, end in checkpoint.tensors():
            tensors[shards[shard]].append(FileTensor(name, dtype, shape, begin, end))
        try:
            results = read_files(self.folder, tensors, hashed, progress)
        except Error as error:
            self._add("values", "FAIL", str(error))
            return
        except OSError as error:
            self._add("values", "FAIL", f"{error.filename or self.folder}: {error.strerror or error}")
            return
        self._add_values(results, sum(map(len, tensors.values())))
        self._add_hashes(results, known, missing, shards, write_hashes)

    def _add_values(self, results: dict[str, FileResult], num_tensors: int) -> None:
        bad = [line for result in results.values() for line in result.not_finite]
        holes = [hole for result in results.values() for hole in result.holes]
        if bad:
            self._add("values", "FAIL", some_of(bad, "; "))
        else:
            self._add("values", "ok", f"no NaN and no infinity in {count(num_tensors, 'tensor')}")
        damage = [hole.detail for hole in holes if _status_of(hole) == "FAIL"]
        unused = [hole.detail for hole in holes if _status_of(hole) == "warn"]
        cause = "zero bytes where weights should be, as an unfinished download or copy leaves"
        if damage:
            self._add("values", "FAIL", f"{cause}: {some_of(damage, '; ')}")
        if unused:
            self._add("values", "warn", f"{cause}, or rows that training did not use: {some_of(unused, '; ')}")

    def _add_hashes(
        self,
        results: dict[str, FileResult],
        known: dict[str, tuple[str, str]],
        missing: list[str],
        shards: list[str],
        write_hashes: bool,
    ) -> None:
        for name in missing:
            self._add("hashes", "FAIL", f"{name} is in {known[name][1]} but not in the folder")
        wrong = [name for name in known if name not in missing and results[name].sha256 != known[name][0]]
        for name in wrong:
            expected, source = known[name]
            self._add(
                "hashes",
                "FAIL",
                f"{name} is {results[name].sha256}, {source} has {expected}: the file was changed or damaged",
            )
        if known and not wrong and not missing:
            sources = " and ".join(sorted({source for _, source in known.values()}))
            self._add("hashes", "ok", f"{count(len(known), 'file')} as in {sources}")
        unknown = [name for name in shards if name not in known]
        if write_hashes and self.report.ok:
            _write_hashes(self.folder, {name: r.sha256 for name, r in results.items() if r.sha256})
            self._add("hashes", "ok", f"{HASH_FILE} written; `sha256sum -c {HASH_FILE}` checks it too")
        elif write_hashes:
            self._add("hashes", "warn", f"{HASH_FILE} not written: a check failed")
        elif unknown and known:
            self._add("hashes", "warn", f"none stored for {some_of(unknown)}: changed bits there are not found")
        elif unknown:
            self._add(
                "hashes", "warn", f"none stored: changed bits are not found; --write-hashes stores them in {HASH_FILE}"
            )


def _status_of(hole: Hole) -> str:
    """The status of zero bytes in a tensor.

    Rows of the vocabulary and of the N-gram tables that training did not use may be zero, and so may a whole table. A
    bias may be zero, and so may a tensor that is not a weight. A block of zeros in any other matrix is damage.
    """
    kind = hole.tensor.rpartition(".")[2]
    if kind not in ("weight", "weight_scale_inv", *_core.PACKED_FORMATS):
        return "ok"
    component = component_of(hole.tensor)
    if component == "tables" or (component in ("head", "embedding") and not hole.whole):
        return "warn"
    return "FAIL"


def _other_damaged_shards(folder: Path, first: str) -> Iterator[str]:
    """One line for each further shard whose size differs from its header; `first` has been reported already."""
    try:
        files = sorted(set(read_json_object(folder / INDEX_FILE, "[verify]")["weight_map"].values()))
    except (Error, KeyError, AttributeError, TypeError):
        return
    for name in files:
        if not isinstance(name, str) or "/" in name or name in first:
            continue
        try:
            with open_regular(folder / name, "[verify]") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length)) if length <= 16 << 20 else {}
            data = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
            if size != 8 + length + data:
                yield f"{name}: {size} bytes found, {8 + length + data} expected: download it again"
        except (Error, OSError) as error:
            yield f"{name}: {getattr(error, 'strerror', None) or error}"
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            yield f"{name}: its header cannot be read: download it again"


# --- hashes ----------------------------------------------------------------------------------------------------


def known_hashes(folder: Path) -> dict[str, tuple[str, str]]:
    """The expected hashes of a checkpoint's files.

    Args:
        folder: of the checkpoint.
    Returns:
        file name -> (SHA-256 in hex, where the hash comes from). The source is SHA256SUMS. For
        files not in it, the source is the record of a huggingface_hub download, next to the file or in its cache.
    Raises:
        longcat.Error: SHA256SUMS is not in the format of sha256sum, or names files outside the folder.
    """
    known = {}
    for path in [*folder.glob("*.safetensors"), folder / "tokenizer.json"]:
        if found := _hub_hash(path):
            known[path.name] = (found, "the record of its download")
    if not os.path.exists(folder / HASH_FILE):
        return known
    text = read_text(folder / HASH_FILE, "[verify]")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _HASH_LINE.fullmatch(line)
        if not match or "/" in match[2] or match[2] in (".", ".."):
            raise Error(
                f"[verify] {folder / HASH_FILE}: line {number} is not a SHA-256 and the name of a file in this folder, "
                "as sha256sum writes them"
            )
        known[match[2]] = (match[1].lower(), HASH_FILE)
    return known


def _hub_hash(path: Path) -> str | None:
    """The SHA-256 that the Hub gave for a large file at its download, or None.

    Source: huggingface_hub stores it as the etag. After a download to a folder, it is the second line of
    .cache/huggingface/download/NAME.metadata. In the cache, it is the name of the blob that a snapshot links to.
    """
    try:
        if path.is_symlink() and _HASH.fullmatch(name := os.path.basename(os.readlink(path))):
            return name
        record = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
        lines = read_text(record, "[verify]", _MAX_RECORD_BYTES).split("\n") if record.is_file() else []
    except (Error, OSError):
        return None
    return lines[1] if len(lines) > 1 and _HASH.fullmatch(lines[1]) else None


def _write_hashes(folder: Path, hashes: dict[str, str]) -> None:
    partial = folder / f"{HASH_FILE}.partial"
    try:
        partial.write_text("".join(f"{value}  {name}\n" for name, value in sorted(hashes.items())), encoding="utf-8")
        partial.replace(folder / HASH_FILE)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise Error(f"[verify] {folder / HASH_FILE} cannot be written: {error.strerror or error}") from None
