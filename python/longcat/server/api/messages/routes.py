"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, Request
from starlette.responses import Response

from longcat.server.api.chat import ChatPlan, chat_prompt, plan_chat, queue_chat
from longcat.server.api.messages.answer import MessagesAnswer
from longcat.server.api.messages.body import CountTokensRequest, MessagesRequest
from longcat.server.api.shapes import Message, TokenCount, answers
from longcat.server.generation import Ready, Service, respond, respond_ready
from longcat.server.http.body import Done
from longcat.server.http.errors import to_json
from longcat.server.http.intake import JsonRoute
from longcat.server.texts import Texts

router = APIRouter(route_class=JsonRoute)


@router.post(
    "/v1/messages",
    summary="Answer a conversation, in Anthropic's shapes",
    responses=answers(Message, stream=True, messages=True),
)
async def messages(body: MessagesRequest, request: Request) -> Response:
    """Whole, or with `stream` as server-sent events."""
    return await respond(request, body, start_message)


def plan_message(texts: Texts, body: MessagesRequest) -> ChatPlan:
    """Plans the chat that a request is in other words.

    Raises:
        ApiError, ValueError, TypeError, longcat.Error: the request is wrong.
    """
    return plan_chat(texts, body.as_chat())


def plan_count(texts: Texts, body: CountTokensRequest) -> Ready:
    """Renders and tokenizes: a whole response."""
    if body._done is not None:
        return Ready(body._done)
    texts.model_name(body.model)
    return Ready(Done(answer=to_json({"input_tokens": len(chat_prompt(texts, body.as_chat()))})))


async def start_message(service: Service, body: MessagesRequest) -> MessagesAnswer:
    """Queues a chat for an answer in Anthropic's shapes.

    Raises:
        ApiError: the request is wrong, or the server is full.
    """
    id = f"msg_{uuid.uuid4().hex[:24]}"
    return MessagesAnswer(await queue_chat(service, await service.planned(body, plan_message), id), id)


@router.post(
    "/v1/messages/count_tokens",
    summary="Tokens of the prompt that a conversation makes",
    responses=answers(TokenCount, messages=True),
)
async def count_tokens(body: CountTokensRequest, request: Request) -> Response:
    return await respond_ready(request, body, plan_count)
