"""The page and its files, and POST /render."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from longcat._core import Error
from longcat.server.api.shapes import Rendered, answers
from longcat.server.generation import Ready, Service
from longcat.server.http.body import Body, Done
from longcat.server.http.errors import ApiError, json_response
from longcat.server.http.guard import PAGE_FOLDER
from longcat.server.http.intake import JsonRoute
from longcat.server.http.streaming import unless_client_leaves
from longcat.server.texts import Texts
from longcat.support.json_types import Json
from longcat.support.worker import JobFailed, Limits

router = APIRouter(route_class=JsonRoute)

MAX_RENDER_CHARS = 64 << 10
RENDER_LIMITS = Limits(cpu_seconds=2.0, memory_bytes=64 << 20, wall_seconds=20.0)

# Files of this server alone, none of them inline. The page's script makes elements one by one, and text never becomes
# HTML of the document: `trusted-types` has the one parser of what /render answers.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types markup"
)
PAGE_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class PageFile:
    """A file as it is sent."""

    data: bytes
    media_type: str
    etag: str


@functools.cache
def page_files() -> dict[str, PageFile]:
    """Returns the files of the page, which are part of the package, by their path."""
    folder = Path(__file__).with_name("files")
    return {path.relative_to(folder).as_posix(): _read(path) for path in folder.rglob("*") if path.suffix in _TYPES}


def _read(path: Path) -> PageFile:
    data = path.read_bytes()
    return PageFile(data, _TYPES[path.suffix], f'"{hashlib.sha256(data).hexdigest()}"')


@router.head("/", include_in_schema=False)  # Claude Code asks whether there is a server
@router.get("/", include_in_schema=False)
async def root(request: Request) -> Response:
    return _sent(request, "index.html")


@router.get(PAGE_FOLDER + "{path:path}", include_in_schema=False)
async def page_file(path: str, request: Request) -> Response:
    return _sent(request, path)


def _sent(request: Request, path: str) -> Response:
    file = page_files().get(path)
    if file is None:
        raise ApiError(404, f"[request] found no file {path[:100]} of the page; expected one that / loads.")
    headers = {**PAGE_HEADERS, "ETag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, headers=headers, media_type=file.media_type)


class RenderRequest(Body):
    """Markdown with tables, code and formulas."""

    heavy: ClassVar[dict[str, Json]] = {"text": ""}

    text: str


def plan_render(texts: Texts, body: RenderRequest) -> Ready:
    """Checks the length. The text goes on as it is, to a worker of its own kind."""
    if body._done is not None:
        return Ready(body._done)
    if len(body.text) > MAX_RENDER_CHARS:
        found = f"[request] text has {len(body.text)} characters; expected at most {MAX_RENDER_CHARS}"
        raise ApiError(400, f"{found}. Send it in parts.", param="text")
    return Ready(Done(texts=[body.text]))


@router.post("/render", summary="Markdown to HTML, for the page", responses=answers(Rendered))
async def render(body: RenderRequest, request: Request) -> Response:
    service: Service = request.app.state.service
    [text] = plan_render(service.texts, body).done.texts
    job = (text or "").encode(errors="replace")
    try:
        page = await unless_client_leaves(request, service.renderer.acall(job, RENDER_LIMITS))
    except JobFailed as failure:
        raise _too_hard(failure.reason, service.settings.retry_after) from None
    except Error as error:  # the workers do not start
        raise ApiError(503, str(error), retry_after=service.settings.retry_after) from None
    return json_response({"html": page.decode()})


def _too_hard(reason: str, retry_after: int) -> ApiError:
    if reason == "killed":
        return ApiError(503, "[request] the process that wrote the HTML was ended. Try again.", retry_after=retry_after)
    memory = f"{RENDER_LIMITS.memory_bytes >> 20} MiB of memory"
    found = f"{RENDER_LIMITS.cpu_seconds:g} s" if reason == "time" else memory
    return ApiError(413, f"[request] the text takes more than {found} to render; expected less. Make it smaller.")
