"""generation_config.json: how a checkpoint wants to be sampled."""

from __future__ import annotations

import json
import os
from typing import Any

from longcat._core import Error

_MAX_BYTES = 1 << 20


def read_generation_config(folder: str) -> dict[str, Any]:
    """generation_config.json, or nothing when the checkpoint has none."""
    path = os.path.join(folder, "generation_config.json")
    if not os.path.exists(path):
        return {}
    try:
        if os.path.getsize(path) > _MAX_BYTES:
            raise ValueError("larger than 1 MiB")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise Error(f"[generation config] {path} is not valid: {error}") from None
    return {name: value for name, value in config.items() if value is not None}
