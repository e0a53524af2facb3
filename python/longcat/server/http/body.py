"""The base of all request bodies: handles nulls, unknown fields and refused fields."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from itertools import islice
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, model_validator

from longcat.support.json_types import Json, JsonObject

MAX_SHOWN_FIELDS, MAX_SHOWN_CHARS = 8, 64


def _take_null(schema: JsonObject) -> None:
    """Says in the description that null is a value of each optional field."""
    null = {"type": "null"}
    for name, field in schema.get("properties", {}).items():
        kinds = field.get("anyOf")
        if name in schema.get("required", ()) or null in (kinds or ()):
            continue
        about = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
        schema["properties"][name] = {"anyOf": [*(kinds or [field]), null], **about}


class Body(BaseModel):
    """The base of all bodies: nulls are dropped, unknown fields are kept and named, `refused` ones are refused."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, json_schema_extra=_take_null)

    refused: ClassVar[dict[str, tuple[Callable[[Json], bool], str]]] = {}
    _num_bytes: int = PrivateAttr(0)  # of the body as it was sent; 0 for one that was not

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, data: object) -> Json:
        if not isinstance(data, dict):
            return data
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: value for name, value in data.items() if value is not None or name in required}

    def ignored(self) -> list[str]:
        """Returns the names of the first unknown fields, cut short."""
        return [name[:MAX_SHOWN_CHARS] for name in islice(self.model_extra or (), MAX_SHOWN_FIELDS)]

    def hint(self, name: str) -> str:
        """Returns the field that the unknown field `name` may mean."""
        near = difflib.get_close_matches(name, type(self).model_fields, n=1, cutoff=0.7)
        return f"did you mean {near[0]}?" if near else "see /docs for all fields"

    def refusal(self) -> tuple[str, str] | None:
        """Returns the first field that this server cannot honour, and one line about it."""
        extra = self.model_extra or {}
        for name, (is_harmless, expected) in self.refused.items():
            if name in extra and not is_harmless(extra[name]):
                return name, f"[request] {name} is given, which this server cannot honour; expected {expected}."
        return None
