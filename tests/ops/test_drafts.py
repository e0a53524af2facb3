"""The ops of draft tokens: which are accepted, where the next ones lie, and how the device chooses a draw."""

import numpy as np
import pytest
from longcat import _testing as testing

from support.devices import DEVICES, EMULATED_REVERSED

pytestmark = pytest.mark.device
BLOCK = 64
NOT_DRAWN = 77


@pytest.fixture(scope="module", params=["cpu", EMULATED_REVERSED, *DEVICES])
def ops(request):
    return testing.DraftOps(request.param)


def expected_rows(plan, sampled, batch, tables, lane, drawn):
    """What the rules of cpp/ops/ops.h say, a sequence at a time."""
    token_ids, positions, sequence_idx = batch
    lane, states = list(lane), [[] for _ in range(1 + len(drawn))]
    for i, (row, draw, verified, wanted, choice) in enumerate(plan.tolist()):
        accepted = 0
        while accepted < verified and sampled[draw + accepted] == token_ids[row + 1 + accepted]:
            accepted += 1
        newest, position = sampled[draw + accepted], positions[row + accepted] + 1
        table = list(tables[sequence_idx[row]])
        place = position % BLOCK
        left = min(wanted, 1 if place == 0 else BLOCK - 1 - place) if newest >= 0 else 0
        choice = choice + accepted * wanted if left else -1
        if left and place:
            lane[table[position // BLOCK] * BLOCK + place] = newest
        states[0].append((row + accepted, position, left, choice, None, None, table, -1))
        for depth, last in enumerate(drawn, 1):
            if i >= len(last):
                break
            goes_on = left > depth and last[i] >= 0
            if goes_on:
                choice += 1
                lane[table[(position + depth) // BLOCK] * BLOCK + (position + depth) % BLOCK] = last[i]
            else:
                left, choice, table = 0, -1, [0, *table[1:]]
            input_of = (int(last[i]), position + depth - 1) if goes_on else (0, 0)
            states[depth].append((row + accepted, position, left, choice, *input_of, table, -1))
    return lane, states


def random_case(rng):
    """Sequences at places of all kinds, which verify 0 to 3 draft tokens and want 0 to 3."""
    count, width, num_blocks = int(rng.integers(1, 6)), int(rng.integers(2, 5)), 40
    blocks = rng.permutation(np.arange(1, num_blocks)).astype(np.int32)
    tables = blocks[: count * width].reshape(count, width)
    plan, token_ids, positions, sequence_idx, sampled = [], [], [], [], []
    first_choice = 0
    for s in range(count):
        verified, wanted = int(rng.integers(0, 4)), int(rng.integers(0, 4))
        start = int(rng.choice([0, 1, 59, 60, 61, 62, 63, 64, 90])) % (width * BLOCK - 5)
        if start // BLOCK != (start + verified) // BLOCK:  # draft tokens lie in one block
            verified = BLOCK - 1 - start % BLOCK
        plan.append((len(token_ids), len(sampled), verified, wanted, first_choice))
        first_choice += (verified + 1) * wanted
        ids = rng.integers(3, 6, verified + 1)
        token_ids += ids.tolist()
        positions += range(start, start + verified + 1)
        sequence_idx += [s] * (verified + 1)
        draws = [*ids[1:], rng.integers(3, 6)]  # all accepted, unless another is drawn
        if verified and rng.random() < 0.6:
            draws[int(rng.integers(verified))] = 9
        if rng.random() < 0.15:
            draws[int(rng.integers(verified + 1))] = -1
        sampled += [int(i) for i in draws]
    batch = (token_ids, positions, sequence_idx)
    rows = count
    drawn = []
    for _ in range(2):
        last = rng.integers(3, 9, rows)
        drawn.append(np.where(rng.random(rows) < 0.1, -1, last).astype(np.int32))
        rows = int(rng.integers(1, rows + 1))
    return np.array(plan, np.int32), sampled, batch, tables, np.zeros(num_blocks * BLOCK, np.int32), drawn


def test_rows_follow_the_rules(ops):
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(60):
        plan, sampled, batch, tables, lane, drawn = random_case(rng)
        as_i32 = [np.array(values, np.int32) for values in (sampled, *batch)]
        found_lane, found = ops.rows(plan, *as_i32, tables, lane, drawn)
        expected_lane, states = expected_rows(plan, sampled, batch, tables, lane, drawn)
        assert found_lane == expected_lane
        names = ("rows", "next_positions", "num_wanted", "choice", "token_ids", "positions")
        for depth, (lists, rows) in enumerate(zip(found, states, strict=True)):
            for i, (*values, table, id) in enumerate(rows):
                where = (depth, i, plan[i])
                for name, value in zip(names, values, strict=True):
                    assert value is None or lists[name][i] == value, (name, *where)
                assert lists["block_tables"][i * len(table) : (i + 1) * len(table)] == table, where
                assert lists["ids"][i] == id, where
                seen.add((values[2] > 0, depth))
    assert len(seen) == 6  # sequences that go on and that do not, at each depth


def test_draws_are_chosen_on_the_device(ops):
    """Each row is drawn like the choice alone; rows that are not chosen stay."""
    rng = np.random.default_rng(4)
    vocab, num_plain, num_choices = 90, 2, 6
    logits = rng.normal(size=(num_plain + num_choices, vocab)).astype(np.float32) * 3
    params = [
        {
            "temperature": [0.0, 0.8, 1.3][i % 3],
            "top_k": [0, 5][i % 2],
            "seed": i,
            "repetition_penalty": [1.0, 1.6][i // 4],
            "logit_bias": {int(rng.integers(vocab)): 6.0} if i % 3 == 1 else {},
        }
        for i in range(num_plain + num_choices)
    ]
    histories = [rng.integers(0, vocab, 3 + i).tolist() for i in range(num_plain + num_choices)]
    alone = testing.Ops(1).sample(logits, params, histories)
    for choice in ([0, 1, 2, 3, 4, 5], [3, -1, 5, 5], [-1, -1], [1]):
        found = ops.sample(logits, params, histories, num_plain, np.array(choice, np.int32))
        assert found == [NOT_DRAWN if c < 0 else alone[num_plain + c] for c in choice]
