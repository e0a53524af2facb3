"""How many draft tokens the policy makes, for given acceptances and times of steps."""

from __future__ import annotations

import random

import pytest
from longcat import _testing as testing


class Simulation:
    """Decodes with draft tokens: a step takes 1, and half of `cost` more for each one that it verifies or makes.

    Args:
        batch: sequences that decode together.
        noise: share of steps that take ten times as long.
    """

    def __init__(self, most=3, batch=1, noise=0.0, adaptive=True):
        self.policy = testing.DraftPolicy(most, adaptive)
        self.random = random.Random(1)
        self.noise = noise
        self.sequences = [testing.DraftAcceptance() for _ in range(batch)]
        self.drafts = [0] * batch
        self.num_drafted = [0] * batch  # of each sequence

    def speed(self, steps, acceptance, cost):
        """Returns tokens a step in the time of steps without draft tokens.

        Args:
            acceptance: share of draft tokens that are accepted, of all sequences or of each.
            cost: of a draft token.
        """
        batch = len(self.sequences)
        shares = acceptance if isinstance(acceptance, list) else [acceptance] * batch
        time = tokens = 0
        for _ in range(steps):
            self.policy.begin_plan(batch)
            wanted = [self.policy.num_drafts(sequence) for sequence in self.sequences]
            verified, made = sum(self.drafts), sum(wanted)
            elapsed = 1 + cost * (verified + made) / 2
            for i, sequence in enumerate(self.sequences):
                accepted = 0
                while accepted < self.drafts[i] and self.random.random() < shares[i]:
                    accepted += 1
                tokens += 1 + accepted
                if self.drafts[i]:
                    self.policy.record_verified(sequence, self.drafts[i], accepted)
            late = 10 if self.random.random() < self.noise else self.random.uniform(0.95, 1.05)
            self.policy.record_step(batch, verified, made, elapsed * late)
            time += elapsed
            self.drafts = wanted
            self.num_drafted = [sum(pair) for pair in zip(self.num_drafted, wanted, strict=True)]
        return tokens / batch / time


def test_a_sequence_without_drafts_keeps_no_other_from_trying():
    """The first never asks for draft tokens, as one whose output a grammar constrains."""
    policy, free = testing.DraftPolicy(3, True), testing.DraftAcceptance()

    def tried(plans, is_right):
        total = 0
        for _ in range(plans):
            policy.begin_plan(2)
            made = policy.num_drafts(free)
            total += made
            if made:
                policy.record_verified(free, made, made if is_right else 0)
            policy.record_step(2, made, made, 1 + made * (0.05 if is_right else 1))
        return total

    assert 0 < tried(600, is_right=False) < 60
    assert tried(600, is_right=True) > 300


def test_drafts_are_made_beside_a_long_prompt():
    """No step decodes only, so no time of a plain step is known."""
    policy, sequence = testing.DraftPolicy(3, True), testing.DraftAcceptance()
    policy.begin_plan(2, False)
    assert policy.num_drafts(sequence) > 0


def best_fixed(most, acceptance, cost):
    return max(sum(acceptance**i for i in range(k + 1)) / (1 + cost * k) for k in range(most + 1))


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("cost", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("acceptance", [0.0, 0.2, 0.6, 0.8425, 0.95])
def test_the_best_count_is_found(acceptance, cost, noise):
    """At the acceptance of the authors, three drafts give 3.15 tokens a step."""
    simulation = Simulation(noise=noise)
    simulation.speed(200, acceptance, cost)
    assert simulation.speed(3000, acceptance, cost) > 0.97 * best_fixed(3, acceptance, cost)


def test_drafting_that_never_pays_is_off():
    simulation = Simulation()
    simulation.speed(100, 0.0, 0.4)
    [before] = simulation.num_drafted
    assert simulation.speed(1000, 0.0, 0.4) > 0.99
    assert 0 < simulation.num_drafted[0] - before < 30
    assert simulation.policy.acceptance < 0.2 and simulation.policy.num_drafts_now <= 1


def test_a_change_of_the_text_is_noticed():
    simulation = Simulation()
    simulation.speed(500, 0.0, 0.3)
    simulation.speed(400, 0.9, 0.3)
    assert simulation.speed(500, 0.9, 0.3) > 0.95 * best_fixed(3, 0.9, 0.3)
    simulation.speed(100, 0.0, 0.3)
    assert simulation.speed(500, 0.0, 0.3) > 0.97


def test_a_change_of_the_times_is_noticed():
    simulation = Simulation()
    assert simulation.speed(500, 0.5, 0.1) > 1.2
    simulation.speed(300, 0.5, 2.0)
    assert simulation.speed(1000, 0.5, 2.0) > 0.97


def test_sequences_of_a_batch_differ():
    simulation = Simulation(batch=4)
    simulation.speed(300, [0.0, 0.0, 0.9, 0.9], 0.1)
    simulation.num_drafted = [0] * 4
    simulation.speed(100, [0.0, 0.0, 0.9, 0.9], 0.1)
    assert max(simulation.num_drafted[:2]) < 20 and min(simulation.num_drafted[2:]) > 200, simulation.num_drafted


def test_new_sequences_begin_as_the_others_do():
    simulation = Simulation()
    simulation.speed(300, 0.0, 0.4)
    simulation.sequences = [testing.DraftAcceptance()]
    [before] = simulation.num_drafted
    simulation.speed(30, 0.0, 0.4)
    assert simulation.num_drafted[0] - before <= 1


def test_a_fixed_count():
    simulation = Simulation(most=5, adaptive=False)
    simulation.speed(100, 0.0, 1.0)
    assert simulation.num_drafted == [500]
