"""From action chunks to single actions, and from single observations to a history.

A chunk of T actions is predicted at once. Either its first ``n_action_steps`` are executed open loop and then
a new chunk is asked for, or a chunk is predicted at every step and overlapping predictions are averaged with
weights ``exp(-m i)``, i = 0 for the oldest (the paper's evaluation: m = 0.01; Zhao et al. 2023, algorithm 2).

Index 0 of a chunk is meant for the step at which it is predicted. ``execute_from`` = k starts execution at
index k instead, so that every action comes k steps early (the paper's code on CALVIN: k = 1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ChunkExecutor:
    """Hands out one action per step from predicted chunks.

    Args:
        chunk_size: T.
        n_action_steps: How many actions of a chunk are executed before the next is predicted, 1..T.
        ensemble_coeff: m of the temporal ensembling, or None. Needs ``n_action_steps == 1``, since every step
            predicts.
        execute_from: Index of the first action that is executed, 0..T - n_action_steps; not with ensembling.
    """

    def __init__(
        self,
        *,
        chunk_size: int,
        n_action_steps: int,
        ensemble_coeff: float | None = None,
        execute_from: int = 0,
    ):
        check_chunking(chunk_size, n_action_steps, ensemble_coeff, execute_from)
        self.chunk_size, self.n_action_steps, self.ensemble_coeff = chunk_size, n_action_steps, ensemble_coeff
        self.execute_from = execute_from
        self.reset()

    @classmethod
    def of(cls, config: Any) -> ChunkExecutor:
        """As a policy's settings say; one that has no ``execute_from`` starts at the first action."""
        return cls(
            chunk_size=config.chunk_size,
            n_action_steps=config.n_action_steps,
            ensemble_coeff=config.temporal_ensemble_coeff,
            execute_from=getattr(config, "execute_from", 0),
        )

    def reset(self) -> None:
        """Forget all predictions; call at the start of an episode."""
        # LeRobot's rollout drops pending actions by this attribute's name.
        self._action_queue: deque[Tensor] = deque()
        self._recent: deque[Tensor] = deque(maxlen=self.chunk_size)

    @property
    def needs_prediction(self) -> bool:
        """Whether the next `next_action` will ask for a chunk (evaluation renders only then)."""
        return self.ensemble_coeff is not None or not self._action_queue

    def next_action(self, predict: Callable[[], Tensor]) -> Tensor:
        """Return the next action (B, A); ``predict()`` gives a chunk (B, T, A) where one is needed."""
        if self.ensemble_coeff is not None:
            return self._ensemble(predict())
        if not self._action_queue:
            executed = slice(self.execute_from, self.execute_from + self.n_action_steps)
            self._action_queue.extend(predict()[:, executed].transpose(0, 1))
        return self._action_queue.popleft()

    def _ensemble(self, chunk_BTA: Tensor) -> Tensor:
        self._recent.append(chunk_BTA)
        # The chunk predicted j steps ago says at its index j what to do now; the deque runs old to new.
        newest = len(self._recent) - 1
        votes = torch.stack([chunk[:, newest - i] for i, chunk in enumerate(self._recent)])
        weights = torch.exp(-self.ensemble_coeff * torch.arange(len(votes), device=votes.device))
        return torch.einsum("n,nba->ba", (weights / weights.sum()).to(votes.dtype), votes)


def check_chunking(
    chunk_size: int, n_action_steps: int, ensemble_coeff: float | None, execute_from: int = 0
) -> None:
    """Raise ValueError for settings that contradict each other."""
    if not 1 <= n_action_steps <= chunk_size:
        raise ValueError(
            f"n_action_steps must lie in 1..chunk_size ({chunk_size}), got {n_action_steps}: a policy "
            "cannot execute more actions than it predicts"
        )
    if ensemble_coeff is not None and n_action_steps != 1:
        raise ValueError(
            "temporal ensembling predicts at every step, so n_action_steps must be 1, got "
            f"{n_action_steps}; pass --policy.n_action_steps=1"
        )
    if execute_from < 0:
        raise ValueError(f"execute_from is an index into the chunk, 0 or more, got {execute_from}")
    if execute_from and ensemble_coeff is not None:
        # Votes for a later step could be averaged too, but nothing that was ever evaluated does so.
        raise ValueError(
            "temporal ensembling averages what several chunks say about the present step, execute_from="
            f"{execute_from} executes what is meant for a later one; pass --policy.execute_from=0, or "
            "--policy.n_action_steps=1 without a temporal_ensemble_coeff"
        )
    if execute_from + n_action_steps > chunk_size:
        raise ValueError(
            f"a chunk of {chunk_size} has no {n_action_steps} actions (n_action_steps) from index "
            f"{execute_from} (execute_from) on; pass "
            + (
                f"--policy.n_action_steps={chunk_size - execute_from}"
                if execute_from < chunk_size
                else f"--policy.execute_from={chunk_size - n_action_steps}"
            )
        )


class ObservationHistory:
    """The last H observations, stacked on a new axis after the batch: (B, H, ...).

    Shorter histories are filled by repeating the first observation, which is what LeRobot's dataset does at
    an episode's start; as there, ``<key>_is_pad`` (B, H) is True for what was filled in.

    Args:
        n_obs_steps: H.
        keys: Batch keys to stack; the others pass through.
    """

    def __init__(self, *, n_obs_steps: int, keys: tuple[str, ...]):
        self.n_obs_steps, self.keys = n_obs_steps, keys
        self.reset()

    def reset(self) -> None:
        """Forget everything; call at the start of an episode."""
        self._past: dict[str, deque[Tensor]] = {key: deque(maxlen=self.n_obs_steps) for key in self.keys}

    def push(self, batch: dict) -> dict:
        """Add this step's observation and return the batch with the history in its place."""
        stacked = dict(batch)
        for key, past in self._past.items():
            past.append(batch[key])
            frames = [past[0]] * (self.n_obs_steps - len(past)) + list(past)
            stacked[key] = torch.stack(frames, dim=1)
            if self.n_obs_steps > 1:
                is_pad = torch.arange(self.n_obs_steps) < self.n_obs_steps - len(past)
                stacked[f"{key}_is_pad"] = is_pad.repeat(len(batch[key]), 1)
        return stacked
