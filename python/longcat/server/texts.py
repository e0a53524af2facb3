"""Checks the fields of a request and tokenizes its texts, before it is queued.

This code needs no event loop and no engine. It runs on a thread of the server, and for large bodies in a worker
(`api/large_bodies.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from longcat._core import Error
from longcat.request.sampling_params import SamplingParams
from longcat.request.structured import StructuredOutputs
from longcat.server.api.protocol import ChatRequest, GenerationBody, TokenizeRequest
from longcat.server.http.errors import CONTEXT_EXCEEDED, ApiError
from longcat.server.served_engine import ServedText
from longcat.server.settings import ServerSettings
from longcat.support.json_types import Json, JsonObject

_OF_OTHER_FORM = ("stop", "prompt_logprobs", "structured_outputs")  # in a body than in SamplingParams
# Fields of a body that SamplingParams takes as they are.
_SAMPLING = [
    field.name
    for field in dataclasses.fields(SamplingParams)
    if field.name in GenerationBody.model_fields and field.name not in _OF_OTHER_FORM
]
# Arguments of Engine.render_chat, and of what it calls.
_RENDERING = (
    "self messages tags tools tool_choice add_generation_prompt continue_final_message max_text_bytes"
).split()
_PIECE_CHARS = 256 << 10  # of a long text, counted before the whole is tokenized
_MAX_CHAT_CHARS = 2 << 20  # of a conversation and its tools; a template writes at most half of that


class Texts:
    """Turns the fields of a request into sampling parameters and token ids.

    Args:
        engine: has the tokenizer and the template.
        max_model_len: tokens of the context.
    """

    def __init__(self, engine: ServedText, settings: ServerSettings, max_model_len: int):
        self.engine = engine
        self.settings = settings
        self.max_model_len = max_model_len

    @contextlib.contextmanager
    def refusals(self) -> Iterator[None]:
        """Turns exceptions of rendering and tokenizing into error responses."""
        try:
            yield
        except (ValueError, TypeError, Error) as error:
            raise ApiError(400, str(error)) from None

    def model_name(self, asked: str | None) -> str:
        """Returns the model name for the response.

        Raises:
            ApiError: 404, the request names another model.
        """
        names = self.settings.model_names
        if asked and asked not in names:
            raise ApiError(
                404,
                f'[request] model is "{asked[:100]}"; expected {" or ".join(names)}.',
                param="model",
                code="model_not_found",
            )
        return asked or names[0]

    def max_text_bytes(self) -> int:
        """Returns the bytes of the longest text that can fit the context, if every token were the longest one."""
        return max(self.max_model_len * self._longest_token, 1)

    @functools.cached_property
    def _longest_token(self) -> int:
        """The bytes of the longest token; four times as many with a normalizer, which may shorten a text first."""
        tokenizer = self.engine.tokenizer
        longest = max(len(tokenizer.token_bytes(token_id)) for token_id in range(tokenizer.vocab_size))
        return longest if tokenizer.library.normalizer is None else 4 * longest

    def check_room(self, token_ids: Sequence[int], field: str, num_new: int = 1) -> None:
        """Checks that the context has room for a prompt and the first tokens of its completion.

        Args:
            field: of the request, that the prompt came in.
            num_new: those first tokens: 1, or 0 where no completion is asked for.
        Raises:
            ApiError: 400, the context has no room.
        """
        most = self.max_model_len - num_new
        if len(token_ids) > most:
            raise self._too_long(field, f"{len(token_ids)} tokens", f"at most {most}")

    def _too_long(self, field: str, found: str, expected: str) -> ApiError:
        """Returns the error for a prompt beyond the context. Clients know it by its words and its code."""
        return ApiError(
            400,
            f"[request] {field} has {found}, which cannot fit: this model's maximum context length is "
            f"{self.max_model_len} tokens (max_model_len={self.max_model_len}); expected {expected}. Shorten it.",
            param=field,
            code=CONTEXT_EXCEEDED,
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each prompt. A text that cannot fit the context is refused before it is tokenized.

        Raises:
            ApiError: 400, a text is too long.
        """
        for text in texts:
            self._check_fits(text)
        return [self.engine.encode(text) for text in texts]

    def _check_fits(self, text: str) -> None:
        if len(text) <= self.max_model_len:
            return
        most = self.max_text_bytes()
        num_bytes = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
        if num_bytes > most:
            raise self._too_long("prompt", f"{num_bytes} bytes", f"at most {most} bytes")
        # The count of the pieces differs from that of the whole by little: each cut splits one token, or one word.
        num_tokens = 0
        for start in range(0, len(text) if len(text) > 8 * self.max_model_len else 0, _PIECE_CHARS):
            num_tokens += len(self.engine.encode(text[start : start + _PIECE_CHARS]))
            if num_tokens > 2 * self.max_model_len:
                raise self._too_long("prompt", f"more than {num_tokens} tokens", f"at most {self.max_model_len - 1}")

    def render_chat(self, messages: Any, **options: Any) -> tuple[str, list[int]]:
        """As Engine.render_chat, but refuses a conversation that cannot fit the context before it is tokenized.

        Raises:
            ValueError: the messages are too long.
        """
        if self.check_size([messages, options.get("tools")]) > self.max_model_len:
            options["max_text_bytes"] = self.max_text_bytes()
        return self.engine.render_chat(messages, **options)

    def check_size(self, chat: Json) -> int:
        """Returns the number of characters of a conversation and its tools.

        Raises:
            ValueError: they are too many.
        """
        num_chars = _num_chars(chat)
        if num_chars > _MAX_CHAT_CHARS:
            raise ValueError(
                f"[request] messages and tools have {num_chars} characters; expected at most {_MAX_CHAT_CHARS}. "
                "Shorten them."
            )
        return num_chars

    def sampling_params(self, body: GenerationBody, **more: object) -> SamplingParams:
        """Returns the sampling parameters of a request, without the form of its completion.

        Args:
            more: fields of SamplingParams besides the shared ones.
        Raises:
            ApiError, ValueError, TypeError: a field is out of range.
        """
        given = {name: value for name in _SAMPLING if (value := getattr(body, name)) is not None}
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        if len(stops) > self.settings.max_stop_strings:
            limit = self.settings.max_stop_strings
            raise ApiError(400, f"[request] stop has {len(stops)} strings; expected at most {limit}.", param="stop")
        return SamplingParams.of(given | {"stop": stops} | more, {})

    def logprobs(self, count: int | None) -> int | None:
        if count is not None and count > self.settings.max_logprobs:
            most = self.settings.max_logprobs
            raise ApiError(400, f"[request] logprobs is {count}; expected at most {most}.", param="logprobs")
        return count


def template_variables(body: ChatRequest | TokenizeRequest) -> JsonObject:
    """Returns the variables of the template, from `chat_template_kwargs`.

    Raises:
        ApiError: 400, a variable has a name that the server passes itself.
    """
    given = body.chat_template_kwargs or {}
    if taken := [name for name in given if name in _RENDERING]:
        message = f"[request] chat_template_kwargs.{taken[0]} is a name of the server's own; expected other names."
        raise ApiError(400, message, param="chat_template_kwargs")
    return given


def answer_form(body: GenerationBody) -> Any:
    """Returns the form that `response_format`, `structured_outputs` or vLLM's guided_* fields ask for; None: free text.

    Raises:
        ApiError: 400, two forms are given, or one that the server does not know.
    """
    forms = [form for form in (_of_response_format(body.response_format), body.structured_outputs) if form]
    older = {name: getattr(body, f"guided_{name}") for name in ("json", "regex", "choice", "grammar")}
    forms += [{name: value} for name, value in older.items() if value is not None]
    if len(forms) > 1:
        raise ApiError(
            400, "[request] the form of the answer is given twice; expected response_format or structured_outputs."
        )
    return forms[0] if forms else None


def _of_response_format(given: Mapping[str, object] | None) -> JsonObject | None:
    kind = None if given is None else given.get("type")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    inner = given.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if kind != "json_schema" or not isinstance(schema, (Mapping, bool)):
        raise ApiError(
            400,
            f'[request] response_format is {str(given)[:100]}; expected {{"type": "text"}}, '
            '{"type": "json_object"} or {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.',
            param="response_format",
        )
    return {"json": schema if isinstance(schema, Mapping) else str(schema).lower()}


def grammar_of(params: SamplingParams) -> str | None:
    """Takes the form of completions out of `params`, and returns its grammar in llguidance's form; None: free text.

    Raises:
        ValueError, TypeError: the form is malformed, or too large.
    """
    form, params.structured_outputs = params.structured_outputs, None
    return form.source() if isinstance(form, StructuredOutputs) else None


def _num_chars(value: object) -> int:
    """Returns the number of characters in all texts of a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(name) + _num_chars(item) for name, item in value.items())
    return sum(map(_num_chars, value)) if isinstance(value, list) else 0
