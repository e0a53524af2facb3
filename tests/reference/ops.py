"""The formula of each operation in float64 numpy: what every backend is checked against.

Row vectors, weights [out, in], `Linear(x) = x @ W.T`. `config` arguments are the dict of config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

INNER_NORM_EPS = 1e-6  # q_a_layernorm and kv_a_layernorm; every other norm uses rms_norm_eps


# --- norms and activations ------------------------------------------------------------------------


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    Args:
        x: [..., dim]; weight: [dim]; eps: rms_norm_eps, or INNER_NORM_EPS for the low-rank norms.
    Returns:
        [..., dim] float64.
    Source: Zhang and Sennrich, "Root mean square layer normalization", equation 4.
    """
    x = np.asarray(x, np.float64)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def silu_mul(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """silu(gate) * up = gate * sigmoid(gate) * up, elementwise, float64."""
    gate = np.asarray(gate, np.float64)
    return gate / (1 + np.exp(-gate)) * up


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax over the last dimension, float64; -inf entries get 0."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def swiglu(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """A dense MLP or one expert on x [T, hidden]; gate, up [ffn, hidden]; down [hidden, ffn]."""
    return silu_mul(x @ gate.T, x @ up.T) @ down.T


# --- rotary positions -----------------------------------------------------------------------------


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def yarn_inv_freq(config: Mapping) -> np.ndarray:
    """Inverse frequencies of the rotary embedding, interpolated by YaRN when `rope_scaling` is given.

    Args:
        config: `rope_theta` [1], `qk_rope_head_dim`, `max_position_embeddings` and `rope_scaling`, null or
            with `factor` [1], `original_max_position_embeddings` [tokens], `beta_fast` / `beta_slow`
            [rotations over the original context].
    Returns:
        [qk_rope_head_dim / 2] float64, radians per position, highest frequency first.
    Source: Peng et al., "YaRN", section 3.2 (NTK-by-parts); `rope_scaling` of config.json.
    """
    dim, base, scaling = config["qk_rope_head_dim"], config["rope_theta"], config.get("rope_scaling")
    j = np.arange(dim // 2)
    inv_freq = float(base) ** (-2.0 * j / dim)
    if not scaling:
        return inv_freq
    original = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]

    def dim_of(rotations: float) -> float:  # the real-valued j that turns so often in the original context
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dim_of(scaling.get("beta_fast") or 32)), 0)
    high = min(math.ceil(dim_of(scaling.get("beta_slow") or 1)), dim - 1)
    ramp = np.clip((j - low) / (high - low if high != low else 0.001), 0, 1)  # 0: kept, 1: interpolated
    return inv_freq * ((1 - ramp) + ramp / scaling["factor"])


def cos_sin_factor(config: Mapping) -> float:
    """The factor on cos and sin: `attention_factor`, mscale over mscale_all_dim, or YaRN's own; else 1."""
    scaling = config.get("rope_scaling")
    if not scaling:
        return 1.0
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor, mscale, all_dim = scaling["factor"], scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and all_dim:
        return _yarn_mscale(factor, mscale) / _yarn_mscale(factor, all_dim)
    return _yarn_mscale(factor, 1.0)


def softmax_scale(config: Mapping) -> float:
    """The factor on attention scores: qk_head_dim^-0.5, times mscale^2 when `mscale_all_dim` is set."""
    scale = (config["qk_nope_head_dim"] + config["qk_rope_head_dim"]) ** -0.5
    scaling = config.get("rope_scaling")
    if scaling and scaling.get("mscale_all_dim"):
        scale *= _yarn_mscale(scaling["factor"], scaling["mscale_all_dim"]) ** 2
    return scale


def rope(x: np.ndarray, positions: np.ndarray, inv_freq: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """Rotates the interleaved pairs (2j, 2j + 1) by position * inv_freq[j].

    Args:
        x: [T, ..., rope_dim]; positions: [T], from 0; inv_freq: [rope_dim / 2]; factor: on cos and sin.
    Returns:
        [T, ..., rope_dim] float64, in the same interleaved order.
    """
    x = np.asarray(x, np.float64)
    angle = np.asarray(positions, np.float64)[:, None] * inv_freq
    angle = angle.reshape(len(angle), *[1] * (x.ndim - 2), -1)
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = odd * cos + even * sin
    return out


# --- N-gram embedding -----------------------------------------------------------------------------


def ngram_ids(token_ids: Sequence[int], config: Mapping) -> np.ndarray:
    """Row of each N-gram table for each token, in Python integers.

    Args:
        token_ids: [T], the whole sequence from its start.
        config: `vocab_size` V, `ngram_vocab_size_ratio`, `emb_neighbor_num` N, `emb_split_num` K,
            `eos_token_id`.
    Returns:
        [T, K * (N - 1)] int64. Table t = (order - 2) * K + split hashes the last `order` tokens with the
        polynomial sum of x[p - d] * V^d modulo its own row count m + 2t + 1. The window ends before an EOS:
        tokens there count as 0. The current token is never cut, so an EOS itself still sees the segment that
        it closes.
    """
    vocab, eos = config["vocab_size"], config["eos_token_id"]
    orders, splits = config["emb_neighbor_num"] - 1, config["emb_split_num"]
    m = int(config["ngram_vocab_size_ratio"] * vocab)
    ids = np.zeros((len(token_ids), orders * splits), np.int64)
    for p in range(len(token_ids)):
        window = [int(token_ids[p])]  # the current token, then its predecessors, nearest first
        for d in range(1, orders + 1):
            if p - d < 0 or token_ids[p - d] == eos:
                break
            window.append(int(token_ids[p - d]))
        for t in range(orders * splits):
            order, rows = t // splits + 2, m + 2 * t + 1
            ids[p, t] = sum(x * pow(vocab, d, rows) for d, x in enumerate(window[:order])) % rows
    return ids


def ngram_embed(token_ids: Sequence[int], weights: Mapping[str, np.ndarray], config: Mapping) -> np.ndarray:
    """The input of the first layer: mean of the word vector and the projected rows of all N-gram tables.

    Args:
        token_ids: [T]; weights: `model.embed_tokens.weight` and `model.ngram_embeddings.*` by their
            checkpoint names.
    Returns:
        [T, hidden_size] float64; the plain word vectors when the config has no N-gram tables.
    """
    x = weights["model.embed_tokens.weight"][np.asarray(token_ids)].astype(np.float64)
    if not config.get("ngram_vocab_size_ratio"):
        return x
    ids = ngram_ids(token_ids, config)
    for t in range(ids.shape[1]):
        rows = weights[f"model.ngram_embeddings.embedders.{t}.weight"][ids[:, t]]
        x += rows.astype(np.float64) @ weights[f"model.ngram_embeddings.post_projs.{t}.weight"].T
    return x / (1 + ids.shape[1])


# --- mixture of experts ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Routing:
    """Which experts serve each token. `gap`: distance of the last chosen score to the best one left out."""

    expert_ids: np.ndarray  # [T, moe_topk] int64, best score first
    expert_weights: np.ndarray  # [T, moe_topk] float64, routed_scaling_factor included
    identity_weight: np.ndarray  # [T] float64: the sum of the weights of the chosen identity experts
    gap: np.ndarray  # [T] float64, infinite when all are chosen


def router(x: np.ndarray, classifier: np.ndarray, bias: np.ndarray, config: Mapping) -> Routing:
    """Softmax router with a correction bias that selects but does not weigh.

    Args:
        x: [T, hidden]; classifier: [n_routed_experts + zero_expert_num, hidden]; bias: [n_routed_experts +
            zero_expert_num].
        config: `moe_topk`, `n_routed_experts`, `routed_scaling_factor`.
    Returns:
        Routing. Ties go to the lowest expert id; weights are softmax scores times the factor, not
        renormalised.
    """
    k = config["moe_topk"]
    scores = softmax(np.asarray(x, np.float64) @ np.asarray(classifier, np.float64).T)
    choice = scores + bias
    order = np.argsort(-choice, axis=-1, kind="stable")
    ranked = np.take_along_axis(choice, order, -1)
    expert_ids = order[:, :k]
    weights = np.take_along_axis(scores, expert_ids, -1) * config["routed_scaling_factor"]
    identity = np.where(expert_ids >= config["n_routed_experts"], weights, 0).sum(-1)
    gap = ranked[:, k - 1] - ranked[:, k] if k < choice.shape[1] else np.full(len(choice), np.inf)
    return Routing(expert_ids, weights, identity, gap)


def moe(x: np.ndarray, weights: Mapping[str, np.ndarray], config: Mapping) -> np.ndarray:
    """Sum of the chosen experts' weighted outputs; an identity expert's output is its input.

    Args:
        x: [T, hidden], the normalised input.
        weights: of one layer, by the names after `model.layers.{l}.mlp.`.
    Returns:
        [T, hidden] float64.
    """
    x = np.asarray(x, np.float64)
    classifier, bias = weights["router.classifier.weight"], weights["router.e_score_correction_bias"]
    routing = router(x, classifier, bias, config)
    out = np.zeros_like(x)
    for expert in range(config["n_routed_experts"]):
        tokens, slots = np.nonzero(routing.expert_ids == expert)
        if len(tokens):
            gate, up, down = (weights[f"experts.{expert}.{n}_proj.weight"] for n in ("gate", "up", "down"))
            out[tokens] += routing.expert_weights[tokens, slots, None] * swiglu(x[tokens], gate, up, down)
    return out + routing.identity_weight[:, None] * x


# --- attention ------------------------------------------------------------------------------------


def mla_latents(x: np.ndarray, weights: Mapping[str, np.ndarray], config: Mapping) -> np.ndarray:
    """What the cache keeps of each token: the scaled latent and the rotated shared key.

    Args:
        x: [T, hidden], the normalised input of tokens 0..T-1; weights: of one sub-layer, by the names after
            `self_attn.{i}.`.
    Returns:
        [T, kv_lora_rank + qk_rope_head_dim] float64: RMS(ckv) * sqrt(hidden / kv_lora_rank), then the key in
        interleaved order.
    """
    rank = config["kv_lora_rank"]
    kv = np.asarray(x, np.float64) @ weights["kv_a_proj_with_mqa.weight"].T
    c = rms_norm(kv[:, :rank], weights["kv_a_layernorm.weight"], INNER_NORM_EPS)
    c *= math.sqrt(config["hidden_size"] / rank)
    key = rope(kv[:, rank:], np.arange(len(kv)), yarn_inv_freq(config), cos_sin_factor(config))
    return np.concatenate([c, key], axis=-1)


def mla_queries(x: np.ndarray, weights: Mapping[str, np.ndarray], config: Mapping) -> tuple:
    """Scaled queries of tokens 0..T-1: q_nope [T, heads, nope] and the rotated q_rope [T, heads, rope]."""
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    cq = rms_norm(x @ weights["q_a_proj.weight"].T, weights["q_a_layernorm.weight"], INNER_NORM_EPS)
    q = cq @ weights["q_b_proj.weight"].T * math.sqrt(config["hidden_size"] / config["q_lora_rank"])
    q = q.reshape(len(x), heads, -1)
    rotated = rope(q[..., nope:], np.arange(len(x)), yarn_inv_freq(config), cos_sin_factor(config))
    return q[..., :nope], rotated


def mla(x: np.ndarray, weights: Mapping[str, np.ndarray], config: Mapping, absorbed: bool = False) -> np.ndarray:
    """Multi-head latent attention over a whole sequence, causal.

    Args:
        x: [T, hidden], the normalised input; weights: of one sub-layer, by the names after `self_attn.{i}.`.
        absorbed: False: keys and values are materialised per head from the latents. True: the key half of
            kv_b is applied to the query and the value half to the result, attention runs on the latents.
            Equal up to rounding.
    Returns:
        [T, hidden] float64.
    Source: DeepSeek-V2 paper, section 2.1; the sqrt(hidden / rank) scales are LongCat's.
    """
    x = np.asarray(x, np.float64)
    tokens, rank, nope = len(x), config["kv_lora_rank"], config["qk_nope_head_dim"]
    heads = config["num_attention_heads"]
    q_nope, q_rope = mla_queries(x, weights, config)
    latents = mla_latents(x, weights, config)
    c, key = latents[:, :rank], latents[:, rank:]
    kv_b = np.asarray(weights["kv_b_proj.weight"], np.float64).reshape(heads, -1, rank)
    w_uk, w_uv = kv_b[:, :nope], kv_b[:, nope:]  # [heads, nope, rank], [heads, v, rank]
    if absorbed:
        scores = np.einsum("thd,hdr,sr->hts", q_nope, w_uk, c)
    else:
        scores = np.einsum("thd,shd->hts", q_nope, np.einsum("sr,hdr->shd", c, w_uk))
    scores = (scores + np.einsum("thd,sd->hts", q_rope, key)) * softmax_scale(config)
    causal = np.arange(tokens)[:, None] >= np.arange(tokens)[None]
    p = softmax(np.where(causal, scores, -np.inf))
    if absorbed:
        out = np.einsum("htr,hvr->thv", np.einsum("hts,sr->htr", p, c), w_uv)
    else:
        out = np.einsum("hts,shv->thv", p, np.einsum("sr,hvr->shv", c, w_uv))
    return out.reshape(tokens, -1) @ weights["o_proj.weight"].T


# --- sampling -------------------------------------------------------------------------------------


def sampling_probabilities(
    logits: np.ndarray,
    history: Sequence[int] = (),
    repetition_penalty: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    num_prompt_tokens: int | None = None,
    logit_bias: Mapping[int, float] | None = None,
    removed: Sequence[int] = (),
) -> np.ndarray:
    """The distribution that the next token is drawn from, in the order of the reference implementation.

    Args:
        logits: [vocab].
        history: ids of prompt and output; each is penalised once: l < 0 ? l * penalty : l / penalty.
        temperature: divides; 0 means greedy: all mass on the largest penalised logit, the lowest id on a tie.
        top_k: 0 for all; logits equal to the k-th largest all stay.
        top_p: 1 for all; over the softmax of what top_k left, the smallest set of best tokens that reaches
            top_p, at least one. Among equal logits the higher id goes first.
        min_p: 0 for all; over the softmax of what top_p left, tokens with that share of the best one's probability.
        presence_penalty, frequency_penalty: subtracted once, and times the count, from ids of the history from
            num_prompt_tokens (default: none) on.
        logit_bias: added first. removed: ids that cannot follow, taken out before the temperature.
    Returns:
        [vocab] float64, sums to 1. Logits are f32 up to the temperature, as in the reference: ties are f32 ties.
    """
    x = np.array(logits, np.float32)
    for token_id, bias in (logit_bias or {}).items():
        x[token_id] += np.float32(bias)
    history = np.asarray(history, np.int64)
    seen = np.unique(history)
    penalty = np.float32(repetition_penalty)
    x[seen] = np.where(x[seen] < 0, x[seen] * penalty, x[seen] / penalty)
    output = history[len(history) if num_prompt_tokens is None else num_prompt_tokens :]
    counts = np.bincount(output, minlength=len(x))
    x -= (presence_penalty * (counts > 0) + frequency_penalty * counts).astype(np.float32)
    x[list(removed)] = -np.inf
    if temperature == 0:
        return (np.arange(len(x)) == np.argmax(x)).astype(np.float64)
    x = (x / np.float32(temperature)).astype(np.float64)
    if 0 < top_k < len(x):
        x[x < np.sort(x)[-top_k]] = -np.inf
    if top_p < 1:
        order = np.argsort(-x, kind="stable")
        p = softmax(x[order])
        before = np.cumsum(p) - p  # mass of the better tokens
        drop = before >= top_p
        drop[0] = False
        x[order[drop]] = -np.inf
    if min_p > 0:
        p = softmax(x)
        x[p < min_p * p.max()] = -np.inf
    return softmax(x)


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Philox4x32-10: four random 32-bit words from a counter and a key; the same everywhere, no state.

    Args:
        counter: 4 words of 32 bits; key: 2 words of 32 bits.
    Returns:
        4 words of 32 bits.
    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & mask,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & mask,
        )
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3
