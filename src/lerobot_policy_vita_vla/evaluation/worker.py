"""The simulator process: plays the episodes it is given and asks for an action chunk when it needs one.

A worker answers messages one by one, ``(kind, slot, payload)``, and has one simulator per slot. It is kept
light: no policy, no network, one thread. Messages to it:

    ("setup", None, Settings)           first, and again when more is known
    ("build", slot, Episode)            build the simulator of the next episode and reset it; not answered
    ("episode", slot, (Episode, film))  start an episode; answered by "observation" or "finished"
    ("chunk", slot, (T, A) float32)     go on with these actions; answered likewise

and from it, besides these answers: ``("renderer", None, (name, is_software))`` once, where asked for, and
``("refused", None, (message, traceback))`` or ``("error", None, traceback)`` last: what a user can act on, or
a bug. An observation's pictures lie in shared memory (`pictures`).

A simulator is kept for the next episode of its task: its reset by seed leaves nothing of the episode before
(`resets` proves it, episode by episode).
"""

from __future__ import annotations

import hashlib
import importlib
import signal
import traceback
from collections.abc import Collection
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from lerobot_policy_vita_vla.chunking import ChunkExecutor, ObservationHistory
from lerobot_policy_vita_vla.demos.gl import NotReadyError, gl_renderer
from lerobot_policy_vita_vla.demos.scenes import STATE, make_scene, scenes_of
from lerobot_policy_vita_vla.evaluation.manifest import Manifest
from lerobot_policy_vita_vla.evaluation.pictures import PictureBoard

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
        fresh_simulators: Build a new simulator for every episode.
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
    fresh_simulators: bool = False
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
        film: Outcomes (success or not) of which frames are wanted for a video.
        first: The first observation, if the scene has been reset to the seed already.
    """

    def __init__(
        self,
        env,
        seed: int,
        settings: Settings,
        film: Collection[bool] = (),
        first: dict[str, np.ndarray] | None = None,
    ):
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
        self._see(env.reset(seed=seed)[0] if first is None else first)

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
        return looks or (bool(self.film) and self.steps % FILM_EVERY == 0)

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
            "frames": np.stack(self.frames) if success in self.film else None,
        }


class Stage:
    """The simulators of one process.

    Args:
        board: Where pictures are put.
    """

    def __init__(self, board: PictureBoard):
        self.settings: Settings | None = None
        self._board = board
        self._envs: dict[int, Any] = {}
        self._rollouts: dict[int, Rollout] = {}
        self._first: dict[int, tuple[Any, dict[str, np.ndarray]]] = {}

    def handle(self, kind: str, slot: int, payload: Any) -> tuple[str, int, Any] | None:
        """Do what a message asks for; returns the answer, if it has one."""
        if kind == "setup":
            self.settings = payload
            return None
        if kind == "build":
            # Simulators and drawing contexts are made by the first reset.
            self._first[slot] = payload, self._scene(slot, payload.task).reset(seed=payload.seed)[0]
            return None
        chunk = payload
        if kind == "episode":
            (episode, film), chunk = payload, None
            built_for, first = self._first.pop(slot, (None, None))
            if built_for != episode:
                first = None
                if self.settings.fresh_simulators and slot in self._envs:
                    self._envs.pop(slot).close()
            scene = self._scene(slot, episode.task)
            self._rollouts[slot] = Rollout(scene, episode.seed, self.settings, film, first)
        answer, content = self._rollouts[slot].advance(chunk)
        return answer, slot, self._board.put(slot, content) if answer == "observation" else content

    def _scene(self, slot: int, task: str) -> Any:
        if slot in self._envs and self._envs[slot].task != task:
            self._envs.pop(slot).close()
        if slot not in self._envs:
            self._envs[slot] = open_scene(self.settings, task)
        return self._envs[slot]


def open_scene(played: Settings | Manifest, task: str) -> Any:
    """A new simulator of a task, as the settings of an evaluation or its manifest want it."""
    return make_scene(
        played.suite,
        task,
        protocol=played.protocol,
        quality=played.quality,
        observation_size=played.observation_size,
        episode_length=played.episode_length,
    )


def serve(connection: Connection, board: PictureBoard) -> None:
    """Entry point of a worker process; returns when the other end is closed."""
    # An interrupt reaches the whole process group; the parent decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _serve(connection, board)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except BaseException as error:
        # Not what only derives from ValueError, such as NumPy's errors: these were not written for users.
        if type(error) in (ValueError, NotReadyError):
            connection.send(("refused", None, (str(error), traceback.format_exc())))
            return
        connection.send(("error", None, traceback.format_exc()))


def _serve(connection: Connection, board: PictureBoard) -> None:
    torch.set_num_threads(1)
    stage = Stage(board)
    stage.handle(*connection.recv())
    importlib.import_module(scenes_of(stage.settings.suite).module)
    if stage.settings.report_renderer:
        connection.send(("renderer", None, gl_renderer()))
    while True:
        if (answer := stage.handle(*connection.recv())) is not None:
            connection.send(answer)
