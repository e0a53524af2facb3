"""The reference's MTP layer against one that is put together from transformers' modules."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from transformers.models.longcat_flash import modeling_longcat_flash as published  # noqa: E402

from oracle.cases import MAX_ABS, VARIANTS, make_checkpoint, random_token_ids  # noqa: E402
from oracle.hf import HfModel  # noqa: E402
from reference.model import ReferenceModel  # noqa: E402

pytestmark = pytest.mark.oracle

TOKENS = 120


class PublishedMtp:
    """enorm, hnorm and eh_proj around transformers' attention, dense FFN and norms, with a checkpoint's weights."""

    def __init__(self, model: HfModel):
        self.model = model
        self.weights = {n: torch.from_numpy(w.copy()) for n, w in model.weights.items() if n.startswith("model.mtp.")}
        config = model.model.config
        self.attention = published.LongcatFlashMLA(config, layer_idx=0).eval()
        self.load(self.attention, "layers.0.self_attn.")
        self.mlp = published.LongcatFlashMLP(config, hidden_size=config.hidden_size).eval()
        self.load(self.mlp, "layers.0.transformer_layer.mlp.")

    def load(self, module: torch.nn.Module, prefix: str) -> None:
        prefix = "model.mtp." + prefix
        state = {n.removeprefix(prefix): w for n, w in self.weights.items() if n.startswith(prefix)}
        module.load_state_dict(state, strict=True)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        norm = published.LongcatFlashRMSNorm(x.shape[-1], self.model.config["rms_norm_eps"])
        norm.weight.data = self.weights[f"model.mtp.{name}.weight"]
        return norm(x)

    @torch.no_grad()
    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """[T, vocab_size] of T + 1 tokens."""
        trunk = self.model.model
        embeds = self.model.embed(token_ids[:-1])[None]
        hidden = trunk.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        word = self.weights["model.mtp.embed_tokens.weight"][token_ids[1:]][None]
        pair = torch.cat([self.norm(word, "layers.0.enorm.m"), self.norm(hidden, "layers.0.hnorm.m")], dim=-1)
        u = pair @ self.weights["model.mtp.layers.0.eh_proj.weight"].T
        tokens = u.shape[1]
        angles = trunk.model.rotary_emb(u, torch.arange(tokens)[None])
        mask = torch.full((tokens, tokens), -torch.inf).triu(1)[None, None]
        u = u + self.attention(self.norm(u, "layers.0.input_layernorm"), position_embeddings=angles,
                               attention_mask=mask)[0]  # fmt: skip
        u = u + self.mlp(self.norm(u, "layers.0.post_attention_layernorm"))
        return trunk.lm_head(self.norm(u, "norm"))[0]


@pytest.mark.parametrize("variant", ["lite", "odd", "yarn_ramp", "flash_chat"])
@pytest.mark.parametrize("seed", range(3))
def test_reference_equals_transformers(tmp_path, variant, seed):
    config = make_checkpoint(tmp_path, seed=seed, mtp=True, **VARIANTS[variant])
    token_ids = random_token_ids(seed, TOKENS + 1, config["vocab_size"], config["eos_token_id"])
    reference = ReferenceModel(tmp_path)
    trace = reference.trace(token_ids[:-1])
    found = reference.linear(reference.mtp(trace.hidden, token_ids[1:]), "lm_head")
    expected = PublishedMtp(HfModel(tmp_path)).logits(token_ids)
    # A near-tie of the router changes the hidden state of its token, and so what later ones attend to.
    unclear = (trace.router_gaps.min(dim=0).values <= 1e-5).nonzero()
    clear = int(unclear[0, 0]) if len(unclear) else TOKENS
    assert clear >= 40
    error = (found - expected).abs()[:clear].max().item()
    print(f"{variant} seed {seed}: max abs {error:.2e} over {clear} positions")
    assert error <= MAX_ABS
