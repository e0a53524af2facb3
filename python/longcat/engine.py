"""Engine: a loaded checkpoint, from text to text."""

from __future__ import annotations

import inspect
import json
import os
import random
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longcat import _core
from longcat._core import Error
from longcat.names import unknown_name
from longcat.outputs import CompletionOutput, RequestMetrics, RequestOutput, StreamChunk
from longcat.sampling_params import SamplingParams
from longcat.tokenizer import StreamDecoder, Tokenizer, as_token_ids

if TYPE_CHECKING:
    import numpy as np

# Names other engines use for the same thing.
_ALIASES = {
    "model_path": "model",
    "context_length": "max_model_len",
    "max_running_requests": "max_num_seqs",
    "threads": "num_threads",
}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_MAX_GENERATION_CONFIG_BYTES = 1 << 20


class Engine:
    """A LongCat-Flash checkpoint, loaded and ready to generate.

    Args:
        model: a local folder in the Hugging Face layout (config.json, *.safetensors, tokenizer.json).
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto" (as config.json says), "f32" or "bf16": how f32 and f16 weights are kept, and the latent cache.
        max_model_len: most tokens of prompt and answer together; default max_position_embeddings of config.json.
        kv_cache_memory: latent cache in bytes or as "4GiB"; "auto" is the lesser of a quarter of the free memory and
            what max_num_seqs sequences of max_model_len can use.
        kv_cache_dtype: "auto" (dtype), "f32" or "bf16".
        max_num_seqs: requests that run at once; others wait their turn.
        max_num_batched_tokens: most tokens of one step; longer prompts are taken in several.
        seed: of the requests that bring none.
        num_threads: of the CPU backend; default one per core this process may use.
        tokenizer: a tokenizer.json or a folder that holds one, when it is not the checkpoint's own.
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
        dtype: str = "auto",
        max_model_len: int | None = None,
        kv_cache_memory: int | str = "auto",
        kv_cache_dtype: str = "auto",
        max_num_seqs: int = 16,
        max_num_batched_tokens: int = 512,
        seed: int = 0,
        num_threads: int | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
        **aliases: Any,
    ):
        if aliases:
            named = {_canonical_name(name): value for name, value in aliases.items()}
            given = dict(
                model=model, device=device, dtype=dtype, max_model_len=max_model_len, kv_cache_memory=kv_cache_memory,
                kv_cache_dtype=kv_cache_dtype, max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens, seed=seed, num_threads=num_threads,
                tokenizer=tokenizer, progress=progress,
            )  # fmt: skip
            self.__init__(**(given | named))  # type: ignore[misc]
            return
        if model is None:
            raise TypeError('Engine needs the path of a checkpoint folder: Engine("path/to/checkpoint")')
        self.model = os.fspath(model)
        options = _core.EngineOptions()
        options.device = device
        options.dtype = dtype
        options.kv_cache_dtype = kv_cache_dtype
        options.max_model_len = max_model_len or 0
        options.kv_cache_memory = _parse_bytes("kv_cache_memory", kv_cache_memory)
        options.max_num_seqs = max_num_seqs
        options.max_num_batched_tokens = max(max_num_batched_tokens, max_num_seqs)
        options.num_threads = num_threads or 0
        self._core = _core.Engine(self.model, options, progress)
        self._info = self._core.info()
        for line in self._info["warnings"]:
            warnings.warn(line, stacklevel=2)
        self._generation_config = _read_generation_config(self.model)
        self._tokenizer_path = tokenizer if tokenizer is not None else self.model
        self._tokenizer: Tokenizer | None = None
        self._seeds = random.Random(seed)
        # Outputs of requests, by id. Whoever waits for a token drives a step for everybody, under this lock.
        self._arrived: dict[int, deque[_core.StepOutput]] = {}
        self._step_lock = threading.Lock()

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

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, nothing added around it."""
        return self.tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`."""
        return self.tokenizer.decode(as_token_ids(token_ids), skip_special_tokens)

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
        """
        return self._core.forward(as_token_ids(token_ids))

    def info(self) -> dict[str, Any]:
        """Facts about the loaded engine: architecture, dtypes, context, cache size and free blocks."""
        self._info = self._core.info()
        return dict(self._info)

    # --- generation --------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: str | Sequence[str] | None = None,
        sampling_params: SamplingParams | Mapping[str, Any] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        stream: bool = False,
        **sampling: Any,
    ) -> Any:
        """Continues one prompt or many.

        Args:
            prompts: a text, or a list of texts.
            sampling_params: a SamplingParams, a dict, or nothing; keywords (`temperature=0`) go on top.
            prompt_token_ids: token ids in place of text: a list of ints, or a list of such lists.
            stream: return an iterator of StreamChunk as tokens arrive; closing it ends its requests.
        Returns:
            A RequestOutput for one prompt, a list of them for a list; `str()` of one is its text.
        Raises:
            ValueError: a prompt is empty or too long, or a parameter is out of range.
            TypeError: an unknown parameter name, answered with the nearest.
        """
        params = SamplingParams.of(sampling_params, sampling)
        prompt_list, single = _as_prompts(prompts, prompt_token_ids)
        # Check and queue everything before the first token: a bad prompt in a list fails as a whole.
        requests = self._submit(prompt_list, params)
        chunks = TokenStream(self, requests)
        if stream:
            return chunks
        for _ in chunks:
            pass
        outputs = [request.output for request in requests]
        return outputs[0] if single else outputs

    def _submit(self, prompts: list[str | list[int]], params: SamplingParams) -> list[_Request]:
        requests: list[_Request] = []
        try:
            for index, prompt in enumerate(prompts):
                text = prompt if isinstance(prompt, str) else None
                ids = self.encode(prompt) if isinstance(prompt, str) else prompt
                core_params = self._core_params(params)
                with self._step_lock:
                    request_id = self._core.add_request(ids, core_params)
                    self._arrived[request_id] = deque()
                decoder = self._stream_decoder(text is None, params.skip_special_tokens)
                output = RequestOutput(request_id, text, ids, [CompletionOutput(0)], RequestMetrics())
                requests.append(_Request(index, output, decoder))
        except BaseException:
            self._abort(requests)
            raise
        return requests

    def _stream_decoder(self, optional: bool, skip_special_tokens: bool) -> StreamDecoder | None:
        """None for requests by token ids to a checkpoint without a tokenizer: their outputs have ids and no text."""
        try:
            return StreamDecoder(self.tokenizer, skip_special_tokens)
        except Error:
            if optional:
                return None
            raise

    def _wait_for(self, requests: Mapping[int, _Request]) -> tuple[int, _core.StepOutput]:
        """The next token of one of `requests`, by id; drives steps until there is one."""
        while True:
            with self._step_lock:
                for request_id in requests:
                    if request_id not in self._arrived:
                        raise Error("[engine] this engine is closed")
                    if queue := self._arrived[request_id]:
                        output = queue.popleft()
                        if output.finish_reason is not None:
                            del self._arrived[request_id]
                        return request_id, output
                for output in self._core.step():
                    if (queue := self._arrived.get(output.request_id)) is not None:
                        queue.append(output)

    def _abort(self, requests: list[_Request]) -> None:
        with self._step_lock:
            for request in requests:
                if self._arrived.pop(request.output.request_id, None) is not None:
                    self._core.abort(request.output.request_id)
                    request.finish("abort")

    def _core_params(self, params: SamplingParams) -> _core.SamplingParams:
        """`params` with the model's defaults filled in."""
        defaults = self._generation_config
        greedy = defaults.get("do_sample") is False

        def value(name: str, off: float) -> Any:
            given = getattr(params, name)
            if given is not None:
                return given
            return off if greedy else defaults.get(name, off)

        core = _core.SamplingParams()
        core.max_tokens = params.max_tokens
        core.temperature = value("temperature", 0.0 if greedy else 1.0)
        core.top_k = max(value("top_k", 0), 0)
        core.top_p = value("top_p", 1.0)
        core.repetition_penalty = (
            params.repetition_penalty
            if params.repetition_penalty is not None
            else defaults.get("repetition_penalty", 1.0)
        )
        core.seed = (params.seed if params.seed is not None else self._seeds.getrandbits(64)) % 2**64
        stops = list(params.stop_token_ids)
        if not params.ignore_eos:
            stops += self._eos_token_ids()
        core.stop_token_ids = stops
        return core

    def _eos_token_ids(self) -> list[int]:
        listed = self._generation_config.get("eos_token_id", [])
        return sorted({self._info["eos_token_id"], *(listed if isinstance(listed, list) else [listed])})

    # --- lifetime ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees the model and the cache; requests still open end with an error. May be called twice."""
        with self._step_lock:
            self._arrived.clear()
            self._core.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class TokenStream(Iterator[StreamChunk]):
    """The chunks of some requests as they arrive. Closing it, or dropping it, ends the requests that are left."""

    def __init__(self, engine: Engine, requests: list[_Request]):
        self._engine = engine
        self._open = {request.output.request_id: request for request in requests}

    def __next__(self) -> StreamChunk:
        if not self._open:
            raise StopIteration
        request_id, step = self._engine._wait_for(self._open)
        chunk = self._open[request_id].take(step, self._engine._info["eos_token_id"])
        if chunk.finish_reason is not None:
            del self._open[request_id]
        return chunk

    def close(self) -> None:
        requests, self._open = list(self._open.values()), {}
        self._engine._abort(requests)

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._open:
            self.close()


class _Request:
    """One prompt on its way: gathers what the core hands out."""

    def __init__(self, prompt_index: int, output: RequestOutput, decoder: StreamDecoder | None):
        self.prompt_index = prompt_index
        self.output = output
        self._decoder = decoder
        self._start = time.perf_counter()

    def take(self, step: _core.StepOutput, eos_token_id: int) -> StreamChunk:
        """Adds one token; the chunk says what text it completed."""
        answer, metrics = self.output.outputs[0], self.output.metrics
        metrics.total_s = time.perf_counter() - self._start
        if metrics.first_token_s is None:
            metrics.first_token_s = metrics.total_s
        token_ids = [step.token_id] if step.token_id >= 0 else []
        delta = self._decoder.push(token_ids) if self._decoder else ""
        answer.token_ids += token_ids
        if step.finish_reason == "stop" and step.token_id != eos_token_id:
            answer.stop_reason = step.token_id
        if step.finish_reason is not None:
            delta += self.finish(step.finish_reason)
            answer.text += delta
            return StreamChunk(delta, token_ids, self.prompt_index, step.finish_reason, self.output)
        answer.text += delta
        return StreamChunk(delta, token_ids, self.prompt_index)

    def finish(self, reason: str) -> str:
        """Ends the request; returns the text that was held back."""
        self.output.outputs[0].finish_reason = reason
        return self._decoder.finish() if self._decoder else ""


def _canonical_name(name: str) -> str:
    known = [p for p in inspect.signature(Engine).parameters if p != "aliases"]
    name = _ALIASES.get(name, name)
    if name not in known:
        raise unknown_name("Engine", name, [*known, *_ALIASES])
    return name


def _as_prompts(prompts: Any, prompt_token_ids: Any) -> tuple[list[str | list[int]], bool]:
    """The prompts as a list, and whether a single one was given."""
    if (prompts is None) == (prompt_token_ids is None):
        raise TypeError("generate needs prompts or prompt_token_ids, one of them")
    if prompts is not None:
        if isinstance(prompts, str):
            return [prompts], True
        if not isinstance(prompts, Sequence) or not all(isinstance(p, str) for p in prompts):
            raise TypeError("prompts is neither a text nor a list of texts: for token ids use prompt_token_ids")
        return list(prompts), False
    if len(prompt_token_ids) and hasattr(prompt_token_ids[0], "__len__"):
        return [as_token_ids(ids) for ids in prompt_token_ids], False
    return [as_token_ids(prompt_token_ids)], True


def _parse_bytes(name: str, value: int | str) -> int:
    """A size in bytes from 4294967296, "4GiB" or "500 MB"; "auto" is 0."""
    if value == "auto":
        return 0
    if isinstance(value, str):
        digits = value.strip().rstrip("BbKkMmGgIi ")
        unit = value.strip()[len(digits) :].strip().upper()
        try:
            value = int(float(digits) * _UNITS[unit if unit != "B" else ""])
        except (KeyError, ValueError):
            raise ValueError(f'{name}="{value}" is not a size: expected bytes, "500MB" or "4GiB"') from None
    if value <= 0:
        raise ValueError(f"{name}={value} is not possible: expected a positive number of bytes")
    return value


def _read_generation_config(folder: str) -> dict[str, Any]:
    """generation_config.json, or nothing when the checkpoint has none."""
    path = os.path.join(folder, "generation_config.json")
    if not os.path.exists(path):
        return {}
    try:
        if os.path.getsize(path) > _MAX_GENERATION_CONFIG_BYTES:
            raise ValueError("larger than 1 MiB")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise Error(f"[generation config] {path} is not valid: {error}") from None
    return {name: value for name, value in config.items() if value is not None}
