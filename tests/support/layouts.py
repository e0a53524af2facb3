"""Checkpoints that several ranks share, and greedy decoding by rank 0."""

from longcat.checkpoint.random_weights import SMALL_CONFIG

from support.engines import sampling
from support.ranks import ThreadJob

MAX_ERROR = 1e-4  # of logits in fp32, absolute; they are below 25

TINY = {"num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8, "zero_expert_num": 4}
# Head sizes, ranks and widths of the preset, with less of everything that is repeated.
SMALL = SMALL_CONFIG | {"vocab_size": 4096, "num_layers": 1, "n_routed_experts": 16, "zero_expert_num": 8}


def generate(job: ThreadJob, prompt: list[int], count: int) -> list[int]:
    """Greedy, by steps of the leader."""
    job.leader.add_request(prompt, sampling(count))
    token_ids = []
    while job.leader.has_work():
        for output in job.leader.step():
            assert not output.error, output.error
            token_ids.append(output.token_id)
    return token_ids
