"""Inputs of ops that are the same on every device, and the CPU's ops to compare with."""

import numpy as np
from longcat import _testing as testing

from support.checkpoints import from_bf16, to_bf16

CPU = testing.DeviceOps("cpu")


def normal(*shape, seed=0, scale=1.0):
    """Random values that are exact in bf16, so that every device gets the same inputs."""
    values = (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
    return from_bf16(to_bf16(values))


def moe_case(tokens, hidden, width, routed, identity, topk, seed=0):
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    experts = {
        name: [to_bf16(normal(*shape, seed=seed + 10 * e + i, scale=0.3)) for e in range(routed)]
        for i, (name, shape) in enumerate(shapes.items())
    }
    return {
        "x": normal(tokens, hidden, seed=seed),
        "classifier": normal(routed + identity, hidden, seed=seed + 1),
        "bias": normal(routed + identity, seed=seed + 2, scale=0.05),
        "topk": topk,
        "scaling_factor": 2.5,
        **experts,
    }


def forward_in_chunks(folder, device, prompt, generated, chunks, neighbours, recorded, **options):
    """Returns the logits of all tokens, the generated ones a step each, beside sequences of one token.

    Args:
        chunks: sizes that add up to the prompt's.
        neighbours: how many sequences share the steps of generated tokens.
        recorded: whether these steps are padded to 8 rows and recorded.
        options: of testing.DeviceModel.
    """
    model = testing.DeviceModel(folder, device, num_blocks=80, **options)
    model.poison()
    logits, start = [], 0
    for count in chunks:
        logits.append(model.forward([([4, 2], start, prompt[start : start + count])]))
        start += count
    for i, token in enumerate(generated):
        batch = [([4, 2], start + i, [token]), *[([10 + n], 0, [5]) for n in range(neighbours)]]
        rows = 8 if recorded else 0
        logits.append(model.forward(batch, num_generated=len(batch), num_rows=rows, recorded=recorded)[:1])
    return np.concatenate(logits)
