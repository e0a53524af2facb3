"""The reference model in PyTorch: LongCat-Flash-Lite and LongCat-Flash in the paper's terms.

Written for reading. Attention is materialised, experts run in a plain loop, a sequence is computed whole.
Names are those of config.json and of the checkpoint. `dtype` float64 says what the model computes; float32
how far float32 arithmetic strays from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reference import ops
from support.checkpoints import ngram_table_rows, read_checkpoint, read_config


@dataclass
class Trace:
    """What a test may want to know about one forward pass over T tokens; S = 2 * num_layers sub-layers."""

    logits: Tensor  # [T, vocab_size]
    hidden: Tensor  # [T, hidden_size], normalised: what the head and the MTP layer read
    embedding: Tensor  # [T, hidden_size], the input of layer 0
    ngram_ids: Tensor  # [T, tables] int64; no columns without N-gram embedding
    latents: Tensor  # [S, T, kv_lora_rank + qk_rope_head_dim]: scaled latent, rotated key (interleaved)
    router_gaps: Tensor  # [num_layers, T]: k-th minus (k+1)-th of score + bias; infinite if all are chosen
    selected_experts: Tensor  # [num_layers, T, moe_topk] int64, best first


class ReferenceModel:
    """A checkpoint folder, ready to compute logits.

    Args:
        folder: config.json and safetensors files in the official layout (F32, BF16, F16 or FP8 blocks).
        dtype: torch.float64 or torch.float32, for weights and arithmetic.
    """

    def __init__(self, folder: Path | str, dtype: torch.dtype = torch.float64):
        self.config = read_config(folder)
        self.dtype = dtype
        arrays = read_checkpoint(folder)
        self.weights = {name: torch.from_numpy(w.copy()).to(dtype) for name, w in arrays.items()}

    def forward(self, token_ids: Sequence[int]) -> Tensor:
        """Logits of a whole sequence from its start: [T, vocab_size]."""
        return self.trace(token_ids).logits

    @torch.no_grad()
    def trace(self, token_ids: Sequence[int]) -> Trace:
        """The forward pass over `token_ids` [T], with what happened inside."""
        token_ids = torch.as_tensor(list(token_ids), dtype=torch.int64)
        ngram_ids = self.ngram_ids(token_ids)
        embedding = self.embed(token_ids, ngram_ids)
        cos, sin = self.rope_tables(len(token_ids))
        h, latents, gaps, selected = embedding, [], [], []

        for layer in range(self.config["num_layers"]):
            p = f"model.layers.{layer}"
            x = self.norm(h, f"{p}.input_layernorm.0")
            out, latent0 = self.attention(x, f"{p}.self_attn.0", cos, sin)
            h = h + out
            x = self.norm(h, f"{p}.post_attention_layernorm.0")
            shortcut, gap, experts = self.moe(x, f"{p}.mlp")  # shares the MLP's input, added only at the end
            h = h + self.mlp(x, f"{p}.mlps.0")
            x = self.norm(h, f"{p}.input_layernorm.1")
            out, latent1 = self.attention(x, f"{p}.self_attn.1", cos, sin)
            h = h + out
            x = self.norm(h, f"{p}.post_attention_layernorm.1")
            h = h + self.mlp(x, f"{p}.mlps.1") + shortcut
            latents += [latent0, latent1]
            gaps.append(gap)
            selected.append(experts)

        hidden = self.norm(h, "model.norm")
        logits = self.linear(hidden, "lm_head")
        return Trace(
            logits, hidden, embedding, ngram_ids, torch.stack(latents), torch.stack(gaps), torch.stack(selected)
        )

    @torch.no_grad()
    def mtp(self, hidden: Tensor, next_token_ids: Sequence[int]) -> Tensor:
        """The multi-token-prediction layer over a sequence from its start.

        Args:
            hidden: [T, hidden_size], of Trace, or what this returned at a place before.
            next_token_ids: [T] the token behind each one's own.
        Returns:
            [T, hidden_size], normalised; the head makes logits of it, for the token behind next_token_ids.
        """
        p = "model.mtp.layers.0"
        word = self.weights["model.mtp.embed_tokens.weight"][torch.as_tensor(list(next_token_ids))]
        pair = torch.cat([self.norm(word, f"{p}.enorm.m"), self.norm(hidden, f"{p}.hnorm.m")], dim=-1)
        u = self.linear(pair, f"{p}.eh_proj")
        out, _ = self.attention(self.norm(u, f"{p}.input_layernorm"), f"{p}.self_attn", *self.rope_tables(len(u)))
        u = u + out
        u = u + self.mlp(self.norm(u, f"{p}.post_attention_layernorm"), f"{p}.transformer_layer.mlp")
        return self.norm(u, "model.mtp.norm")

    # --- embedding --------------------------------------------------------------------------------

    def ngram_ids(self, token_ids: Tensor) -> Tensor:
        """Row of every N-gram table for every token.

        Args:
            token_ids: [T] int64.
        Returns:
            [T, tables] int64: the polynomial hash of the last 2, 3, ... N tokens modulo the rows of each
            table. The history of a token ends at the nearest EOS before it.
        """
        rows = ngram_table_rows(self.config)
        if not rows:
            return torch.zeros(len(token_ids), 0, dtype=torch.int64)
        vocab, splits = self.config["vocab_size"], self.config["emb_split_num"]
        # shifted[d]: the token d back, 0 before the start of its segment
        is_eos = token_ids == self.config["eos_token_id"]
        shifted, open_window = [token_ids], torch.ones_like(is_eos)
        for d in range(1, self.config["emb_neighbor_num"]):
            back = torch.zeros_like(token_ids)
            back[d:] = token_ids[:-d]
            blocked = torch.ones_like(is_eos)
            blocked[d:] = is_eos[:-d]
            open_window = open_window & ~blocked
            shifted.append(torch.where(open_window, back, 0))
        ids = []
        for t, modulus in enumerate(rows):
            power, total = 1, torch.zeros_like(token_ids)
            for d in range(t // splits + 2):
                total += shifted[d] * power
                power = power * vocab % modulus  # reduced at once: V^3 times a token would overflow int64
            ids.append(total % modulus)
        return torch.stack(ids, dim=-1)

    def embed(self, token_ids: Tensor, ngram_ids: Tensor) -> Tensor:
        """[T, hidden_size]: mean of the word vector and the projected N-gram rows, if there are any."""
        x = self.weights["model.embed_tokens.weight"][token_ids]
        for t in range(ngram_ids.shape[1]):
            rows = self.weights[f"model.ngram_embeddings.embedders.{t}.weight"][ngram_ids[:, t]]
            x = x + self.linear(rows, f"model.ngram_embeddings.post_projs.{t}")
        return x / (1 + ngram_ids.shape[1])

    # --- attention --------------------------------------------------------------------------------

    def rope_tables(self, tokens: int) -> tuple[Tensor, Tensor]:
        """cos and sin of positions 0..T-1, each [T, qk_rope_head_dim / 2], YaRN's factor included."""
        inv_freq = torch.from_numpy(ops.yarn_inv_freq(self.config)).to(self.dtype)
        angle = torch.arange(tokens, dtype=self.dtype)[:, None] * inv_freq
        factor = ops.cos_sin_factor(self.config)
        return angle.cos() * factor, angle.sin() * factor

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotates the pairs (2j, 2j + 1) of x [T, heads, rope]; cos, sin [T, rope / 2]."""
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = cos[:, None], sin[:, None]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)

    def attention(self, x: Tensor, name: str, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Multi-head latent attention, keys and values materialised.

        Args:
            x: [T, hidden_size], normalised; name: `model.layers.{l}.self_attn.{i}`; cos, sin: of rope_tables.
        Returns:
            output [T, hidden_size]; latents [T, kv_lora_rank + qk_rope_head_dim], what a cache keeps.
        """
        c = self.config
        hidden, heads, rank = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
        nope, rope, v_dim = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        tokens = len(x)

        cq = self.norm(self.linear(x, f"{name}.q_a_proj"), f"{name}.q_a_layernorm", ops.INNER_NORM_EPS)
        q = self.linear(cq, f"{name}.q_b_proj") * math.sqrt(hidden / c["q_lora_rank"])
        q_nope, q_rope = q.view(tokens, heads, nope + rope).split([nope, rope], dim=-1)
        q_rope = self.rotate(q_rope, cos, sin)

        ckv, k_rope = self.linear(x, f"{name}.kv_a_proj_with_mqa").split([rank, rope], dim=-1)
        latent = self.norm(ckv, f"{name}.kv_a_layernorm", ops.INNER_NORM_EPS) * math.sqrt(hidden / rank)
        k_rope = self.rotate(k_rope[:, None], cos, sin)  # [T, 1, rope]: one key for all heads, not normalised
        kv = self.linear(latent, f"{name}.kv_b_proj").view(tokens, heads, nope + v_dim)
        k_nope, v = kv.split([nope, v_dim], dim=-1)

        q = torch.cat([q_nope, q_rope], dim=-1)  # [T, heads, nope + rope]
        k = torch.cat([k_nope, k_rope.expand(-1, heads, -1)], dim=-1)  # [T, heads, nope + rope]
        scores = torch.einsum("thd,shd->hts", q, k) * ops.softmax_scale(self.config)
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        p = scores.masked_fill(future, -torch.inf).softmax(dim=-1)  # [heads, T, T]
        out = torch.einsum("hts,shv->thv", p, v).reshape(tokens, heads * v_dim)
        return self.linear(out, f"{name}.o_proj"), torch.cat([latent, k_rope[:, 0]], dim=-1)

    # --- feed-forward -----------------------------------------------------------------------------

    def mlp(self, x: Tensor, name: str) -> Tensor:
        """SwiGLU: a dense MLP or one expert. x [n, hidden_size] -> [n, hidden_size]."""
        gate, up = self.linear(x, f"{name}.gate_proj"), self.linear(x, f"{name}.up_proj")
        return self.linear(torch.nn.functional.silu(gate) * up, f"{name}.down_proj")

    def moe(self, x: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Shortcut mixture of experts; experts from n_routed_experts on are identities without weights.

        Args:
            x: [T, hidden_size], the normalised input; name: `model.layers.{l}.mlp`.
        Returns:
            output [T, hidden_size]; router gap [T]; selected experts [T, moe_topk], best first.
        """
        k, routed = self.config["moe_topk"], self.config["n_routed_experts"]
        scores = self.linear(x, f"{name}.router.classifier").softmax(dim=-1)  # [T, routed + zero]
        biased = scores + self.weights[f"{name}.router.e_score_correction_bias"]  # for the choice only
        ranked, order = biased.sort(dim=-1, descending=True, stable=True)  # stable: ties to the lowest id
        selected = order[:, :k]
        if k < biased.shape[1]:
            gap = ranked[:, k - 1] - ranked[:, k]
        else:
            gap = torch.full((len(x),), torch.inf, dtype=self.dtype)

        chosen = torch.zeros_like(scores).scatter(1, selected, 1)
        weight = scores * chosen * self.config["routed_scaling_factor"]  # [T, routed + zero]
        out = torch.zeros_like(x)
        for expert in range(routed):
            tokens = chosen[:, expert].nonzero()[:, 0]
            if len(tokens):
                out[tokens] += weight[tokens, expert, None] * self.mlp(x[tokens], f"{name}.experts.{expert}")
        out = out + weight[:, routed:].sum(dim=-1, keepdim=True) * x
        return out, gap, selected

    # --- building blocks --------------------------------------------------------------------------

    def linear(self, x: Tensor, name: str) -> Tensor:
        """x @ W.T with the weight called `name`."""
        return x @ self.weights[f"{name}.weight"].T

    def norm(self, x: Tensor, name: str, eps: float | None = None) -> Tensor:
        """x / rms(x) * weight over the last dimension; eps is rms_norm_eps unless given."""
        eps = self.config["rms_norm_eps"] if eps is None else eps
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * self.weights[f"{name}.weight"]
