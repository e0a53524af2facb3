"""Where other projects store our matrices: under other names, and experts one by one or in a stack."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import longcat._core as _core

_EXPERT = re.compile(r"(.*\.mlp\.)experts\.(\d+)\.(gate|up|down)_proj")
_STACK = re.compile(r"(?:switch_mlp\.(?:gate|up|down)|experts\.(?:gate_up|down))_proj")
_WORD_EMBEDDING = "model.ngram_embeddings.word_embeddings"  # of MLX; model.embed_tokens is the same matrix


@dataclass(frozen=True)
class Place:
    """A stored module that holds a matrix of ours."""

    module: str
    expert: int | None = None  # in a stack [experts, ...]
    part: int = 0  # the matrix is this one of `parts` equal parts of the rows
    parts: int = 1


def places(module: str) -> Iterator[Place]:
    """The modules that may hold a module of ours, its own name first.

    Experts: MLX stacks them in mlp.switch_mlp.*, transformers 5 in mlp.experts.gate_up_proj and mlp.experts.down_proj.
    """
    yield Place(module)
    if other := _core.other_spelling(module + ".weight").removesuffix(".weight"):
        yield Place(other)
    if module == "model.embed_tokens":
        yield Place(_WORD_EMBEDDING)
    if match := _EXPERT.fullmatch(module):
        mlp, expert, kind = match[1], int(match[2]), match[3]
        yield Place(f"{mlp}switch_mlp.{kind}_proj", expert)
        if kind == "down":
            yield Place(f"{mlp}experts.down_proj", expert)
        else:
            yield Place(f"{mlp}experts.gate_up_proj", expert, int(kind == "up"), 2)


def split(name: str) -> tuple[str, str]:
    """The module and the part of a stored tensor: "model.norm.weight" is the weight of model.norm.

    The stacks of transformers 5 are parameters: their parts are gate_up_proj and gate_up_proj_scale_inv, for example.
    """
    if match := re.fullmatch(r"(.*\.mlp\.experts\.(?:gate_up|down)_proj)((?:_[a-z_]+)?)", name):
        return match[1], "weight" + match[2]
    module, _, part = name.rpartition(".")
    return module, part


def is_stack(module: str) -> bool:
    """Whether a stored module has all experts of a layer."""
    return _STACK.fullmatch(module.rpartition(".mlp.")[2]) is not None


def stored_experts(modules: dict[str, tuple[int, ...]]) -> dict[int, set[int]]:
    """layer -> the numbers of its experts. modules: stored module -> shape of one of its tensors."""
    found: dict[int, set[int]] = {}
    for module, shape in modules.items():
        if not (layer := re.match(r"model\.layers\.(\d{1,6})\.mlp\.", module)):
            continue
        numbers = found.setdefault(int(layer[1]), set())
        rest = module[layer.end() :]
        if match := re.fullmatch(r"experts\.(\d{1,6})\.(?:gate|up|down)_proj", rest):
            numbers.add(int(match[1]))
        elif _STACK.fullmatch(rest) and shape:
            numbers.update(range(min(shape[0], 1 << 16)))
    return {layer: numbers for layer, numbers in found.items() if numbers}
