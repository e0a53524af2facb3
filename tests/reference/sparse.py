"""LongCat-Flash-Lite-Sparse in float64 numpy: the whole model, its selections, and its MTP layer.

Written from the formulas, one token's positions at a time, for reading. Names are those of config.json and of the
published checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reference import ops
from support.checkpoints import read_checkpoint, read_config

INDEX_NORM_EPS = 1e-6


def choose(scores: np.ndarray, topk: int, init: int, local: int) -> list[int]:
    """The positions that the last of len(scores) positions attends to.

    Args:
        scores: [p + 1] index scores of the visible positions.
        topk, init, local: index_topk, index_init_tokens and index_local_tokens.
    Returns:
        Ascending positions: all when there are at most `topk`; else the first `init`, the last `local`, and the best
        of the others. Equal scores: the lower position.
    """
    n = len(scores)
    if n <= topk:
        return list(range(n))
    forced = [j for j in range(n) if j < init or j >= n - local]
    others = [j for j in range(n) if init <= j < n - local]
    others.sort(key=lambda j: (-scores[j], j))
    return sorted(forced + others[: topk - len(forced)])


@dataclass
class Indexed:
    """What the indexer of one layer computed for T tokens."""

    keys: np.ndarray  # [T, index_head_dim], rotated
    weights: np.ndarray  # [T, index_n_heads], both scales included
    queries: np.ndarray  # [T, index_n_heads, index_head_dim], rotated, of the query latent without sqrt(hidden / rank)
    scores: np.ndarray  # [T, T], -inf for positions that are not visible
    sets: list[list[int]]  # of each token
    gaps: np.ndarray  # [T] last selected minus first rejected score over the RMS of the row; infinite below topk


@dataclass
class SparseTrace:
    """The results of one forward pass over T tokens."""

    logits: np.ndarray  # [T, vocab_size]
    hidden: np.ndarray  # [T, hidden_size], after model.norm
    embedding: np.ndarray  # [T, hidden_size]
    latents: list[np.ndarray] = field(default_factory=list)  # of each sub-layer
    indexed: list[Indexed] = field(default_factory=list)  # of each owner of a selection
    router_gaps: list[np.ndarray] = field(default_factory=list)  # [T] of each layer


class SparseModel:
    """A checkpoint folder in the published layout, with `oe_*` names or those of Lite."""

    def __init__(self, folder: Path | str):
        self.config = read_config(folder)
        renamed = {"ngram_embeddings.embedders.": "oe_embed_tokens", "ngram_embeddings.post_projs.": "oe_embed_proj"}
        self.weights = {}
        for name, array in read_checkpoint(folder).items():
            for lite, sparse in renamed.items():
                name = name.replace(lite, sparse)
            self.weights[name] = array.astype(np.float64)

    # --- the model --------------------------------------------------------------------------------

    def trace(self, token_ids: Sequence[int]) -> SparseTrace:
        c = self.config
        embedding = self._embed(token_ids)
        out = SparseTrace(np.empty(0), np.empty(0), embedding)
        h, sets = embedding, None
        for layer in range(c["num_layers"]):
            p = f"model.layers.{layer}"
            for i in range(2):
                x = self._norm(h, f"{p}.input_layernorm.{i}")
                if self._is_owner(2 * layer + i):
                    out.indexed.append(self.index(x, f"{p}.self_attn.{i}"))
                    sets = out.indexed[-1].sets
                attended, latents = self.attention(x, f"{p}.self_attn.{i}", sets)
                out.latents.append(latents)
                h = h + attended
                x = self._norm(h, f"{p}.post_attention_layernorm.{i}")
                if i == 0:
                    shortcut, gap = self._moe(x, f"{p}.mlp")
                    out.router_gaps.append(gap)
                h = h + self._mlp(x, f"{p}.mlps.{i}")
            h = h + shortcut
        out.hidden = self._norm(h, "model.norm")
        out.logits = out.hidden @ self.weights["lm_head.weight"].T
        return out

    def drafts(self, token_ids: Sequence[int], hidden: np.ndarray, steps: int) -> tuple[list[np.ndarray], list[int]]:
        """Greedy draft tokens behind a sequence.

        Args:
            token_ids: [T]; hidden: [T, hidden_size] of SparseTrace.
            steps: number of draft tokens. Those after the first use its set, and the positions written since; with
                "dsa_mtp_cli": false each has a set of its own.
        Returns:
            logits [vocab_size] and token id of each step. The first step reads row i with token i + 1, and the last
            row with the first token of the sequence.
        """
        p, tokens = "model.mtp.layers.0", [*token_ids[1:], token_ids[0]]
        logits, ids, states = [], [], hidden
        inputs, rows = [], np.asarray(tokens)
        set_of_first: list[int] = []
        for step in range(steps):
            table = "model" if self.config.get("mtp_shares_embed_tokens", False) else "model.mtp"
            word = self.weights[f"{table}.embed_tokens.weight"][rows]
            pair = [self._norm(word, f"{p}.enorm.m"), self._norm(states, f"{p}.hnorm.m")]
            inputs.append(np.concatenate(pair, axis=1) @ self.weights[f"{p}.eh_proj.weight"].T)
            u = np.concatenate(inputs)
            x = self._norm(u, f"{p}.input_layernorm")
            if step == 0 or not self.config.get("dsa_mtp_cli", True):
                sets = self.index(x, f"{p}.self_attn").sets
                set_of_first = sets[-1]
            else:
                sets = [*sets, [*set_of_first, *range(len(token_ids), len(u))]]
            u = u + self.attention(x, f"{p}.self_attn", sets)[0]
            u = u + self._mlp(self._norm(u, f"{p}.post_attention_layernorm"), f"{p}.transformer_layer.mlp")
            states = self._norm(u, "model.mtp.norm")[-1:]
            logits.append((states @ self.weights["lm_head.weight"].T)[0])
            ids.append(int(np.argmax(logits[-1])))
            rows = np.asarray(ids[-1:])
        return logits, ids

    # --- attention --------------------------------------------------------------------------------

    def index(self, x: np.ndarray, name: str) -> Indexed:
        """The indexer `name`.indexer over the normalised input x [T, hidden_size]."""
        c, w = self.config, lambda part: self.weights[f"{name}.{part}.weight"]
        heads, dim, rope = c["index_n_heads"], c["index_head_dim"], c["qk_rope_head_dim"]
        cq = ops.rms_norm(x @ w("q_a_proj").T, w("q_a_layernorm"), c.get("mla_norm_eps", c["rms_norm_eps"]))
        queries = (cq @ w("indexer.wq_b").T).reshape(len(x), heads, dim)
        keys = ops.rms_norm(x @ w("indexer.wk").T, w("indexer.k_norm"), INDEX_NORM_EPS)
        queries[..., :rope] = self._rotate(queries[..., :rope])
        keys[..., :rope] = self._rotate(keys[..., :rope])
        weights = x @ w("indexer.weights_proj").T * heads**-0.5 * dim**-0.5
        products = np.maximum(np.einsum("thd,sd->ths", queries, keys), 0)
        scores = np.einsum("th,ths->ts", weights, products)
        scores[np.triu_indices(len(x), 1)] = -np.inf
        rule = c["index_topk"], c["index_init_tokens"], c["index_local_tokens"]
        sets = [choose(scores[p, : p + 1], *rule) for p in range(len(x))]
        gaps = np.full(len(x), np.inf)
        for p in range(c["index_topk"], len(x)):
            free = np.sort(scores[p, rule[1] : p + 1 - rule[2]])[::-1]
            kept = rule[0] - rule[1] - rule[2]
            if 0 < kept < len(free):
                gaps[p] = (free[kept - 1] - free[kept]) / np.sqrt(np.mean(scores[p, : p + 1] ** 2))
        return Indexed(keys, weights, queries, scores, sets, gaps)

    def attention(self, x: np.ndarray, name: str, sets: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """MLA where token t attends to the positions sets[t]: output [T, hidden_size], and latents [T, latent_dim]."""
        c, w = self.config, lambda part: self.weights[f"{name}.{part}.weight"]
        heads, rank, nope = c["num_attention_heads"], c["kv_lora_rank"], c["qk_nope_head_dim"]
        hidden, eps = c["hidden_size"], c.get("mla_norm_eps", c["rms_norm_eps"])
        cq = ops.rms_norm(x @ w("q_a_proj").T, w("q_a_layernorm"), eps) * math.sqrt(hidden / c["q_lora_rank"])
        q = (cq @ w("q_b_proj").T).reshape(len(x), heads, -1)
        q[..., nope:] = self._rotate(q[..., nope:])
        kv = x @ w("kv_a_proj_with_mqa").T
        latent = ops.rms_norm(kv[:, :rank], w("kv_a_layernorm"), eps) * math.sqrt(hidden / rank)
        rope_key = self._rotate(kv[:, rank:])
        expanded = (latent @ w("kv_b_proj").T).reshape(len(x), heads, -1)
        keys = np.concatenate([expanded[..., :nope], np.repeat(rope_key[:, None], heads, 1)], axis=-1)
        values = expanded[..., nope:]
        out = np.empty((len(x), heads, values.shape[-1]))
        for t, chosen in enumerate(sets):
            scores = np.einsum("hd,shd->hs", q[t], keys[chosen]) * ops.softmax_scale(c)
            out[t] = np.einsum("hs,shv->hv", ops.softmax(scores), values[chosen])
        return out.reshape(len(x), -1) @ w("o_proj").T, np.concatenate([latent, rope_key], axis=1)

    def _is_owner(self, sub_layer: int) -> bool:
        """Whether an attention selects for itself; "index_topk_pattern" says so by letters, "cli_factor" by number."""
        pattern = self.config.get("index_topk_pattern")
        return pattern[sub_layer] == "C" if pattern else sub_layer % self.config["cli_factor"] == 0

    # --- parts that Lite has, too ------------------------------------------------------------------

    def _embed(self, token_ids: Sequence[int]) -> np.ndarray:
        c = self.config
        spelling = {"ngram_vocab_size_ratio": "oe_vocab_size_ratio", "emb_neighbor_num": "oe_neighbor_num",
                    "emb_split_num": "oe_split_num"}  # fmt: skip
        ids = ops.ngram_ids(token_ids, {**c, **{lite: c.get(oe, c.get(lite)) for lite, oe in spelling.items()}})
        word = self.weights["model.embed_tokens.weight"][np.asarray(token_ids)]
        x = np.zeros_like(word)
        for t in range(ids.shape[1]):
            rows = self.weights[f"model.oe_embed_tokens{t}.weight"][ids[:, t]]
            x += rows @ self.weights[f"model.oe_embed_proj{t}.weight"].T
        num_vectors = 1 + ids.shape[1]
        return (word + x) / num_vectors if c.get("oe_divides_word", True) else word + x / num_vectors

    def _rotate(self, x: np.ndarray) -> np.ndarray:
        return ops.rope(x, np.arange(len(x)), ops.yarn_inv_freq(self.config), ops.cos_sin_factor(self.config))

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return ops.rms_norm(x, self.weights[f"{name}.weight"], self.config["rms_norm_eps"])

    def _mlp(self, x: np.ndarray, name: str) -> np.ndarray:
        return ops.swiglu(x, *(self.weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down")))

    def _moe(self, x: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        weights = {n.removeprefix(f"{name}."): w for n, w in self.weights.items() if n.startswith(f"{name}.")}
        routing = ops.router(x, weights["router.classifier.weight"], weights["router.e_score_correction_bias"],
                             self.config)  # fmt: skip
        return ops.moe(x, weights, self.config), routing.gap
