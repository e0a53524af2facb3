"""The packings of GPTQ and AWQ, which AutoRound and GPTQModel write: qweight, qzeros, scales and sometimes g_idx.

A value is scales[group, out] * (integer - zero point). GPTQ's qweight [in * bits / 32, out] holds the integers of a row
of the matrix in one column, lowest bits first, and qzeros [groups, out * bits / 32] the zero points. In the first
version of the format the stored zero point is one less, modulo 2^bits. AWQ's qweight [in, out / 8] and qzeros
[groups, out / 8] hold 8 rows of the matrix in a word, in an order of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from longcat._core import Error
from longcat.checkpoint.sources.quantized.decoding import unpack
from longcat.checkpoint.sources.quantized.matrix import Matrix, Quantized, check, total_bytes
from longcat.checkpoint.sources.quantized.settings import Patterns, Settings
from longcat.checkpoint.sources.quantized.stored import FLOATS, Array

BITS = (4, 8)
GROUPS = (-1, 16, 32, 64, 128, 256, 512, 1024)
# packing_format of AutoRound, checkpoint_format of GPTQModel -> what is added to a stored zero point
_ZEROS = {"auto_round:auto_gptq": 1, "auto_round:gptq": 1, "gptq": 1}
_ZEROS |= dict.fromkeys(("auto_round", "auto_round:exllamav2", "auto_round:gptqmodel", "gptq_v2"), 0)
_AWQ = ("auto_round:auto_awq", "auto_round:awq")
_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # the nibble of each of the 8 rows
_REGULAR = re.compile(r"[\\^$|()\[\]?+*{}]")


_Rows = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class _Scheme:
    bits: Literal[4, 8]
    group_size: int
    symmetric: bool


class Gptq:
    """quant_method "auto-round" or "gptq"."""

    parts = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, settings: Settings):
        self._settings = settings
        self._patterns = Patterns()
        self._auto_round = settings.get("quant_method") != "gptq"
        field = "packing_format" if self._auto_round else "checkpoint_format"
        known = [name for name in (*_ZEROS, *_AWQ) if name.startswith("auto_round") == self._auto_round]
        packing = settings.text(field, known, None if self._auto_round else "gptq")
        self._is_awq = packing in _AWQ
        self._added = _ZEROS.get(packing, 0)
        if self._auto_round:
            settings.text("data_type", ("int",), "int")
            for name in ("act_bits", "super_bits"):
                settings.integer(name, (16, 32), 16)
        self._default = self._scheme(settings, None)
        overrides = settings.get("extra_config" if self._auto_round else "dynamic")
        self._overrides: dict[str, Settings | None] = {}  # None: not quantised
        if overrides is not None:
            field = "extra_config" if self._auto_round else "dynamic"
            inner = settings.inner(field)
            for name in inner.fields:
                self._overrides[name] = None if name.startswith("-:") else inner.inner(name)

    def _scheme(self, settings: Settings, default: _Scheme | None) -> _Scheme:
        bits = settings.integer("bits", BITS, default.bits if default else None)
        group_size = settings.integer("group_size", GROUPS, default.group_size if default else None)
        symmetric = settings.flag("sym", default.symmetric if default else True)
        return _Scheme(4 if bits == 4 else 8, group_size, symmetric)

    def _scheme_of(self, module: str) -> _Scheme:
        """The scheme of a module by its name, then by the first pattern that fits."""
        where = f"{self._settings.where}.{'extra_config' if self._auto_round else 'dynamic'}"
        found = module if module in self._overrides else None
        for name in self._overrides:
            pattern = name[2:] if name.startswith(("-:", "+:")) else name
            if found is None and (pattern != name or not self._auto_round or _REGULAR.search(name)):
                # GPTQModel matches from the beginning, AutoRound anywhere.
                find = self._patterns.search if self._auto_round else self._patterns.match
                found = name if find(pattern, module, where) else None
        override = self._overrides.get(found) if found else None
        if (
            found
            and override is None
            or override
            and isinstance(override.get("bits"), int)
            and override.get("bits") == 16
        ):
            raise Error(f'[convert] "{module}.qweight" is there, but {where}.{found} says that it is not quantised')
        return self._scheme(override, self._default) if override else self._default

    def matrix(self, module: str, stored: dict[str, Array], shape: tuple[int, int]) -> Matrix | None:
        """The matrix of a module, or None when it is not quantised."""
        if not stored.keys() & {"qweight", "qzeros", "scales"}:
            return None
        missing = {"qweight", "qzeros", "scales"} - stored.keys()
        if missing:
            raise Error(f'[convert] "{module}" has no {" and no ".join(sorted(missing))}: download it again')
        scheme = self._scheme_of(module)
        bits, (out, width) = scheme.bits, shape
        size = width if scheme.group_size == -1 else scheme.group_size
        groups = -(-width // size)
        codes, zeros = (self._awq if self._is_awq else self._gptq)(stored, bits, shape, groups)
        scales = check(stored["scales"], FLOATS, (groups, out))
        group_of = self._group_of(stored.get("g_idx"), width, size, groups)

        def values(begin: int, end: int) -> np.ndarray:
            of_groups = zeros(begin, end)
            repeated = of_groups[:, group_of] if not isinstance(group_of, int) else of_groups.repeat(size, 1)[:, :width]
            return codes(begin, end).astype(np.int16) - repeated

        # Integers without a sign, less a zero point that is not the middle, take one bit more.
        grid_bits: Literal[4, 8] | None = bits if scheme.symmetric else 8 if bits == 4 else None
        packing = "AWQ" if self._is_awq else "GPTQ"
        return Quantized(
            module,
            f"{packing} int{bits} g{scheme.group_size} {'symmetric' if scheme.symmetric else 'asymmetric'}",
            total_bytes(*stored.values()),
            width,
            values,
            lambda begin, end: np.ascontiguousarray(scales.columns(begin, end).T),
            scales.dtype,
            group_of,
            bits=grid_bits,
        )

    def _gptq(self, stored: dict[str, Array], bits: int, shape: tuple[int, int], groups: int) -> tuple[_Rows, _Rows]:
        """Readers of the integers [rows, columns] and of the zero points [rows, groups], both uint8."""
        out, width = shape
        qweight = check(stored["qweight"], ("I32",), (width * bits // 32, out))
        if width * bits % 32:
            raise Error(f"[convert] {qweight}, and its matrix has {width} columns; expected a multiple of {32 // bits}")
        qzeros = check(stored["qzeros"], ("I32",), (groups, -(-out * bits // 32)))

        def codes(begin: int, end: int) -> np.ndarray:
            # [words, rows, bytes] -> [rows, bytes of a row]
            packed = np.ascontiguousarray(qweight.columns(begin, end)).view(np.uint8).reshape(-1, end - begin, 4)
            return unpack(packed.transpose(1, 0, 2).reshape(end - begin, -1), bits, width)

        def zeros(begin: int, end: int) -> np.ndarray:
            first, last = begin * bits // 32, -(-end * bits // 32)
            stored_zeros = unpack(qzeros.columns(first, last), bits, (last - first) * 32 // bits)
            at = begin - first * 32 // bits
            return (stored_zeros[:, at : at + end - begin] + np.uint8(self._added) & np.uint8((1 << bits) - 1)).T

        return codes, zeros

    def _awq(self, stored: dict[str, Array], bits: int, shape: tuple[int, int], groups: int) -> tuple[_Rows, _Rows]:
        """As `_gptq`."""
        out, width = shape
        if bits != 4 or out % 8:
            raise Error(f"[convert] {stored['qweight']}; expected 4 bits and a multiple of 8 rows in AWQ's packing")
        qweight = check(stored["qweight"], ("I32",), (width, out // 8))
        qzeros = check(stored["qzeros"], ("I32",), (groups, out // 8))

        def reader(array: Array) -> _Rows:
            def rows(begin: int, end: int) -> np.ndarray:
                first, last = begin // 8, -(-end // 8)
                nibbles = unpack(array.columns(first, last), 4, (last - first) * 8)
                ordered = nibbles.reshape(len(nibbles), -1, 8)[:, :, _AWQ_ORDER].reshape(nibbles.shape)
                return np.ascontiguousarray(ordered[:, begin - first * 8 : end - first * 8].T)

            return rows

        return reader(qweight), reader(qzeros)

    def _group_of(self, g_idx: Array | None, width: int, size: int, groups: int) -> np.ndarray | int:
        """The group of each column; desc_act orders columns by their activations, and the groups with them."""
        if g_idx is None:
            if self._settings.get("desc_act") is True:
                raise Error(
                    f"[convert] {self._settings.where}.desc_act is true, and g_idx is missing: download it again"
                )
            return size
        order = check(g_idx, ("I32", "I64"), (width,)).all()
        if np.array_equal(order, np.arange(width) // size):
            return size
        if order.min() < 0 or order.max() >= groups:
            raise Error(f'[convert] "{g_idx.name}" names group {order.max()}; expected 0 to {groups - 1}')
        return order
