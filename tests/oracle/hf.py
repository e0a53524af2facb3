"""transformers' LongcatFlashForCausalLM on our checkpoints, fed with the N-gram embedding as `inputs_embeds`.

transformers 4.57.6 has the decoder of LongCat-Flash but no N-gram embedding. The embedding is computed here from the
formulas of `reference.ops`, apart from the model under test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LongcatFlashConfig, LongcatFlashForCausalLM

from reference import ops
from support.checkpoints import NGRAM_FIELDS, read_checkpoint, read_config

# Not fields of LongcatFlashConfig, or set below.
_DROPPED_FIELDS = (*NGRAM_FIELDS, "architectures", "model_type", "torch_dtype", "quantization_config")


class HfModel:
    """A checkpoint folder in transformers.

    Args:
        folder: any checkpoint of the architecture; FP8 matrices are dequantised first.
        dtype: torch.float32, or torch.bfloat16 for what `from_pretrained(torch_dtype="auto")` computes: all
            tensors, the router too, are rounded to bf16.
    """

    def __init__(self, folder: Path | str, dtype: torch.dtype = torch.float32):
        self.config, self.weights, self.dtype = read_config(folder), read_checkpoint(folder), dtype
        fields = {k: v for k, v in self.config.items() if k not in _DROPPED_FIELDS}
        fields |= {
            "num_hidden_layers": 2 * self.config["num_layers"],
            "num_key_value_heads": self.config["num_attention_heads"],
            "head_dim": self.config["qk_rope_head_dim"],  # what transformers builds its rotary table from
            "qk_head_dim": self.config["qk_nope_head_dim"] + self.config["qk_rope_head_dim"],
            "attn_implementation": "eager",
        }
        self.model = LongcatFlashForCausalLM(LongcatFlashConfig(**fields)).eval()
        state = {
            name: torch.from_numpy(w.copy())
            for name, w in self.weights.items()
            if not name.startswith(("model.ngram_embeddings.", "model.mtp."))
        }
        self.model.load_state_dict(state, strict=True)
        self.model.to(dtype)

    def embed(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Input of the first layer, [T, hidden_size]; in bf16 rounded after each table, as published."""
        if self.dtype == torch.float32:
            return torch.from_numpy(ops.ngram_embed(token_ids, self.weights, self.config)).float()

        def weight(name: str) -> torch.Tensor:
            return torch.from_numpy(self.weights[name].copy()).to(self.dtype)

        x = weight("model.embed_tokens.weight")[list(token_ids)]
        ids = torch.from_numpy(ops.ngram_ids(token_ids, self.config))
        for t in range(ids.shape[1]):
            rows = weight(f"model.ngram_embeddings.embedders.{t}.weight")[ids[:, t]]
            x = x + rows @ weight(f"model.ngram_embeddings.post_projs.{t}.weight").T
        return x / (1 + ids.shape[1])

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """[T, vocab_size] in the model's dtype."""
        return self.model(inputs_embeds=self.embed(token_ids)[None], use_cache=False).logits[0]

    @torch.no_grad()
    def batch_logits(self, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Logits of several prompts in one padded batch: [T_i, vocab_size] each."""
        longest = max(len(p) for p in prompts)
        embeds = torch.zeros(len(prompts), longest, self.config["hidden_size"], dtype=self.dtype)
        mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            embeds[row, : len(prompt)] = self.embed(prompt)
            mask[row, : len(prompt)] = 1
        logits = self.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        return [logits[row, : len(prompt)] for row, prompt in enumerate(prompts)]
