"""The base of all request bodies: handles nulls, unknown fields and refused fields."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, model_validator

from longcat.server.http.errors import ApiError, validation_error
from longcat.server.http.json_text import MAX_DEPTH, JsonError, check_parts, parse
from longcat.support.json_types import Json, JsonObject

B = TypeVar("B", bound="Body")
_MANY_PARTS = 64 << 10  # bytes of a body whose parts are counted before it is parsed

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


@dataclass
class Done:
    """The results of the fields that may be large, as far as an endpoint needs them.

    Args:
        token_ids: of each prompt.
        grammar: of the form that completions are held to, in llguidance's form.
        texts: of the prompts, where the endpoint needs them.
        answer: the whole response.
    """

    token_ids: Sequence[Sequence[int]] = ()
    grammar: str | None = None
    texts: Sequence[str | None] = ()
    answer: bytes = b""


class Body(BaseModel):
    """The base of all bodies: nulls are dropped, unknown fields are kept and named, `refused` ones are refused.

    A worker reads a large body, and does the work on its `heavy` fields. The server's copy of the body has placeholders
    there, and the results in `_done`.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, json_schema_extra=_take_null)

    refused: ClassVar[dict[str, tuple[Callable[[Json], bool], str]]] = {}
    heavy: ClassVar[dict[str, Json]] = {}
    _done: Done | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, data: object) -> Json:
        if not isinstance(data, dict):
            return data
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: value for name, value in data.items() if value is not None or name in required}

    def light(self) -> JsonObject:
        """The known fields that were given, with what stands for the heavy ones."""
        names = [name for name in type(self).model_fields if name in self.model_fields_set]
        given: JsonObject = {name: getattr(self, name) for name in names}
        given |= {name: value for name, value in self.heavy.items() if name in given}
        return {name: value.light() if isinstance(value, Body) else value for name, value in given.items()}

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


def checked(model: type[B], data: bytes | bytearray) -> B:
    """Returns the body in `data`.

    Raises:
        ApiError: 400, it is no JSON, too deep or of too many parts, or not what `model` says.
    """
    try:
        if len(data) > _MANY_PARTS or data.count(b"[") + data.count(b"{") > MAX_DEPTH:
            check_parts(data)
        value = parse(data)
        if not isinstance(value, dict):
            raise JsonError("[request] the body is JSON, but no object; expected {...} with the fields of the request.")
        body = model.model_validate(value)
    except JsonError as error:
        raise ApiError(400, str(error)) from None
    except ValidationError as error:
        raise validation_error(error, model, value) from None
    except RecursionError:
        raise ApiError(400, "[request] the body nests lists and objects too deep; expected less.") from None
    if refused := body.refusal():
        name, message = refused
        raise ApiError(400, message, param=name)
    return body
