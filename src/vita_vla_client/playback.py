"""Which action is due, from chunks that arrive when they arrive.

Time is counted in ticks of the control loop. A chunk's action at index i was meant for the tick of its
observation plus i - ``execute_from``, whenever it arrives; actions that are overdue by then are skipped:

    tick               0   1   2   3   4   5   6   7   8   9  10
    chunk seen at 0    a0  a1  a2  a3  a4  a5
    chunk seen at 4, arrives before 6      b2  b3  b4  b5
    due                a0  a1  a2  a3  a4  a5  b2  b3  b4  b5  hold

No clock is read here, so the same chunks at the same ticks give the same actions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


class StaleActionsError(RuntimeError):
    """Nothing that may be executed is left: stop the robot."""


@dataclass(frozen=True)
class Step:
    """What to send to the robot now.

    Attributes:
        action_A: (A,) in the robot's units.
        source: ``"policy"``, ``"fallback"`` (the server's second policy) or ``"hold"``.
        age: Ticks since the observation that it answers; of a hold, since the last action's.
    """

    action_A: np.ndarray
    source: str
    age: int


class ChunkPlayer:
    """Plays action chunks by the tick, holds when they run out, and then gives up.

    Args:
        hold: Makes of the last action (A,) one that keeps the robot where it is (`holding`); None gives up at
            once.
        max_hold: Ticks for which it may hold, one after the other.
        execute_from: Index of a chunk's first action to execute (the checkpoint's setting).
        n_action_steps: How many actions of a chunk may be executed; None is all of them.
        ensemble_coeff: Average what all chunks say about a tick, with weights ``exp(-m i)``, i = 0 for the
            oldest (Zhao et al. 2023, algorithm 2; the paper's evaluation: m = 0.01); None takes the newest
            chunk alone.
        max_change_A: Largest change of each number from what was sent at one tick to the next, (A,), except
            into a hold: chunks agree with themselves, but the first action of a new one may be far from the
            last of the old.
    """

    def __init__(
        self,
        *,
        hold: Callable[[np.ndarray], np.ndarray] | None = None,
        max_hold: int = 10,
        execute_from: int = 0,
        n_action_steps: int | None = None,
        ensemble_coeff: float | None = None,
        max_change_A: np.ndarray | None = None,
    ):
        if max_hold < 0 or execute_from < 0 or (n_action_steps is not None and n_action_steps < 1):
            raise ValueError(
                f"max_hold and execute_from are 0 or more and n_action_steps is 1 or more, got {max_hold}, "
                f"{execute_from} and {n_action_steps}"
            )
        self._make_hold, self.max_hold = hold, max_hold
        self.execute_from, self.n_action_steps = execute_from, n_action_steps
        self.ensemble_coeff, self.max_change_A = ensemble_coeff, max_change_A
        self.reset()

    def reset(self) -> None:
        """Forget everything; call before an episode."""
        self._chunks: deque[tuple[int, np.ndarray]] = (
            deque()
        )  # tick of the observation and actions, old to new
        self._source = "policy"
        self._last: Step | None = None
        self._sent_A: np.ndarray | None = None  # what the robot was told last, holds included
        self._last_tick, self._held = -1, 0

    def offer(self, chunk_TA: np.ndarray, seen_at: int, source: str = "policy") -> bool:
        """Take a chunk into use from the next tick on.

        Args:
            chunk_TA: Actions (T, A).
            seen_at: Tick of the observation it answers.
            source: Who predicted it.

        Returns:
            Whether it is newer than the one in use; an older one changes nothing.

        Raises:
            ValueError: It is not a chunk of finite numbers.
        """
        chunk_TA = np.asarray(chunk_TA, dtype=np.float32)
        if chunk_TA.ndim != 2 or not chunk_TA.size or not np.isfinite(chunk_TA).all():
            raise ValueError(f"a chunk is (T, A) and finite, got shape {chunk_TA.shape}")
        if self._chunks and seen_at <= self._chunks[-1][0]:
            return False
        if self._sent_A is not None and chunk_TA.shape[1] != len(self._sent_A):
            raise ValueError(f"actions had {len(self._sent_A)} numbers, these have {chunk_TA.shape[1]}")
        if self.ensemble_coeff is None:
            self._chunks.clear()
        self._chunks.append((seen_at, chunk_TA))
        self._source = source
        return True

    def remaining(self, tick: int) -> int:
        """How many actions the newest chunk has left for ``tick`` and the ticks after it."""
        if not self._chunks:
            return 0
        seen_at, chunk_TA = self._chunks[-1]
        return max(0, self._end(chunk_TA) - (tick - seen_at + self.execute_from))

    def age(self, tick: int) -> int:
        """Ticks from the newest chunk's observation to ``tick``."""
        return tick - self._chunks[-1][0] if self._chunks else 0

    def action(self, tick: int) -> Step:
        """The action for this tick, which must be a later one than the last asked for.

        Raises:
            StaleActionsError: The chunks have run out, and holding is not allowed, or not any longer.
            ValueError: The tick lies in the past.
        """
        if tick <= self._last_tick:
            raise ValueError(f"tick {tick} was played already, the last one was {self._last_tick}")
        passed, self._last_tick = tick - self._last_tick, tick
        votes = self._votes(tick)
        if not votes:
            return self._hold(passed)
        self._held = 0
        weights = np.exp(-(self.ensemble_coeff or 0.0) * np.arange(len(votes)))
        action_A = np.average(votes, axis=0, weights=weights).astype(np.float32)
        if self.max_change_A is not None and self._sent_A is not None:
            action_A = within_change(action_A, self._sent_A, self.max_change_A)
        self._sent_A = action_A
        self._last = Step(action_A.copy(), self._source, self.age(tick))
        return self._last

    def _votes(self, tick: int) -> list[np.ndarray]:
        # Chunks may differ in length (the fallback's), so that a newer one may have ended before an older.
        placed = [(chunk_TA, tick - seen_at + self.execute_from) for seen_at, chunk_TA in self._chunks]
        while len(self._chunks) > 1 and placed[0][1] >= self._end(placed[0][0]):
            placed.pop(0)
            self._chunks.popleft()
        first = self.execute_from
        return [chunk_TA[i] for chunk_TA, i in placed if first <= i < self._end(chunk_TA)]

    def _hold(self, passed: int) -> Step:
        self._held += passed
        if self._last is None:
            raise StaleActionsError("no action chunk has arrived yet")
        age = self._last.age + self._held
        if self._make_hold is None or self._held > self.max_hold:
            allowed = self.max_hold if self._make_hold is not None else 0
            raise StaleActionsError(
                f"the last action chunk answers an observation of {age} ticks ago, its actions are used up, "
                f"and {allowed} ticks of holding are over: is the server slow, or the connection lost?"
            )
        self._sent_A = np.asarray(self._make_hold(self._sent_A), dtype=np.float32)
        return Step(self._sent_A.copy(), "hold", age)

    def _end(self, chunk_TA: np.ndarray) -> int:
        if self.n_action_steps is None:
            return len(chunk_TA)
        return min(len(chunk_TA), self.execute_from + self.n_action_steps)


def within_change(action_A: np.ndarray, before_A: np.ndarray, max_change_A: np.ndarray) -> np.ndarray:
    """The action, or the nearest to it that differs from the one before by no more than allowed."""
    change_A = action_A - before_A
    far_A = np.abs(change_A) > max_change_A * (1 + 1e-5)  # float32 misses a limit that is kept exactly
    limited_A = before_A + np.clip(change_A, -max_change_A, max_change_A)
    return np.where(far_A, limited_A, action_A).astype(np.float32)


def holding(action_mode: str | None, keep: list[int]) -> Callable[[np.ndarray], np.ndarray] | None:
    """What `ChunkPlayer` needs to hold a robot still.

    Args:
        action_mode: ``"absolute"`` (targets: the last one is kept), ``"delta"`` (displacements: none), or
            None,
            where nothing is known and holding is not possible.
        keep: Dimensions that are commands in any case, such as the gripper's: they keep their last value.
    """
    if action_mode == "absolute":
        return lambda last_A: last_A.copy()
    if action_mode == "delta":

        def still(last_A: np.ndarray) -> np.ndarray:
            action_A = np.zeros_like(last_A)
            action_A[keep] = last_A[keep]
            return action_A

        return still
    return None
