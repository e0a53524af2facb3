"""Reads large bodies in a worker. The code that parses, checks, renders and tokenizes is that of small bodies.

`PLANS` maps each kind of body to the function that plans it. A body of another API is planned as a chat. In the server,
the `_done` of such a body goes to the chat that its `as_chat()` returns.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable
from typing import Any

import orjson

from longcat._core import Error
from longcat.engine.text import CheckpointText, TextMethods
from longcat.server.api.chat import plan_chat
from longcat.server.api.completions import plan_completion
from longcat.server.api.messages.body import CountTokensRequest, MessagesRequest
from longcat.server.api.messages.routes import plan_count, plan_message
from longcat.server.api.playground.routes import RenderRequest, plan_render
from longcat.server.api.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from longcat.server.api.responses.body import ResponsesRequest
from longcat.server.api.responses.routes import plan_response
from longcat.server.api.service_routes import plan_detokenize, plan_tokenize
from longcat.server.http.body import Body, checked
from longcat.server.http.errors import ApiError, to_json
from longcat.server.settings import ServerSettings
from longcat.server.texts import Texts
from longcat.support.json_types import JsonObject
from longcat.support.worker import Work

_MAX_LIGHT_BYTES = 1 << 20  # of the fields that go to the event loop as they are

# From texts and a checked body to a plan; its `done` is what the server gets.
PLANS: dict[type[Body], Callable[[Texts, Any], Any]] = {
    ChatRequest: plan_chat,
    MessagesRequest: plan_message,
    CountTokensRequest: plan_count,
    ResponsesRequest: plan_response,
    CompletionRequest: plan_completion,
    TokenizeRequest: plan_tokenize,
    DetokenizeRequest: plan_detokenize,
    RenderRequest: plan_render,
}


class _Text(TextMethods):
    """The tokenizer and the template, without an engine."""

    def __init__(self, setup: JsonObject):
        self._text = CheckpointText(**setup)


def prepare(setup: JsonObject) -> Work:
    """The work of a worker. A job is the name of a class of bodies, a line break, and the body.

    The answer is a line of JSON, the token ids of all prompts (int32), and the bytes of `Done.answer`.
    """
    settings = ServerSettings(**setup["settings"])
    texts = Texts(_Text(setup["text"]), settings, setup["max_model_len"])
    with contextlib.suppress(Error):  # where there is no tokenizer, bodies have token ids
        texts.max_text_bytes()  # loads it
    models = {model.__name__: model for model in PLANS}

    def work(job: bytes | bytearray) -> bytes:
        end = job.index(b"\n")
        model = models[job[:end].decode()]
        try:
            body = checked(model, job[end + 1 :])
            with texts.refusals():
                done = PLANS[model](texts, body).done
            light = orjson.dumps(body.light())
            if len(light) > _MAX_LIGHT_BYTES:
                heavy = " and ".join(name for name in body.heavy if name in body.model_fields_set)
                raise ApiError(
                    400,
                    f"[request] the fields beside {heavy or 'the long ones'} take {len(light)} bytes; expected at most "
                    f"{_MAX_LIGHT_BYTES}. Make them smaller.",
                )
        except ApiError as error:
            return to_json({"error": [error.status_code, error.detail, error.param, error.code]}) + b"\n"
        head = {
            "body": orjson.Fragment(light),
            "ignored": body.ignored(),
            "grammar": done.grammar,
            "texts": done.texts,
            "num_ids": [len(ids) for ids in done.token_ids],
        }
        ids = array("i", [token_id for ids in done.token_ids for token_id in ids])
        return b"".join([orjson.dumps(head), b"\n", ids.tobytes(), done.answer])

    return work
