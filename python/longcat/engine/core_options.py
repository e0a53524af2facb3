"""Engine's keywords as the core's options, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import longcat._core as _core
from longcat.support.names import unknown_name
from longcat.support.values import parse_bytes, positive, share

# What goes with each method of speculative decoding.
_SPECULATIVE_DEFAULTS = {
    "ngram": {"num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 2},
    "mtp": {"num_speculative_tokens": 3},
}
_MOST_SPECULATIVE = 64


def core_options(
    *,
    device: str,
    dtype: str,
    quantization: str | None,
    kv_cache_dtype: str,
    ngram_placement: str,
    max_model_len: int | None,
    kv_cache_memory: int | str,
    gpu_memory_utilization: float | None,
    swap_memory: int | str,
    speculative: Mapping[str, Any] | None,
    enable_prefix_caching: bool,
    max_num_seqs: int,
    max_num_queued: int,
    max_num_batched_tokens: int | None,
    num_threads: int | None,
    mask_timeout: float,
    tensor_parallel_size: int,
    expert_parallel_size: int,
) -> _core.EngineOptions:
    """Arguments as longcat.Engine documents them.

    Raises:
        ValueError, TypeError: one is wrong.
    """
    for name, value in (
        ("device", device), ("dtype", dtype), ("kv_cache_dtype", kv_cache_dtype),
        ("ngram_placement", ngram_placement),
    ):  # fmt: skip
        if not isinstance(value, str):
            raise TypeError(f'{name}={value!r} is a {type(value).__name__}: expected a name such as "auto"')
    options = _core.EngineOptions()
    options.device = device
    options.dtype = dtype
    options.kv_cache_dtype = kv_cache_dtype
    options.ngram_placement = ngram_placement
    if quantization not in (None, "fp8"):
        raise ValueError(f'quantization={quantization!r} is not known: use None or "fp8"')
    options.quantize_experts = quantization == "fp8"
    options.max_model_len = positive("max_model_len", max_model_len)
    options.kv_cache_memory = parse_bytes("kv_cache_memory", kv_cache_memory)
    if gpu_memory_utilization is not None:
        options.gpu_memory_utilization = share("gpu_memory_utilization", gpu_memory_utilization)
    options.swap_memory = -1 if swap_memory == "auto" else parse_bytes("swap_memory", swap_memory, least=0)
    if speculative is not None:
        options.speculation = speculation(speculative)
    options.enable_prefix_caching = bool(enable_prefix_caching)
    options.max_num_seqs = positive("max_num_seqs", max_num_seqs)
    options.max_num_queued = positive("max_num_queued", max_num_queued)
    options.max_num_batched_tokens = (
        default_step_tokens(device, options.max_num_seqs)
        if max_num_batched_tokens is None
        else positive("max_num_batched_tokens", max_num_batched_tokens)
    )
    options.num_threads = positive("num_threads", num_threads)
    if not mask_timeout > 0:
        raise ValueError(f"mask_timeout={mask_timeout!r} is not possible: expected seconds")
    options.mask_timeout_ms = 1000.0 * mask_timeout
    options.tensor_parallel_size = positive("tensor_parallel_size", tensor_parallel_size)
    options.expert_parallel_size = positive("expert_parallel_size", expert_parallel_size)
    return options


def default_step_tokens(device: str, max_num_seqs: int) -> int:
    """Most tokens of a step: a GPU reads all experts for each chunk of a prompt, so it needs thousands."""
    is_gpu = device == "cuda" or device.startswith("cuda:")
    return max(8192 if is_gpu else 512, max_num_seqs)


def speculation(speculative: Mapping[str, Any]) -> tuple[str, int, int, int]:
    """`speculative` for the core: the method, most tokens of a guess, and of what must agree at most and least.

    Raises:
        ValueError, TypeError: it is malformed.
    """
    if not isinstance(speculative, Mapping):
        raise TypeError(f'speculative={speculative!r}: expected {{"method": "mtp", "num_speculative_tokens": 3}}')
    method = speculative.get("method")
    if method not in _SPECULATIVE_DEFAULTS:
        raise ValueError(f'speculative method {method!r} is not known: use "mtp" or "ngram"')
    defaults = _SPECULATIVE_DEFAULTS[method]
    for name in speculative:
        if name != "method" and name not in defaults:
            raise unknown_name("speculative", name, ["method", *defaults])
    given = {name: value for name, value in speculative.items() if name != "method" and value is not None}
    values = {name: positive(name, value) for name, value in (defaults | given).items()}
    for name, value in values.items():
        if value > _MOST_SPECULATIVE:
            raise ValueError(f"{name}={value} is not possible: expected at most {_MOST_SPECULATIVE}")
    if method == "mtp":
        return method, values["num_speculative_tokens"], 1, 1
    if values["prompt_lookup_min"] > values["prompt_lookup_max"]:
        raise ValueError(
            f"prompt_lookup_min={values['prompt_lookup_min']} is more than "
            f"prompt_lookup_max={values['prompt_lookup_max']}"
        )
    return method, values["num_speculative_tokens"], values["prompt_lookup_max"], values["prompt_lookup_min"]
