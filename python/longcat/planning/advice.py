"""What makes a checkpoint fit on this machine: other options, or other weight formats."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import longcat._core as _core
from longcat._core import OutOfMemoryError
from longcat.checkpoint.formats import PRESETS, packed_as
from longcat.planning.plan import Plan, part_of, plan
from longcat.support.text import bytes_text

_SHORTEST = 2048  # context that is still worth a suggestion [tokens]


@dataclass(frozen=True)
class Advice:
    """How to run a checkpoint here.

    Args:
        says: one line.
        commands: to run one after the other; none: no command makes it fit.
    """

    says: str
    commands: tuple[str, ...] = ()


def advise(made: Plan, options: Mapping[str, Any]) -> Advice:
    """Finds the least change that makes a plan fit: first a shorter context, then int8 and int4 weights.

    Args:
        options: the engine's options of the plan that differ from their defaults, by keyword.
    """
    if not made.has_weights:
        return Advice(f"there are no weights in {made.model}; expected *.safetensors. Download them: longcat pull NAME")
    if made.fits:
        return Advice("run it", (_serve(made.model, options),))
    context = made.max_model_len // 2
    while context >= _SHORTEST:
        if _fits(made, dict(options) | {"max_model_len": context}):
            shorter = dict(options) | {"max_model_len": context}
            return Advice(f"with a context of {context} tokens it fits", (_serve(made.model, shorter),))
        context //= 2
    small = dict(options) | {"max_model_len": min(made.max_model_len, _SHORTEST)}
    needed = least = made.num_ranks * (made.peak - made.process)
    for name in ("int8", "int4"):
        saved = made.num_ranks * (made.weights - converted_weights(made, name))
        if saved <= 0:
            continue
        for kept, cache in ((options, made.kv_cache), (small, _cache(made, small))):
            if needed - saved - made.num_ranks * (made.kv_cache - cache) <= made.available:
                out = f"{made.model.rstrip('/')}-{name}"
                convert = f"longcat convert {shlex.quote(made.model)} {shlex.quote(out)} --quant {name}"
                return Advice(f"with {name} weights it fits", (convert, _serve(out, kept)))
        least = min(least, needed - saved)
    return Advice(
        f"no option makes it fit: its smallest form needs {bytes_text(least)}, and {bytes_text(made.available)} are "
        "free. More memory would, or ranks on several machines: docs/parallel.md"
    )


def converted_weights(made: Plan, preset: str) -> int:
    """Returns the memory of the weights after `longcat convert --quant PRESET` [bytes], about."""
    config = json.dumps(made.config)
    uses, packed = _core.packable_tensors(config), dict.fromkeys((part.name for part in made.parts), 0)
    for name, shape, _ in _core.expected_tensors(config):
        part = part_of(name, packed)
        if part is not None:
            kind = packed_as(uses, name, PRESETS[preset])
            packed[part] += math.prod(_core.packed_shape(kind, *shape)) if kind else 2 * math.prod(shape)
    return sum(
        int(part.touched * min(1.0, packed[part.name] / part.stored)) + part.copied if part.stored else part.copied
        for part in made.parts
    )


def _fits(made: Plan, options: Mapping[str, Any]) -> bool:
    try:
        return plan(made.model, bandwidth=made.bandwidth, **options).fits
    except (OutOfMemoryError, ValueError):
        return False


def _cache(made: Plan, options: Mapping[str, Any]) -> int:
    try:
        return plan(made.model, bandwidth=made.bandwidth, **options).kv_cache
    except (OutOfMemoryError, ValueError):
        return made.kv_cache


def _serve(model: str, options: Mapping[str, Any]) -> str:
    """Returns the command line that serves a model with these options."""
    ranks = max(int(options.get("tensor_parallel_size", 1)), int(options.get("expert_parallel_size", 1)))
    words = [*(["mpirun", "-n", str(ranks)] if ranks > 1 else []), "longcat", "serve", model]
    for name, value in options.items():
        flag = "--speculative-config" if name == "speculative" else "--" + name.replace("_", "-")
        words += [flag, _text(value)]
    return shlex.join(words)


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, Mapping) else str(value)
