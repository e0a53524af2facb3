"""Types of JSON, where its values are looked at before they are used."""

from __future__ import annotations

from typing import Any, TypeAlias

Json: TypeAlias = Any  # null, a bool, a number, a text, a list or an object
JsonObject: TypeAlias = dict[str, Any]
