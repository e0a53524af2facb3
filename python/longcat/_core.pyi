"""Types of the native module."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__version__: str

class Error(RuntimeError): ...
class OutOfMemoryError(Error): ...

def available_threads() -> int: ...
def cuda_is_built() -> bool: ...

class EngineOptions:
    device: str
    dtype: str
    kv_cache_dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_memory: int
    num_threads: int

class SamplingParams:
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int
    min_tokens: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    sample_idx: int
    stop_token_ids: Sequence[int]
    bad_words: Sequence[Sequence[int]]
    allowed_token_ids: Sequence[int]
    logprobs: int
    prompt_logprobs: int
    def set_logit_bias(self, bias: dict[int, float]) -> None: ...

class TokenLogprobs:
    @property
    def rank(self) -> int: ...
    @property
    def ids(self) -> list[int]: ...
    @property
    def logprobs(self) -> list[float]: ...

class StepOutput:
    @property
    def request_id(self) -> int: ...
    @property
    def token_id(self) -> int: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def logprobs(self) -> TokenLogprobs | None: ...
    @property
    def prompt_logprobs(self) -> list[TokenLogprobs]: ...

class Engine:
    def __init__(
        self, folder: str, options: EngineOptions, progress: Callable[[int, int], None] | None = None
    ) -> None: ...
    def add_request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> int: ...
    def abort(self, request_id: int) -> bool: ...
    def set_mask(self, request_id: int, mask: Sequence[int]) -> bool: ...
    def has_work(self) -> bool: ...
    def step(self) -> list[StepOutput]: ...
    def forward(self, token_ids: Sequence[int], chunk_size: int = 0) -> np.ndarray: ...
    def close(self) -> None: ...
    def info(self) -> dict[str, Any]: ...

testing: Any
