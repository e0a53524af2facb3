"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, Request
from starlette.responses import Response

from longcat.server.api.chat import chat_prompt, queue_chat
from longcat.server.api.messages.answer import MessagesAnswer
from longcat.server.api.messages.body import CountTokensRequest, MessagesRequest
from longcat.server.api.shapes import Message, TokenCount, answers
from longcat.server.generation import Service, respond
from longcat.server.http.errors import json_response
from longcat.server.http.intake import JsonRoute
from longcat.server.http.streaming import unless_client_leaves

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/messages",
    summary="Answer a conversation, in Anthropic's shapes",
    responses=answers(Message, stream=True, messages=True),
)
async def messages(body: MessagesRequest, request: Request) -> Response:
    """Whole, or with `stream` as server-sent events."""
    return await respond(request, body, start_message)


async def start_message(service: Service, body: MessagesRequest) -> MessagesAnswer:
    """Queues a chat for an answer in Anthropic's shapes.

    Raises:
        ApiError: the request is wrong, or the server is full.
    """
    chat = await service.in_thread_for(body._num_bytes, body.as_chat)
    id = f"msg_{uuid.uuid4().hex[:24]}"
    return MessagesAnswer(await queue_chat(service, chat, id), id)


@router.post(
    "/v1/messages/count_tokens",
    summary="Tokens of the prompt that a conversation makes",
    responses=answers(TokenCount, messages=True),
)
async def count_tokens(body: CountTokensRequest, request: Request) -> Response:
    service: Service = request.app.state.service
    service.model_name(body.model)

    async def count() -> int:
        return len(await chat_prompt(service, await service.in_thread_for(body._num_bytes, body.as_chat)))

    return json_response({"input_tokens": await unless_client_leaves(request, count())})
