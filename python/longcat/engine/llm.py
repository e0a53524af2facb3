"""LLM: the engine under vLLM's name, for programs that were written for vLLM."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from longcat.chat.reader import ChatOutput
from longcat.engine.engine import Engine
from longcat.engine.streams import ChatStream, TokenStream
from longcat.request.outputs import RequestOutput
from longcat.request.prompts import ChatKeywords, Conversation, GenerateKeywords, Params, Prompt
from longcat.request.sampling_params import SamplingParams
from longcat.support.other_engines import OTHER_OPTIONS

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LLMKeywords(TypedDict, total=False):
    """Arguments of vLLM's calls that a program may hand on unset."""

    lora_request: object
    priority: object
    prompt_adapter_request: object
    mm_processor_kwargs: object
    tokenization_kwargs: object
    chat_template: object
    chat_template_content_format: object


class LLMGenerateKeywords(LLMKeywords, GenerateKeywords, total=False):
    """Keywords of LLM.generate that have no part in the type of its result."""


class LLMChatKeywords(LLMKeywords, ChatKeywords, total=False):
    """Keywords of LLM.chat that have no part in the type of its result."""


_OF_SERVERS = ("disable_log_stats", "served_model_name")  # flags of `longcat serve`, without effect in Python


class LLM(Engine):
    """An Engine that always returns lists, as vLLM's LLM does: `LLM(model).generate("a")[0].outputs[0].text`.

    Keywords of vLLM's constructor that have no effect here, such as trust_remote_code, are ignored with one warning.
    Keywords for features that this engine lacks, such as enable_lora=True, are refused.

    Args, Raises: as for Engine.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, **options: Any):
        ignored = [name for name in options if name.replace("_", "-") in OTHER_OPTIONS or name in _OF_SERVERS]
        for name in ignored:
            value = options.pop(name)
            if value is not None and name not in _OF_SERVERS:
                OTHER_OPTIONS[name.replace("_", "-")].check(name, value)
        options = {name: value for name, value in options.items() if value is not None}
        if ignored:
            warnings.warn(f"LLM ignores {', '.join(ignored)}: without effect here", stacklevel=2)
        super().__init__(model, **options)

    @overload  # type: ignore[override]  # always a list
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        stream: Literal[True],
        **options: Unpack[LLMGenerateKeywords],
    ) -> TokenStream: ...
    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        stream: Literal[False] = False,
        **options: Unpack[LLMGenerateKeywords],
    ) -> list[RequestOutput]: ...
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: Params | Sequence[Params] | None = None,
        **options: object,
    ) -> list[RequestOutput] | TokenStream:
        """As Engine.generate, but returns a list also for one prompt. A stream stays a stream."""
        outputs: RequestOutput | list[RequestOutput] | TokenStream
        outputs = super().generate(prompts, sampling_params, **_own(options))
        return [outputs] if isinstance(outputs, RequestOutput) else outputs

    @overload  # type: ignore[override]  # always a list
    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params | Sequence[Params] | None = None,
        use_tqdm: bool = True,
        *,
        stream: Literal[True],
        **options: Unpack[LLMChatKeywords],
    ) -> ChatStream: ...
    @overload
    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params | Sequence[Params] | None = None,
        use_tqdm: bool = True,
        *,
        stream: Literal[False] = False,
        **options: Unpack[LLMChatKeywords],
    ) -> list[ChatOutput]: ...
    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params | Sequence[Params] | None = None,
        use_tqdm: bool = True,
        **options: object,
    ) -> list[ChatOutput] | ChatStream:
        """As Engine.chat, but returns a list also for one conversation. A stream stays a stream."""
        outputs: ChatOutput | list[ChatOutput] | ChatStream
        outputs = super().chat(messages, sampling_params, use_tqdm=use_tqdm, **_own(options))
        return [outputs] if isinstance(outputs, ChatOutput) else outputs

    def get_default_sampling_params(self) -> SamplingParams:
        """Returns parameters that leave everything to the checkpoint's generation_config.json."""
        return SamplingParams()


def _own(options: dict[str, object]) -> dict[str, Any]:
    """Returns the options of a call without vLLM's arguments that are not set.

    Raises:
        ValueError: one of vLLM's arguments is set, and this engine has no such feature.
    """
    for name in LLMKeywords.__annotations__:
        if options.get(name) not in (None, 0, "auto", [], {}):
            raise ValueError(f"{name}={options[name]!r} is not supported; expected None. Leave it out.")
    return {name: value for name, value in options.items() if name not in LLMKeywords.__annotations__}
