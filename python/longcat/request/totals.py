"""Counts and times of requests, by the names of OpenAI's and llama.cpp's APIs."""

from __future__ import annotations

from collections.abc import Sequence

from longcat.request.outputs import RequestOutput
from longcat.support.json_types import JsonObject


def usage(outputs: Sequence[RequestOutput]) -> JsonObject:
    """Returns the token counts in OpenAI's `usage` object."""
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    completion = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
    cached = sum(output.num_cached_tokens for output in outputs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def timings(output: RequestOutput) -> JsonObject:
    """llama.cpp's figures of one request: tokens, milliseconds and rates of its prompt and of what was generated."""
    num_cached = output.num_cached_tokens
    num_prompt = len(output.prompt_token_ids) - num_cached
    num_tokens = sum(len(answer.token_ids) for answer in output.outputs)
    prompt_ms, predicted_ms = output.metrics.prefill_ms, output.metrics.decode_ms
    return {
        "cache_n": num_cached,
        "prompt_n": num_prompt,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / max(num_prompt, 1),
        "prompt_per_second": 1000 * num_prompt / prompt_ms if prompt_ms > 0 else 0.0,
        "predicted_n": num_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / max(num_tokens, 1),
        "predicted_per_second": 1000 * num_tokens / predicted_ms if predicted_ms > 0 else 0.0,
    }
