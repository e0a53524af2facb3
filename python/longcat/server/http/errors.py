"""Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from longcat.support.text import printable

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
CLIENT_LEFT = 499  # nginx's number
_MAX_SHOWN = 4  # of the mistakes in one request


class ApiError(HTTPException):  # so that FastAPI lets it through while it reads a body
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: one line: what is wrong, what was expected.
        param: the field of the request it is about.
        code: a word for programs.
        retry_after: when to try again [s].
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after: int | None = None, headers: Mapping[str, str] | None = None,
    ):  # fmt: skip
        retry = {} if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, printable(message), {**(headers or {}), **retry})  # what clients sent may be quoted
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return json_response(self.body(), self.status_code, self.headers)


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, media_type="application/json")


def to_json(value: Any) -> bytes:
    """JSON of what this server says; half a surrogate pair becomes a question mark."""
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return orjson.dumps(_clean(value), option=orjson.OPT_NON_STR_KEYS)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_clean(name): _clean(item) for name, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, (list, tuple)) else value


def add_error_handlers(api: FastAPI) -> None:
    """Makes every error of `api` one of the above."""

    async def own(request: Request, error: Any) -> Response:
        return error.response()

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)  # for the log; nobody reads it

    async def invalid(request: Request, error: Any) -> Response:
        return validation_error(error).response()

    async def http(request: Request, error: Any) -> Response:
        found = f"{error.detail}: {request.method} {request.url.path}" if error.status_code < 500 else error.detail
        return ApiError(error.status_code, str(found), headers=error.headers).response()

    async def bug(request: Request, error: Exception) -> Response:
        return ApiError(500, "the server made a mistake; its log has more").response()

    api.add_exception_handler(ApiError, own)
    api.add_exception_handler(ClientLeft, gone)
    api.add_exception_handler(RequestValidationError, invalid)
    api.add_exception_handler(HTTPException, http)
    api.add_exception_handler(Exception, bug)


def validation_error(error: RequestValidationError) -> ApiError:
    """One line about the first few mistakes."""
    lines, params = [], []
    for one in error.errors():
        place = ".".join(str(step) for step in one["loc"] if step != "body")
        params.append(place)
        lines.append(f"{place}: {one['msg']}" if place else str(one["msg"]))
    more = f" (and {len(lines) - _MAX_SHOWN} more)" if len(lines) > _MAX_SHOWN else ""
    return ApiError(400, "; ".join(lines[:_MAX_SHOWN]) + more, param=params[0] or None if params else None)
