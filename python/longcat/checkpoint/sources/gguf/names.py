"""Which parts of a GGUF file's tensors are a tensor of the Hugging Face checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from longcat.checkpoint.sources.gguf.header import Part, TensorInfo, quoted


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of one tensor; of a vector, its only row."""

    tensor: TensorInfo
    first_row: int
    shape: tuple[int, ...]  # of our tensor


@dataclass(frozen=True)
class KeyValue:
    """kv_b_proj, which the file splits.

    Head by head it is `k` transposed, then `v`. The rows of `v` are rows of ours. Those of `k` are columns of ours: no
    grid of `k` with a scale for 32 columns is one here.
    """

    k: TensorInfo  # [heads, kv_lora_rank, qk_nope_head_dim]
    v: TensorInfo  # [heads, v_head_dim, kv_lora_rank]

    @property
    def shape(self) -> tuple[int, ...]:
        """[heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank]."""
        return self.heads * (self.nope + self.v_head_dim), self.latent

    @property
    def heads(self) -> int:
        """The number of heads."""
        return _as_dims(self.v, 3)[0]

    @property
    def latent(self) -> int:
        """kv_lora_rank."""
        return self.v.shape[-1]

    @property
    def nope(self) -> int:
        """qk_nope_head_dim."""
        return self.k.shape[-1]

    @property
    def v_head_dim(self) -> int:
        """Width of a head's value."""
        return self.v.shape[-2]


_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_NGRAM = re.compile(r"ngram_(embd|proj)\.(\d+)\.weight")
_STACKED = re.compile(r"ffn_(gate|up|down)_exps\.weight")
_DENSE = re.compile(r"ffn_(gate|up|down)(_shexp)?\.weight")
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ATTENTION = {
    "attn_q_a.weight": "q_a_proj.weight",
    "attn_q_a_norm.weight": "q_a_layernorm.weight",
    "attn_q_b.weight": "q_b_proj.weight",
    "attn_kv_a_mqa.weight": "kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "kv_a_layernorm.weight",
    "attn_output.weight": "o_proj.weight",
    "indexer.attn_q_b.weight": "indexer.wq_b.weight",
    "indexer.attn_k.weight": "indexer.wk.weight",
    "indexer.k_norm.weight": "indexer.k_norm.weight",
    "indexer.proj.weight": "indexer.weights_proj.weight",
}
_NORMS = {"attn_norm.weight": "input_layernorm", "ffn_norm.weight": "post_attention_layernorm"}
_ROUTER = {"ffn_gate_inp.weight": "classifier.weight", "exp_probs_b.bias": "e_score_correction_bias"}
_MTP = {
    "nextn.embed_tokens.weight": "model.mtp.embed_tokens.weight",
    "nextn.shared_head_norm.weight": "model.mtp.norm.weight",
    "nextn.eh_proj.weight": "model.mtp.layers.0.eh_proj.weight",
    "nextn.enorm.weight": "model.mtp.layers.0.enorm.m.weight",
    "nextn.hnorm.weight": "model.mtp.layers.0.hnorm.m.weight",
}


def place(
    part: Part, tensors: Mapping[str, TensorInfo], num_layers: int, is_sparse: bool
) -> tuple[dict[str, Rows | KeyValue], list[str]]:
    """Finds our tensors in those of a file.

    Args:
        part: the file with the metadata, for messages.
        tensors: name in the file -> place.
        num_layers: of two blocks each; the block after them is the MTP layer.
        is_sparse: as LongCat-Flash-Lite-Sparse names the N-gram tables.
    Returns:
        (our name -> its parts, names in the file that are not used), in the file's order.
    Raises:
        longcat.Error: a tensor has another number of dimensions, or the halves of kv_b_proj do not fit each other.
    """
    found: dict[str, Rows | KeyValue] = {}
    unused = []
    for name, info in tensors.items():
        block = _BLOCK.fullmatch(name)
        if block and block[2] == "attn_k_b.weight":
            found[f"{_attention_of(int(block[1]), num_layers)}.kv_b_proj.weight"] = _key_value(part, tensors, name)
        elif block and (stack := _STACKED.fullmatch(block[2])) and int(block[1]) < 2 * num_layers:
            experts, rows, columns = _dims(part, info, 3)
            layer = f"model.layers.{int(block[1]) // 2}.mlp.experts"
            for expert in range(experts):
                found[f"{layer}.{expert}.{stack[1]}_proj.weight"] = Rows(info, expert * rows, (rows, columns))
        elif our_name := _our_name(name, num_layers, is_sparse):
            found[our_name] = Rows(info, 0, _dims(part, info, len(info.shape)))
        elif not (block and block[2] == "attn_v_b.weight"):
            unused.append(name)
    return found, unused


def _our_name(name: str, num_layers: int, is_sparse: bool) -> str | None:
    """Our name of a tensor that is one of ours as a whole."""
    if match := _NGRAM.fullmatch(name):
        if is_sparse:
            return f"model.oe_embed_{'tokens' if match[1] == 'embd' else 'proj'}{int(match[2])}.weight"
        return f"model.ngram_embeddings.{'embedders' if match[1] == 'embd' else 'post_projs'}.{int(match[2])}.weight"
    match = _BLOCK.fullmatch(name)
    if not match:
        return _TOP.get(name)
    block, rest = int(match[1]), match[2]
    if block > 2 * num_layers:
        return None
    if rest in _ATTENTION:
        return f"{_attention_of(block, num_layers)}.{_ATTENTION[rest]}"
    is_mtp, (layer, half) = block == 2 * num_layers, divmod(block, 2)
    if rest in _NORMS:
        norm = _NORMS[rest]
        return f"model.mtp.layers.0.{norm}.weight" if is_mtp else f"model.layers.{layer}.{norm}.{half}.weight"
    if dense := _DENSE.fullmatch(rest):
        if is_mtp:
            return None if dense[2] else f"model.mtp.layers.0.transformer_layer.mlp.{dense[1]}_proj.weight"
        return f"model.layers.{layer}.mlps.{half}.{dense[1]}_proj.weight" if bool(dense[2]) == (half == 0) else None
    if is_mtp:
        return _MTP.get(rest)
    return f"model.layers.{layer}.mlp.router.{_ROUTER[rest]}" if rest in _ROUTER and half == 0 else None


def _attention_of(block: int, num_layers: int) -> str:
    if block == 2 * num_layers:
        return "model.mtp.layers.0.self_attn"
    return f"model.layers.{block // 2}.self_attn.{block % 2}"


def _key_value(part: Part, tensors: Mapping[str, TensorInfo], name: str) -> KeyValue:
    k, other = tensors[name], name.replace("attn_k_b", "attn_v_b")
    if other not in tensors:
        part.fail(f"has tensor {quoted(name)} and no {other}; expected both halves of kv_b_proj")
    v = tensors[other]
    k_dims, v_dims = _dims(part, k, 3), _dims(part, v, 3)
    if k_dims[0] != v_dims[0] or k_dims[1] != v_dims[2]:
        part.fail(
            f"has {quoted(name)} of {list(k_dims)} and {other} of {list(v_dims)}; expected [heads, rank, key width] "
            "and [heads, value width, rank]"
        )
    return KeyValue(k, v)


def _dims(part: Part, info: TensorInfo, count: int) -> tuple[int, ...]:
    if len(info.shape) > max(count, 2):
        part.fail(f"has tensor {quoted(info.name)} of {len(info.shape)} dimensions; expected {count}")
    return _as_dims(info, count)


def _as_dims(info: TensorInfo, count: int) -> tuple[int, ...]:
    """The shape with `count` dimensions: a file leaves out slowest dimensions of 1."""
    return (1,) * (count - len(info.shape)) + info.shape
