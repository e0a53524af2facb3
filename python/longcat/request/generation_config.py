"""Reads generation_config.json: the sampling parameters that a checkpoint recommends."""

from __future__ import annotations

import os

from longcat.support.files import read_json_object
from longcat.support.json_types import JsonObject


def read_generation_config(folder: str) -> JsonObject:
    """Returns the fields of generation_config.json; {} when the checkpoint has none."""
    path = os.path.join(folder, "generation_config.json")
    config = read_json_object(path, "[generation config]")
    return {name: value for name, value in config.items() if value is not None}
