"""Drive a robot from a policy server: look, ask, act, at a fixed rate, and stop when it falls silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from queue import Empty, Queue
from typing import Any

import numpy as np

from vita_vla_client.client import (
    ConnectionLostError,
    PolicyChangedError,
    PolicyClient,
    ServerError,
)
from vita_vla_client.playback import ChunkPlayer, StaleActionsError, holding


def run(
    client: PolicyClient,
    look: Callable[[], Mapping[str, Any]],
    act: Callable[[np.ndarray], None],
    *,
    task: str,
    duration_s: float,
    control_hz: float | None = None,
    lead: int | None = None,
    max_hold_s: float = 0.5,
    hold: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Run one episode.

    The robot never waits for the server: while one chunk is played, the next is asked for, and its actions
    are taken at the ticks they were meant for (`ChunkPlayer`). When chunks stay away it is held, then this
    function raises, and the caller brings the robot to rest; between the two the last command stands.

    Args:
        client: A connected client.
        look: Gives the observation of now, under the names of ``client.metadata["observation"]``.
        act: Sends one action (A,) to the robot; must not wait for its end.
        task: The instruction.
        duration_s: How long.
        control_hz: Actions per second; None is the rate of the demonstrations, as the server says it.
        lead: Ask for the next chunk when so many of the actions that are executed of a chunk are left; None
            is
            half of them, at least one.
        max_hold_s: How long the robot may be held.
        hold: See `ChunkPlayer`; None makes it of what the server says of the actions (`holding`).

    Returns:
        Counts: ``"ticks"`` played, ``"missed"`` (the loop came too late for them), ``"held"``, ``"fallback"``
        (actions of the second policy), ``"limited"`` (numbers cut to the limits), ``"chunks"``, ``"errors"``,
        and ``"latency_ms"``, the list of round trips.

    Raises:
        PolicyChangedError: After a reconnection another policy answers.
        StaleActionsError: The robot has been held for too long. Its ``__cause__`` is the last error of the
        server. ValueError: The control rate is unknown, or not the demonstrations'.
    """
    about = client.metadata
    rate = control_hz or about.get("control_hz")
    if not rate:
        raise ValueError("the checkpoint does not say its control rate: pass control_hz=, the dataset's fps")
    if (trained := about.get("control_hz")) and abs(rate - trained) > 1e-6 * trained:
        raise ValueError(
            f"control_hz={rate:g}, but the demonstrations were recorded at {trained:g} Hz: an action is "
            "what it "
            f"was per recorded step, so run the robot at {trained:g} Hz"
        )
    limits = about.get("limits") or {}
    steps_used = about.get("n_action_steps") or about["chunk_size"]
    player = ChunkPlayer(
        hold=hold or holding(about.get("action_mode"), list(about.get("gripper_dims") or ())),
        max_hold=round(max_hold_s * rate),
        execute_from=about.get("execute_from") or 0,
        ensemble_coeff=about.get("temporal_ensemble_coeff"),
        max_change_A=np.asarray(change, np.float32) if (change := limits.get("max_change")) else None,
    )
    lead = max(1, steps_used // 2) if lead is None else lead
    asker = _Asker(
        client,
        remembers=(about.get("n_obs_steps") or 1) > 1,
        dims=len(about["action_names"]),
        most_waiting=max(2, round(rate)),
    )
    counts = {"ticks": 0, "missed": 0, "held": 0, "fallback": 0, "limited": 0, "chunks": 0, "errors": 0}
    try:
        try:
            client.reset()
        except ConnectionLostError:  # after a long pause the server hangs up
            client.connect()
        asker.ask(0, {**look(), "task": task}, act=True)
        asker.wait(player, counts, client.timeout_s)
        # The first chunk was waited for, with the robot at rest: its observation is of now.
        began, tick, last = time.monotonic(), 0, round(duration_s * rate)
        while tick < last:
            asker.collect(player, counts)
            ending = player.age(tick) >= steps_used - lead or player.remaining(tick) <= lead
            due = not asker.busy and ending
            if tick and (due or asker.remembers):
                asker.ask(tick, {**look(), "task": task}, act=due)
            try:
                step = player.action(tick)
            except StaleActionsError as stale:
                raise stale from asker.last_error
            act(step.action_A)
            counts["ticks"] += 1
            if step.source in ("hold", "fallback"):
                counts["held" if step.source == "hold" else "fallback"] += 1
            ahead = began + (tick + 1) / rate - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
            following = max(tick + 1, int((time.monotonic() - began) * rate + 1e-6))
            counts["missed"] += min(following, last) - tick - 1
            tick = following
        return counts | {"latency_ms": asker.latency_ms}
    finally:
        asker.stop()


class _Asker:
    """A thread that talks to the server, so that the control loop does not wait for it."""

    def __init__(self, client: PolicyClient, *, remembers: bool, dims: int, most_waiting: int):
        self.client, self.remembers = client, remembers
        self._dims, self._most_waiting = dims, most_waiting
        self.latency_ms: list[float] = []
        self.last_error: Exception | None = None
        self.busy = False
        self._questions: Queue = Queue()
        self._answers: Queue = Queue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="policy-client")
        self._thread.start()

    def ask(self, tick: int, observation: dict[str, Any], *, act: bool) -> None:
        if self._questions.qsize() > self._most_waiting:
            # A history may have no gaps, so nothing can be left out: better to stop than to act on the past.
            raise StaleActionsError(
                f"{self._questions.qsize()} observations wait for the server, which is too slow for this rate"
            ) from self.last_error
        self.busy = self.busy or act
        self._questions.put((tick, observation, act))

    def wait(self, player: ChunkPlayer, counts: dict[str, int], timeout_s: float) -> None:
        """Take the first chunk into use."""
        try:
            self._take(self._answers.get(timeout=2 * timeout_s), player, counts)
        except Empty:
            self.last_error = TimeoutError(f"no answer within {2 * timeout_s:g} s")
        if not counts["chunks"]:
            raise StaleActionsError("the server gave no first action chunk") from self.last_error

    def collect(self, player: ChunkPlayer, counts: dict[str, int]) -> None:
        while not self._answers.empty():
            self._take(self._answers.get(), player, counts)

    def stop(self) -> None:
        self._stopped.set()
        self._questions.put(None)
        self._thread.join(timeout=1)

    def _take(self, answer: tuple, player: ChunkPlayer, counts: dict[str, int]) -> None:
        tick, act, reply, error = answer
        if act:
            self.busy = False
        if error is not None:
            self.last_error = error
            counts["errors"] += 1
            if isinstance(error, PolicyChangedError):
                raise error
            return
        try:
            actions_TA = np.asarray(reply["actions"], dtype=np.float32)
            if actions_TA.shape[1:] != (self._dims,):
                raise ValueError(f"{actions_TA.shape} actions, expected (T, {self._dims})")
            counts["chunks"] += player.offer(actions_TA, tick, str(reply.get("source", "policy")))
            counts["limited"] += int(reply.get("limited") or 0)
        except (KeyError, TypeError, ValueError) as wrong:
            self.last_error = ServerError(f"the server's answer cannot be used: {wrong}")
            counts["errors"] += 1

    def _work(self) -> None:
        while (question := self._questions.get()) is not None and not self._stopped.is_set():
            tick, observation, act = question
            began = time.monotonic()
            try:
                reply = self.client.infer(observation, act=act)
            except Exception as error:  # whatever it is, the control loop must know of it
                self._answers.put((tick, act, None, self._reconnected(error)))
                continue
            if act:
                self.latency_ms.append(1e3 * (time.monotonic() - began))
                self._answers.put((tick, True, reply, None))

    def _reconnected(self, error: Exception) -> Exception:
        if not isinstance(error, ConnectionLostError) or self._stopped.is_set():
            return error
        try:
            self.client.connect()
        except PolicyChangedError as changed:
            return changed
        except (ConnectionError, PermissionError):
            self._stopped.wait(0.2)
        if self._stopped.is_set():
            self.client.close()
        return error
