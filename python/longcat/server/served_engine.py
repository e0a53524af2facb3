"""The part of an engine that the server uses. longcat.Engine has it, and so do the stand-ins of tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from longcat.engine.request_table import RequestGroup
from longcat.request.outputs import StreamChunk
from longcat.request.sampling_params import SamplingParams
from longcat.support.json_types import JsonObject

if TYPE_CHECKING:
    from longcat.chat.template import ChatTemplate
    from longcat.request.structured import Grammar, StructuredOutputs
    from longcat.request.tokenizer import Tokenizer


class Chunks(Protocol):
    """The chunks of one request. Closing them ends it."""

    def __aiter__(self) -> AsyncIterator[StreamChunk]: ...
    async def __anext__(self) -> StreamChunk: ...
    async def aclose(self) -> None: ...


class ServedText(Protocol):
    """The methods of longcat.Engine that need its tokenizer and template alone."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    def token_text(self, token_id: int) -> str | None: ...

    def render_chat(
        self, messages: Sequence[Mapping[str, object]], *, max_text_bytes: int | None = None, **options: Any
    ) -> tuple[str, list[int]]: ...


class ServedEngine(ServedText, Protocol):
    """The methods of longcat.Engine that the server calls."""

    def info(self) -> JsonObject: ...
    def sampling_defaults(self) -> dict[str, float]: ...
    def metrics(self) -> dict[str, float]: ...
    def failure(self) -> str | None: ...
    def abort(self, request_id: int | str) -> bool: ...

    def agenerate(
        self,
        *,
        prompt_token_ids: Sequence[int],
        sampling_params: SamplingParams,
        request_id: str | None = None,
        group: RequestGroup | None = None,
    ) -> Chunks: ...

    @property
    def chat_template(self) -> ChatTemplate: ...
    def text_setup(self) -> JsonObject: ...

    def compile_grammar(self, form: StructuredOutputs | Grammar | Mapping[str, object]) -> Grammar: ...
