"""POST /v1/responses, and the responses that are kept."""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Sequence

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from longcat.server.api.chat import ChatPlan, plan_chat, queue_chat
from longcat.server.api.responses.answer import ResponsesAnswer
from longcat.server.api.responses.body import ResponsesRequest
from longcat.server.api.responses.store import ResponseStore
from longcat.server.api.shapes import Deleted, Items, ResponseObject, answers
from longcat.server.generation import Ready, Service, respond
from longcat.server.http.body import Done
from longcat.server.http.errors import CONTEXT_EXCEEDED, ApiError, json_response
from longcat.server.http.intake import JsonRoute
from longcat.server.texts import Texts
from longcat.support.json_types import JsonObject

_MOST_BYTES = 32 << 20  # of a conversation's items as JSON; a chat that fits has less

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/responses",
    summary="Answer a conversation, in the shapes of OpenAI's Responses API",
    responses=answers(ResponseObject, stream=True),
)
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """Whole, or with `stream` as server-sent events."""
    store: ResponseStore = request.app.state.responses
    start = functools.partial(start_response, store=store, caller=request.state.caller)
    return await respond(request, body, start)


async def start_response(
    service: Service, body: ResponsesRequest, store: ResponseStore, caller: bytes
) -> ResponsesAnswer:
    """Queues a chat for an answer in the shapes of Responses.

    Args:
        caller: the digest of the client's API key.
    Raises:
        ApiError: the request is wrong, it goes on from what is not kept, or the server is full.
    """
    given = await service.planned(body, functools.partial(_given, store=store, caller=caller))
    earlier = store.conversation(caller, body.previous_response_id)
    num_bytes = sum(map(len, earlier)) + (len(body._done.answer) if body._done else 0)
    if num_bytes > _MOST_BYTES:
        raise ApiError(
            400,
            f"[request] previous_response_id begins a conversation of {num_bytes} bytes; expected at most "
            f"{_MOST_BYTES}. Begin a new one.",
            param="previous_response_id",
            code=CONTEXT_EXCEEDED,
        )
    plan = await service.planned(body, functools.partial(_plan, earlier=earlier, given=given))
    id = f"resp_{uuid.uuid4().hex}"
    return ResponsesAnswer(await queue_chat(service, plan, id), body, id, functools.partial(store.add, caller, given))


def plan_response(texts: Texts, body: ResponsesRequest) -> ChatPlan | Ready:
    """The plan of a worker. Its `done.answer` is the input as items; without token ids where the store knows more.

    Raises:
        ApiError, ValueError, TypeError, longcat.Error: the request is wrong.
    """
    items = body.items()
    texts.check_size([items, body.instructions, body.tools])
    plan: ChatPlan | Ready = Ready(Done())
    if body.previous_response_id is None and not any(_is_reference(item) for item in items):
        plan = plan_chat(texts, body.as_chat(items), "input")
    plan.done.answer = orjson.dumps(items)
    return plan


def _given(texts: Texts, body: ResponsesRequest, store: ResponseStore, caller: bytes) -> list[JsonObject]:
    """The items of the input, as the client or a worker gave them; those that are kept in place of references."""
    items: list[JsonObject] = body.items() if body._done is None else orjson.loads(body._done.answer)
    ids = [str(item.get("id")) for item in items if _is_reference(item)]
    if len(set(ids)) < len(ids):
        raise ApiError(400, "[request] input refers to an item twice; expected each once.", param="input")
    return [_item(item, store, caller) for item in items]


def _plan(texts: Texts, body: ResponsesRequest, earlier: Sequence[bytes], given: list[JsonObject]) -> ChatPlan:
    """The plan of the whole conversation, or the worker's."""
    if body._done is not None and body._done.token_ids:
        return plan_chat(texts, body.as_chat(), "input")
    chat = body.as_chat([item for text in earlier for item in orjson.loads(text)] + given)
    chat._done = None
    return plan_chat(texts, chat, "input")


def _is_reference(item: JsonObject) -> bool:
    return item.get("type") == "item_reference"


def _item(item: JsonObject, store: ResponseStore, caller: bytes) -> JsonObject:
    """An item of the input; the one that is kept, where this one only refers to it."""
    if not _is_reference(item):
        return item
    id = item.get("id")
    if not isinstance(id, str):
        raise ApiError(
            400, "[request] input has an item_reference without id; expected the id of an item.", param="input"
        )
    return store.item(caller, id)


@router.get("/v1/responses/{id}", summary="A response that is kept", responses=answers(ResponseObject))
async def response(id: str, request: Request) -> Response:
    store: ResponseStore = request.app.state.responses
    return Response(store.response(request.state.caller, id), media_type="application/json")


@router.delete("/v1/responses/{id}", summary="Forget a response", responses=answers(Deleted))
async def delete(id: str, request: Request) -> Response:
    store: ResponseStore = request.app.state.responses
    store.delete(request.state.caller, id)
    return json_response({"id": id, "object": "response", "deleted": True})


@router.get("/v1/responses/{id}/input_items", summary="The input of a response that is kept", responses=answers(Items))
async def input_items(id: str, request: Request) -> Response:
    store: ResponseStore = request.app.state.responses
    return await asyncio.to_thread(_listed, id, store.given(request.state.caller, id))


def _listed(id: str, given: bytes) -> Response:
    items: list[JsonObject] = orjson.loads(given)
    items = [{"id": f"{id}_in_{at}", **item} for at, item in enumerate(items)]
    ids = [item["id"] for item in items]
    ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return json_response({"object": "list", "data": items, "has_more": False, **ends})
