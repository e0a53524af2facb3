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
