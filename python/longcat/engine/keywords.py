"""Keywords that stand for fields of EngineConfig, for type checkers.

Written by docs/make_reference.py from longcat/engine/config.py. Change them there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypedDict


class EngineKeywords(TypedDict, total=False):
    model_path: str | os.PathLike[str]
    device: str
    tensor_parallel_size: int
    tp: int
    tp_size: int
    expert_parallel_size: int
    ep: int
    ep_size: int
    data_parallel_size: int
    dp: int
    dp_size: int
    dtype: str
    quantization: str | None
    max_model_len: int | None
    context_length: int | None
    kv_cache_dtype: str
    index_cache_dtype: str
    kv_cache_memory: int | str
    kv_cache_memory_bytes: int | str
    gpu_memory_utilization: float | None
    mem_fraction_static: float | None
    ngram_placement: str
    speculative: Mapping[str, object] | None
    speculative_config: Mapping[str, object] | None
    swap_memory: int | str
    enable_prefix_caching: bool
    max_num_seqs: int
    max_running_requests: int
    max_num_queued: int
    max_queued_requests: int
    max_num_batched_tokens: int | None
    async_scheduling: bool | None
    seed: int
    random_seed: int
    num_threads: int | None
    threads: int | None
    tokenizer: str | os.PathLike[str] | None
    tokenizer_path: str | os.PathLike[str] | None
    chat_template: str | os.PathLike[str] | None
    mask_timeout: float
    progress: Callable[[int, int], None] | None
