"""Engine: loads a checkpoint and completes texts."""

from __future__ import annotations

import inspect
import os
import warnings
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import longcat._core as _core
from longcat._core import Error
from longcat.engine.config import EngineConfig
from longcat.engine.intake import Intake, eos_token_ids
from longcat.engine.ranks import join_ranks
from longcat.engine.request import score_of
from longcat.engine.request_table import RequestGroup, RequestTable
from longcat.engine.sources import Uncopied, check_sources, folder_path
from longcat.engine.streams import AsyncChunks, ChatStream, EventLoops, TokenStream, read_all
from longcat.engine.text import CheckpointText, TextMethods
from longcat.request.generation_config import read_generation_config
from longcat.request.keywords import SamplingKeywords
from longcat.request.outputs import PromptScore, RequestOutput, StreamChunk
from longcat.request.prompts import (
    ChatKeywords,
    Conversation,
    GenerateKeywords,
    Params,
    Prompt,
    ToolChoice,
    Tools,
    as_token_ids,
    params_of_each,
    to_prompts,
)
from longcat.request.sampling_params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self, Unpack

    from longcat.chat.reader import ChatChunk, ChatOutput
    from longcat.engine.keywords import EngineKeywords


class Engine(TextMethods, Uncopied):
    """A LongCat-Flash checkpoint, loaded and ready to generate.

    Args:
        model: a local folder in the Hugging Face layout (config.json, *.safetensors, tokenizer.json), or the name of a
            model that `longcat pull` has downloaded. Or an EngineConfig, which names one of them.
        options: fields of EngineConfig, or other engines' names for them, such as `tp` or `max_running_requests`;
            docs/reference/engine.md lists them with their defaults.
    Raises:
        longcat.Error: the checkpoint is missing, damaged or of another model; the message is one line.
        longcat.OutOfMemoryError: the cache does not fit.
        ValueError, TypeError: an option is wrong.
    """

    __signature__ = inspect.signature(EngineConfig)  # for help(), and completion in notebooks

    def __init__(self, model: str | os.PathLike[str] | EngineConfig | None = None, **options: Unpack[EngineKeywords]):
        self.config = config = EngineConfig.of(model, options)
        self.model = folder_path(config.model)
        check_sources(config.tokenizer, config.chat_template)
        core_options = config.core_options()
        engine = weakref.ref(self)

        def ranks_are_lost(reason: str) -> None:
            if (this := engine()) is not None and hasattr(this, "_core"):
                this._core.abort_ranks(reason)

        communicator, self._replica = join_ranks(core_options, config.data_parallel_size, ranks_are_lost)
        self._core = self._open_core(core_options, config.progress, communicator)
        self._info = self._core.info()
        for line in self._info["warnings"]:
            warnings.warn(line, stacklevel=2)
        defaults = read_generation_config(self.model)
        vocab_size, eos_token_id = self._info["vocab_size"], self._info["eos_token_id"]
        ends = eos_token_ids(defaults, eos_token_id)
        self._text = CheckpointText(self.model, config.tokenizer, config.chat_template, vocab_size, ends)
        self._requests = RequestTable(self._core, self._text, vocab_size, eos_token_id)
        self._intake = Intake(self._core, self._requests, defaults, ends, config.seed)
        self._loops = EventLoops()
        self._core.start()

    def _open_core(
        self,
        options: _core.EngineOptions,
        progress: Callable[[int, int], None] | None,
        communicator: _core.Communicator | None,
    ) -> _core.Engine:
        """Opens the native engine. A subclass may open one on another device."""
        return _core.Engine(self.model, options, progress, communicator)

    @property
    def rank(self) -> int:
        """The rank of this process in its replica. Rank 0 takes requests; the others follow it."""
        return int(self._info["rank"])

    @property
    def replica(self) -> int:
        """Index of this process's copy of the model, from 0 to data_parallel_size - 1."""
        return self._replica

    def follow(self) -> None:
        """Computes the steps of rank 0 until rank 0 closes its engine. Ranks that make no requests call this.

        Raises:
            longcat.Error: the job has failed.
        """
        if self.rank == 0:
            raise ValueError("this is rank 0, which follows no other rank. Call generate() here")
        self._core.join()

    def __repr__(self) -> str:
        i = self._info
        return f"Engine({self.model!r}, {i['architecture']}, {i['dtype']} on {i['device']}, {i['num_threads']} threads)"

    # --- numbers -----------------------------------------------------------------------------------------------

    def forward(self, token_ids: Sequence[int]) -> np.ndarray:
        """Computes the logits of every position of one sequence.

        Args:
            token_ids: [num_tokens] ids of the vocabulary.
        Returns:
            [num_tokens, vocab_size] float32; `torch.from_dlpack` takes it without a copy.
        Raises:
            ValueError: no tokens, an id outside the vocabulary, or more than max_model_len.
            longcat.OutOfMemoryError: the cache has too few free blocks.
        Running requests wait meanwhile.
        """
        return self._core.forward(as_token_ids(token_ids))

    def info(self) -> dict[str, Any]:
        """Facts about the loaded engine: architecture, dtypes, context, cache size and free blocks."""
        self._info = self._core.info()
        return dict(self._info)

    def sampling_defaults(self) -> dict[str, float]:
        """The default sampling parameters: those of the model's generation_config.json, else ours."""
        return self._intake.sampling_defaults()

    # --- generation --------------------------------------------------------------------------------------------

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        stream: Literal[True],
        **options: Unpack[GenerateKeywords],
    ) -> TokenStream: ...
    @overload  # a text is a sequence of texts, too
    def generate(  # type: ignore[overload-overlap]
        self,
        prompts: Prompt,
        sampling_params: Params | None = None,
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerateKeywords],
    ) -> RequestOutput: ...
    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerateKeywords],
    ) -> list[RequestOutput]: ...
    @overload
    def generate(
        self,
        *,
        prompt_token_ids: Sequence[int],
        sampling_params: Params | None = None,
        stream: Literal[False] = False,
        **options: Unpack[GenerateKeywords],
    ) -> RequestOutput: ...
    @overload
    def generate(
        self,
        *,
        prompt_token_ids: Sequence[Sequence[int]],
        sampling_params: Params | Sequence[Params] | None = None,
        stream: Literal[False] = False,
        **options: Unpack[GenerateKeywords],
    ) -> list[RequestOutput]: ...
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        stream: bool = False,
        use_tqdm: bool = True,
        **sampling: Unpack[SamplingKeywords],
    ) -> RequestOutput | list[RequestOutput] | TokenStream:
        """Continues one prompt or many.

        Args:
            prompts: a text, a list of token ids, {"prompt": text} or {"prompt_token_ids": [...]}; or a list of these.
            sampling_params: a SamplingParams, a dict, or nothing, or a list with one for each prompt. Keywords
                (`temperature=0`) override it.
            prompt_token_ids: token ids in place of text: a list of ints, or a list of such lists.
            stream: return an iterator of StreamChunk as tokens arrive; closing it ends its requests.
            use_tqdm: show a progress bar over several prompts, in a terminal and after two seconds.
        Returns:
            A RequestOutput for one prompt, a list of them for a list; `str()` of one is its text.
        Raises:
            ValueError: a prompt is empty or too long, or a parameter is out of range.
            TypeError: a parameter name is unknown; the message has the nearest one.
        """
        prompt_list, single = to_prompts(prompts, prompt_token_ids)
        params = params_of_each(sampling_params, sampling, len(prompt_list))
        requests = self._intake.requests([self._intake.with_ids(prompt) for prompt in prompt_list], params)
        chunks = TokenStream(self._requests, requests)
        if stream:
            return chunks
        read_all(chunks, len(requests), use_tqdm)
        outputs = [request.output for request in requests]
        return outputs[0] if single else outputs

    def agenerate(
        self,
        prompt: Prompt | None = None,
        sampling_params: Params | None = None,
        *,
        prompt_token_ids: Sequence[int] | None = None,
        request_id: str | None = None,
        group: RequestGroup | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> AsyncChunks[StreamChunk, RequestOutput]:
        """Continues one prompt, for asyncio: `async for` yields StreamChunk, `await` returns the RequestOutput.

        Leaving the loop, or cancelling its task, ends the request.

        Args:
            prompt: one prompt, as for generate, or None with prompt_token_ids.
            request_id: a name for `abort`; default the number in `chunk.request_id`.
            group: shared by the requests of one client's call, so that they do not outweigh other calls.
            sampling_params, sampling: as for generate.
        Raises:
            longcat.QueueFullError: max_num_queued requests wait already.
            ValueError, TypeError: as generate, when the first chunk is requested.
        """
        chunks = self._agenerate(prompt, sampling_params, prompt_token_ids, request_id, group, sampling)
        return AsyncChunks(chunks, lambda chunk: chunk.output)

    async def _agenerate(
        self,
        prompt: Prompt | None,
        sampling_params: Params | None,
        prompt_token_ids: Sequence[int] | None,
        request_id: str | None,
        group: RequestGroup | None,
        sampling: SamplingKeywords,
    ) -> AsyncGenerator[StreamChunk, None]:
        params = SamplingParams.of(sampling_params, sampling)
        prompts, single = to_prompts(prompt, prompt_token_ids)
        if not single:
            raise TypeError("agenerate takes one prompt: call it once for each")
        params = await self._intake.compiled(params)
        [request] = self._intake.requests([self._intake.with_ids(prompts[0])], [params], request_id, group)
        async with aclosing(self._loops.running().stream(self._requests, request)) as chunks:
            async for chunk in chunks:
                yield chunk

    def achat(
        self,
        messages: Conversation,
        sampling_params: Params | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, object] | None = None,
        request_id: str | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> AsyncChunks[ChatChunk, ChatOutput]:
        """Completes one conversation, for asyncio: `async for` yields ChatChunk, `await` returns the ChatOutput.

        Args, Raises: as for chat and agenerate.
        """
        variables: dict[str, Any] = dict(chat_template_kwargs or {})
        variables |= {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        chunks = self._achat(messages, sampling_params, sampling, tools, tool_choice, variables, request_id)
        return AsyncChunks(chunks, lambda chunk: chunk.output)

    async def _achat(
        self,
        messages: Conversation,
        sampling_params: Params | None,
        sampling: SamplingKeywords,
        tools: Tools | None,
        tool_choice: ToolChoice | None,
        variables: Mapping[str, Any],
        request_id: str | None,
    ) -> AsyncGenerator[ChatChunk, None]:
        from longcat.chat.reader import ChatReader, ends_in_think, force_calls

        params, choice = force_calls(SamplingParams.of(sampling_params, sampling), tools, tool_choice)
        prompt = self.render_chat(messages, tools=tools, tool_choice=choice, **variables)
        params = await self._intake.compiled(params)
        [request] = self._intake.requests([prompt], [params], request_id)
        thinks = params.structured_outputs is None and ends_in_think(prompt[0])
        reader = ChatReader(tools, choice, starts_thinking=[thinks])
        async with aclosing(self._loops.running().stream(self._requests, request)) as chunks:
            async for chunk in chunks:
                yield reader.read(chunk)

    def abort(self, request_id: int | str) -> bool:
        """Ends a request, from any thread. Its completions finish with "abort".

        Args:
            request_id: `chunk.request_id` of its chunks, or the name given to agenerate.
        Returns:
            False when no such request runs.
        """
        return self._requests.abort(request_id)

    @overload
    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        stream: Literal[True],
        use_tqdm: bool = True,
        **options: Unpack[ChatKeywords],
    ) -> ChatStream: ...
    @overload
    def chat(
        self,
        messages: Conversation,
        sampling_params: Params | None = None,
        *,
        stream: Literal[False] = False,
        use_tqdm: bool = True,
        **options: Unpack[ChatKeywords],
    ) -> ChatOutput: ...
    @overload
    def chat(
        self,
        messages: Sequence[Conversation],
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        stream: Literal[False] = False,
        use_tqdm: bool = True,
        **options: Unpack[ChatKeywords],
    ) -> list[ChatOutput]: ...
    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: ToolChoice | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, object] | None = None,
        stream: bool = False,
        use_tqdm: bool = True,
        **sampling: Unpack[SamplingKeywords],
    ) -> ChatOutput | list[ChatOutput] | ChatStream:
        """Completes a conversation, by the checkpoint's chat template.

        Args:
            messages: [{"role", "content", ...}, ...], or a list of such conversations. `tool_calls` in the history may
                carry `arguments` as a dict or as JSON text. Tags typed by users stay text.
            tools: functions that the model may call, {"type": "function", "function": {...}}. Without tools no part of
            a
                completion is read as a call.
            tool_choice: "auto"; "none" leaves the tools out; "required" forces a call;
                {"type": "function", "function": {"name": ...}} forces one call of that tool.
            continue_final_message: the completion continues the last message in place of beginning a new one.
            chat_template_kwargs: more variables for the template, as {"enable_thinking": True}.
            sampling_params, stream, use_tqdm, sampling: as for generate; a stream yields ChatChunk.
        Returns:
            A ChatOutput for one conversation, a list of them for a list. Its `message` has "role" and "content". When
            it calls tools, it also has "tool_calls", with `arguments` as a dict.
        Raises:
            ValueError: a message or tool is malformed, or the prompt is too long.
            longcat.Error: the checkpoint has no chat template, or it refuses the messages.
        """
        from longcat.chat.reader import ChatReader, ends_in_think, force_calls

        if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
            raise ValueError(f"messages is a {type(messages).__name__}: expected a list of messages")
        single = not messages or isinstance(messages[0], Mapping)
        conversations = cast("Sequence[Conversation]", [messages] if single else messages)
        params = params_of_each(sampling_params, sampling, len(conversations))
        forced = {id(given): force_calls(given, tools, tool_choice) for given in params}
        params = [forced[id(given)][0] for given in params]
        choice = next(iter(forced.values()))[1]
        variables: dict[str, Any] = dict(chat_template_kwargs or {})
        variables |= {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        prompts = [
            self.render_chat(conversation, tools=tools, tool_choice=choice, **variables)
            for conversation in conversations
        ]
        thinks = [
            given.structured_outputs is None and ends_in_think(text)
            for given, (text, _) in zip(params, prompts, strict=True)
        ]
        tokens = TokenStream(self._requests, self._intake.requests(prompts, params))
        chunks = ChatStream(tokens, ChatReader(tools, choice, starts_thinking=thinks))
        if stream:
            return chunks
        last = read_all(chunks, len(prompts), use_tqdm)
        outputs = {chunk.prompt_index: chunk.output for chunk in last if chunk.output is not None}
        ordered = [outputs[index] for index in range(len(conversations))]
        return ordered[0] if single else ordered

    @overload
    def score(self, prompts: Prompt) -> PromptScore: ...  # type: ignore[overload-overlap]
    @overload
    def score(self, prompts: Sequence[Prompt]) -> list[PromptScore]: ...
    @overload
    def score(self, *, prompt_token_ids: Sequence[int]) -> PromptScore: ...
    @overload
    def score(self, *, prompt_token_ids: Sequence[Sequence[int]]) -> list[PromptScore]: ...
    def score(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
    ) -> PromptScore | list[PromptScore]:
        """Computes the log-probability of each token of a text, given the tokens before it.

        Args:
            prompts, prompt_token_ids: as for generate.
        Returns:
            A PromptScore for one prompt, a list of them for a list.
        Raises:
            ValueError: a prompt is empty or too long.
            longcat.Error: the logits of a prompt are not finite, or the prompt was aborted.
        """
        prompt_list, single = to_prompts(prompts, prompt_token_ids)
        scores = [score_of(output) for output in Engine.generate(self, prompt_list, max_tokens=0, prompt_logprobs=0)]
        return scores[0] if single else scores

    # --- lifetime ----------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Returns counters since the start, and the present load: requests, tokens, prefix cache, preemptions."""
        return self._core.metrics()

    def failure(self) -> str | None:
        """Returns why the engine can make no more tokens: it is closed, or its thread failed. None: it can."""
        try:
            return self._core.failure() or None
        except Error as error:  # closed
            return str(error)

    def reset_prefix_cache(self) -> None:
        """Empties the prefix cache. Running requests go on."""
        self._core.reset_prefix_cache()

    def close(self) -> None:
        """Frees the model and the cache. Requests that still run end with an error. May be called twice."""
        self._requests.close()
        self._loops.close()

    def __del__(self) -> None:
        if hasattr(self, "_loops"):
            self._loops.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is not None and self._info["rank"] > 0:  # rank 0 does not know, and closing would wait for it
            self._core.abort_ranks(f"[parallel] rank {self._info['rank']} failed: {error!r}")
        self.close()
