"""Estimates a decode step that verifies and makes draft tokens of the MTP layer, by the kernels of gpu_step.py.

python bench/scripts/gpu_drafts.py --context 4608 --core fp8 --experts fp8
python bench/scripts/gpu_drafts.py --context 4608 --core fp8 --experts fp8 --draft-vocab 32768
python bench/scripts/gpu_drafts.py --device rtx5090 --core int8 --experts int4

The step is one graph: the rows of all sequences with their draft tokens, the draws, the MTP layer over these rows, the
acceptance. Then each further draft token has a pass of the layer, the head and a draw. Tokens a step are an assumption:
3.15 with three draft tokens is what the model's makers report. docs/cuda.md has the tables.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

from gpu_step import DEVICES, ELEMENT, HOST, PACKED, ROW, SAMPLING, Device, Kernel, Shape, config_of

RULES = 2.5e-6  # [s] the acceptance, and the rows of the next pass: a few ids, one after the other
SAMPLER = 3  # kernels
PACKED.setdefault("fp8", 1 + 4 / 128**2)  # [bytes] a weight: a code, and the scale of a block


@dataclass(frozen=True)
class DraftStep:
    """A step of `sequences` that each verify and make `drafts` draft tokens.

    Args:
        context: tokens of each sequence.
        core, expert: formats of the weights, of gpu_step.PACKED.
        draft_vocab: rows of the head that draft tokens read.
    """

    config: dict[str, int]
    sequences: int
    drafts: int
    context: int
    device: Device
    core: str
    expert: str
    draft_vocab: int

    def shape(self, tokens: int) -> Shape:
        return Shape(self.config, tokens, self.context, self.device, self.core, self.expert)

    def attention(self, tokens: int) -> list[Kernel]:
        """Rows of one sequence meet in the L2 cache, so memory gives each latent once."""
        c = self.config
        latents = self.context * (c["kv_lora_rank"] + c["qk_rope_head_dim"]) * ELEMENT
        again = max(tokens - self.sequences, 0) * latents
        return [
            replace(kernel, bytes=kernel.bytes - again, inputs=max(kernel.inputs, tokens * latents))
            if kernel.name == "MLA decode"
            else kernel
            for kernel in self.shape(tokens).attention(False)
        ]

    def verification(self) -> tuple[float, float, int]:
        """(seconds, bytes, kernels) of the model over all rows, with the draws."""
        tokens = self.sequences * (1 + self.drafts)
        verified = _Verified(self.config, tokens, self.context, self.device, self.core, self.expert, step=self)
        layer, ends = verified.num_kernels()
        return verified.seconds() - HOST, verified.num_bytes(), self.config["num_layers"] * layer + ends + 1 + SAMPLER

    def layer_pass(self, tokens: int, gathers: bool) -> list[Kernel]:
        """The MTP layer over `tokens` rows: its input, a dense layer, its last norm."""
        shape, hidden = self.shape(tokens), self.config["hidden_size"]
        norm = Kernel("norm", 3 * tokens * hidden * ELEMENT, tokens, ROW)
        gather = Kernel("gather", 2 * tokens * hidden * ELEMENT, tokens, ROW)
        return [
            *([gather] if gathers else []),
            norm,
            Kernel("words", 2 * tokens * hidden * ELEMENT, tokens, ROW),
            norm,
            shape.linear("word half of eh_proj", hidden, hidden),
            shape.linear("hidden half of eh_proj", hidden, hidden),
            Kernel("angles", 0, tokens, ROW),
            Kernel("list of pieces", 0, 1, ROW),
            norm,
            *self.attention(tokens),
            norm,
            *shape.ffn(),
            norm,
        ]

    def draft_kernels(self) -> list[Kernel]:
        """Of all draft tokens, without their draws: the first pass reads the rows of the step."""
        tokens, hidden = self.sequences * (1 + self.drafts), self.config["hidden_size"]
        few = self.shape(self.sequences)
        head = [
            Kernel("rows of the head", 2 * self.sequences * hidden * ELEMENT, self.sequences, ROW),
            few.linear("draft head", self.draft_vocab, hidden),
        ]
        rules = Kernel("acceptance, or rows of the next pass", 0, self.sequences, RULES)
        ids = Kernel("next ids", 0, 1, ROW)
        kernels = [ids, *self.layer_pass(tokens, False), rules, *head]
        for _ in range(1, self.drafts):
            kernels += [rules, *self.layer_pass(self.sequences, True), *head]
        return kernels

    def total(self) -> tuple[float, float, int]:
        """(seconds, bytes, kernels) of the step."""
        seconds, num_bytes, count = self.verification()
        made = self.draft_kernels() if self.drafts else []
        seconds += sum(kernel.whole(self.device) for kernel in made) + self.drafts * SAMPLING + HOST
        return seconds, num_bytes + sum(k.bytes for k in made), count + len(made) + self.drafts * SAMPLER


@dataclass(frozen=True)
class _Verified(Shape):
    """The model over the rows of a step, of which some are of one sequence."""

    step: DraftStep | None = None

    def attention(self, is_owner: bool) -> list[Kernel]:
        return Shape.attention(self, is_owner) if self.step is None else self.step.attention(self.num_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=1024, help="tokens of each sequence (default 1024)")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1], help="sequences of a step (default 1)")
    parser.add_argument("--drafts", type=int, nargs="+", default=[0, 3], help="draft tokens of each (default 0 and 3)")
    parser.add_argument("--accepted", type=float, default=3.15, help="tokens of a step with drafts (default 3.15)")
    parser.add_argument("--draft-vocab", type=int, help="rows of the head for draft tokens (default: all)")
    parser.add_argument("--device", choices=DEVICES, default="h200", help="(default h200)")
    for part in ("core", "experts"):
        parser.add_argument(f"--{part}", choices=PACKED, default="bf16", help="their weights (default bf16)")
    parser.add_argument("--kernels", action="store_true", help="also tell each kernel of the draft tokens")
    args = parser.parse_args()
    config = config_of("lite")
    print("| sequences | draft tokens | kernels | GB | ms | of them drafts | tokens/s |")
    print("| --: | --: | --: | --: | --: | --: | --: |")
    for sequences in args.sequences:
        for drafts in args.drafts:
            step = DraftStep(
                config,
                sequences,
                drafts,
                args.context,
                DEVICES[args.device],
                args.core,
                args.experts,
                args.draft_vocab or config["vocab_size"],
            )
            seconds, num_bytes, count = step.total()
            made = seconds - step.verification()[0] - HOST
            tokens = sequences * (args.accepted if drafts else 1)
            print(
                f"| {sequences} | {drafts} | {count} | {num_bytes / 1e9:.1f} | {1e3 * seconds:.2f} "
                f"| {1e3 * made:.2f} | {tokens / seconds:,.0f} |"
            )
            if args.kernels and drafts:
                for k in step.draft_kernels():
                    print(f"    {k.name:36} {1e-6 * k.bytes:8.2f} MB {1e6 * k.whole(step.device):6.2f} us")


if __name__ == "__main__":
    main()
