"""What transformers' `generate` does to logits before it draws a token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import GenerationConfig, GenerationMixin

from support.checkpoints import random_bits, random_uniform

PARAMETERS = [
    {},
    {"repetition_penalty": 1.06, "temperature": 0.7, "top_k": 4, "top_p": 0.95},  # the model card's
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "temperature": 1.5},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 10, "temperature": 0.7},
    {"top_k": 1000},
    {"top_p": 0.5},
    {"top_p": 0.05},
    {"top_k": 20, "top_p": 0.8, "temperature": 2.0},
]


def random_logits(seed: int, vocab_size: int = 128) -> tuple[np.ndarray, list[int]]:
    """Logits [vocab_size] float32 without ties, and a history of 30 ids with repetitions."""
    logits = random_uniform(seed, "logits", (vocab_size,), 0.0, 2.5)
    history = [int(b % np.uint64(vocab_size)) for b in random_bits(seed, "history", 20)]
    return logits, history + history[:10]


def hf_probabilities(
    logits: np.ndarray,
    history: Sequence[int],
    repetition_penalty: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> np.ndarray:
    """[vocab] float32: the processors that `generate(do_sample=True)` builds, in its order, then softmax."""
    processors = LogitsProcessorList()
    if repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if temperature != 1.0:
        processors.append(TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        processors.append(TopPLogitsWarper(top_p))
    scores = processors(torch.tensor([list(history)]), torch.from_numpy(logits)[None])
    return scores.softmax(dim=-1)[0].numpy()


def generate_probabilities(logits: np.ndarray, history: Sequence[int], **config) -> np.ndarray:
    """[vocab] float32: the processors that `generate` makes of a GenerationConfig, in its order, then softmax."""
    generation_config = GenerationConfig(do_sample=True, **config)
    generation_config._eos_token_tensor = None
    ids = torch.tensor([list(history)])
    processors = GenerationMixin()._get_logits_processor(
        generation_config, input_ids_seq_length=len(history), encoder_input_ids=ids, device="cpu"
    )
    return processors(ids, torch.from_numpy(logits.copy())[None]).softmax(dim=-1)[0].numpy()
