"""Models, tokenizer, health and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from longcat.server.api.protocol import DetokenizeRequest, TokenizeRequest
from longcat.server.generation import Service
from longcat.server.http.body import Done
from longcat.server.http.errors import ApiError, json_response, to_json
from longcat.server.http.intake import JsonRoute
from longcat.server.http.streaming import unless_client_leaves
from longcat.server.texts import Texts, template_variables
from longcat.support.json_types import JsonObject

V = TypeVar("V", TokenizeRequest, DetokenizeRequest)

MAX_TOKENIZE_CHARS = 1 << 20
MAX_DETOKENIZE_IDS = 1 << 17

router = APIRouter(route_class=JsonRoute)


@router.get("/v1/models", summary="What is served")
async def models(request: Request) -> Response:
    service: Service = request.app.state.service
    names = service.settings.model_names
    return json_response({"object": "list", "data": [_model(service, request, name) for name in names]})


@router.get("/v1/models/{name:path}", summary="One of the names")
async def model(name: str, request: Request) -> Response:
    service: Service = request.app.state.service
    return json_response(_model(service, request, service.texts.model_name(name)))


def _model(service: Service, request: Request, name: str) -> JsonObject:
    return {
        "id": name,
        "object": "model",
        "created": request.app.state.started,
        "owned_by": "longcat",
        "max_model_len": service.max_model_len,
    }


@dataclass
class Plan:
    """A request whose answer is ready."""

    done: Done


def plan_tokenize(texts: Texts, body: TokenizeRequest) -> Plan:
    """Renders and tokenizes."""
    if body._done is not None:
        return Plan(body._done)
    texts.model_name(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "prompt or messages, one of them, is expected")
    variables = template_variables(body)
    if body.prompt is not None:
        if len(body.prompt) > MAX_TOKENIZE_CHARS:
            found = f"[request] prompt has {len(body.prompt)} characters; expected at most {MAX_TOKENIZE_CHARS}"
            raise ApiError(400, f"{found}. Send it in parts.", param="prompt")
        token_ids = texts.engine.encode(body.prompt)
    else:
        _, token_ids = texts.render_chat(
            body.messages,
            tools=body.tools,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            **variables,
        )
    answer: JsonObject = {"count": len(token_ids), "max_model_len": texts.max_model_len, "tokens": token_ids}
    if body.return_token_strs:
        answer["token_strs"] = [texts.engine.token_text(token_id) for token_id in token_ids]
    return Plan(Done(answer=to_json(answer)))


def plan_detokenize(texts: Texts, body: DetokenizeRequest) -> Plan:
    """Decodes."""
    if body._done is not None:
        return Plan(body._done)
    texts.model_name(body.model)
    if len(body.tokens) > MAX_DETOKENIZE_IDS:
        found = f"[request] tokens has {len(body.tokens)} ids"
        raise ApiError(400, f"{found}; expected at most {MAX_DETOKENIZE_IDS}. Send them in parts.", param="tokens")
    return Plan(Done(answer=to_json({"prompt": texts.engine.decode(body.tokens, skip_special_tokens=False)})))


@router.post("/tokenize", summary="Token ids of a prompt or of messages")
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    return await _answer(request, body, plan_tokenize)


@router.post("/detokenize", summary="Text of token ids")
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    return await _answer(request, body, plan_detokenize)


async def _answer(request: Request, body: V, plan: Callable[[Texts, V], Plan]) -> Response:
    plan_made = await unless_client_leaves(request, request.app.state.service.planned(body, plan))
    return Response(plan_made.done.answer, media_type="application/json")


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="200 while the engine lives")
async def health(request: Request) -> Response:
    lifecycle = request.app.state.service.lifecycle
    alive = lifecycle.is_alive()
    return json_response({"status": "alive" if alive else "dead", "failure": lifecycle.failure}, 200 if alive else 503)


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="200 while requests are taken: from the first token until the server is to leave")
async def ready(request: Request) -> Response:
    lifecycle = request.app.state.service.lifecycle
    is_ready = lifecycle.is_alive() and lifecycle.state == "ready"
    return json_response({"status": lifecycle.state}, 200 if is_ready else 503)


@router.get("/metrics", summary="For Prometheus")
async def metrics(request: Request) -> Response:
    return Response(request.app.state.service.metrics.text(), media_type="text/plain; version=0.0.4")
