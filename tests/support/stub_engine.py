"""What stands in for an engine under a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from longcat.chat.template import ChatTemplate
from longcat.engine.request_table import RequestGroup
from longcat.request.outputs import CompletionOutput, RequestMetrics, RequestOutput, StreamChunk
from longcat.request.sampling_params import SamplingParams
from longcat.request.structured import Grammar, StructuredOutputs
from longcat.request.tokenizer import Tokenizer
from longcat.server.served_engine import ServedEngine


class StubEngine:
    """An engine without a model: each text is one token, and each completion too."""

    async def agenerate(
        self,
        *,
        prompt_token_ids: Sequence[int],
        sampling_params: SamplingParams,
        request_id: str | None = None,
        group: RequestGroup | None = None,
    ) -> AsyncGenerator[StreamChunk, None]:
        yield StreamChunk("a", [1], finish_reason="length", output=whole_output(request_id, prompt_token_ids))

    def info(self) -> dict[str, Any]:
        return {"max_model_len": 10**6}

    def sampling_defaults(self) -> dict[str, float]:
        return {}

    def metrics(self) -> dict[str, float]:
        raise RuntimeError("nothing to tell")

    def failure(self) -> str | None:
        return None

    def abort(self, request_id: int | str) -> bool:
        return False

    def text_setup(self) -> dict[str, Any]:
        return {}

    @property
    def tokenizer(self) -> Tokenizer:
        raise AttributeError("a stub has no tokenizer")

    @property
    def chat_template(self) -> ChatTemplate:
        raise AttributeError("a stub has no template")

    def encode(self, text: str) -> list[int]:
        return [1]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "a" * len(token_ids)

    def token_text(self, token_id: int) -> str | None:
        return "a"

    def render_chat(
        self, messages: Sequence[Mapping[str, object]], *, max_text_bytes: int | None = None, **options: object
    ) -> tuple[str, list[int]]:
        return "a", [1]

    def compile_grammar(self, form: StructuredOutputs | Grammar | Mapping[str, object]) -> Grammar:
        raise ValueError("a stub compiles no grammars")


def whole_output(request_id: str | None, prompt_token_ids: Sequence[int]) -> RequestOutput:
    """The output of a completion of one token."""
    completion = CompletionOutput(0, token_ids=[1], finish_reason="length")
    name = -1 if request_id is None else request_id
    return RequestOutput(name, None, list(prompt_token_ids), [completion], RequestMetrics())


stub: ServedEngine = StubEngine()  # mypy: it has the methods that the server asks for
