"""The loop of an evaluation: whoever waits for actions gets them, whoever has ended takes the next episode.

Nobody waits for anybody. Twice as many episodes are under way as a call has rows, so that half of them
simulate while the other half is predicted; a slot whose episode has ended takes the next one at once; a call
is filled up only where the policy needs it (`batching`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch

from lerobot_policy_vita_vla.evaluation.batching import BatchPlan, next_batch
from lerobot_policy_vita_vla.evaluation.manifest import Episode
from lerobot_policy_vita_vla.evaluation.pool import EpisodeQueue, WorkerPool
from lerobot_policy_vita_vla.evaluation.predictor import ChunkPredictor
from lerobot_policy_vita_vla.evaluation.record import RunRecord


def play(
    pool: WorkerPool,
    predictor: ChunkPredictor | None,
    plan: BatchPlan,
    record: RunRecord,
    queue: EpisodeQueue,
    first: Mapping[int, Episode],
) -> None:
    """Play until every episode has ended.

    Args:
        pool: Simulators, set up.
        predictor: The policy; None where nobody asks.
        plan: How its calls are made up.
        record: Where outcomes go.
        queue: Episodes that are not in ``first``.
        first: Slot -> the episode that it begins with.

    Raises:
        ValueError: If the policy gives an action that is not finite.
        RuntimeError: If a simulator process fails.
    """
    running: dict[int, Episode] = {}
    waiting: list[tuple[int, dict]] = []
    asked: Counter[int] = Counter()

    def start(slot: int, episode: Episode | None) -> None:
        if episode is not None:
            running[slot], asked[slot] = episode, 0
            pool.send(slot, "episode", (episode, record.films(episode.task)))

    for slot, episode in first.items():
        start(slot, episode)
    while running:
        # A fuller call costs less per row: half of the episodes may as well wait while the others simulate.
        enough = min(plan.rows, (len(running) + 1) // 2)
        for kind, slot, content in pool.receive(block=len(waiting) < enough):
            if kind == "observation":
                waiting.append((slot, content))
            elif kind == "finished":
                episode = running.pop(slot)
                # The simulator goes on before this one's books are kept.
                start(slot, queue.next(episode.task, pool.home(slot)))
                record.add(episode, content)
            else:
                record.set_renderer(*content)
        if len(waiting) >= enough > 0:
            rows, waiting = next_batch(waiting, plan)
            if plan.stochastic:
                slot = rows[0][0]
                torch.manual_seed(noise_seed(running[slot].seed, asked[slot]))
            # Filled up to a number of rows that is known to give these bits: kernels, and their rounding,
            # depend on it.
            observations = [observation for _, observation in rows]
            chunks = predictor.predict(observations + observations[:1] * (plan.size(len(rows)) - len(rows)))
            for (slot, _), chunk in zip(rows, chunks, strict=False):
                if not np.isfinite(chunk).all():
                    raise ValueError(
                        f"the policy gave an action that is not finite in episode {running[slot].id}"
                    )
                asked[slot] += 1
                pool.send(slot, "chunk", chunk)


def noise_seed(episode_seed: int, prediction: int) -> int:
    """Seed of the random numbers of an episode's n-th prediction."""
    return int(np.random.SeedSequence([episode_seed, prediction]).generate_state(1)[0])
