"""The options of an engine. Each field of EngineConfig says all there is to say about one option.

Keywords and aliases of Engine, checks, the core's options, flags of the command line and docs/reference/engine.md are
derived from the fields.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import longcat._core as _core
from longcat.engine import option_checks as checks
from longcat.support.names import unknown_name
from longcat.support.values import parse_bytes, positive, share


@dataclass(frozen=True)
class Option:
    """The facts about an option beside its name, type and default.

    Args:
        help: one line without its default, which the command line and the reference add.
        check: raises ValueError or TypeError for a wrong value; returns what the core takes.
        core: name of the core's option; "": the core has none.
        details: further sentences for the reference.
        default: the default in words, where the value says too little.
        unit: unit of the value; "": it has none.
        aliases: names of other engines, as keywords and as flags.
        metavar: stands for the value in the command line's help; "": there is no flag.
        choices: all values of the flag.
        commands: the commands that have the flag; empty: all commands that make an engine.
        off_flags: further flags that turn a switch off.
    """

    help: str
    check: Callable[[str, Any], Any] = checks.anything
    core: str = ""
    details: str = ""
    default: str = ""
    unit: str = ""
    aliases: tuple[str, ...] = ()
    metavar: str = ""
    choices: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    off_flags: tuple[str, ...] = ()


def option(value: Any, help: str, check: Callable[[str, Any], Any] = checks.anything, **facts: Any) -> Any:
    """Makes a field of its default and the facts that Option names."""
    return dataclasses.field(default=value, metadata={"option": Option(help, check, **facts)})


@dataclass(frozen=True)
class EngineConfig:
    """The options of an engine: `Engine(EngineConfig(model, max_num_seqs=4))` is `Engine(model, max_num_seqs=4)`.

    Raises:
        ValueError, TypeError: a value is wrong.
    """

    model: str | os.PathLike[str] = option(
        "",
        "checkpoint folder in the Hugging Face layout",
        details="It holds config.json, *.safetensors and tokenizer.json. Or the name of a model that `longcat pull` "
        "has downloaded, as meituan-longcat/LongCat-Flash-Lite.",
        default="required",
        aliases=("model_path",),
    )
    _: KW_ONLY
    device: str = option(
        "auto",
        "device to run on: auto, cpu, cuda or cuda:N",
        checks.text,
        core="device",
        details="auto is the CPU as long as the CUDA backend is not proven on a GPU; docs/cuda.md has its state.",
        metavar="NAME",
    )
    tensor_parallel_size: int = option(
        1,
        "ranks that share attention heads and dense FFNs",
        positive,
        core="tensor_parallel_size",
        details="A launcher such as mpirun starts the processes, as many as the larger of this and "
        "expert_parallel_size. All make the same engine and the same requests, and get the same results. Or rank 0 "
        "alone makes requests, and the others call `follow()`.",
        unit="ranks",
        aliases=("tp", "tp_size"),
        metavar="N",
    )
    expert_parallel_size: int = option(
        1,
        "ranks that share the experts; the number of ranks is the larger of this and tensor_parallel_size",
        positive,
        core="expert_parallel_size",
        unit="ranks",
        aliases=("ep", "ep_size"),
        metavar="N",
    )
    data_parallel_size: int = option(
        1,
        "copies of the model (replicas), each on ranks of its own",
        positive,
        details="Each copy has requests of its own; `Engine.replica` is the index of this process's copy. Servers of "
        "the copies listen on successive ports.",
        unit="copies",
        aliases=("dp", "dp_size"),
        metavar="N",
        commands=("serve",),
    )
    dtype: str = option(
        "auto",
        "format of f32 and f16 weights and the latent cache: auto, f32 or bf16",
        checks.number_format,
        core="dtype",
        details="auto is what config.json says. Under bf16, a CPU with AVX512_BF16 rounds the inputs of bf16 matrices "
        "to bf16. It does the same with the factors of attention over bf16 latents, and with the queries of bf16 index "
        "keys. That is faster. The last bits differ from those of other CPUs. Other products keep f32 inputs.",
        metavar="TYPE",
    )
    quantization: str | None = option(
        None,
        "quantise while loading: fp8 (core and experts) or fp8-experts (the experts alone)",
        checks.quantization,
        core="quantization",
        details="For checkpoints in bf16, f16 or f32, converted to fp8 blocks one matrix at a time. The core is "
        "attention without kv_b_proj, dense FFNs and head. The weights take about half the memory; docs/cuda.md has "
        "the perplexities.",
        default="as they are stored",
        metavar="fp8",
        choices=checks.QUANTIZATIONS,
    )
    max_model_len: int | None = option(
        None,
        "maximum number of tokens of prompt and completion together",
        positive,
        core="max_model_len",
        default="max_position_embeddings of config.json",
        unit="tokens",
        aliases=("context_length",),
        metavar="N",
    )
    kv_cache_dtype: str = option(
        "auto",
        "format of the latent cache: auto, f32, bf16, fp8 or int8",
        checks.number_format,
        core="kv_cache_dtype",
        details="auto is the value of dtype. In fp8 a row of 512 + 64 values takes 656 bytes. int8 is for the CPU: 660 "
        "bytes, and the fastest there over long contexts.",
        metavar="TYPE",
    )
    index_cache_dtype: str = option(
        "auto",
        "format of the index keys of sparse attention: auto, f32, bf16 or int8",
        checks.number_format,
        core="index_cache_dtype",
        details="auto is f32 beside latents in f32, else bf16. int8 is for the CPU: a key of 128 values takes 132 "
        "bytes and is scored by exact integer products. It selects other positions at near-ties.",
        metavar="TYPE",
    )
    kv_cache_memory: int | str = option(
        "auto",
        'size of the latent cache, as "4GiB"',
        parse_bytes,
        core="kv_cache_memory",
        details="auto is a quarter of the free memory, or on a GPU all that is left. It is never more than "
        "max_num_seqs sequences of max_model_len can use.",
        unit="bytes",
        aliases=("kv_cache_memory_bytes",),
        metavar="SIZE",
    )
    gpu_memory_utilization: float | None = option(
        None,
        "share of a GPU's free memory to use",
        share,
        core="gpu_memory_utilization",
        details="Without effect on the CPU.",
        default="all but 1.5 GiB",
        aliases=("mem_fraction_static",),
        metavar="SHARE",
    )
    ngram_placement: str = option(
        "auto",
        "place of the N-gram tables: auto, disk (CPU), host or device (CUDA)",
        checks.text,
        core="ngram_placement",
        details="disk: they stay in the mapped file, and a step reads only the pages that hold its rows. host: "
        "pinned memory that the GPU reads. device: the GPU's own memory, where it has room. auto: disk on the CPU, "
        "host on a GPU.",
        metavar="PLACE",
    )
    speculative: Mapping[str, object] | None = option(
        None,
        'speculative decoding, as {"method": "mtp"} or {"method": "ngram"}',
        checks.speculation,
        core="speculation",
        details="A step verifies all draft tokens of a sequence, so texts are the same in fewer steps. "
        "num_speculative_tokens (3) is the maximum number of draft tokens at a time. mtp drafts by the checkpoint's "
        "MTP layer (model.mtp.*, in model-auxiliary.safetensors). It drafts fewer tokens, or none, while drafting "
        'does not pay. "adaptive": false always drafts the maximum. '
        "draft_vocab=N drafts among the first N ids only, which are the frequent ones of a byte-pair vocabulary. That "
        "reads only N rows of the output layer. "
        "ngram needs no weights. It looks for an earlier occurrence of the last prompt_lookup_min (2) to "
        "prompt_lookup_max (4) tokens, and drafts the tokens that followed there.",
        default="none",
        aliases=("speculative_config",),
        metavar="JSON",
    )
    swap_memory: int | str = option(
        "auto",
        'host memory for preempted requests, as "4GiB"',
        checks.swap_bytes,
        core="swap_memory",
        details="auto is the size of the latent cache. Preempted requests that do not fit there are recomputed.",
        unit="bytes",
    )
    enable_prefix_caching: bool = option(
        True,
        "compute the common beginning of several prompts only once",
        checks.switch,
        core="enable_prefix_caching",
        metavar="BOOL",
        off_flags=("--disable-radix-cache",),
        commands=("serve",),
    )
    max_num_seqs: int = option(
        16,
        "maximum number of requests that run at once; others wait",
        positive,
        core="max_num_seqs",
        unit="requests",
        aliases=("max_running_requests",),
        metavar="N",
        commands=("serve",),
    )
    max_num_queued: int = option(
        4096,
        "maximum number of waiting requests; more get QueueFullError, or HTTP status 429 from a server",
        positive,
        core="max_num_queued",
        details="`Engine.generate` waits for room instead.",
        unit="requests",
        aliases=("max_queued_requests",),
        metavar="N",
        commands=("serve",),
    )
    max_num_batched_tokens: int | None = option(
        None,
        "maximum number of tokens of a step; longer prompts take several steps",
        positive,
        core="max_num_batched_tokens",
        default="512, on CUDA 8192, or max_num_seqs when that is more",
        unit="tokens",
        metavar="N",
        commands=("serve",),
    )
    async_scheduling: bool | None = option(
        None,
        "plan each step before the results of the last one are known, so that the device never waits",
        checks.switch,
        core="overlap",
        details="A sequence that has just ended then computes one row too many. Texts are the same.",
        default="on where the device leaves the host free: CUDA",
        metavar="BOOL",
        off_flags=("--disable-overlap-schedule",),
        commands=("serve",),
    )
    seed: int = option(
        0,
        "seed of requests without one",
        checks.seed,
        aliases=("random_seed",),
        metavar="N",
        commands=("serve",),
    )
    num_threads: int | None = option(
        None,
        "threads of the CPU backend",
        positive,
        core="num_threads",
        default="one a core that the affinity and the CPU quota of this process allow",
        unit="threads",
        aliases=("threads",),
        metavar="N",
    )
    tokenizer: str | os.PathLike[str] | None = option(
        None,
        "a tokenizer.json, or its folder",
        default="the checkpoint's",
        aliases=("tokenizer_path",),
        metavar="PATH",
    )
    chat_template: str | os.PathLike[str] | None = option(
        None,
        "a jinja template in place of the checkpoint's",
        details="A file, or the template itself.",
        default="the checkpoint's",
        metavar="FILE",
        commands=("chat", "serve"),
    )
    mask_timeout: float = option(
        10.0,
        "maximum time for one token mask; the request ends with an error after it",
        checks.milliseconds,
        core="mask_timeout_ms",
        unit="s",
    )
    progress: Callable[[int, int], None] | None = option(
        None,
        "called with the bytes done and the bytes in all while the model loads",
        checks.function,
        default="none",
    )

    def __post_init__(self) -> None:
        if self.model == "":
            raise TypeError('Engine needs the path of a checkpoint folder: Engine("path/to/checkpoint")')
        self.core_options()

    @classmethod
    def of(cls, model: str | os.PathLike[str] | EngineConfig | None, keywords: Mapping[str, object]) -> EngineConfig:
        """Makes the options from the arguments of Engine: a folder or a config, and keywords by any of their names.

        Raises:
            TypeError: a keyword is unknown (the message has the nearest one), or two keywords set one option.
            ValueError: a value is wrong.
        """
        names = {alias: name for name, option in options().items() for alias in (name, *option.aliases)}
        given: dict[str, Any] = {}
        if model is not None and not isinstance(model, EngineConfig):
            given["model"] = model
        for keyword, value in keywords.items():
            if keyword not in names:
                raise unknown_name("Engine", keyword, names)
            if names[keyword] in given:
                raise TypeError(f"Engine has {names[keyword]} twice, once as {keyword}: give it once")
            given[names[keyword]] = value
        return dataclasses.replace(model, **given) if isinstance(model, EngineConfig) else cls(**given)

    def core_options(self) -> _core.EngineOptions:
        """Returns the options for the core.

        Raises:
            ValueError, TypeError: a value is wrong.
        """
        core = _core.EngineOptions()
        for name, option in options().items():
            given = getattr(self, name)
            if given is None and getattr(EngineConfig, name) is None:
                continue  # leave the core's own default
            value = option.check(name, given)
            if option.core:
                setattr(core, option.core, value)
        core.device = _core.resolved_device(core.device)
        if self.max_num_batched_tokens is None:
            core.max_num_batched_tokens = default_step_tokens(core.device, self.max_num_seqs)
        return core


def options() -> dict[str, Option]:
    """Returns the facts about each option, by name."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(EngineConfig)}


def default_step_tokens(device: str, max_num_seqs: int) -> int:
    """Returns the default of max_num_batched_tokens: thousands on a GPU, where each chunk reads all experts."""
    is_gpu = device == "cuda" or device.startswith("cuda:")
    return max(8192 if is_gpu else 512, max_num_seqs)
