"""How many episodes one inference call serves, without any of them noticing the others.

A row's numbers must not depend on who else is in the batch: a policy in closed loop amplifies a rounding
difference until an episode ends otherwise. `settle_batch` therefore tries it out and batches only what proves
independent, bit by bit: of the other rows' content, of the place in the call, and of the number of rows.
Where the number of rows matters (a kernel is chosen by it), calls are filled up to a number that does not.

What follows: with the same device, threads and rows per call an episode's outcome is a function of the policy
and the episode. Between different rows per call, threads or devices nothing is promised, and nothing compared
without saying so (`checks.NUMERICS`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from lerobot_policy_vita_vla.demos.scenes import STATE, instruction, scenes_of
from lerobot_policy_vita_vla.evaluation.manifest import Manifest

logger = logging.getLogger(__name__)


class BatchPlan(NamedTuple):
    """How inference calls are made up.

    Attributes:
        rows: Most rows of a call.
        mixed_tasks: Rows may have different instructions.
        stochastic: The policy draws random numbers: one row per call, each with its own seed.
        sizes: Numbers of rows that give the same bits as ``rows``, ascending, itself included.
    """

    rows: int
    mixed_tasks: bool
    stochastic: bool
    sizes: tuple[int, ...] = ()

    def size(self, waiting: int) -> int:
        """Rows of the next call for so many waiting episodes.

        The next larger size if three quarters of it are filled, else the next smaller one, which leaves some
        waiting (our choice: with the quickstart's student either way costs the same per row at two thirds).
        """
        sizes = self.sizes or (self.rows,)
        smaller = [size for size in sizes if size <= waiting]
        larger = [size for size in sizes if size >= waiting]
        if smaller and (not larger or 4 * waiting < 3 * larger[0]):
            return smaller[-1]
        return larger[0]


def next_batch(waiting: list[tuple[int, dict]], plan: BatchPlan) -> tuple[list, list]:
    """Split off the rows of the next call, oldest first, of one instruction unless the plan mixes them.

    Args:
        waiting: Slot and observation of every episode that waits for a chunk, oldest first; not empty.
        plan: How calls are made up.

    Returns:
        The rows, at most ``plan.rows``, and those that go on waiting.
    """
    task = waiting[0][1]["task"]
    fitting = [item for item in waiting if plan.mixed_tasks or item[1]["task"] == task]
    rows = fitting[: plan.size(len(fitting))]
    taken = {slot for slot, _ in rows}
    return rows, [item for item in waiting if item[0] not in taken]


def settle_batch(
    predict: Callable[[list[dict]], np.ndarray],
    manifest: Manifest,
    rows: int,
    history: int,
    *,
    rounds: bool = False,
) -> tuple[BatchPlan, tuple[int, ...]]:
    """Find out how many rows a call may hold without any row depending on the others.

    Tried bit for bit on random observations, in calls of ``rows`` rows: a row's place, and company with other
    instructions, then with the same instruction; where neither proves independent (some CPU kernels round a
    row by its place), one row per call is left. Then which smaller calls give the same bits.

    Args:
        predict: `ChunkPredictor.predict`.
        manifest: Gives picture size and tasks.
        rows: Wanted rows per call.
        history: Observations per row, H.
        rounds: The policy computes in half precision, which hides most differences: with the quickstart's
            student, whose rows are padded to the longest instruction of their call, one prediction in a
            hundred differs. Too few to be seen here, so instructions are not mixed.

    Returns:
        The plan, and the shape (1, T, A) of one prediction.

    Raises:
        ValueError: If the policy cannot predict from the simulator's observations at all.
    """
    generator = np.random.default_rng(0)
    size, scenes = manifest.observation_size, scenes_of(manifest.suite)
    words = {task: instruction(scenes.name, task) for task in manifest.tasks}
    lead = () if history == 1 else (history,)

    def observe(task: str) -> dict[str, Any]:
        seen: dict[str, Any] = {
            key: generator.integers(0, 256, (*lead, size, size, 3), dtype=np.uint8) for key in scenes.cameras
        }
        seen[STATE] = generator.uniform(-0.2, 0.6, (*lead, scenes.state_dim))
        seen["task"] = words[task]
        if history > 1:
            # Episodes are at different steps, so the rows of a call have histories of different lengths.
            seen[f"{STATE}_is_pad"] = np.arange(history) < generator.integers(0, history)
        return seen

    mine = observe(manifest.tasks[0])
    # Two calls with different random numbers: a sampling decoder needs its own seed per episode, thus its own
    # call.
    torch.manual_seed(1)
    try:
        alone = predict([mine])
    except Exception as error:
        raise ValueError(
            f"the policy cannot predict from what the simulator shows ({type(error).__name__}: {error}). "
            f"It gets {', '.join(scenes.cameras.values())}, observation.state and task; if it needs a queue "
            "of its own, use `lerobot-eval --policy.path=... --env.type=...`"
        ) from error
    torch.manual_seed(2)
    if not np.array_equal(alone, predict([mine])):
        return BatchPlan(rows=1, mixed_tasks=True, stochastic=True), alone.shape
    if rows == 1:
        return BatchPlan(rows=1, mixed_tasks=True, stochastic=False), alone.shape
    longest = max(manifest.tasks, key=lambda task: len(words[task]))
    shortest = min(manifest.tasks, key=lambda task: len(words[task]))

    def unmoved(own: str, company: str) -> bool:
        me = observe(own)
        others = [observe(company) for _ in range(rows - 1)]
        reference = predict([me] * rows)[0]
        return all(
            np.array_equal(predict([*others[:place], me, *others[place:]])[place], reference)
            for place in {0, rows // 2, rows - 1}
        )

    # A tokenizer that pads to the longest instruction moves the row of a shorter one.
    for mixed, pairs in (
        (True, ((shortest, longest), (longest, shortest))),
        (False, ((longest, longest), (shortest, shortest))),
    ):
        if mixed and rounds and longest != shortest:
            continue
        if all(unmoved(*pair) for pair in pairs):
            # The shortest among themselves make a shorter call where others do not lengthen it.
            companies = [(longest, shortest if mixed else longest), (shortest, shortest)]
            calls = [[observe(pair[row % 2]) for row in range(rows)] for pair in companies]
            return BatchPlan(rows, mixed, False, _equal_sizes(predict, calls)), alone.shape
    logger.warning(
        "rows of one inference call are not independent of each other here: predicting one at a time"
    )
    return BatchPlan(rows=1, mixed_tasks=True, stochastic=False), alone.shape


def _equal_sizes(predict: Callable[[list[dict]], np.ndarray], calls: list[list[dict]]) -> tuple[int, ...]:
    """Which powers of two below the full number of rows give each row the bits that a full call gives it."""
    rows = len(calls[0])
    full = [predict(call) for call in calls]
    sizes = [2**power for power in range((rows - 1).bit_length())]
    equal = [
        size
        for size in sizes
        if all(
            np.array_equal(predict(call[:size]), answer[:size])
            for call, answer in zip(calls, full, strict=True)
        )
    ]
    return (*equal, rows)
