"""An answer to each request in time: the policy's chunk, the second policy's, or an error.

request -> policy, in its own thread ------+-- in time and within limits -> its chunk
-> second policy, in another ------+-- otherwise                 -> the second policy's chunk
+-- neither                   -> an error, and the robot holds
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from lerobot_policy_vita_vla.serving.lane import Lane
from lerobot_policy_vita_vla.serving.limits import ActionLimits, UnusableActionsError, check_finite
from lerobot_policy_vita_vla.serving.served import ServedPolicy

logger = logging.getLogger(__name__)

FALLBACK_GRACE_MS = 200.0
"""How much later than the deadline the second policy's answer may come; it has started together with the
first."""


class NoAnswerError(RuntimeError):
    """There is no action that may be sent.

    Attributes:
        kind: ``"deadline"``, ``"actions"`` (not finite or far outside the limits) or ``"policy"`` (it
            failed).
    """

    def __init__(self, kind: str, words: str):
        super().__init__(words)
        self.kind = kind


class Responder:
    """Answers robots' requests.

    Args:
        policy: Who acts.
        fallback: Who acts where the policy is late or wrong, usually the teacher; None is nobody.
        limits: What a robot may be told; None checks only that numbers are finite.
        deadline_ms: How long an answer may take where the request does not say it; None is for ever.

    Raises:
        ValueError: The two policies do not act alike on the same observations.
    """

    def __init__(
        self,
        policy: ServedPolicy,
        *,
        fallback: ServedPolicy | None = None,
        limits: ActionLimits | None = None,
        deadline_ms: float | None = None,
    ):
        self.policy, self.fallback = policy, fallback
        self.limits, self.deadline_ms = limits, deadline_ms
        if fallback is not None:
            _check_alike(policy, fallback)
        self.lanes = (Lane(policy, "policy"),)
        if fallback is not None:
            self.lanes += (Lane(fallback, "fallback"),)

    def warm_up(self, times: int = 2) -> None:
        """Predict on a blank observation; the first predictions compile and allocate.

        Raises:
            ValueError: A policy does not predict a chunk of finite numbers.
        """
        for lane in self.lanes:
            # In the thread that will serve: some of what warms up belongs to a thread.
            lane.submit(self._warm_up, lane.served, times).result()

    def _warm_up(self, served: ServedPolicy, times: int) -> None:
        session, blank = served.session(), served.blank()
        for _ in range(times):
            chunk_TA = session.act(blank)
        if chunk_TA.ndim != 2:
            raise ValueError(f"the policy predicts {chunk_TA.shape} instead of a chunk (T, A)")
        if self.limits is not None and chunk_TA.shape[1] != len(self.limits.low_A):
            raise ValueError(
                f"the policy's actions have {chunk_TA.shape[1]} numbers, the limits from "
                f"{self.limits.source} are for {len(self.limits.low_A)} numbers per action"
            )
        check_finite(chunk_TA)

    def open(self) -> Conversation:
        """For one robot."""
        return Conversation(self)

    def close(self) -> None:
        """Let the threads go."""
        for lane in self.lanes:
            lane.close()


class Conversation:
    """One robot's requests, one after the other.

    Args:
        responder: Who answers.
    """

    def __init__(self, responder: Responder):
        self.responder = responder
        self.reset()

    def reset(self) -> None:
        """A new episode begins."""
        # New ones: requests that were given up still use theirs.
        self._sessions = {lane: lane.served.session() for lane in self.responder.lanes}

    async def observe(self, observation: Mapping[str, Any]) -> None:
        """Remember a step without acting on it, however long that takes: a history must have no gap."""
        started = {lane: lane.submit(s.observe, observation) for lane, s in self._sessions.items()}
        try:
            for lane, future in started.items():
                await self._result(lane, future, None)
        finally:
            self._clear(started)

    async def act(
        self, observation: Mapping[str, Any], deadline_ms: float | None = None, began: float | None = None
    ) -> dict[str, Any]:
        """Chunk for a checked observation, with who made it.

        Args:
            observation: See `ServedPolicy.check`.
            deadline_ms: The request's own; the responder's holds where it is the earlier one.
            began: When the request arrived (`time.perf_counter`); None is now.

        Returns:
            ``"actions"`` (T, A) float32, ``"source"``, ``"limited"``, ``"infer_ms"``, and with the second
            policy's chunk ``"reason"``.

        Raises:
            NoAnswerError: No chunk may be sent.
        """
        deadlines = [ms for ms in (deadline_ms, self.responder.deadline_ms) if ms is not None]
        asked = time.perf_counter()
        until = (asked if began is None else began) + min(deadlines) / 1e3 if deadlines else None
        started = {lane: lane.submit(s.act, observation) for lane, s in self._sessions.items()}
        reason: NoAnswerError | None = None
        try:
            for lane, future in started.items():
                try:
                    left_s = None if until is None else max(0.0, until - time.perf_counter())
                    chunk_TA, limited = self._allowed(await self._result(lane, future, left_s))
                except NoAnswerError as error:
                    reason = reason or error
                    # The second policy answers where the first cannot: it must not be late because of it.
                    until = None if until is None else until + FALLBACK_GRACE_MS / 1e3
                    continue
                answer = {"actions": chunk_TA, "source": lane.name, "limited": limited}
                if reason is not None:
                    logger.warning("the second policy answers: %s", reason)
                    answer["reason"] = str(reason)
                return answer | {"infer_ms": 1e3 * (time.perf_counter() - asked)}
        finally:
            self._clear(started)
        raise reason

    async def _result(self, lane: Lane, future: Future, left_s: float | None) -> Any:
        waiting = asyncio.wrap_future(future)
        waiting.add_done_callback(lambda f: f.cancelled() or f.exception())  # told below, or to the log
        done, _ = await asyncio.wait({waiting}, timeout=left_s)
        if not done:
            raise NoAnswerError("deadline", "the policy's answer was not ready in time")
        try:
            return waiting.result()
        except Exception as error:
            logger.exception("the %s failed", lane.name)
            words = f"the policy failed with {type(error).__name__}; see the server's log"
            raise NoAnswerError("policy", words) from None

    def _clear(self, started: Mapping[Lane, Future]) -> None:
        """Nobody waits for these any more, whether they were answered, given up, or their robot has gone."""
        for lane, future in started.items():
            if future.done():
                continue
            if lane.take_back(future):
                if lane.served.n_obs_steps > 1:
                    # The step is missing now: a history starts anew rather than with a gap.
                    logger.warning("the %s was not asked in time and has lost its history", lane.name)
                    self._sessions[lane] = lane.served.session()
            else:
                future.add_done_callback(lambda f, name=lane.name: _log_failure(name, f))

    def _allowed(self, chunk_TA: np.ndarray) -> tuple[np.ndarray, int]:
        try:
            if self.responder.limits is not None:
                return self.responder.limits.apply(chunk_TA)
            check_finite(chunk_TA)
            return chunk_TA, 0
        except UnusableActionsError as error:
            raise NoAnswerError("actions", f"the policy's actions may not be sent: {error}") from None


def _log_failure(name: str, future: Future) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        logger.error("the %s failed, unheard", name, exc_info=error)


def _check_alike(policy: ServedPolicy, fallback: ServedPolicy) -> None:
    mine, theirs = (p.config.output_features["action"].shape for p in (policy, fallback))
    if tuple(mine) != tuple(theirs):
        raise ValueError(
            f"the policy's actions have {mine} numbers, the fallback's {theirs}: it cannot stand in"
        )
    for key, wanted in fallback.observation.items():
        if policy.observation.get(key) != wanted:
            have = {k: w.shape for k, w in policy.observation.items()}
            raise ValueError(
                f"the fallback reads {key} {wanted.shape}, the policy {have}: give the teacher that it "
                "learned from"
            )
    rates = [
        (p.config.recording or {}).get("control_hz")
        for p in (policy, fallback)
        if hasattr(p.config, "recording")
    ]
    if len(set(filter(None, rates))) > 1:
        raise ValueError(f"the policy and its fallback were trained at different rates, {rates} Hz")
