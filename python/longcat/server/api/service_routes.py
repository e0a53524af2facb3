"""Models, tokenizer, health and metrics."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from longcat._core import __version__
from longcat.server.api.protocol import DetokenizeRequest, TokenizeRequest
from longcat.server.api.shapes import Model, Models, Properties, State, Text, Tokens, Version, answers
from longcat.server.generation import Ready, Service, respond_ready
from longcat.server.http.body import Done
from longcat.server.http.errors import ApiError, json_response, to_json
from longcat.server.http.intake import JsonRoute
from longcat.server.texts import Texts, template_variables
from longcat.support.json_types import JsonObject

MAX_TOKENIZE_CHARS = 1 << 20
MAX_DETOKENIZE_IDS = 1 << 17

router = APIRouter(route_class=JsonRoute)


@router.get("/v1/models", summary="What is served", responses=answers(Models))
async def models(request: Request) -> Response:
    service: Service = request.app.state.service
    names = service.settings.model_names
    found = [_model(service, request, name) for name in names]
    ends = {"has_more": False, "first_id": names[0], "last_id": names[-1]}  # as Anthropic's
    return json_response({"object": "list", "data": found, **ends})


@router.get("/v1/models/{name:path}", summary="One of the names", responses=answers(Model))
async def model(name: str, request: Request) -> Response:
    service: Service = request.app.state.service
    return json_response(_model(service, request, service.texts.model_name(name)))


def _model(service: Service, request: Request, name: str) -> JsonObject:
    """The fields of OpenAI's API, vLLM's context length, and the fields of Anthropic's API."""
    started, most = request.app.state.started, service.max_model_len
    return {
        "id": name,
        "object": "model",
        "created": started,
        "owned_by": "longcat",
        "max_model_len": most,
        "context_length": most,
        "type": "model",
        "display_name": name,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "max_input_tokens": most - 1,
        "max_tokens": most - 1,
    }


@router.get("/version", summary="Of this package", responses=answers(Version))
async def version() -> Response:
    return json_response({"version": __version__})


@router.get("/props", summary="What llama.cpp's clients ask of a server", responses=answers(Properties))
async def props(request: Request) -> Response:
    service: Service = request.app.state.service
    with service.refusals():
        template = await asyncio.to_thread(lambda: service.engine.chat_template.source)
    return json_response(
        {
            "default_generation_settings": {
                "n_ctx": service.max_model_len,
                "params": service.engine.sampling_defaults(),
            },
            "model_alias": service.settings.model_names[0],
            "chat_template": template,
            "modalities": {"vision": False, "audio": False},
            "build_info": f"longcat {__version__}",
        }
    )


def plan_tokenize(texts: Texts, body: TokenizeRequest) -> Ready:
    """Renders and tokenizes: a whole response."""
    if body._done is not None:
        return Ready(body._done)
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
    return Ready(Done(answer=to_json(answer)))


def plan_detokenize(texts: Texts, body: DetokenizeRequest) -> Ready:
    """Decodes: a whole response."""
    if body._done is not None:
        return Ready(body._done)
    texts.model_name(body.model)
    if len(body.tokens) > MAX_DETOKENIZE_IDS:
        found = f"[request] tokens has {len(body.tokens)} ids"
        raise ApiError(400, f"{found}; expected at most {MAX_DETOKENIZE_IDS}. Send them in parts.", param="tokens")
    return Ready(Done(answer=to_json({"prompt": texts.engine.decode(body.tokens, skip_special_tokens=False)})))


@router.post("/tokenize", summary="Token ids of a prompt or of messages", responses=answers(Tokens))
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    return await respond_ready(request, body, plan_tokenize)


@router.post("/detokenize", summary="Text of token ids", responses=answers(Text))
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    return await respond_ready(request, body, plan_detokenize)


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="200 while the engine lives", responses=answers(State))
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


@router.get("/metrics", summary="For Prometheus, in its text format or as OpenMetrics")
async def metrics(request: Request) -> Response:
    text, media_type = request.app.state.service.metrics.text(request.headers.get("accept", ""))
    return Response(text, media_type=media_type)
