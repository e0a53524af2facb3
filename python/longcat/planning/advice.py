"""Finds options or weight formats with which a checkpoint fits on this machine."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import longcat._core as _core
from longcat._core import OutOfMemoryError
from longcat.checkpoint.formats import PRESETS, packed_as
from longcat.engine.config import EngineConfig
from longcat.planning.parts import LOOKED_UP, part_of, touched
from longcat.planning.plan import Plan, plan
from longcat.support.hub import cached_name
from longcat.support.text import bytes_text

_FORMATS = (None, "int8", "int4")  # None: the weights as they are stored
# Contexts [tokens]: smaller weights come before a context below the first, and nothing goes below the second.
_SHORTEST = (32768, 2048)


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
    """Finds the least change that makes a plan fit: a shorter context, int8 or int4 weights, or both.

    Args:
        options: the engine's options of the plan that differ from their defaults, by keyword.
    """
    found = _fitting(made, options)
    if made.has_weights:
        return found
    return Advice(
        f"{made.model} has no weights yet; longcat pull NAME fetches them. Then: {found.says}", found.commands
    )


def _fitting(made: Plan, options: Mapping[str, Any]) -> Advice:
    if made.fits:
        return Advice("run it", (_serve(_shown(made.model), options),))
    least: float = made.num_ranks * (made.peak - made.process)
    stored = {name: value for name, value in options.items() if name != "quantization"}
    unchanged = made  # what converting starts from
    if len(stored) < len(options):
        unchanged = plan(made.model, num_tokens=made.num_tokens, bandwidth=made.bandwidth, **stored)
    for shortest in _SHORTEST:
        for preset in _FORMATS:
            for shorter in _contexts(made, options if preset is None else stored, shortest):
                needed = _needed(made if preset is None else unchanged, preset, shorter)
                if needed <= made.available:
                    return _advice(made, preset, shorter)
                least = min(least, needed)
    return Advice(
        f"no option makes it fit: its smallest form needs {bytes_text(int(least))}, and {bytes_text(made.available)} "
        "are free. More memory would, or ranks on several machines: docs/parallel.md"
    )


def _contexts(made: Plan, options: Mapping[str, Any], shortest: int) -> Iterator[dict[str, Any]]:
    """Yields the options with the context of the plan, then with half of it, down to `shortest`."""
    yield dict(options)
    context = made.max_model_len // 2
    while context >= shortest:
        yield dict(options) | {"max_model_len": context}
        context //= 2


def _needed(made: Plan, preset: str | None, options: Mapping[str, Any]) -> float:
    """Returns the memory that all ranks need [bytes]; infinite where the cache has no room."""
    try:
        core = EngineConfig.of(made.model, options).core_options()
        memory = _core.plan_memory(made.model, core, made.available)
    except (OutOfMemoryError, ValueError):
        return math.inf
    buffers = int(max(allocated - unwritten for allocated, unwritten in memory["buffers"]))
    num_tokens = min(made.num_tokens, int(memory["num_blocks"]) * int(memory["block_tokens"]))
    cache = int(memory["num_blocks"]) * int(memory["block_bytes"])
    return made.num_ranks * (weights(made, preset, num_tokens) + cache + buffers)


def weights(made: Plan, preset: str | None, num_tokens: int) -> int:
    """Estimates the memory of a rank's weights [bytes].

    Args:
        preset: of `longcat convert --quant`; None: the weights as they are stored.
        num_tokens: that were processed; each reads some rows of the N-gram tables.
    """
    config = json.dumps(made.config)
    uses, parts = _core.packable_tensors(config), {part.name: part for part in made.parts}
    total = dict.fromkeys(parts, 0.0)
    packed = dict.fromkeys(parts, 0.0)
    for name, shape, _ in _core.expected_tensors(config):
        if (part := part_of(name, parts)) is None:
            continue
        stored = math.prod(shape) * parts[part].stored / max(parts[part].weights, 1)
        kind = packed_as(uses, name, PRESETS[preset]) if preset is not None else None
        size = min(stored, math.prod(_core.packed_shape(kind, *shape))) if kind else stored
        total[part] += stored
        if part in LOOKED_UP:
            packed[part] += touched(int(size / made.num_ranks), num_tokens // made.num_ranks)
        else:
            packed[part] += size
    return sum(
        part.copied
        + int(
            packed[part.name]
            if part.name in LOOKED_UP
            else part.touched * packed[part.name] / max(total[part.name], 1.0)
        )
        for part in made.parts
    )


def _advice(made: Plan, preset: str | None, options: Mapping[str, Any]) -> Advice:
    changes = []
    if options.get("max_model_len", made.max_model_len) < made.max_model_len:
        changes.append(f"a context of {options['max_model_len']} tokens")
    if preset is None:
        return Advice(f"with {changes[0]} it fits", (_serve(_shown(made.model), options),))
    name = cached_name(made.model)  # the cache of the Hub is no place for other files
    out = f"{Path(made.model) if name is None else Path(name).name}-{preset}"
    convert = shlex.join(["longcat", "convert", _shown(made.model), out, "--quant", preset])
    return Advice(f"with {' and '.join([f'{preset} weights', *changes])} it fits", (convert, _serve(out, options)))


def _shown(model: str) -> str:
    """Returns the name of a checkpoint in the Hub's cache, or the folder."""
    return cached_name(model) or model


def _serve(model: str, options: Mapping[str, Any]) -> str:
    """Returns the command line that serves a model with these options."""
    ranks = max(int(options.get("tensor_parallel_size", 1)), int(options.get("expert_parallel_size", 1)))
    words = [*(["mpirun", "-n", str(ranks)] if ranks > 1 else []), "longcat", "serve", model]
    for name, value in options.items():
        flag = "--speculative-config" if name == "speculative" else "--" + name.replace("_", "-")
        words += [flag, json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return shlex.join(words)
