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


def ngram_tables(max_order, splits, dim, rows=301, seed=0):
    return [to_bf16(normal(rows + 2 * t, dim, seed=seed + t)) for t in range((max_order - 1) * splits)]


def random_steps(rng, vocab, eos, num_sequences=4):
    """Sequences in chunks over several steps, decodes first; short ones, some EOS; blocks out of order."""
    blocks = rng.permutation(np.arange(1, 1 + 2 * num_sequences)).reshape(num_sequences, 2).tolist()
    ids = rng.integers(0, vocab, (num_sequences, 128))
    ids[rng.random(ids.shape) < 0.2] = eos
    done, steps = [0] * num_sequences, []
    for _ in range(6):
        decodes, prompts = [], []
        for s in rng.permutation(num_sequences):
            count = int(rng.integers(0, 20)) if rng.random() < 0.5 else 1
            if count == 0 or done[s] + count > 128:
                continue
            chunk = (blocks[s], done[s], ids[s, done[s] : done[s] + count].tolist())
            (decodes if count == 1 and done[s] > 0 else prompts).append(chunk)
            done[s] += count
        if decodes or prompts:
            steps.append((decodes + prompts, len(decodes)))
    return steps


def attention_case(lengths, generated, heads, latent, rope, nope=6, v=5):
    """Chunks of given (start, count) behind stored histories: everything is stored by the call itself from position 0,
    so histories are chunks from 0."""
    chunks, block = [], 1
    for length in lengths:
        count = -(-length // 64)
        chunks.append((list(range(block, block + count))[::-1], 0, [0] * length))
        block += count
    tokens = sum(lengths)
    case = {
        "chunks": chunks,
        "num_blocks": block,
        "kv_a": normal(tokens, latent + rope),
        "norm_weight": normal(latent, seed=1),
        "inv_freq": (100.0 ** (-np.arange(rope // 2) / rope)).astype(np.float32),
        "generated": generated,
        "q": normal(tokens, heads, (latent if generated else nope) + rope, seed=2),
        "q_a": normal(tokens, 40, seed=5, scale=3),
    }
    if not generated:
        case["k_up"] = to_bf16(normal(heads * latent, nope, seed=3, scale=latent**-0.5))
        case["v_up"] = to_bf16(normal(heads * v, latent, seed=4, scale=latent**-0.5))
    return case


def sampling_cases(rng, count):
    """Logits, parameters and history of random draws."""
    for case in range(count):
        vocab = int(rng.integers(1, 60)) if case % 10 else 3000
        logits = np.round(rng.normal(size=vocab) * 3, 1).astype(np.float32)  # rounded: ties are common
        history = rng.integers(0, vocab, int(rng.integers(1, 70))).tolist()
        params = {
            "repetition_penalty": float(rng.choice([1.0, 1.06, 1.5])),
            "temperature": float(rng.choice([0.0, 0.5, 1.0, 1.7, 1e-40])),
            "top_k": int(rng.choice([0, 1, 4, 200])),
            "top_p": float(rng.choice([1.0, 0.93, 0.41, 0.0])),
            "min_p": float(rng.choice([0.0, 0.0613])),
            "presence_penalty": float(rng.choice([0.0, 0.7])),
            "frequency_penalty": float(rng.choice([0.0, -0.3])),
            "num_prompt_tokens": int(rng.integers(0, len(history) + 1)),
            "logit_bias": {int(i): float(rng.choice([-2.0, 1.5])) for i in rng.integers(0, vocab, 2)},
            "seed": case,
            "sample_idx": case % 3,
            "banned_ids": [int(i) for i in rng.integers(0, vocab, int(rng.integers(0, 3)))],
            "bad_words": [[history[-1], int(rng.integers(vocab))], [0, 0, 0, 0]] if rng.random() < 0.5 else [],
            "allowed_ids": sorted({int(i) for i in rng.integers(0, vocab, 20)}) if rng.random() < 0.3 else [],
        }
        if rng.random() < 0.3:
            bits = np.zeros(-(-vocab // 32) * 32, np.uint8)
            bits[:vocab] = rng.random(vocab) < 0.7
            params["mask"] = np.packbits(bits, bitorder="little").view("<u4").tolist()
        yield logits, params, history


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
