"""Finds the reader of a folder by its config.json."""

from __future__ import annotations

import os
from pathlib import Path

import longcat._core as _core
from longcat._core import Error
from longcat.checkpoint.sources.quantized.compressed_tensors import CompressedTensors
from longcat.checkpoint.sources.quantized.folder import QUANTIZATION_FIELDS, Method, QuantizedFolder
from longcat.checkpoint.sources.quantized.fp8 import Fp8
from longcat.checkpoint.sources.quantized.gptq import Gptq
from longcat.checkpoint.sources.quantized.mlx import Mlx
from longcat.checkpoint.sources.quantized.names import is_stack, split, stored_experts
from longcat.checkpoint.sources.quantized.settings import Settings
from longcat.support.files import read_json_object
from longcat.support.json_types import JsonObject

METHODS = ("auto-round", "gptq", "compressed-tensors", "fp8")  # of quantization_config.quant_method


def open_quantized(folder: str | os.PathLike[str]) -> QuantizedFolder | None:
    """The reader of a folder whose weights the engine does not map as they are.

    Args:
        folder: in the Hugging Face layout, with weights of AutoRound, GPTQ, compressed-tensors, MLX or FP8, or with
            stacked or pruned experts.
    Returns:
        The source; None: the engine reads the folder, or it is damaged in a way that the engine reports better.
    Raises:
        longcat.Error: the folder is damaged, or quantised in an unknown way.
    """
    path = Path(folder)
    try:
        checkpoint = _core.Checkpoint(str(path))
        checkpoint.check_tensors()
        return None
    except Error:
        if not path.is_dir():
            return None
    config = read_json_object(path / "config.json", "[convert]")
    method = _method(config, f"{path / 'config.json'}: ")
    if method is None and not _has_other_experts(path, config):
        return None
    return QuantizedFolder(path, config, method)


def _has_other_experts(path: Path, config: JsonObject) -> bool:
    """Whether the experts are stacked, or another number than config.json says."""
    try:
        tensors = _core.Checkpoint(str(path)).tensors()
    except Error:
        return False
    shapes = {split(name)[0]: shape for name, _, shape, *_ in tensors}
    experts = stored_experts(shapes)
    return any(is_stack(module) for module in shapes) or {len(numbers) for numbers in experts.values()} != {
        config.get("n_routed_experts")
    }


def _method(config: JsonObject, where: str) -> Method | None:
    """The way of quantising that config.json names, or None."""
    # MLX writes its field twice, the second time under the name of Hugging Face.
    if isinstance(config.get("quantization"), dict):
        return Mlx(Settings(config["quantization"], f"{where}quantization"))
    name = next((name for name in QUANTIZATION_FIELDS if config.get(name) is not None), None)
    if name is None:
        return None
    settings = Settings(config[name], where + name)
    if "quant_method" not in settings.fields and "group_size" in settings.fields:
        return Mlx(settings)
    match settings.text("quant_method", METHODS):
        case "auto-round" | "gptq":
            return Gptq(settings)
        case "compressed-tensors":
            return CompressedTensors(settings)
        case _:
            return Fp8(settings)
