"""Random engines and random requests to them, each drawn from one number.

A Plan says all that happens to one engine: its checkpoint, its options, its requests, what their callers do, and
disturbances. The same seed makes the same plan; how threads take turns is not part of it.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from longcat.checkpoint.convert import PRESETS, convert_checkpoint
from longcat.checkpoint.random_weights import preset_config, write_checkpoint

from support.checkpoints import VARIANTS
from support.workload import BEGINNINGS, STOPS, WORDS, Job

BLOCK = 64  # tokens of a cache block
TRAINED = Path(__file__).resolve().parents[2] / "examples" / "longcat-tiny"
TOKENIZER_IDS = 2048  # of TRAINED
MAX_MODEL_LEN = 512  # of the random checkpoints

_FLASH_CHAT = {
    "architectures": ["LongcatFlashForCausalLM"], "rope_scaling": None, "rope_theta": 1e7,
    "ngram_vocab_size_ratio": None, "emb_neighbor_num": None, "emb_split_num": None,
}  # fmt: skip
# Fields of config.json by name, over those of the preset "tiny"; "sparse" is over "tiny-sparse".
SHAPES: dict[str, dict[str, Any]] = {
    name: VARIANTS[name].get("config_overrides", {})
    for name in ("lite", "odd", "odd_small", "many_experts", "no_zero_experts", "n5", "k1", "no_yarn")
} | {"flash_chat": _FLASH_CHAT, "sparse": {}}
WEIGHTS: dict[str, dict[str, str] | None] = {
    "stored": None,
    **PRESETS,
    "mixed": {"core": "int8", "experts": "int4", "head": "bf16", "embedding": "int8", "tables": "int4"},
}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
     "required": ["name", "age"], "additionalProperties": False},
    {"type": "array", "items": {"enum": ["red", "green", "blue", 7, None]}, "maxItems": 6},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"anyOf": [{"type": "null"}, {"const": 1.5}]}}},
]  # fmt: skip
CHOICES = [["yes", "no"], ["the red ball", "the red house", "the"], ["Once upon a time", "42", "happy"]]
REGEXES = ["[a-z ]{3,40}", "(yes|no|maybe)( and (yes|no))*", "[0-9]{1,3}(\\.[0-9]+)?", "a+b*c"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint by what it is made of. `shape`: "trained", or a key of SHAPES; `weights`: a key of WEIGHTS."""

    shape: str
    weights: str
    dtype: str = "bf16"
    has_tokenizer: bool = True

    def folder(self, root: Path) -> Path:
        """Its folder below `root`, made when missing."""
        if (name := WEIGHTS[self.weights]) is not None:
            folder = root / f"{self.shape}-{self.dtype}-{self.has_tokenizer}-{self.weights}"
            if not folder.exists():
                convert_checkpoint(dataclasses.replace(self, weights="stored").folder(root), folder, name)
            return folder
        if self.shape == "trained":
            return TRAINED
        folder = root / f"{self.shape}-{self.dtype}-{self.has_tokenizer}"
        if not folder.exists():
            # Three ids more than the tokenizer knows: masks do not end at a word.
            fields = SHAPES[self.shape] | ({"vocab_size": TOKENIZER_IDS + 3} if self.has_tokenizer else {})
            preset = "tiny-sparse" if self.shape == "sparse" else "tiny"
            write_checkpoint(
                folder, preset_config(preset, fields), dtype=self.dtype, seed=len(self.shape), mtp=True,
                tokenizer=TRAINED if self.has_tokenizer else None,
            )  # fmt: skip
        return folder

    @property
    def num_ids(self) -> int:
        """Ids that prompts are made of."""
        if self.shape == "trained" or self.has_tokenizer:
            return TOKENIZER_IDS
        return SHAPES[self.shape].get("vocab_size", 128)


class HashMask:
    """A token_mask that allows about `share` of the ids, others after each token; the same for the same tokens."""

    def __init__(self, vocab_size: int, seed: int, share: float):
        self._vocab_size, self._seed, self._share = vocab_size, seed, share

    def __call__(self, token_ids: list[int]) -> np.ndarray:
        rng = np.random.default_rng([self._seed, len(token_ids), *token_ids[-2:]])
        mask = rng.random(self._vocab_size) < self._share
        mask[rng.integers(self._vocab_size)] = True
        return mask

    def __repr__(self) -> str:
        return f"HashMask({self._vocab_size}, {self._seed}, {self._share})"


@dataclass
class Plan:
    """An engine and its life.

    Args:
        common: keywords of Engine that the runs alone have as well.
        own: those of this engine alone; of its cache and its swap memory, the number of blocks is said.
        concurrency: requests made at once.
        disturbances: what happens between the requests: preempt, reset the prefix cache, forward, ask for metrics.
        closes_after_s: closed in the middle, that long after the first request; None: at the end.
    """

    seed: int
    checkpoint: Checkpoint
    common: dict[str, Any]
    own: dict[str, Any]
    num_blocks: int
    num_swap_blocks: int | None  # None: "auto"
    jobs: list[Job]
    concurrency: int
    disturbances: list[str] = field(default_factory=list)
    closes_after_s: float | None = None


def random_plan(seed: int) -> Plan:
    """The plan of a seed."""
    rng = random.Random(seed)
    checkpoint = _checkpoint(rng)
    common: dict[str, Any] = {"kv_cache_dtype": rng.choice(["auto", "f32", "bf16", "fp8", "int8"])}
    if checkpoint.shape == "sparse":
        common["index_cache_dtype"] = rng.choice(["auto", "int8"])
    common["dtype"] = rng.choice(["auto", "auto", "f32", "bf16"])
    if checkpoint.weights == "stored" and rng.random() < 0.1:
        common["quantization"] = rng.choice(["fp8", "fp8-experts"])
    if rng.random() < 0.2:
        common["max_model_len"] = rng.choice([130, 200, 320])
    max_num_seqs = rng.choice([1, 2, 3, 5, 8, 16])
    most_tokens = common.get("max_model_len", MAX_MODEL_LEN)
    beginnings = _beginnings(rng, checkpoint)
    jobs = [_job(rng, checkpoint, most_tokens, beginnings) for _ in range(rng.randint(4, 24))]
    needed = max(-(-min(most_tokens, _num_ids(job.prompt) + job.sampling["max_tokens"]) // BLOCK) for job in jobs)
    own = {
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max(max_num_seqs, rng.choice([1, 7, 33, 64, 65, 100, 300, 512])),
        "num_threads": rng.choice([1, 1, 2, 3]),
        "enable_prefix_caching": rng.random() < 0.85,
        "speculative": _speculative(rng, checkpoint),
        "max_num_queued": rng.choice([2, 10, 4096, 4096]),
    }
    return Plan(
        seed,
        checkpoint,
        common,
        own,
        num_blocks=needed + rng.choice([0, 0, 1, 3, 6, 40]),
        num_swap_blocks=rng.choice([0, 2, 8, None]),
        jobs=jobs,
        concurrency=rng.choice([2, 8, 24]),
        disturbances=rng.choices(["preempt", "preempt", "reset", "forward", "metrics"], k=rng.choice([0, 0, 5, 30])),
        closes_after_s=rng.uniform(0, 0.15) if rng.random() < 0.07 else None,
    )


def _checkpoint(rng: random.Random) -> Checkpoint:
    weights = rng.choice(["stored", "stored", *WEIGHTS])
    if rng.random() < 0.4:
        return Checkpoint("trained", weights)
    shape = rng.choice([*SHAPES, "sparse", "sparse"])  # which has the most paths
    return Checkpoint(shape, weights, rng.choice(["bf16", "f32"]), rng.random() < 0.6)


def _speculative(rng: random.Random, checkpoint: Checkpoint) -> dict[str, Any] | None:
    if (kind := rng.random()) < 0.3:
        return None
    if kind < 0.65:
        most = rng.choice([1, 2, 3, 6, 64])
        vocab = {"draft_vocab": rng.choice([1, 128, 300, 1 << 30])} if rng.random() < 0.3 else {}
        return {"method": "mtp", "num_speculative_tokens": most, "adaptive": rng.random() < 0.5, **vocab}
    least = rng.choice([1, 1, 2])
    return {"method": "ngram", "num_speculative_tokens": rng.choice([1, 3, 8]), "prompt_lookup_min": least,
            "prompt_lookup_max": least + rng.choice([0, 2])}  # fmt: skip


def _num_ids(prompt: str | list[int]) -> int:
    return len(prompt)  # a text has at most a token a character


def _beginnings(rng: random.Random, checkpoint: Checkpoint) -> list[list[int]]:
    """Beginnings that several prompts share, from one block to four; the end token (2) among them."""
    return [
        [rng.choice([2, 5, *rng.choices(range(checkpoint.num_ids), k=6)]) for _ in range(rng.choice([64, 128, 256]))]
        for _ in range(2)
    ]


def _prompt(rng: random.Random, checkpoint: Checkpoint, most: int, beginnings: list[list[int]]) -> str | list[int]:
    """At most `most` tokens."""
    if checkpoint.has_tokenizer and rng.random() < 0.4:
        return (rng.choice(BEGINNINGS) + " ".join(rng.choices(WORDS, k=rng.randint(1, 20))))[:most]
    beginning = rng.choice(beginnings)
    cut = rng.choice([0, 1, 63, 64, 64, 65, 128, len(beginning)])
    if rng.random() < 0.2:  # what prompt lookup finds
        more = [rng.randrange(checkpoint.num_ids) for _ in range(rng.randint(1, 4))] * 12
    else:
        more = [rng.randrange(checkpoint.num_ids) for _ in range(rng.choice([0, 1, 5, 40]))]
    return (beginning[:cut] + more or [1])[:most]


def _job(rng: random.Random, checkpoint: Checkpoint, most_tokens: int, beginnings: list[list[int]]) -> Job:
    max_tokens = rng.choice([1, 2, 5, 20, 40, 90])
    prompt = _prompt(rng, checkpoint, min(330, most_tokens - 1), beginnings)
    sampling: dict[str, Any] = {"max_tokens": max_tokens, "seed": rng.randrange(1 << 40)}
    _add_drawing(rng, sampling)
    _add_ends(rng, sampling, checkpoint)
    _add_limits(rng, sampling, checkpoint)
    if rng.random() < 0.25:
        sampling["logprobs"] = rng.choice([0, 1, 4])
    if rng.random() < 0.15:
        sampling["prompt_logprobs"] = rng.choice([0, 2])
        if rng.random() < 0.3:
            sampling["max_tokens"] = sampling["min_tokens"] = 0
    job = Job(prompt, sampling, is_blocking=rng.random() < 0.2)
    fates = ["read"] * 14 + ["abort", "leave"] + ([] if job.is_blocking else ["abort soon", "stall", "stall"])
    job.fate = rng.choice(fates)
    job.after = rng.randint(0 if job.fate != "abort" else 1, 12)
    job.delay_s = rng.uniform(0, 0.06)
    return job


def _add_drawing(rng: random.Random, sampling: dict[str, Any]) -> None:
    sampling["temperature"] = rng.choice([0, 0, 0.3, 0.8, 1.0, 1.5])
    for name, share, values in (
        ("top_k", 0.3, [1, 3, 20]),
        ("top_p", 0.3, [0.3, 0.9]),
        ("min_p", 0.2, [0.05, 0.3]),
        ("repetition_penalty", 0.3, [0.8, 1.1, 1.5]),
        ("presence_penalty", 0.25, [-0.5, 0.4, 2.0]),
        ("frequency_penalty", 0.25, [-0.3, 0.4, 2.0]),
    ):
        if rng.random() < share:
            sampling[name] = rng.choice(values)
    if rng.random() < 0.2:
        sampling["n"] = rng.choice([2, 3, 5])


def _add_ends(rng: random.Random, sampling: dict[str, Any], checkpoint: Checkpoint) -> None:
    if rng.random() < 0.5:
        sampling["ignore_eos"] = True
    if rng.random() < 0.2:
        sampling["stop_token_ids"] = rng.sample(range(checkpoint.num_ids), 20)
    if rng.random() < 0.2:
        sampling["min_tokens"] = rng.randint(0, sampling["max_tokens"])
    if checkpoint.has_tokenizer and rng.random() < 0.25:
        sampling["stop"] = rng.sample(STOPS + ["e", "i"], rng.choice([1, 3]))
        sampling["include_stop_str_in_output"] = rng.random() < 0.3


def _add_limits(rng: random.Random, sampling: dict[str, Any], checkpoint: Checkpoint) -> None:
    """What may follow: biases, forbidden words, a few ids, a mask or a grammar."""
    if rng.random() < 0.15:
        ids = rng.sample(range(checkpoint.num_ids), 8)
        sampling["logit_bias"] = {token_id: rng.choice([-100.0, -2.0, 3.0, 8.0]) for token_id in ids}
    if checkpoint.has_tokenizer and rng.random() < 0.15:
        sampling["bad_words"] = rng.sample([*WORDS, ".", " a", "e", "re"], 4)
    kind = rng.random()
    if kind < 0.2:
        sampling["allowed_token_ids"] = rng.sample(range(checkpoint.num_ids), rng.choice([1, 2, 5, 60]))
    elif kind < 0.3:
        vocab_size = checkpoint.num_ids + (checkpoint.has_tokenizer and checkpoint.shape != "trained") * 3
        sampling["token_mask"] = HashMask(vocab_size, rng.randrange(1 << 30), rng.choice([0.01, 0.5]))
    elif kind < 0.42 and checkpoint.has_tokenizer:
        form, values = rng.choice([("json", SCHEMAS), ("regex", REGEXES), ("choice", CHOICES)])
        sampling["structured_outputs"] = {form: rng.choice(values)}
