"""Which rows may share an inference call."""

import numpy as np
import pytest
import torch

from evaluation_helpers import LookingPredictor, short_manifest
from lerobot_policy_vita_vla.evaluation.batching import BatchPlan, next_batch, settle_batch
from lerobot_policy_vita_vla.evaluation.play import noise_seed

MANIFEST = short_manifest()


class Leaky(LookingPredictor):
    """Rows that hear from their neighbours."""

    def __init__(self, hears):
        super().__init__()
        self.hears = hears

    def predict(self, observations):
        answers = super().predict(observations)
        return answers + np.float32(1e-7) * self.hears(observations)


def test_independent_rows_share_calls():
    plan, shape = settle_batch(LookingPredictor().predict, MANIFEST, 4, history=1)
    assert plan == (4, True, False, (1, 2, 4))
    assert shape == (1, 3, 4)


def test_rows_that_feel_other_instructions_share_calls_only_with_their_own():
    padded_to_longest = Leaky(lambda rows: max(len(row["task"]) for row in rows))
    plan, _ = settle_batch(padded_to_longest.predict, MANIFEST, 4, history=1)
    assert plan == (4, False, False, (1, 2, 4))


def test_a_policy_that_rounds_is_not_trusted_with_mixed_instructions():
    plan, _ = settle_batch(LookingPredictor().predict, MANIFEST, 4, history=1, rounds=True)
    assert plan == (4, False, False, (1, 2, 4))
    alike = short_manifest().__class__(**{**vars(MANIFEST), "episodes": MANIFEST.episodes[:1]})
    assert settle_batch(LookingPredictor().predict, alike, 4, history=1, rounds=True)[0].mixed_tasks


def test_calls_are_filled_up_to_the_numbers_of_rows_that_give_the_same_bits():
    # A kernel for few rows that rounds otherwise.
    few = Leaky(lambda rows: len(rows) < 4)
    plan, _ = settle_batch(few.predict, MANIFEST, 8, history=1)
    assert plan == (8, True, False, (4, 8))
    assert [plan.size(waiting) for waiting in (1, 3, 4, 5, 6, 7, 8, 20)] == [4, 4, 4, 4, 8, 8, 8, 8]
    plan, _ = settle_batch(few.predict, MANIFEST, 6, history=1)
    assert plan.sizes == (4, 6)
    always = Leaky(len)
    assert settle_batch(always.predict, MANIFEST, 4, history=1)[0].sizes == (4,)
    plan, _ = settle_batch(LookingPredictor().predict, MANIFEST, 8, history=1)
    assert [plan.size(waiting) for waiting in (1, 2, 3, 5, 7, 8)] == [1, 2, 4, 4, 8, 8]


@pytest.mark.parametrize(
    "hears",
    [
        lambda rows: sum(int(row["pixels"].ravel()[0]) for row in rows),
        lambda rows: np.arange(len(rows))[:, None, None],
    ],
    ids=["content", "place"],
)
def test_rows_that_feel_the_others_are_predicted_alone(hears, caplog):
    plan, _ = settle_batch(Leaky(hears).predict, MANIFEST, 4, history=1)
    assert plan[:3] == (1, True, False)
    assert plan.size(5) == 1
    assert "one at a time" in caplog.text


def test_a_policy_that_draws_random_numbers_gets_a_seed_per_row():
    class Sampling(LookingPredictor):
        def answer(self, row):
            return super().answer(row) + torch.rand(1).numpy()

    plan, _ = settle_batch(Sampling().predict, MANIFEST, 4, history=1)
    assert plan[:3] == (1, True, True)
    seeds = {noise_seed(episode, prediction) for episode in (1, 2) for prediction in range(50)}
    assert len(seeds) == 100


def test_a_policy_that_does_not_fit_says_so():
    class Unfit(LookingPredictor):
        def answer(self, row):
            return row["observation.images.wrist"]

    with pytest.raises(ValueError, match=r"(?s)KeyError.*wrist.*lerobot-eval"):
        settle_batch(Unfit().predict, MANIFEST, 4, history=1)


def test_calls_take_the_longest_waiting_first():
    waiting = [(slot, {"task": task}) for slot, task in enumerate("aabab")]
    mixed, alike = BatchPlan(2, True, False), BatchPlan(2, False, False)
    padded, exact = BatchPlan(4, False, False, (4,)), BatchPlan(4, False, False, (1, 2, 4))

    def split(waiting, plan):
        rows, rest = next_batch(waiting, plan)
        return [slot for slot, _ in rows], [slot for slot, _ in rest]

    assert split(waiting[1:], mixed) == ([1, 2], [3, 4])
    assert split(waiting[2:], alike) == ([2, 4], [3])
    assert split(waiting, padded) == ([0, 1, 3], [2, 4])
    assert split(waiting, exact) == ([0, 1, 3], [2, 4])
    assert split([*waiting, (5, {"task": "a"}), (6, {"task": "a"})], exact) == ([0, 1, 3, 5], [2, 4, 6])
