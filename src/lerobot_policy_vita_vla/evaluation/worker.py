"""The simulator process: plays the episodes it is given and asks for an action chunk when it needs one.

A worker answers messages one by one, ``(kind, slot, payload)``, and has one simulator per slot. It is kept
light: no policy, no network, one thread. Messages to it:

    ("setup", None, Settings)           first, once
    ("episode", slot, (Episode, film))  start an episode; answered by "observation" or "finished"
    ("chunk", slot, (T, A) float32)     go on with these actions; answered likewise

and from it, besides these answers: ``("renderer", None, (name, is_software))`` once, where asked for, and
``("error", None, traceback)`` last.
"""

from __future__ import annotations

import hashlib
import importlib
import signal
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from lerobot_policy_vita_vla.chunking import ChunkExecutor, ObservationHistory
from lerobot_policy_vita_vla.demos.gl import gl_renderer
from lerobot_policy_vita_vla.demos.scenes import STATE, make_scene, scenes_of

FILM_EVERY = 3
"""Steps between the frames of a video: 27 frames per second at Meta-World's 80 steps, for free where a policy
looks every third step."""


@dataclass(frozen=True)
class Settings:
    """What all episodes of an evaluation have in common.

    Attributes:
        quality, observation_size, episode_length, suite, protocol: See `manifest.Manifest`.
        chunk_size, n_action_steps, ensemble_coeff, execute_from: See `chunking.ChunkExecutor`.
        n_obs_steps: H, observations per prediction.
        uses_images: False never draws (except for videos).
        expert: Let the simulator's scripted expert act; nothing is asked for.
        report_renderer: Tell which OpenGL renderer draws.
    """

    quality: str
    observation_size: int
    episode_length: int
    chunk_size: int = 1
    n_action_steps: int = 1
    ensemble_coeff: float | None = None
    execute_from: int = 0
    n_obs_steps: int = 1
    uses_images: bool = True
    expert: bool = False
    report_renderer: bool = False
    suite: str = "metaworld"
    protocol: str | None = None

    def for_worker(self, index: int) -> Settings:
        """Only the first worker reports the renderer."""
        return replace(self, report_renderer=index == 0)


class Rollout:
    """One episode in one simulator.

    Args:
        env: A scene of the episode's task (`scenes.make_scene`).
        seed: Decides the initial state.
        settings: Common settings.
        film: Keep frames for a video.
    """

    def __init__(self, env, seed: int, settings: Settings, film: bool):
        self.env, self.settings, self.film = env, settings, film
        self.frames: list[np.ndarray] = []
        self.steps = 0
        self._executor = ChunkExecutor(
            chunk_size=settings.chunk_size,
            n_action_steps=settings.n_action_steps,
            ensemble_coeff=settings.ensemble_coeff,
            execute_from=settings.execute_from,
        )
        self._history = ObservationHistory(
            n_obs_steps=settings.n_obs_steps, keys=(*scenes_of(settings.suite).cameras, STATE)
        )
        env.rendering = self._draws()
        observation, _ = env.reset(seed=seed)
        self._see(observation)

    def advance(self, chunk: np.ndarray | None = None) -> tuple[str, dict[str, Any]]:
        """Play on until a chunk is needed or the episode is over.

        Args:
            chunk: (T, A), the answer to the last request; None at the start.

        Returns:
            ``("observation", {...})`` or ``("finished", {"success", "steps", "state_hash", "frames"})``.
        """
        chunk_BTA = None if chunk is None else torch.from_numpy(chunk)[None]
        while True:
            if self.settings.expert:
                action = self.env.expert_action()
            elif self._executor.needs_prediction and chunk_BTA is None:
                return "observation", self._observation
            else:
                answer, chunk_BTA = chunk_BTA, None
                action = self._executor.next_action(lambda answer=answer: answer)[0].numpy()
            self.steps += 1
            self.env.rendering = self._draws()
            observation, _, terminated, truncated, _ = self.env.step(action)
            self._see(observation)
            if terminated or truncated:
                return "finished", self._result(terminated)

    def _draws(self) -> bool:
        # With a history the last H pictures before a prediction are needed, not only the last one.
        until_prediction = -self.steps % self.settings.n_action_steps
        looks = self.settings.uses_images and until_prediction < self.settings.n_obs_steps
        return looks or (self.film and self.steps % FILM_EVERY == 0)

    def _see(self, observation: dict[str, np.ndarray]) -> None:
        if self.film and self.steps % FILM_EVERY == 0:
            self.frames.append(self.env.render())  # drawn already, for this observation
        tensors = {key: torch.from_numpy(np.ascontiguousarray(observation[key]))[None] for key in observation}
        stacked = self._history.push(tensors) if self.settings.n_obs_steps > 1 else tensors
        self._observation = {key: value[0].numpy() for key, value in stacked.items()}
        self._observation["task"] = self.env.task_description

    def _result(self, success: bool) -> dict[str, Any]:
        # Two runs that agree in every bit of the last state took the same path.
        state_hash = hashlib.sha256(self.env.privileged_state().tobytes()).hexdigest()[:16]
        return {
            "success": bool(success),
            "steps": self.steps,
            "state_hash": state_hash,
            "frames": np.stack(self.frames) if self.frames else None,
        }


def serve(connection: Connection) -> None:
    """Entry point of a worker process; returns when the other end is closed."""
    # An interrupt reaches the whole process group; the parent decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except BaseException:
        connection.send(("error", None, traceback.format_exc()))


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)
    _, _, settings = connection.recv()
    importlib.import_module(scenes_of(settings.suite).module)
    if settings.report_renderer:
        connection.send(("renderer", None, gl_renderer()))
    envs: dict[int, Any] = {}
    rollouts: dict[int, Rollout] = {}
    while True:
        kind, slot, payload = connection.recv()
        chunk = None
        if kind == "chunk":
            chunk = payload
        else:
            episode, film = payload
            if slot in envs and envs[slot].task != episode.task:
                envs.pop(slot).close()
            if slot not in envs:
                envs[slot] = make_scene(
                    settings.suite,
                    episode.task,
                    protocol=settings.protocol,
                    quality=settings.quality,
                    observation_size=settings.observation_size,
                    episode_length=settings.episode_length,
                )
            rollouts[slot] = Rollout(envs[slot], episode.seed, settings, film)
        answer, content = rollouts[slot].advance(chunk)
        connection.send((answer, slot, content))
