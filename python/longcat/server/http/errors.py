"""Errors as clients read them.

OpenAI's: {"error": {"message", "type", "param", "code"}}. Anthropic's, for paths below /v1/messages: {"type": "error",
"error": {"type", "message"}}.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence

import orjson
from fastapi import FastAPI, Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from longcat.support.json_types import Json, JsonObject
from longcat.support.text import printable

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_MESSAGES_TYPES = _TYPES | {
    403: "permission_error",
    413: "request_too_large",
    500: "api_error",
    503: "overloaded_error",
}
CONTEXT_EXCEEDED = "context_length_exceeded"
MESSAGES_PATH = "/v1/messages"
CLIENT_LEFT = 499  # nginx's number
_OWN = re.compile(r"/v1/[^{]+")
_MAX_SHOWN = 4  # of the mistakes in one request
_MAX_SHOWN_CHARS = 64  # of a name or value of the client's


class ApiError(HTTPException):  # so that FastAPI lets it through while it reads a body
    """An error response.

    Args:
        status: of HTTP.
        message: one line: what is wrong, what was expected.
        param: the field of the request it is about.
        code: a word for programs.
        retry_after: when to try again [s].
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        retry = {} if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, printable(message), {**(headers or {}), **retry})  # what clients sent may be quoted
        self.param = param
        self.code = code

    def body(self, path: str = "") -> JsonObject:
        """The error as an object, for the clients of a path."""
        if is_messages(path):
            kind = _MESSAGES_TYPES.get(self.status_code, "invalid_request_error")
            # Agents shorten their history when they read these words.
            start = "prompt is too long: " if self.code == CONTEXT_EXCEEDED else ""
            return {"type": "error", "error": {"type": kind, "message": f"{start}{self.detail}"}}
        kind = _TYPES.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self, path: str = "") -> Response:
        return json_response(self.body(path), self.status_code, self.headers)


def is_messages(path: str) -> bool:
    """Whether a path is of Anthropic's API alone."""
    return path == MESSAGES_PATH or path.startswith(f"{MESSAGES_PATH}/")


class ClientLeft(Exception):
    """The client has closed its connection."""


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, media_type="application/json")


def to_json(value: object) -> bytes:
    """Writes a value as JSON. Half a surrogate pair becomes a question mark."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return orjson.dumps(_clean(value), option=orjson.OPT_NON_STR_KEYS)


def _clean(value: object) -> Json:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_clean(name): _clean(item) for name, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, (list, tuple)) else value


def add_error_handlers(api: FastAPI) -> None:
    """Turns every error of `api` into such a response."""

    async def own(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response(request.url.path)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)  # for the log alone

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        found = f"{error.detail}: {request.method} {request.url.path}" if error.status_code < 500 else error.detail
        if error.status_code in (404, 405):
            found = f"[request] found {request.method} {request.url.path[:_MAX_SHOWN_CHARS]}; {_served(request)}"
        return ApiError(error.status_code, str(found), headers=error.headers).response(request.url.path)

    async def bug(request: Request, error: Exception) -> Response:
        return ApiError(500, "the server made a mistake; its log has more").response(request.url.path)

    api.add_exception_handler(ApiError, own)
    api.add_exception_handler(ClientLeft, gone)
    api.add_exception_handler(HTTPException, http)
    api.add_exception_handler(Exception, bug)


def _served(request: Request) -> str:
    """Returns what a client can use in place of a path or method that is not served."""
    paths = {path: " or ".join(methods).upper() for path, methods in request.app.openapi()["paths"].items()}
    path = request.url.path
    if path in paths:
        return f"expected {paths[path]}."
    if f"/v1{path}" in paths:
        return f"expected /v1{path}. Let the client's base URL end in /v1."
    if path.startswith("/v1/v1/") and path.removeprefix("/v1") in paths:
        return f"expected {path.removeprefix('/v1')}. Let the client's base URL end before /v1."
    served = ", ".join(f"{methods} {name}" for name, methods in paths.items() if _OWN.fullmatch(name))
    return f"expected {served}, or another path of /docs."


# --- mistakes in the fields of a body ------------------------------------------------------------------------------


def validation_error(error: ValidationError, model: type[BaseModel], value: dict[str, object]) -> ApiError:
    """Returns an error of one line about the first wrong fields: where each is, what is found, what is expected."""
    deepest: dict[Json, list[Json]] = {}  # by the field's name: the parts of a union each tell of it
    for one in error.errors(include_url=False):
        place = _place(one, value)
        field = one["loc"][0] if one["loc"] else ""
        if len(place) > len(deepest.get(field, ())):
            deepest[field] = place
    lines = [_line(place, model, value) for place in list(deepest.values())[:_MAX_SHOWN]]
    more = f" {len(deepest) - _MAX_SHOWN} more fields are wrong." if len(deepest) > _MAX_SHOWN else ""
    param = _path(next(iter(deepest.values()), [])) or None
    return ApiError(400, f"[request] {' '.join(lines)}{more}", param=param)


def _place(one: Mapping[str, Json], value: Json) -> list[Json]:
    """Returns the path of keys and positions to a mistake, without pydantic's names for the parts of a union."""
    place: list[Json] = []
    steps = [*one["loc"], *(one["ctx"]["path"] if one["type"] == "item" else ())]
    for step in steps:
        if isinstance(value, dict) and step in value:
            place, value = [*place, step], value[step]
        elif isinstance(value, list) and isinstance(step, int):
            place, value = [*place, step], value[step]
        elif one["type"] == "missing" and step == steps[-1]:
            place = [*place, step]
    return place


def _line(place: Sequence[Json], model: type[BaseModel], value: Json) -> str:
    schema: Json = {"$ref": "#/$defs/body"}
    parts = _schemas(model)
    field = ""
    for at, step in enumerate(place):
        inner = next((found for found in _alternatives(schema, parts) if step in found.get("properties", {})), None)
        if inner is None:
            break
        schema, field = inner["properties"][step], _path(place[: at + 1])
    for step in place:
        value = value[step] if isinstance(value, list) or (isinstance(value, dict) and step in value) else _MISSING
    path = _path(place)
    subject = "" if path == field else f"{field} to be "
    return f"{path} is {shown(value)}; expected {subject}{in_words(schema, parts)}."


_MISSING = object()


@functools.cache
def _schemas(model: type[BaseModel]) -> JsonObject:
    """The JSON schemas of a body and of its parts by their names."""
    schema = model.model_json_schema()
    return {**schema.get("$defs", {}), "body": schema}


def _alternatives(schema: Mapping[str, Json], parts: Mapping[str, Json]) -> Iterator[Mapping[str, Json]]:
    for one in schema.get("anyOf", [schema]):
        one = parts[one["$ref"].rpartition("/")[2]] if "$ref" in one else one
        if one.get("type") != "null":
            yield one


def in_words(schema: Mapping[str, object], parts: Mapping[str, object]) -> str:
    """Describes the values that a JSON schema of protocol.py allows."""
    return " or ".join(dict.fromkeys(_kind(one, parts) for one in _alternatives(schema, parts)))


def _kind(schema: Mapping[str, Json], parts: Mapping[str, Json]) -> str:
    kind = schema.get("type")
    limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {schema[key]}" for key, sign in limits.items() if key in schema)
    if kind == "string":
        return "a text" + (f" of at most {schema['maxLength']} characters" if "maxLength" in schema else "")
    if kind == "array":
        least = f"at least {schema['minItems']} of: " if "minItems" in schema else ""
        most = f" (at most {schema['maxItems']})" if "maxItems" in schema else ""
        return f"a list, each {least}{in_words(schema.get('items', {}), parts)}{most}"
    words = {"integer": "an integer", "number": "a number", "boolean": "true or false", "object": "an object"}
    most = f" of at most {schema['maxProperties']} fields" if "maxProperties" in schema else ""
    most += " named by token ids" if "propertyNames" in schema else ""
    return f"{words.get(str(kind), 'a value')}{most}{' ' if bounds else ''}{bounds}"


def _path(place: Sequence[object]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{str(step)[:_MAX_SHOWN_CHARS]}" for step in place)
    return text.removeprefix(".")


def shown(value: object) -> str:
    """Shows a client's value in a message: its JSON, or its size."""
    if value is _MISSING:
        return "missing"
    if isinstance(value, dict):
        return f"an object of {len(value)} fields"
    if isinstance(value, list):
        return f"a list of {len(value)} values"
    if isinstance(value, str) and len(value) > _MAX_SHOWN_CHARS:
        return f"a text of {len(value)} characters"
    return json.dumps(value)[: 2 * _MAX_SHOWN_CHARS]
