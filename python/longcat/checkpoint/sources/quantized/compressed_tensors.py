"""compressed-tensors: config_groups of quantised modules, and a list of ignored ones.

| format | tensors of a module |
| --- | --- |
| pack-quantized | weight_packed I32 [out, in * bits / 32], weight_scale, weight_shape |
| int-quantized, naive-quantized | weight I8, weight_scale |
| float-quantized, naive-quantized | weight F8_E4M3, weight_scale |
| mxfp4-pack-quantized | weight_packed U8 [out, in / 2], weight_scale U8 [out, in / 32] |

weight_scale is [out, groups], [out, 1] or [1]. Packed integers have 2^(bits - 1) added. Asymmetric modules also have
weight_zero_point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from longcat._core import Error
from longcat.checkpoint.sources.quantized.decoding import unpack
from longcat.checkpoint.sources.quantized.fp8 import fp8_matrix
from longcat.checkpoint.sources.quantized.matrix import Matrix, Quantized, check, total_bytes
from longcat.checkpoint.sources.quantized.mlx import mxfp4_matrix
from longcat.checkpoint.sources.quantized.settings import Patterns, Settings
from longcat.checkpoint.sources.quantized.stored import FLOATS, Array

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mxfp4-pack-quantized")
STRATEGIES = ("group", "channel", "tensor", "block")
_GROUPS = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class _Group:
    """One entry of config_groups."""

    targets: list[str]
    format: str
    kind: str  # "int" or "float"
    bits: int
    symmetric: bool
    group_size: int | None  # None: one group a row, or a matrix
    block: tuple[int, int] | None


class CompressedTensors:
    """quant_method "compressed-tensors"."""

    parts = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")

    def __init__(self, settings: Settings):
        self._where = settings.where
        self._patterns = Patterns()
        self._ignore = settings.texts("ignore")
        whole = settings.text("format", (*FORMATS, "mixed-precision"), "mixed-precision")
        sparsity = settings.get("sparsity_config")
        if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
            raise settings.refuse("sparsity_config", "none, or format dense")
        if settings.get("transform_config"):
            raise settings.refuse("transform_config", "none")
        groups = settings.inner("config_groups")
        self._groups = [self._group(groups.inner(name), whole) for name in groups.fields]
        if not self._groups:
            raise settings.refuse("config_groups", "at least one group")

    def _group(self, settings: Settings, whole: str) -> _Group:
        weights = settings.inner("weights")
        default = whole if whole in FORMATS else None
        form = settings.text("format", FORMATS, default)
        kind = weights.text("type", ("int", "float"), "int")
        bits = weights.integer("num_bits", (4, 8), 8)
        fits = (form, kind, bits) in {
            ("pack-quantized", "int", 4),
            ("pack-quantized", "int", 8),
            ("int-quantized", "int", 8),
            ("naive-quantized", "int", 8),
            ("naive-quantized", "float", 8),
            ("float-quantized", "float", 8),
            ("mxfp4-pack-quantized", "float", 4),
        }
        if not fits:
            raise weights.refuse("num_bits", f"what {form} holds, and type is {kind}")
        size = weights.get("group_size")
        has_groups = isinstance(size, int) and size != -1
        strategy = weights.text("strategy", STRATEGIES, "group" if has_groups else "tensor")
        if strategy == "block" and kind != "float":
            raise weights.refuse("strategy", "group, channel or tensor for integers")
        block = weights.block("block_structure") if strategy == "block" else None
        if strategy == "group" and kind == "float" and bits == 8:
            raise weights.refuse("strategy", "channel, tensor or block for FP8")
        group_size = weights.integer("group_size", _GROUPS) if strategy == "group" else None
        if form == "mxfp4-pack-quantized" and group_size != 32:
            raise weights.refuse("group_size", "32 for MXFP4")
        symmetric = weights.flag("symmetric", True)
        return _Group(settings.texts("targets"), form, kind, bits, symmetric, group_size, block)

    def _matches(self, names: Iterable[str], module: str, field: str) -> str | None:
        for name in names:
            if name == module or name == "Linear" and field == "targets":
                return name
            if name.startswith("re:") and self._patterns.match(name[3:], module, f"{self._where}.{field}"):
                return name
        return None

    def matrix(self, module: str, stored: dict[str, Array], shape: tuple[int, int]) -> Matrix | None:
        """The matrix of a module, or None when it is not quantised."""
        weight = stored.get("weight")
        packed, scale, zero = (stored.get(f"weight_{part}") for part in ("packed", "scale", "zero_point"))
        if packed is None and scale is None and (weight is None or weight.dtype in FLOATS):
            return None
        if ignored := self._matches(self._ignore, module, "ignore"):
            raise Error(
                f'[convert] "{module}" is quantised, but {self._where}.ignore has "{ignored}": take the '
                "config.json that belongs to the files"
            )
        group = next((g for g in self._groups if self._matches(g.targets, module, "targets")), None)
        if group is None:
            raise Error(f'[convert] "{module}" is quantised, but no entry of {self._where}.config_groups names it')
        data = packed if "pack" in group.format else weight
        if data is None or scale is None or (zero is None and not group.symmetric):
            wanted = ["weight_packed" if "pack" in group.format else "weight", "weight_scale"]
            wanted += [] if group.symmetric else ["weight_zero_point"]
            missing = [part for part in wanted if part not in stored]
            raise Error(f'[convert] "{module}" has no {" and no ".join(missing)}: download it again')
        self._check_shape(stored.get("weight_shape"), shape)
        if group.kind == "float" and group.bits == 8:
            return fp8_matrix(module, check(data, ("F8_E4M3",), shape), scale, group.block)
        size = total_bytes(*stored.values())
        if group.format == "mxfp4-pack-quantized":
            return self._mxfp4(module, data, scale, shape, size)
        return self._integers(module, group, data, scale, None if group.symmetric else zero, stored, shape, size)

    def _check_shape(self, array: Array | None, shape: tuple[int, int]) -> None:
        if array is None:
            return
        found = tuple(int(extent) for extent in check(array, ("I64", "I32"), (2,)).all())
        if found != shape:
            raise Error(f'[convert] "{array.name}" holds {list(found)}; expected {list(shape)}: download it again')

    def _mxfp4(self, module: str, data: Array, scale: Array, shape: tuple[int, int], size: int) -> Quantized:
        out, width = shape
        if width % 32:
            raise Error(f'[convert] "{module}" has {width} columns; expected whole groups of 32 for MXFP4')
        check(data, ("U8",), (out, width // 2))
        check(scale, ("U8",), (out, width // 32))

        def codes(begin: int, end: int) -> np.ndarray:
            return unpack(data.rows(begin, end), 4, width)

        return mxfp4_matrix(module, "MXFP4", size, width, codes, scale)

    def _integers(
        self,
        module: str,
        group: _Group,
        data: Array,
        scale: Array,
        zero: Array | None,
        stored: dict[str, Array],
        shape: tuple[int, int],
        size: int,
    ) -> Quantized:
        (out, width), bits = shape, group.bits
        is_packed = group.format == "pack-quantized"
        check(data, ("I32" if is_packed else "I8",), (out, -(-width * bits // 32) if is_packed else width))
        of_group = group.group_size or width
        groups = -(-width // of_group)
        one = ((1,), (1, 1), ()) if groups == 1 else ()
        check(scale, FLOATS, (out, groups), *((out,),) * (groups == 1), *one)
        group_of = _group_of(stored.get("weight_g_idx"), width, of_group, groups)
        zeros = _zeros(zero, bits, (out, groups)) if zero else None
        middle = np.int16(1 << bits - 1)

        def values(begin: int, end: int) -> np.ndarray:
            raw = data.rows(begin, end)
            found: np.ndarray = unpack(raw, bits, width) - middle if is_packed else raw.astype(np.int16)
            if zeros is None:
                return found
            part = zeros(begin, end)
            of_columns = part[:, group_of] if not isinstance(group_of, int) else part.repeat(of_group, 1)[:, :width]
            found -= of_columns
            return found

        def scales(begin: int, end: int) -> np.ndarray:
            if len(scale.shape) == 0 or scale.shape[0] == 1 < out:
                return scale.all().reshape(1, 1).repeat(end - begin, axis=0)
            return scale.rows(begin, end).reshape(end - begin, -1)

        grid_bits: Literal[4, 8] | None = (4 if bits == 4 else 8) if zeros is None else 8 if bits == 4 else None
        kind = f"compressed-tensors int{bits} g{group.group_size or -1} {'asymmetric' if zeros else 'symmetric'}"
        return Quantized(module, kind, size, width, values, scales, scale.dtype, group_of, bits=grid_bits)


def _group_of(order: Array | None, width: int, size: int, groups: int) -> np.ndarray | int:
    """The group of each column: in turn, or as weight_g_idx says."""
    if order is None:
        return size
    found = check(order, ("I32", "I64"), (width,)).all()
    if found.min() == found.max() == -1 or np.array_equal(found, np.arange(width) // size):  # -1: not used
        return size
    if found.min() < 0 or found.max() >= groups:
        raise Error(f'[convert] "{order.name}" names group {found.max()}; expected 0 to {groups - 1}')
    return found


def _zeros(array: Array, bits: int, shape: tuple[int, int]) -> Callable[[int, int], np.ndarray]:
    """The zero points of rows as [rows, groups] int16. Early versions stored them as I8, not packed."""
    out, groups = shape
    if array.dtype == "I8":
        check(array, ("I8",), shape, *((out,), (1,)) * (groups == 1))
        if array.shape == (1,) != (out,):
            return lambda begin, end: array.all().reshape(1, 1).repeat(end - begin, 0).astype(np.int16)
        return lambda begin, end: array.rows(begin, end).reshape(end - begin, -1).astype(np.int16)
    check(array, ("I32",), (-(-out * bits // 32), groups))

    def packed(begin: int, end: int) -> np.ndarray:
        first, last = begin * bits // 32, -(-end * bits // 32)
        codes = unpack(np.ascontiguousarray(array.rows(first, last).T), bits, (last - first) * 32 // bits)
        at = begin - first * 32 // bits
        return codes.T[at : at + end - begin].astype(np.int16) - np.int16(1 << bits - 1)

    return packed
