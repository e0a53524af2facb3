"""A folder with quantised weights, or with stacked or pruned experts, as a source of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

import longcat._core as _core
from longcat._core import Error
from longcat.checkpoint.sources.quantized.matrix import Dense, Matrix, check_dense
from longcat.checkpoint.sources.quantized.mla import JoinedHeads
from longcat.checkpoint.sources.quantized.names import Place, places, split, stored_experts
from longcat.checkpoint.sources.quantized.stored import Array, Files
from longcat.checkpoint.sources.source import SourceTensor
from longcat.checkpoint.writer import INDEX_FILE
from longcat.support.files import read_bytes
from longcat.support.json_types import JsonObject
from longcat.support.text import count, some_of

QUANTIZATION_FIELDS = ("quantization_config", "quantization", "compression_config")
# Files that describe the weights of the source, which the new ones differ from.
_LEFT_OUT = (INDEX_FILE, "SHA256SUMS", "quantize_config.json", "quantization_config.json", "recipe.yaml")
_MAX_FILE_BYTES = 64 << 20


class Method(Protocol):
    """A way of quantising."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the tensors of a module."""

    def matrix(self, module: str, stored: dict[str, Array], shape: tuple[int, int]) -> Matrix | None:
        """The matrix of a module, or None when it is not quantised.

        Args:
            module: its stored name.
            stored: its tensors by the part of the name after the module's.
            shape: [rows, columns] of the stored matrix.
        Raises:
            longcat.Error: a tensor is missing or does not fit the configuration.
        """


class QuantizedFolder:
    """A WeightSource over the safetensors files of a folder. `notes` has a line for each thing worth knowing."""

    def __init__(self, folder: Path, config: JsonObject, method: Method | None):
        self._folder = folder
        self._files = Files(folder)
        self._arrays = self._files.arrays()
        self._method = method
        self._modules: dict[str, dict[str, Array]] = {}
        for name, array in self._arrays.items():
            module, part = split(name)
            self._modules.setdefault(module, {})[part] = array
        self.notes: list[str] = []
        self._config = {name: value for name, value in config.items() if name not in QUANTIZATION_FIELDS}
        self._count_experts()
        self._used: set[str] = set()
        self._matrices: dict[str, tuple[Matrix, Place, tuple[int, ...]]] = {}
        self._find_all()
        self._tensors = self._in_order()

    @property
    def path(self) -> str:
        return str(self._folder)

    @property
    def identity(self) -> JsonObject:
        found: JsonObject = {}
        for name in ("config.json", *self._files.names):
            status = (self._folder / name).stat()
            found[name] = [status.st_size, status.st_mtime_ns]
        return found

    @property
    def folder_files(self) -> Mapping[str, bytes]:
        files = {
            path.name: read_bytes(path, "[convert]")
            for path in sorted(self._folder.iterdir())
            if path.is_file() and path.suffix != ".safetensors" and path.name not in _LEFT_OUT
            if not path.name.startswith(".") and path.stat().st_size <= _MAX_FILE_BYTES
        }
        return files | {"config.json": (json.dumps(self._config, indent=2) + "\n").encode()}

    def tensors(self) -> Mapping[str, SourceTensor]:
        return self._tensors

    def _in_order(self) -> dict[str, SourceTensor]:
        """The tensors in the order of the files."""

        def position(name: str) -> tuple[int, int]:
            place = self._matrices[name][1]
            array = next(iter(self._modules[place.module].values()))
            return array.shard, array.begin

        return {
            name: SourceTensor(shape, matrix.format, matrix.num_bytes // place.parts, matrix.dtype, matrix.grid)
            for name, (matrix, place, shape) in sorted(self._matrices.items(), key=lambda item: position(item[0]))
        }

    def rows(self, name: str, begin: int, end: int) -> np.ndarray:
        matrix, place, shape = self._matrices[name]
        first = place.part * shape[0]
        return matrix.rows(first + begin, first + end)

    def grid_rows(self, name: str, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        matrix, place, shape = self._matrices[name]
        first = place.part * shape[0]
        return matrix.grid_rows(first + begin, first + end)

    # --- finding ------------------------------------------------------------------------------------------------

    def _count_experts(self) -> None:
        """Sets n_routed_experts to the stored number: tools that prune experts may leave the field as it was."""
        shapes = {module: next(iter(stored.values())).shape for module, stored in self._modules.items()}
        layers = stored_experts(shapes)
        counts = {layer: len(numbers) for layer, numbers in layers.items()}
        if not counts:
            return
        for layer, numbers in layers.items():
            if missing := sorted(set(range(max(numbers) + 1)) - numbers):
                raise Error(f"[convert] {self._folder}: layer {layer} has no expert {missing[0]}: download it again")
        low, high = min(counts, key=lambda n: counts[n]), max(counts, key=lambda n: counts[n])
        if counts[low] != counts[high]:
            raise Error(
                f"[convert] {self._folder}: layer {low} has {count(counts[low], 'expert')}, layer {high} has "
                f"{counts[high]}; expected the same number in each layer"
            )
        if self._config.get("n_routed_experts") != counts[low]:
            self.notes.append(
                f"n_routed_experts is {self._config.get('n_routed_experts')} in config.json, and each layer has "
                f"{count(counts[low], 'expert')}: the new config.json says {counts[low]}"
            )
            self._config["n_routed_experts"] = counts[low]

    def _find_all(self) -> None:
        text = json.dumps(self._config)
        try:
            expected = [*_core.expected_tensors(text), *_core.expected_mtp_tensors(text)]
        except Error as error:
            raise Error(f"[convert] {self._folder}: {error}") from None
        for name, shape, _ in expected:
            self._find(name, shape)
        if unknown := sorted(self._arrays.keys() - self._used):
            self.notes.append(f"{count(len(unknown), 'tensor')} not used: {some_of(unknown)}")

    def _find(self, name: str, shape: tuple[int, ...]) -> bool:
        """Finds the matrix of a tensor. False: the folder has none."""
        if name in self._arrays and not name.endswith(".weight"):  # a bias of the router
            self._add(name, Dense(check_dense(self._arrays[name], shape)), Place(name.rpartition(".")[0]), shape)
            self._used.add(name)
            return True
        module = name.removesuffix(".weight")
        for place in places(module):
            if stored := self._stored(place):
                self._add(name, self._matrix(place, stored, shape), place, shape)
                return True
        if module.endswith(".kv_b_proj"):
            return self._find_kv_b(name, module.removesuffix("kv_b_proj"), shape)
        return False

    def _stored(self, place: Place, stacked: int | None = None) -> dict[str, Array]:
        """The tensors of a place that the method knows; those of one member when the place is a stack.

        stacked: members of the stack, experts by default.
        """
        parts = ("weight", *(self._method.parts if self._method else ()))
        stored = {part: array for part, array in self._modules.get(place.module, {}).items() if part in parts}
        self._used.update(array.name for array in stored.values())
        if place.expert is None:
            return stored
        members = stacked or self._size("n_routed_experts")
        for array in stored.values():
            if not array.shape or array.shape[0] != members:
                raise Error(f"[convert] {array}; expected [{members}, ...]: download it again")
        return {part: array.of_expert(place.expert) for part, array in stored.items()}

    def _matrix(self, place: Place, stored: dict[str, Array], shape: tuple[int, ...]) -> Matrix:
        whole = (shape[0] * place.parts, *shape[1:])
        if self._method and len(whole) == 2:
            if matrix := self._method.matrix(place.module, stored, (whole[0], whole[1])):
                return matrix
        if "weight" not in stored:
            raise Error(f'[convert] "{place.module}" has no weight: download it again')
        return Dense(check_dense(stored["weight"], whole))

    def _find_kv_b(self, name: str, attention: str, shape: tuple[int, ...]) -> bool:
        """MLX stores kv_b_proj as two stacks of heads."""
        rank, nope, value = map(self._size, ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim"))
        heads = self._size("num_attention_heads")
        halves: list[list[Matrix]] = []
        for half, of_head in (("embed_q", (rank, nope)), ("unembed_out", (value, rank))):
            places = [Place(attention + half, head) for head in range(heads)]
            stored = [self._stored(place, heads) for place in places]
            if not all(stored):
                return False
            halves.append([self._matrix(*found, of_head) for found in zip(places, stored, strict=True)])
        self._add(name, JoinedHeads(halves[0], halves[1], (rank, nope, value)), Place(attention + "embed_q"), shape)
        return True

    def _size(self, name: str) -> int:
        """A field of config.json, which the core has checked."""
        return int(str(self._config[name]))

    def _add(self, name: str, matrix: Matrix, place: Place, shape: tuple[int, ...]) -> None:
        self._matrices[name] = matrix, place, shape
