"""The bodies of requests. Fields and meanings are OpenAI's, and vLLM's beyond those; unknown fields are ignored.

Limits that pydantic states here are part of the OpenAPI description. A null is a field that is not given. Lists whose
length a client chooses are checked in steps, so that no check keeps other threads waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Annotated, ClassVar

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from longcat.request.sampling_params import MAX_N
from longcat.server.http.body import MAX_SHOWN_CHARS, MAX_SHOWN_FIELDS, Body
from longcat.support.json_types import Json, JsonObject

MAX_ALLOWED_IDS = 4096
MAX_STOP_IDS = 1024
MAX_BIASES = 1024
MAX_BAD_WORDS, MAX_BAD_WORD_CHARS = 128, 64
MAX_CHOICES = 65536
MAX_STOP_CHARS = 1024
_STEP = 4096


def _list_of(kind: type, value: object, most: int | None = None, place: tuple[int, ...] = ()) -> list[Json]:
    """A list of one type; of integers, those that can be token ids. place: of the list in the field's value."""
    if type(value) is not list or (most is not None and len(value) > most):
        raise (
            PydanticCustomError("item", "an item", {"path": place}) if place else PydanticCustomError("list", "a list")
        )
    for start in range(0, len(value), _STEP):
        part: list[Json] = value[start : start + _STEP]
        if set(map(type, part)) != {kind} or (kind is int and (min(part) < 0 or max(part) >= 2**31)):
            good = [type(item) is kind and (kind is not int or item in range(2**31)) for item in part]
            raise PydanticCustomError("item", "an item", {"path": (*place, start + good.index(False))})
    return value


def _prompt(value: Json) -> Json:
    if isinstance(value, str):
        return value
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list):
        for index, ids in enumerate(value):
            _list_of(int, ids, place=(index,))
        return value
    return _list_of(str if isinstance(first, str) else int, value)


def _known_ids(value: dict[str, float]) -> dict[str, float]:
    for name in value:
        if not (name.isascii() and name.isdigit() and len(name) < 11):
            raise PydanticCustomError("item", "an item", {"path": (name,)})
    return value


_ID = {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**31}
_IDS: JsonObject = {"type": "array", "items": _ID}
_TEXT = {"type": "string"}
_PROMPT = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}, _IDS, {"type": "array", "items": _IDS}]}
Count = Annotated[int, Field(ge=1, lt=2**31)]
StopText = Annotated[str, Field(max_length=MAX_STOP_CHARS)]
Biases = Annotated[
    dict[str, float],
    Field(max_length=MAX_BIASES),
    AfterValidator(_known_ids),
    Field(json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,10}$"}}),
]
BadWord = Annotated[str, Field(max_length=MAX_BAD_WORD_CHARS)]
Objects = Annotated[list[JsonObject], Field(fail_fast=True)]
StopTexts = Annotated[list[StopText], Field(max_length=MAX_STOP_IDS, fail_fast=True)]
Ids = Annotated[list[int], PlainValidator(partial(_list_of, int)), WithJsonSchema(_IDS)]
AllowedIds = Annotated[
    list[int],
    PlainValidator(partial(_list_of, int, most=MAX_ALLOWED_IDS)),
    WithJsonSchema(_IDS | {"maxItems": MAX_ALLOWED_IDS}),
]
StopIds = Annotated[
    list[int],
    PlainValidator(partial(_list_of, int, most=MAX_STOP_IDS)),
    WithJsonSchema(_IDS | {"maxItems": MAX_STOP_IDS}),
]
Prompt = Annotated[str | list[str] | list[int] | list[list[int]], PlainValidator(_prompt), WithJsonSchema(_PROMPT)]


def _is(*values: object) -> Callable[[Json], bool]:
    return lambda value: value in values


# Fields of other servers that change a completion and that this one lacks: their harmless values, and the remedy.
_REFUSED: dict[str, tuple[Callable[[Json], bool], str]] = {
    "functions": (_is([]), "the field tools"),
    "function_call": (_is("auto", "none"), "the field tool_choice"),
    "reasoning_effort": (_is("none"), "no such field: the model has no levels of effort; see chat_template_kwargs"),
    "use_beam_search": (_is(False), "false"),
    "length_penalty": (_is(1), "1: there is no beam search"),
    "early_stopping": (_is(False), "false: there is no beam search"),
    "truncate_prompt_tokens": (_is(), "a prompt that fits"),
    "prompt_embeds": (_is([]), "text or token ids"),
    "logits_processors": (_is([]), "logit_bias, allowed_token_ids or structured_outputs"),
    "modalities": (_is([], ["text"]), '["text"]'),
    "audio": (_is({}), "text alone"),
    "web_search_options": (_is(), "tools of your own"),
}


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class SamplingBody(Body):
    """The fields of every request for a completion, in each API."""

    model: str | None = None
    stream: bool = False
    temperature: float | None = Field(None, ge=0, description="0 is greedy; default: the model's own")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="-1: any")
    stop_token_ids: StopIds | None = None
    min_tokens: int | None = Field(None, ge=0, lt=2**31)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logit_bias: Biases | None = Field(None, description="addend of the logit by token id")
    bad_words: list[BadWord] | None = Field(None, max_length=MAX_BAD_WORDS, fail_fast=True)
    allowed_token_ids: AllowedIds | None = None

    @model_validator(mode="after")
    def _any_seed(self) -> Self:
        if self.seed == -1:
            self.seed = None
        return self


def sampling_fields(body: SamplingBody) -> dict[str, Json]:
    """The fields above, for a body of another API."""
    return {name: getattr(body, name) for name in SamplingBody.model_fields}


class GenerationBody(SamplingBody):
    """The fields that chat and completions share."""

    refused = _REFUSED
    heavy: ClassVar[dict[str, Json]] = dict.fromkeys(
        ["response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"]
    )

    n: int = Field(1, ge=1, le=MAX_N)
    stream_options: StreamOptions | None = None
    stop: StopText | StopTexts | None = None
    include_stop_str_in_output: bool = False
    prompt_logprobs: int | None = Field(None, ge=0, description="of that many tokens at each place; not in a stream")
    response_format: JsonObject | None = Field(
        None, description='{"type": "text" | "json_object"} or {"type": "json_schema", "json_schema": {"schema": ...}}'
    )
    structured_outputs: JsonObject | None = Field(
        None, description="one of json, json_object, regex, choice, grammar (Lark)"
    )
    guided_json: JsonObject | str | None = Field(None, description="older name of structured_outputs.json")
    guided_regex: str | None = Field(None, description="older name of structured_outputs.regex")
    guided_choice: list[str] | None = Field(
        None, max_length=MAX_CHOICES, fail_fast=True, description="older name of structured_outputs.choice"
    )
    guided_grammar: str | None = Field(None, description="older name of structured_outputs.grammar")

    def refusal(self) -> tuple[str, str] | None:
        best_of = (self.model_extra or {}).get("best_of", self.n)
        if best_of != self.n:
            return "best_of", f"[request] best_of differs from n, which this server cannot honour; expected {self.n}."
        return super().refusal()

    def ignored(self) -> list[str]:
        """Returns the names of the first unknown fields, without those that `refusal` reads."""
        extra = self.model_extra or {}
        names = (name for name in extra if name not in self.refused and name != "best_of")
        return [name[:MAX_SHOWN_CHARS] for name in islice(names, MAX_SHOWN_FIELDS)]


class ChatRequest(GenerationBody):
    heavy: ClassVar[dict[str, Json]] = GenerationBody.heavy | {
        "messages": [{"role": "user", "content": ""}],
        "chat_template_kwargs": None,
    }

    messages: list[JsonObject] = Field(min_length=1, fail_fast=True)
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = Field(None, description="default: what the context leaves")
    tools: list[JsonObject] | None = Field(None, fail_fast=True)
    tool_choice: str | JsonObject | None = Field(
        None, description="auto, none, required, a function, or a list of allowed tools"
    )
    parallel_tool_calls: bool = True
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: JsonObject | None = None
    chat_template: str | None = Field(None, description="refused: templates are the server's")


class CompletionRequest(GenerationBody):
    heavy: ClassVar[dict[str, Json]] = GenerationBody.heavy | {"prompt": ""}

    prompt: Prompt
    max_tokens: int = Field(16, ge=0, lt=2**31)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0)
    suffix: str | None = Field(None, description="refused: the model has no such task")


class TokenizeRequest(Body):
    """A prompt, or messages as for chat."""

    heavy: ClassVar[dict[str, Json]] = dict.fromkeys(["prompt", "messages", "tools", "chat_template_kwargs"])

    model: str | None = None
    prompt: str | None = None
    messages: list[JsonObject] | None = Field(None, fail_fast=True)
    tools: list[JsonObject] | None = Field(None, fail_fast=True)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: JsonObject | None = None
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    heavy: ClassVar[dict[str, Json]] = {"tokens": []}

    model: str | None = None
    tokens: Ids
