"""LeRobot's Meta-World environment with cheap pictures, honoured episode length and no hidden resets.

`SceneEnv` keeps what decides an episode: LeRobot's task construction, seeding and camera. So the same seed
gives the same initial state as ``lerobot.envs.metaworld.MetaworldEnv`` (a test compares them bit by bit).
Importing this module chooses a GL back end (`demos.gl.ensure_gl`), since MuJoCo does so at its own import.
"""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np

from lerobot_policy_vita_vla.demos.gl import ensure_gl, gl_renderer
from lerobot_policy_vita_vla.demos.suite import (
    CAMERA,
    CAMERA_POSITION,
    EPISODE_LENGTH,
    MAX_EPISODE_LENGTH,
    OBSERVATION_SIZE,
    RENDER_QUALITIES,
    SIZES,
    check_quality,
    check_size,
    resolve_tasks,
)

ensure_gl()

import metaworld  # noqa: E402
from lerobot.envs.metaworld import MetaworldEnv  # noqa: E402
from PIL import Image  # noqa: E402

from lerobot_policy_vita_vla.demos.metaworld_pictures import Drawing, lighten, shared_drawing  # noqa: E402

__all__ = ["RENDER_QUALITIES", "SceneEnv", "ensure_gl", "gl_renderer", "resolve_tasks"]

GRIPPER_OPEN = -1.0
GRIPPER_CLOSED = 0.6
"""Efforts of the two classes. With +1 the fingers squeeze a nut or a ball out (assembly, basketball: the
expert fails every time); with 0.6 every expert but one is as good as with its own efforts, and better when
disturbed (pick-place under noise 0.4: 5 of 5 instead of 2), because -1 opens where its 0 only lets go."""

GENTLE_GRIPS = {"peg-unplug-side-v3": 0.1}
"""Tasks in which 0.6 lifts the thing off its place: the expert's own effort instead."""

NATIVE_SIZE = SIZES[1]
"""Pixels of LeRobot's own picture."""


class SceneEnv(MetaworldEnv):
    """One Meta-World task as LeRobot poses it.

    Observations are ``{"pixels": (size, size, 3) uint8, "agent_pos": (4,) float64}``: hand position in metres
    and gripper opening in [0, 1]. Actions are (4,) in [-1, 1]: hand displacement (1 = 1 cm) and gripper
    effort (+1 closes). An episode is a function of (task, seed, actions) alone, whatever this object ran
    before.

    Args:
        task: One task name; ``-v3`` may be left out.
        quality: Key of `RENDER_QUALITIES`.
        observation_size: Height and width of the picture, pixels.
        episode_length: Steps after which ``truncated`` is True, 1..500.

    Attributes:
        rendering: While False, `step` draws nothing and hands out the previous picture (a policy that
            executes action chunks looks only once per chunk). `reset` always draws.
    """

    def __init__(
        self,
        task: str,
        *,
        quality: str = "light",
        observation_size: int = OBSERVATION_SIZE,
        episode_length: int = EPISODE_LENGTH,
    ):
        tasks = resolve_tasks(task)
        if len(tasks) != 1:
            raise ValueError(f"an environment has one task, got {len(tasks)} from {task!r}")
        if not 1 <= episode_length <= MAX_EPISODE_LENGTH:
            raise ValueError(f"episode_length must lie in 1..{MAX_EPISODE_LENGTH}, got {episode_length}")
        check_size(observation_size)
        self.quality = check_quality(quality)
        super().__init__(
            tasks[0],
            camera_name=CAMERA,
            obs_type="pixels_agent_pos",
            observation_width=observation_size,
            observation_height=observation_size,
        )
        # The name by which LeRobot's rollout finds the step limit.
        self._max_episode_steps = episode_length
        self.rendering = True
        self._drawing: Drawing | None = None
        self._raw: np.ndarray | None = None
        self._picture: np.ndarray | None = None
        self._stale = True
        self._steps = 0

    def reset(self, seed: int | None = None, **kwargs) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start the episode of ``seed``; the picture is drawn even while ``rendering`` is False."""
        self._steps, self._picture = 0, None
        return super().reset(seed=seed, **kwargs)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Execute one action.

        Unlike LeRobot's environment this one does not reset itself after success, so the episode may go on
        (the recorder does, for labels behind the success).

        Args:
            action: (4,), clipped to [-1, 1] by the simulator.

        Returns:
            Observation, reward, ``terminated`` (success at this step), ``truncated`` (step limit reached
            without it), info with ``is_success``.
        """
        if self._raw is None:
            raise ValueError("step() before reset(): call reset(seed=...) first")
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"an action is four finite numbers, got shape {action.shape}: {action}")
        raw, reward, _, _, info = self._env.step(action)
        self._steps += 1
        terminated = bool(info.get("success", 0))
        truncated = not terminated and self._steps >= self._max_episode_steps
        info = {**info, "task": self.task, "done": False, "is_success": terminated}
        if terminated or truncated:
            info["final_info"] = {"task": self.task, "done": False, "is_success": terminated}
        return self._format_raw_obs(raw), float(reward), terminated, truncated, info

    def observation(self) -> dict[str, np.ndarray]:
        """The current observation with a freshly drawn picture, whatever ``rendering`` says."""
        return {"pixels": self.render(), "agent_pos": self._raw[:4].copy()}

    def render(self) -> np.ndarray:
        """The current picture (size, size, 3) uint8, drawn at most once per step."""
        if self._stale or self._picture is None:
            self._picture, self._stale = self._draw(), False
        return self._picture.copy()

    def privileged_state(self) -> np.ndarray:
        """Meta-World's full observation, (39,) float32, metres and quaternions.

        Index 0:4 hand and gripper, 4:18 up to two objects, 18:36 the same one step earlier, 36:39 the goal.
        """
        if self._raw is None:
            raise ValueError("privileged_state() before reset(): call reset(seed=...) first")
        return self._raw.astype(np.float32)

    def known_state(self) -> np.ndarray:
        """What a recording keeps beside what a policy sees: all of `privileged_state`."""
        return self.privileged_state()

    def expert_action(self) -> np.ndarray:
        """What the scripted expert would do now, (4,) float32: clipped to [-1, 1], gripper `GRIPPER_OPEN` or
        `GRIPPER_CLOSED` (`GENTLE_GRIPS` for some tasks).

        The gripper has two values because the policy's gripper is a class (paper section 3: cross-entropy on
        the gripper), while the experts' efforts differ from task to task (0.1 to 1 closes, -1 and 0 open).
        """
        if self._raw is None:
            raise ValueError("expert_action() before reset(): call reset(seed=...) first")
        with warnings.catch_warnings():
            # Meta-World warns that its experts' actions exceed [-1, 1]; they are clipped on the next line.
            warnings.simplefilter("ignore", UserWarning)
            # A copy: the experts of doors and buttons shift the object's position in what they are given.
            action = np.asarray(self.expert_policy.get_action(self._raw.copy()), dtype=np.float32)
        action = np.clip(action, -1.0, 1.0)
        closed = GENTLE_GRIPS.get(self.task, GRIPPER_CLOSED)
        action[3] = closed if action[3] > 0 else GRIPPER_OPEN
        return action

    def close(self) -> None:
        """Free the simulator, and the drawing context unless other scenes use it."""
        self._drawing = None
        if self._env is not None and (viewer := self._env.mujoco_renderer.viewer) is not None:
            viewer.make_context_current()  # what MuJoCo frees it frees in whichever context is current
            viewer.con.free()
        super().close()
        self._env = None

    def _ensure_env(self) -> None:
        if self._env is not None:
            return
        # What LeRobot does, except that its MT1 benchmark draws 50 goals by 50 resets (over a second) only to
        # have one set that the first seeded reset replaces.
        env_class = metaworld.ALL_V3_ENVIRONMENTS[self.task]
        env = env_class(render_mode="rgb_array", camera_name=CAMERA)
        fields = {"env_cls": env_class, "rand_vec": None, "partially_observable": False}
        env.set_task(metaworld.Task(env_name=self.task, data=pickle.dumps(fields)))
        env.model.camera(CAMERA).pos[:] = CAMERA_POSITION
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        lighten(env.model, RENDER_QUALITIES[self.quality])
        self._env = env

    def _format_raw_obs(self, raw_obs: np.ndarray) -> dict[str, np.ndarray]:
        self._raw, self._stale = np.asarray(raw_obs), True
        picture = self.render() if self.rendering or self._picture is None else self._picture.copy()
        return {"pixels": picture, "agent_pos": self._raw[:4].copy()}

    def _draw(self) -> np.ndarray:
        quality, size = RENDER_QUALITIES[self.quality], self.observation_height
        if quality.native:
            # Gymnasium draws in the context that was made last, which may be another environment's.
            if (viewer := self._env.mujoco_renderer.viewer) is not None:
                viewer.make_context_current()
            image = np.flip(self._env.render(), (0, 1))
            if size == NATIVE_SIZE:
                return image.copy()
            return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
        if self._drawing is None:
            self._drawing = shared_drawing(self.task, self._env.model, quality, size)
        return self._drawing.draw(self._env.model, self._env.data)
