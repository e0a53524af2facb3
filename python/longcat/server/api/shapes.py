"""The shapes of answers, for the API's description alone: no answer is checked against them.

A stream has `text/event-stream` in place of them. Answers may have further fields.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from longcat.support.json_types import JsonObject


class Error(BaseModel):
    """What went wrong, in one line."""

    message: str
    type: str
    param: str | None = Field(description="the field of the request that is wrong")
    code: str | None = Field(description="a word for programs")


class ErrorAnswer(BaseModel):
    error: Error


class MessagesError(BaseModel):
    type: str
    message: str


class MessagesErrorAnswer(BaseModel):
    """Below /v1/messages."""

    type: str = Field(description="error")
    error: MessagesError


class Timings(BaseModel):
    """llama.cpp's figures of a request: tokens, milliseconds and rates."""

    cache_n: int = Field(description="prompt tokens found in the prefix cache")
    prompt_n: int = Field(description="prompt tokens computed")
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int = Field(description="tokens generated")
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None = None


class Choice(BaseModel):
    index: int
    finish_reason: str = Field(description="stop, length, tool_calls, abort or error")
    stop_reason: int | str | None = Field(description="the stop id or string that ended the completion")
    logprobs: JsonObject | None


class ChatChoice(Choice):
    message: JsonObject = Field(description="role, content, reasoning_content, tool_calls")


class TextChoice(Choice):
    text: str


class Answer(BaseModel):
    id: str
    object: str
    created: int
    model: str
    usage: Usage
    timings: Timings | None = None


class ChatCompletion(Answer):
    choices: list[ChatChoice]


class TextCompletion(Answer):
    choices: list[TextChoice]


class MessagesUsage(BaseModel):
    input_tokens: int = Field(description="without those of the cache")
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens: int
    output_tokens_details: dict[str, int]


class Message(BaseModel):
    id: str
    type: str
    role: str
    model: str
    content: list[JsonObject] = Field(description="blocks of the types thinking, text and tool_use")
    stop_reason: str = Field(
        description="end_turn, max_tokens, stop_sequence, tool_use or model_context_window_exceeded"
    )
    stop_sequence: str | None
    usage: MessagesUsage
    timings: Timings


class TokenCount(BaseModel):
    input_tokens: int


class ResponsesUsage(BaseModel):
    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseObject(BaseModel):
    id: str
    object: str
    created_at: int
    completed_at: int | None
    status: str = Field(description="completed, incomplete or failed")
    model: str
    output: list[JsonObject] = Field(
        description="items of the types reasoning, message, function_call, custom_tool_call"
    )
    error: JsonObject | None
    incomplete_details: JsonObject | None
    previous_response_id: str | None
    store: bool
    usage: ResponsesUsage
    timings: Timings


class Deleted(BaseModel):
    id: str
    object: str
    deleted: bool


class Items(BaseModel):
    object: str
    data: list[JsonObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Model(BaseModel):
    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int
    context_length: int
    type: str
    display_name: str
    created_at: str
    max_input_tokens: int
    max_tokens: int


class Models(BaseModel):
    object: str
    data: list[Model]
    first_id: str
    last_id: str
    has_more: bool


class Tokens(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(BaseModel):
    prompt: str


class Version(BaseModel):
    version: str


class GenerationSettings(BaseModel):
    n_ctx: int
    params: dict[str, float]


class Properties(BaseModel):
    default_generation_settings: GenerationSettings
    model_alias: str
    chat_template: str
    modalities: dict[str, bool]
    build_info: str


class Rendered(BaseModel):
    html: str


class State(BaseModel):
    status: str
    failure: str | None = None


def answers(model: type[BaseModel], stream: bool = False, messages: bool = False) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` of a route.

    Args:
        model: the shape of a good answer.
        stream: whether it may come as events.
        messages: whether errors have Anthropic's shape.
    """
    events = {"content": {"text/event-stream": {"schema": {"type": "string"}}}} if stream else {}
    error = MessagesErrorAnswer if messages else ErrorAnswer
    return {
        200: {"model": model, "description": "The answer" + (", or its events" if stream else ""), **events},
        "default": {"model": error, "description": "An error: 400, 401, 403, 404, 413, 429 or 503"},
    }
