"""An answer to each request in time: the policy's chunk, the second policy's, or an error; never a wrong
action.

request -> policy, in its own thread ------+-- in time and within limits -> its chunk
-> second policy, in another ------+-- otherwise                 -> the second policy's chunk
+-- neither                   -> an error, and the robot holds
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from lerobot_policy_vita_vla.serving.limits import ActionLimits, UnusableActionsError, check_finite
from lerobot_policy_vita_vla.serving.served import ServedPolicy

logger = logging.getLogger(__name__)

FALLBACK_GRACE_MS = 200.0
"""How much longer the second policy may take, which has started together with the first."""


class NoAnswerError(RuntimeError):
    """There is no action that may be sent.

    Attributes:
        kind: ``"deadline"``, ``"actions"`` (not finite or far outside the limits) or ``"policy"`` (it
            failed).
    """

    def __init__(self, kind: str, words: str):
        super().__init__(words)
        self.kind = kind


class Lane:
    """A policy and the one thread that it runs in, for all robots.

    Args:
        served: The policy.
        name: ``"policy"`` or ``"fallback"``.
    """

    def __init__(self, served: ServedPolicy, name: str):
        self.served, self.name = served, name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def submit(self, work: Callable[..., Any], *args: Any) -> Future:
        """Run something in the policy's thread, after what was submitted before."""
        return self._thread.submit(work, *args)

    def close(self) -> None:
        """Do not wait for what is running."""
        self._thread.shutdown(wait=False, cancel_futures=True)


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
        self._lane = Lane(policy, "policy")
        self._second = Lane(fallback, "fallback") if fallback is not None else None

    def warm_up(self, times: int = 2) -> list[float]:
        """Milliseconds of some predictions on a blank observation; the first ones compile and allocate.

        Raises:
            ValueError: A policy does not predict a chunk of finite numbers.
        """
        spent = []
        for lane in filter(None, (self._lane, self._second)):
            # In the thread that will serve: some of what warms up belongs to a thread.
            spent += lane.submit(self._warm_up, lane.served, times).result()
        return spent

    def _warm_up(self, served: ServedPolicy, times: int) -> list[float]:
        session, blank, spent = served.session(), served.blank(), []
        for _ in range(times):
            began = time.perf_counter()
            chunk_TA = session.act(blank)
            spent.append(1e3 * (time.perf_counter() - began))
        if chunk_TA.ndim != 2:
            raise ValueError(f"the policy predicts {chunk_TA.shape} instead of a chunk (T, A)")
        if self.limits is not None and chunk_TA.shape[1] != len(self.limits.low_A):
            raise ValueError(
                f"the policy's actions have {chunk_TA.shape[1]} numbers, the limits from "
                f"{self.limits.source} are for {len(self.limits.low_A)} numbers per action"
            )
        check_finite(chunk_TA)
        return spent

    def open(self) -> Conversation:
        """For one robot."""
        return Conversation(self)

    def close(self) -> None:
        """Let the threads go."""
        for lane in filter(None, (self._lane, self._second)):
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
        lanes = filter(None, (self.responder._lane, self.responder._second))
        self._sessions = {lane: lane.served.session() for lane in lanes}

    async def observe(self, observation: Mapping[str, Any], deadline_ms: float | None = None) -> None:
        """Remember a step without acting on it."""
        left_s = self._seconds(deadline_ms)
        started = {lane: lane.submit(s.observe, observation) for lane, s in self._sessions.items()}
        for lane, future in started.items():
            await self._result(lane, future, left_s)

    async def act(self, observation: Mapping[str, Any], deadline_ms: float | None = None) -> dict[str, Any]:
        """Chunk for a checked observation, with who made it.

        Args:
            observation: See `ServedPolicy.check`.
            deadline_ms: Instead of the responder's own.

        Returns:
            ``"actions"`` (T, A) float32, ``"source"``, ``"limited"``, ``"infer_ms"``, and with the second
            policy's chunk ``"reason"``.

        Raises:
            NoAnswerError: No chunk may be sent.
        """
        allowed_s, began = self._seconds(deadline_ms), time.perf_counter()
        started = {lane: lane.submit(s.act, observation) for lane, s in self._sessions.items()}
        reason: NoAnswerError | None = None
        for lane, future in started.items():
            spent_s = time.perf_counter() - began
            try:
                left_s = None if allowed_s is None else max(0.0, allowed_s - spent_s)
                chunk_TA, limited = self._allowed(await self._result(lane, future, left_s))
            except NoAnswerError as error:
                reason = reason or error
                if allowed_s is not None:
                    allowed_s += FALLBACK_GRACE_MS / 1e3
                continue
            answer = {"actions": chunk_TA, "source": lane.name, "limited": limited}
            if reason is not None:
                logger.warning("the second policy answers: %s", reason)
                answer["reason"] = str(reason)
            return answer | {"infer_ms": 1e3 * (time.perf_counter() - began)}
        raise reason

    def _seconds(self, deadline_ms: float | None) -> float | None:
        deadline_ms = self.responder.deadline_ms if deadline_ms is None else deadline_ms
        return None if deadline_ms is None else deadline_ms / 1e3

    async def _result(self, lane: Lane, future: Future, left_s: float | None) -> Any:
        waiting = asyncio.wrap_future(future)
        done, _ = await asyncio.wait({waiting}, timeout=left_s)
        if not done:
            # What has begun cannot be stopped, and ends in its thread. What has not is taken back, so that
            # the next request does not wait behind it; the step is missing then, and a history starts anew.
            if future.cancel():
                self._sessions[lane] = lane.served.session()
            waiting.add_done_callback(lambda f: f.cancelled() or f.exception())
            raise NoAnswerError("deadline", "the policy's answer was not ready in time")
        try:
            return waiting.result()
        except Exception as error:
            logger.exception("the policy failed")
            words = f"the policy failed with {type(error).__name__}; see the server's log"
            raise NoAnswerError("policy", words) from None

    def _allowed(self, chunk_TA: np.ndarray) -> tuple[np.ndarray, int]:
        try:
            if self.responder.limits is not None:
                return self.responder.limits.apply(chunk_TA)
            check_finite(chunk_TA)
            return chunk_TA, 0
        except UnusableActionsError as error:
            raise NoAnswerError("actions", f"the policy's actions may not be sent: {error}") from None


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
