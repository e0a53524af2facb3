"""Engine: a loaded checkpoint, from text to text."""

from __future__ import annotations

import dataclasses
import os
import random
import threading
import warnings
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, overload

import longcat._core as _core
from longcat._core import Error
from longcat.engine.core_options import core_options
from longcat.engine.request import Request, RequestGroup
from longcat.engine.sources import Uncopied, check_sources, folder_path
from longcat.engine.streams import AsyncChunks, ChatStream, LoopOutputs, TokenStream, read_all
from longcat.request.generation_config import read_generation_config
from longcat.request.outputs import PromptScore, RequestOutput, StreamChunk
from longcat.request.prompts import Params, Prompt, as_token_ids, params_of_each, to_prompts
from longcat.request.sampling_params import SamplingParams, core_params
from longcat.request.tokenizer import StreamDecoder, Tokenizer
from longcat.support.files import read_text
from longcat.support.other_engines import format_name
from longcat.support.values import canonical_name, positive

if TYPE_CHECKING:
    import asyncio

    import numpy as np

    from longcat.chat.reader import ChatChunk, ChatOutput
    from longcat.chat.template import ChatTemplate
    from longcat.engine.masks import MaskFiller
    from longcat.request.structured import Grammar, GrammarCompiler, StructuredOutputs


class Engine(Uncopied):
    """A LongCat-Flash checkpoint, loaded and ready to generate.

    Args:
        model: a local folder in the Hugging Face layout (config.json, *.safetensors, tokenizer.json).
        device: "auto", "cpu", "cuda" or "cuda:N".
        tensor_parallel_size: ranks over which attention heads and dense FFNs are shared out.
        expert_parallel_size: ranks over which the experts are shared out, the same ones. A launcher (mpirun) has to
            start as many as the larger of both says. All make the same engine and the same requests, and get the same
            results; or rank 0 alone asks, and the others `follow()`.
        data_parallel_size: copies of the model, each on so many ranks of its own and with requests of its own;
            `replica` says to which of them this process belongs.
        dtype: "auto" (as config.json says), "f32" or "bf16": how f32 and f16 weights are kept, and the latent cache.
        quantization: "fp8" keeps the experts of a bf16, f16 or f32 checkpoint as fp8 blocks, in half the memory or
            less; default None, as they are stored.
        max_model_len: most tokens of prompt and answer together; default max_position_embeddings of config.json.
        kv_cache_memory: latent cache in bytes or as "4GiB"; "auto" is the lesser of a quarter of the free memory (on a
            GPU all that is left) and what max_num_seqs sequences of max_model_len can use.
        gpu_memory_utilization: share of a GPU's free memory that the engine takes, above 0 and at most 1; default
            all but 1.5 GiB. Without meaning on the CPU.
        kv_cache_dtype: "auto" (dtype), "f32", "bf16", "fp8" (a row of 512 + 64 values takes 656 bytes) or, on the CPU,
            "int8" (660 bytes; the fastest there over long contexts).
        ngram_placement: of the N-gram tables. "disk", the CPU's: they stay in the mapped file, and only pages that hold
            looked up rows are read, those of all tokens of a step together. On CUDA "host", in pinned host memory,
            which the GPU reads itself, or "device", in its own memory, where that has room for them. "auto": disk or
            host.
        speculative: guesses at the next tokens, all checked in one step, so that texts are the same as without, in
            fewer steps. {"method": "mtp", "num_speculative_tokens": 3}: at most so many, by the checkpoint's
            multi-token-prediction layer (model.mtp.*, in model-auxiliary.safetensors). {"method": "ngram",
            "num_speculative_tokens": 3}: what followed the last 2 to 4 tokens ("prompt_lookup_min",
            "prompt_lookup_max") where they occurred before; needs no weights, and brings something where a text repeats
            itself.
        swap_memory: host memory for requests that gave their place in the cache to others for a while, in bytes or as
            "4GiB"; "auto" is as much as the cache. What finds no room there is computed again.
        enable_prefix_caching: whether requests that begin with the same tokens share what was computed for them.
        max_num_seqs: requests that run at once; others wait their turn.
        max_num_queued: requests that may wait; `agenerate` raises QueueFullError beyond, `generate` waits.
        max_num_batched_tokens: most tokens of one step; longer prompts are taken in several. Default 512, on CUDA
            8,192, or max_num_seqs when that is more.
        seed: of the requests that bring none.
        num_threads: of the CPU backend; default one per core this process may use.
        tokenizer: a tokenizer.json or a folder that holds one, when it is not the checkpoint's own.
        chat_template: a jinja file, or the template itself, when it is not the checkpoint's own.
        mask_timeout: a request with a token_mask ends with an error when a mask takes longer than this [s].
        progress: called with (bytes done, bytes in all) while loading.
    Raises:
        longcat.Error: the checkpoint is missing, damaged or of another model; one line says what and where.
        longcat.OutOfMemoryError: the cache does not fit.
        ValueError, TypeError: an argument is wrong.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        tensor_parallel_size: int = 1,
        expert_parallel_size: int = 1,
        data_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        max_model_len: int | None = None,
        kv_cache_memory: int | str = "auto",
        gpu_memory_utilization: float | None = None,
        kv_cache_dtype: str = "auto",
        ngram_placement: str = "auto",
        speculative: Mapping[str, Any] | None = None,
        swap_memory: int | str = "auto",
        enable_prefix_caching: bool = True,
        max_num_seqs: int = 16,
        max_num_batched_tokens: int | None = None,
        max_num_queued: int = 4096,
        seed: int = 0,
        num_threads: int | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        mask_timeout: float = 10.0,
        progress: Callable[[int, int], None] | None = None,
        **aliases: Any,
    ):
        if aliases:
            named = {canonical_name(Engine, name): value for name, value in aliases.items()}
            given = dict(
                model=model, device=device, tensor_parallel_size=tensor_parallel_size,
                expert_parallel_size=expert_parallel_size, data_parallel_size=data_parallel_size, dtype=dtype,
                quantization=quantization, max_model_len=max_model_len, kv_cache_memory=kv_cache_memory,
                gpu_memory_utilization=gpu_memory_utilization, kv_cache_dtype=kv_cache_dtype,
                ngram_placement=ngram_placement, speculative=speculative, swap_memory=swap_memory,
                enable_prefix_caching=enable_prefix_caching, max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens, max_num_queued=max_num_queued, seed=seed,
                num_threads=num_threads, tokenizer=tokenizer, chat_template=chat_template, mask_timeout=mask_timeout,
                progress=progress,
            )  # fmt: skip
            self.__init__(**(given | named))  # type: ignore[misc]
            return
        if model is None:
            raise TypeError('Engine needs the path of a checkpoint folder: Engine("path/to/checkpoint")')
        self.model = folder_path(model)
        check_sources(tokenizer, chat_template)
        dtype = format_name("dtype", dtype)
        kv_cache_dtype = format_name("kv_cache_dtype", kv_cache_dtype)
        options = core_options(
            device=device, dtype=dtype, quantization=quantization, kv_cache_dtype=kv_cache_dtype,
            ngram_placement=ngram_placement, max_model_len=max_model_len, kv_cache_memory=kv_cache_memory,
            gpu_memory_utilization=gpu_memory_utilization, swap_memory=swap_memory, speculative=speculative,
            enable_prefix_caching=enable_prefix_caching, max_num_seqs=max_num_seqs, max_num_queued=max_num_queued,
            max_num_batched_tokens=max_num_batched_tokens, num_threads=num_threads, mask_timeout=mask_timeout,
            tensor_parallel_size=tensor_parallel_size, expert_parallel_size=expert_parallel_size,
        )  # fmt: skip
        if not isinstance(seed, int):
            raise TypeError(f"seed={seed!r} is a {type(seed).__name__}: expected an integer")
        communicator = self._join_ranks(options, positive("data_parallel_size", data_parallel_size))
        self._core = self._open_core(options, progress, communicator)
        self._info = self._core.info()
        for line in self._info["warnings"]:
            warnings.warn(line, stacklevel=2)
        self._generation_config = read_generation_config(self.model)
        self._tokenizer_path = tokenizer if tokenizer is not None else self.model
        self._tokenizer: Tokenizer | None = None
        self._chat_template_source = chat_template
        self._chat_template: ChatTemplate | None = None
        self._seeds = random.Random(seed)
        self._eos_token_id = self._info["eos_token_id"]
        self._lock = threading.Lock()  # of the fields below
        self._requests: dict[int | str, list[int]] = {}  # ids of the core by the request's, while it runs
        self._masks: MaskFiller | None = None
        self._grammars: GrammarCompiler | None = None
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopOutputs] = weakref.WeakKeyDictionary()
        self._closed = False
        self._core.start()

    def _open_core(
        self,
        options: _core.EngineOptions,
        progress: Callable[[int, int], None] | None,
        communicator: _core.Communicator | None,
    ) -> _core.Engine:
        """The native engine. A subclass may open one on a device of its own."""
        return _core.Engine(self.model, options, progress, communicator)

    def _join_ranks(self, options: _core.EngineOptions, num_replicas: int) -> _core.Communicator | None:
        """The ranks of this process's replica; None where there is one rank in all."""
        tp, ep = options.tensor_parallel_size, options.expert_parallel_size
        self._replica = 0
        if max(tp, ep, num_replicas) == 1:
            return None
        from longcat.parallel.job import join_job, threads_of_a_rank

        job = join_job(tp, ep, num_replicas)
        assert job is not None
        self._replica = job.launch.rank // max(tp, ep)
        options.ranks_per_machine = job.launch.local_size
        if options.device == "cuda":
            options.device = f"cuda:{job.launch.local_rank}"
        if options.num_threads == 0:
            options.num_threads = threads_of_a_rank(job.launch)
        engine = weakref.ref(self)

        def ranks_are_lost(reason: str) -> None:
            if (this := engine()) is not None and hasattr(this, "_core"):
                this._core.abort_ranks(reason)

        job.on_failure(ranks_are_lost)
        return job.replica(max(tp, ep))

    @property
    def rank(self) -> int:
        """Of this process in its replica: 0, to whom requests are made, or one that follows it."""
        return self._info["rank"]

    @property
    def replica(self) -> int:
        """Which of the data_parallel_size copies of the model this is."""
        return self._replica

    def follow(self) -> None:
        """On another rank than 0, which asks nothing itself: takes part in what rank 0 is asked, until that one closes.

        Raises:
            longcat.Error: the job has failed.
        """
        if self.rank == 0:
            raise ValueError("this is rank 0, which follows nobody: ask it for text")
        self._core.join()

    def __repr__(self) -> str:
        i = self._info
        return f"Engine({self.model!r}, {i['architecture']}, {i['dtype']} on {i['device']}, {i['num_threads']} threads)"

    # --- text --------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, loaded when first needed."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self._tokenizer_path)
        return self._tokenizer

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer, under vLLM's name."""
        return self.tokenizer

    @property
    def chat_template(self) -> ChatTemplate:
        """The chat template, compiled when first needed."""
        if self._chat_template is None:
            from longcat.chat.template import ChatTemplate

            source = self._chat_template_source
            if source is None:
                self._chat_template = ChatTemplate.from_checkpoint(self.model)
            elif os.path.isfile(source):
                self._chat_template = ChatTemplate(read_text(source, "[chat template]"))
            elif "{" not in os.fspath(source):
                raise Error(f"[chat template] {os.fspath(source)} does not exist, and is no template itself")
            else:
                self._chat_template = ChatTemplate(os.fspath(source))
        return self._chat_template

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added around it."""
        return self.tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`."""
        ids = as_token_ids(token_ids)
        for token_id in ids:
            if token_id < 0:
                raise ValueError(f"token id {token_id} is not in the vocabulary")
        return self.tokenizer.decode(ids, skip_special_tokens)

    # --- numbers -----------------------------------------------------------------------------------------------

    def forward(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits of every position of one sequence.

        Args:
            token_ids: [num_tokens] ids of the vocabulary.
        Returns:
            [num_tokens, vocab_size] float32; `torch.from_dlpack` takes it without a copy.
        Raises:
            ValueError: no tokens, an id outside the vocabulary, or more than max_model_len.
            longcat.OutOfMemoryError: the cache has too few free blocks.
        Requests that run are held up meanwhile.
        """
        return self._core.forward(as_token_ids(token_ids))

    def info(self) -> dict[str, Any]:
        """Facts about the loaded engine: architecture, dtypes, context, cache size and free blocks."""
        self._info = self._core.info()
        return dict(self._info)

    # --- generation --------------------------------------------------------------------------------------------

    @overload
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        stream: Literal[True],
        **options: Any,
    ) -> TokenStream: ...
    @overload  # a text is a sequence of texts, too
    def generate(  # type: ignore[overload-overlap]
        self, prompts: Prompt, sampling_params: Params | None = None, *, stream: Literal[False] = False, **options: Any
    ) -> RequestOutput: ...
    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        stream: Literal[False] = False,
        **options: Any,
    ) -> list[RequestOutput]: ...
    @overload
    def generate(
        self, *, prompt_token_ids: Sequence[int], stream: Literal[False] = False, **options: Any
    ) -> RequestOutput: ...
    @overload
    def generate(
        self, *, prompt_token_ids: Sequence[Sequence[int]], stream: Literal[False] = False, **options: Any
    ) -> list[RequestOutput]: ...
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        stream: bool = False,
        use_tqdm: bool = True,
        **sampling: Any,
    ) -> RequestOutput | list[RequestOutput] | TokenStream:
        """Continues one prompt or many.

        Args:
            prompts: a text, a list of token ids, {"prompt": text} or {"prompt_token_ids": [...]}; or a list of these.
            sampling_params: a SamplingParams, a dict, or nothing, or a list with one for each prompt; keywords
                (`temperature=0`) go on top.
            prompt_token_ids: token ids in place of text: a list of ints, or a list of such lists.
            stream: return an iterator of StreamChunk as tokens arrive; closing it ends its requests.
            use_tqdm: in a terminal, show how many of several prompts are done, when that takes more than two seconds.
        Returns:
            A RequestOutput for one prompt, a list of them for a list; `str()` of one is its text.
        Raises:
            ValueError: a prompt is empty or too long, or a parameter is out of range.
            TypeError: an unknown parameter name, answered with the nearest.
        """
        prompt_list, single = to_prompts(prompts, prompt_token_ids)
        params = params_of_each(sampling_params, sampling, len(prompt_list))
        requests = self._prepare([self._with_ids(prompt) for prompt in prompt_list], params)
        chunks = TokenStream(self, requests)
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
        **sampling: Any,
    ) -> AsyncChunks[StreamChunk, RequestOutput]:
        """Continues one prompt, for asyncio: `async for` yields StreamChunk, `await` returns the RequestOutput.

        Leaving the loop, or cancelling its task, ends the request.

        Args:
            prompt: as one of generate's, or None with prompt_token_ids.
            request_id: a name for `abort`; default the number in `chunk.request_id`.
            group: shared by the requests of one client's call, so that they do not outweigh other calls.
            sampling_params, sampling: as for generate.
        Raises:
            longcat.QueueFullError: max_num_queued requests wait already.
            ValueError, TypeError: as generate, with the first chunk asked for.
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
        sampling: Mapping[str, Any],
    ) -> AsyncGenerator[StreamChunk, None]:
        params = SamplingParams.of(sampling_params, sampling)
        prompts, single = to_prompts(prompt, prompt_token_ids)
        if not single:
            raise TypeError("agenerate takes one prompt: call it once for each")
        params = await self._compiled(params)
        [request] = self._prepare([self._with_ids(prompts[0])], [params], request_id, group)
        async with aclosing(self._loop_outputs().stream(self, request)) as chunks:
            async for chunk in chunks:
                yield chunk

    def achat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: Params | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        **sampling: Any,
    ) -> AsyncChunks[ChatChunk, ChatOutput]:
        """Answers one conversation, for asyncio: `async for` yields ChatChunk, `await` returns the ChatOutput.

        Args, Raises: as for chat and agenerate.
        """
        variables = dict(chat_template_kwargs or {})
        variables |= {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        chunks = self._achat(messages, sampling_params, sampling, tools, tool_choice, variables, request_id)
        return AsyncChunks(chunks, lambda chunk: chunk.output)

    async def _achat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: Params | None,
        sampling: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None,
        tool_choice: str | Mapping[str, Any] | None,
        variables: Mapping[str, Any],
        request_id: str | None,
    ) -> AsyncGenerator[ChatChunk, None]:
        from longcat.chat.reader import ChatReader, force_calls

        params, choice = force_calls(SamplingParams.of(sampling_params, sampling), tools, tool_choice)
        prompt = self.render_chat(messages, tools=tools, tool_choice=choice, **variables)
        params = await self._compiled(params)
        [request] = self._prepare([prompt], [params], request_id)
        reader = ChatReader(tools, choice)
        async with aclosing(self._loop_outputs().stream(self, request)) as chunks:
            async for chunk in chunks:
                yield reader.read(chunk)

    def abort(self, request_id: int | str) -> bool:
        """Ends a request from wherever: its answers finish with "abort".

        Args:
            request_id: of its chunks (`chunk.request_id`), or the name given to agenerate.
        Returns:
            False when no such request runs.
        """
        with self._lock:
            core_ids = list(self._requests.get(request_id, []))
        return any([self._abort_core(core_id) for core_id in core_ids])

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        stream: Literal[True],
        **options: Any,
    ) -> ChatStream: ...
    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: Params | None = None,
        *,
        stream: Literal[False] = False,
        **options: Any,
    ) -> ChatOutput: ...
    @overload
    def chat(
        self,
        messages: Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        stream: Literal[False] = False,
        **options: Any,
    ) -> list[ChatOutput]: ...
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: Params | Sequence[Params] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        stream: bool = False,
        use_tqdm: bool = True,
        **sampling: Any,
    ) -> ChatOutput | list[ChatOutput] | ChatStream:
        """Answers a conversation, by the checkpoint's chat template.

        Args:
            messages: [{"role", "content", ...}, ...], or a list of such conversations. `tool_calls` in the history may
                carry `arguments` as a dict or as JSON text. Tags typed by users stay text.
            tools: functions the model may call, {"type": "function", "function": {...}}. Without tools nothing in an
                answer is read as a call.
            tool_choice: "auto", "none" to leave the tools out, "required" for an answer that calls, or
                {"type": "function", "function": {"name": ...}} for one call of that tool.
            continue_final_message: the answer continues the last message in place of beginning a new one.
            chat_template_kwargs: more variables for the template, as {"enable_thinking": True}.
            sampling_params, stream, use_tqdm, sampling: as for generate; a stream yields ChatChunk.
        Returns:
            A ChatOutput, whose `message` is {"role", "content"} and, when it calls tools, "tool_calls" with `arguments`
            as a dict; a list of them for a list.
        Raises:
            ValueError: a message or tool is malformed, or the prompt is too long.
            longcat.Error: the checkpoint has no chat template, or it refuses the messages.
        """
        from longcat.chat.reader import ChatReader, force_calls

        if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
            raise ValueError(f"messages is a {type(messages).__name__}: expected a list of messages")
        single = not messages or isinstance(messages[0], Mapping)
        conversations: Any = [messages] if single else messages
        params = params_of_each(sampling_params, sampling, len(conversations))
        forced = {id(given): force_calls(given, tools, tool_choice) for given in params}
        params = [forced[id(given)][0] for given in params]
        choice = next(iter(forced.values()))[1]
        prompts = [
            self.render_chat(
                conversation,
                tools=tools,
                tool_choice=choice,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **(chat_template_kwargs or {}),
            )
            for conversation in conversations
        ]
        chunks = ChatStream(TokenStream(self, self._prepare(prompts, params)), ChatReader(tools, choice))
        if stream:
            return chunks
        last = read_all(chunks, len(prompts), use_tqdm)
        outputs = {chunk.prompt_index: chunk.output for chunk in last}
        ordered = [outputs[index] for index in range(len(conversations))]
        return ordered[0] if single else ordered

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, max_text_bytes: int | None = None, **options: Any
    ) -> tuple[str, list[int]]:
        """The prompt of a conversation: its text, and its token ids with typed tags left as text.

        Args:
            messages, options: as for chat (tools, tool_choice, add_generation_prompt, continue_final_message, and
                variables of the template).
            max_text_bytes: refuse a longer text before it is tokenized; default: any length.
        Raises:
            ValueError: the text is longer than max_text_bytes.
        """
        from longcat.chat.template import encode_segments, tag_texts

        library = self.tokenizer.library
        segments = self.chat_template.render_segments(messages, tags=tag_texts(library), **options)
        text = "".join(text for text, _ in segments)
        if max_text_bytes is not None and (num_bytes := len(text.encode(errors="surrogatepass"))) > max_text_bytes:
            raise ValueError(
                f"[chat] the prompt has {num_bytes} bytes, which cannot fit the context; expected at most "
                f"{max_text_bytes} bytes. Shorten the messages."
            )
        return text, encode_segments(library, segments)

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
        """How likely the model finds each token of a text given those before it.

        Args:
            prompts, prompt_token_ids: as for generate.
        Returns:
            A PromptScore for one prompt, a list of them for a list.
        Raises:
            ValueError: a prompt is empty or too long.
            longcat.Error: a prompt's logits are not finite, or it was aborted.
        """
        prompt_list, single = to_prompts(prompts, prompt_token_ids)
        scores = [_score(output) for output in Engine.generate(self, prompt_list, max_tokens=0, prompt_logprobs=0)]
        return scores[0] if single else scores

    def token_text(self, token_id: int) -> str | None:
        """The text of one token on its own; None without a tokenizer."""
        try:
            return self.tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")
        except Error:
            return None

    def compile_grammar(self, form: StructuredOutputs | Grammar | Mapping[str, Any]) -> Grammar:
        """The grammar of a form, which `SamplingParams.structured_outputs` takes in its place; the last ones are kept.

        Raises:
            ValueError, TypeError: the form is malformed or too large.
            longcat.Error: llguidance is not installed, or there is no tokenizer.
        """
        from longcat.request.structured import Grammar, GrammarCompiler, StructuredOutputs

        if isinstance(form, Grammar):
            return form
        with self._lock:
            if self._grammars is None:
                vocab_size = self._info["vocab_size"]
                self._grammars = GrammarCompiler(lambda: self.tokenizer, vocab_size, self._eos_token_ids())
        return self._grammars.compile(StructuredOutputs.of(form))

    async def _compiled(self, params: SamplingParams) -> SamplingParams:
        """`params` with their grammar compiled, away from the event loop."""
        import asyncio

        from longcat.request.structured import Grammar

        if params.structured_outputs is None or isinstance(params.structured_outputs, Grammar):
            return params  # without a pause: the caller's next step queues the request
        grammar = await asyncio.to_thread(self.compile_grammar, params.structured_outputs)
        return dataclasses.replace(params, structured_outputs=grammar)

    def _with_ids(self, prompt: str | list[int]) -> tuple[str | None, list[int]]:
        return (prompt, self.encode(prompt)) if isinstance(prompt, str) else (None, prompt)

    def _prepare(
        self,
        prompts: Sequence[tuple[str | None, list[int]]],
        params: Sequence[SamplingParams],
        name: str | None = None,
        group: RequestGroup | None = None,
    ) -> list[Request]:
        """Requests for the prompts, all checked before the first is queued: a bad prompt in a list fails as a whole."""
        self._check_open()
        requests: list[Request] = []
        group = group or RequestGroup()
        grammars: dict[int, Grammar] = {}  # by parameters, which all prompts may share
        for index, ((text, ids), own) in enumerate(zip(prompts, params, strict=True)):
            if own.structured_outputs is not None and id(own) not in grammars:
                grammars[id(own)] = self.compile_grammar(own.structured_outputs)
            core = core_params(
                own, self._generation_config, self._eos_token_ids(), self._seeds.getrandbits(64),
                lambda: self.tokenizer,
            )  # fmt: skip
            self._core.check_request(ids, core)
            requests.append(Request(self, index, text, ids, own, core, name, grammars.get(id(own)), group))
        return requests

    def _add(self, request: Request, queue: _core.OutputQueue) -> list[int]:
        """Hands a request to the core; returns the ids of its answers there."""
        output, n, group = request.output, len(request.output.outputs), request.group
        with self._lock:
            if output.request_id in self._requests:
                raise ValueError(f"request_id={output.request_id!r} is the name of a request that runs already")
            if not request.core.constrained:
                first = self._core.add_request(output.prompt_token_ids, request.core, n, queue, group=group.first)
            else:
                masks = self._mask_filler()
                with masks.lock:
                    first = self._core.add_request(
                        output.prompt_token_ids, request.core, n, queue, masks.queue, group.first
                    )
                    for core_id, token_mask in enumerate(request.token_masks, start=first):
                        masks.register(core_id, token_mask)
            if group.first < 0:
                group.first = first
            if output.request_id == -1:
                output.request_id = first
            self._requests[output.request_id] = ids = list(range(first, first + n))
        return ids

    def _mask_filler(self) -> MaskFiller:
        """With the lock held."""
        if self._closed:  # nobody would end the threads
            raise Error("[engine] this engine is closed")
        if self._masks is None:
            from longcat.engine.masks import MaskFiller

            self._masks = MaskFiller(self._core, self._info["vocab_size"])
        return self._masks

    def _forget(self, request: Request) -> None:
        # Without the lock: a stream's __del__ comes here, and garbage may be collected by a thread that holds it.
        self._requests.pop(request.output.request_id, None)

    def _abort_core(self, core_id: int) -> bool:
        try:
            return self._core.abort(core_id)
        except Error:  # closed, perhaps just now: it has ended
            return False

    def _loop_outputs(self) -> LoopOutputs:
        import asyncio

        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._loops:
                self._loops[loop] = LoopOutputs(loop)
            return self._loops[loop]

    def _stream_decoder(self, optional: bool, skip_special_tokens: bool) -> StreamDecoder | None:
        """None for token ids to a checkpoint without a tokenizer: their outputs have ids and no text."""
        try:
            return StreamDecoder(self.tokenizer, skip_special_tokens)
        except Error:
            if optional:
                return None
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise Error("[engine] this engine is closed")
        self._core.check_process()

    def _eos_token_ids(self) -> list[int]:
        listed = self._generation_config.get("eos_token_id", [])
        return sorted({self._info["eos_token_id"], *(listed if isinstance(listed, list) else [listed])})

    # --- lifetime ----------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, int]:
        """Counters since the engine was made, and what is under way: requests, tokens, prefix cache, preemptions."""
        return self._core.metrics()

    def failure(self) -> str | None:
        """Why the engine can make no more tokens: it was closed, or its thread ended by an error. None: it can."""
        try:
            return self._core.failure() or None
        except Error as error:  # closed
            return str(error)

    def reset_prefix_cache(self) -> None:
        """Forgets what was kept for prompts that begin alike; running requests go on."""
        self._core.reset_prefix_cache()

    def close(self) -> None:
        """Frees the model and the cache; requests still open end with an error. May be called twice."""
        self._closed = True
        self._core.close()
        with self._lock:  # a request may be on its way to the core
            queues = [outputs.queue for outputs in self._loops.values()]
            if self._masks is not None:
                queues.append(self._masks.queue)
        for queue in queues:
            queue.close()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):
            self.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is not None and self._info["rank"] > 0:  # rank 0 does not know, and closing would wait for it
            self._core.abort_ranks(f"[parallel] rank {self._info['rank']} failed: {error!r}")
        self.close()


def _score(output: RequestOutput) -> PromptScore:
    ids = output.prompt_token_ids
    if output.prompt_logprobs is None:
        answer = output.outputs[0]
        raise Error(f"[engine] request {output.request_id} has no score: {answer.error or answer.finish_reason}")
    entries = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
    return PromptScore(ids, [entry[token_id].logprob for entry, token_id in entries if entry is not None])
