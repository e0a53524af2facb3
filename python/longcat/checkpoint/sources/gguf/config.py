"""config.json from the metadata and the shapes of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping

from longcat.checkpoint.sources.gguf.header import Part, TensorInfo, flag, integer, number, text
from longcat.support.json_types import JsonObject

ARCHITECTURES = {"longcat-flash-ngram": "LongcatFlashNgramForCausalLM", "longcat-flash-sparse": "LongcatCausalLM"}
_MOST = 1 << 31  # of every size; the engine's own reader of config.json has narrower limits


def num_mtp_blocks(part: Part) -> int:
    """The number of blocks after the trunk, 0 or 1."""
    return integer(part, f"{architecture(part)}.nextn_predict_layers", 0, 1, 0)


def num_layers(part: Part) -> int:
    """The number of layers, of two blocks each."""
    key = f"{architecture(part)}.block_count"
    blocks = integer(part, key, 2, 2 * 1000 + 1) - num_mtp_blocks(part)
    if blocks % 2:
        part.fail(f"has {key} {blocks + num_mtp_blocks(part)}; expected two blocks a layer and those of the MTP layer")
    return blocks // 2


def architecture(part: Part) -> str:
    """The architecture, one of ARCHITECTURES."""
    found = text(part, "general.architecture")
    if found not in ARCHITECTURES:
        part.fail(f'has general.architecture "{found[:60]}"; expected {" or ".join(ARCHITECTURES)}')
    return found


def make_config(part: Part, tensors: Mapping[str, TensorInfo]) -> JsonObject:
    """The fields of config.json.

    Sizes that the tensors show are taken from them: a pruned model has fewer experts than its metadata say.

    Args:
        part: the file with the metadata.
        tensors: those of all files.
    Raises:
        longcat.Error: a field is missing or impossible.
    """
    arch = architecture(part)
    sparse = arch == "longcat-flash-sparse"

    def size(name: str, default: int | None = None) -> int:
        return integer(part, f"{arch}.{name}", 0, _MOST, default)

    rope = size("rope.dimension_count")
    experts, zero_experts = _experts(part, tensors, size("expert_count"), size("expert_zero_count", 0))
    prefix = "oe" if sparse else "emb"
    config: JsonObject = {
        "architectures": [ARCHITECTURES[arch]],
        "vocab_size": _shape(part, tensors, "token_embd.weight", 2)[0],
        "hidden_size": size("embedding_length"),
        "num_layers": num_layers(part),
        "num_attention_heads": size("attention.head_count"),
        "q_lora_rank": size("attention.q_lora_rank"),
        "kv_lora_rank": size("attention.kv_lora_rank"),
        "qk_nope_head_dim": size("attention.key_length_mla") - rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": size("attention.value_length_mla"),
        "ffn_hidden_size": size("feed_forward_length"),
        "expert_ffn_hidden_size": size("expert_feed_forward_length"),
        "n_routed_experts": experts,
        "zero_expert_num": zero_experts,
        "zero_expert_type": "identity",
        "moe_topk": size("expert_used_count"),
        "routed_scaling_factor": number(part, f"{arch}.expert_weights_scale"),
        "attention_bias": False,
        "attention_method": "LSA" if sparse else "MLA",
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "hidden_act": "silu",
        "rms_norm_eps": number(part, f"{arch}.attention.layer_norm_rms_epsilon"),
        "rope_theta": number(part, f"{arch}.rope.freq_base"),
        "rope_scaling": _rope_scaling(part, arch),
        "max_position_embeddings": size("context_length"),
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": "output.weight" not in tensors,
        f"{'oe' if sparse else 'ngram'}_vocab_size_ratio": size("ngram.vocab_size_ratio"),
        f"{prefix}_neighbor_num": size("ngram.neighbor_num"),
        f"{prefix}_split_num": size("ngram.split_num"),
    }
    if sparse:
        config |= {
            "mtp_num_layers": size("mtp.num_layers", 1),
            "index_n_heads": size("attention.indexer.head_count"),
            "index_head_dim": size("attention.indexer.key_length"),
            "index_topk": size("attention.indexer.top_k"),
            "index_init_tokens": size("attention.indexer.init_tokens"),
            "index_local_tokens": size("attention.indexer.local_tokens"),
            "index_k_norm_type": text(part, f"{arch}.attention.indexer.k_norm_type", "rms"),
            "indexer_rope_interleave": flag(part, f"{arch}.attention.indexer.rope_interleave", True),
            "cli_factor": size("attention.indexer.cli_factor"),
        }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        if f"tokenizer.ggml.{key}_token_id" in part.metadata:
            config[f"{name}_token_id"] = integer(part, f"tokenizer.ggml.{key}_token_id", 0, _MOST)
    return config


def _experts(part: Part, tensors: Mapping[str, TensorInfo], stated: int, zero: int) -> tuple[int, int]:
    """The numbers of routed and of identity experts, by the tensors."""
    found = {
        name: info.shape[0] if len(info.shape) == 3 else 1
        for name, info in tensors.items()
        if name.endswith("_exps.weight")
    }
    if not found:
        return stated, zero
    name, experts = next(iter(found.items()))
    for other, count in found.items():
        if count != experts:
            part.fail(f"has {count} experts in {other} and {experts} in {name}; expected one number")
    outputs = _shape(part, tensors, "blk.0.ffn_gate_inp.weight", 2)[0]
    if outputs < experts:
        part.fail(f"has {experts} experts and a router of {outputs} outputs; expected one for each expert")
    return experts, outputs - experts


def _shape(part: Part, tensors: Mapping[str, TensorInfo], name: str, num_dims: int) -> tuple[int, ...]:
    if name not in tensors:
        part.fail(f"has no tensor {name}; expected it: is every file of the model there?")
    shape = tensors[name].shape
    if len(shape) != num_dims:
        part.fail(f"has {name} of {len(shape)} dimensions; expected {num_dims}")
    return shape


def _rope_scaling(part: Part, arch: str) -> JsonObject | None:
    """YaRN, or None.

    `yarn_log_multiplier` is a tenth of mscale_all_dim. The file has no mscale, which scales cos and sin by its quotient
    with mscale_all_dim; the converter is for models where both are equal.
    """
    prefix = f"{arch}.rope.scaling"
    kind = text(part, f"{prefix}.type", "none")
    if kind == "none":
        return None
    if kind != "yarn":
        part.fail(f'has {prefix}.type "{kind[:60]}"; expected "yarn" or "none"')
    scaling: JsonObject = {
        "rope_type": "yarn",
        "factor": number(part, f"{prefix}.factor"),
        "original_max_position_embeddings": integer(part, f"{prefix}.original_context_length", 1, _MOST),
        "beta_fast": number(part, f"{prefix}.yarn_beta_fast", 32.0),
        "beta_slow": number(part, f"{prefix}.yarn_beta_slow", 1.0),
    }
    if f"{prefix}.yarn_log_multiplier" in part.metadata:
        mscale = round(10 * number(part, f"{prefix}.yarn_log_multiplier"), 6)
        scaling |= {"mscale": mscale, "mscale_all_dim": mscale}
    return scaling
