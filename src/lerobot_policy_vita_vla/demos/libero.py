"""LeRobot's LIBERO environment under a named protocol, with cheap pictures and reproducible episodes.

`LiberoScene` keeps what decides an episode: LeRobot's task construction, official initial states, idle
steps and controller. Pictures are drawn by a renderer of the scene's own, so that several scenes in one
process do not draw each other's pictures (robosuite's contexts do). Importing this module writes LIBERO's
config.yaml first, so that nothing asks on the terminal.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from lerobot_policy_vita_vla.conversion import orient, orientation_between
from lerobot_policy_vita_vla.demos.gl import ensure_gl
from lerobot_policy_vita_vla.demos.libero_install import prepare
from lerobot_policy_vita_vla.demos.libero_suite import (
    CONTROL_HZ,
    SAMPLED_FROM,
    Protocol,
    check_libero_quality,
    find_protocol,
    locate,
    resolve_libero_tasks,
)
from lerobot_policy_vita_vla.demos.suite import check_size

ensure_gl()
ASSETS = prepare()

import mujoco  # noqa: E402
from lerobot.envs.libero import LiberoEnv  # noqa: E402
from libero.libero import benchmark  # noqa: E402

from lerobot_policy_vita_vla.demos.libero_physics import SharedStages  # noqa: E402
from lerobot_policy_vita_vla.demos.libero_pictures import Painter  # noqa: E402
from lerobot_policy_vita_vla.demos.libero_simulator import build_simulator, reset_simulator  # noqa: E402
from lerobot_policy_vita_vla.demos.libero_state import (  # noqa: E402
    fixture_homes,
    goal_positions,
    robot_state,
    snapshot,
)
from lerobot_policy_vita_vla.demos.libero_states import check_length, check_states, states_file  # noqa: E402


class LiberoScene(LiberoEnv):
    """One LIBERO task as a protocol poses it.

    Observations are flat: ``pixels.image`` and ``pixels.image2`` (size, size, 3) uint8 in the protocol's
    orientation, and ``agent_pos`` (8,) float64: hand position in metres, orientation in the protocol's
    rotation representation, two finger positions. Actions are (7,) in [-1, 1]. An episode is a function of
    (task, seed, actions) alone. Seeds 0..49 are the official initial states; from `SAMPLED_FROM` on, the
    task's own samplers draw one.

    Args:
        task: ``<suite>_<number>``.
        protocol: Key of `libero_suite.PROTOCOLS`.
        quality: Key of `libero_suite.LIBERO_QUALITIES`.
        observation_size: Height and width of pictures, pixels; None is the protocol's.
        episode_length: Step limit; None is the protocol's.

    Attributes:
        rendering: While False, `step` draws nothing and hands out the previous pictures.
    """

    observation_keys = ("pixels.image", "pixels.image2", "agent_pos")

    def __init__(
        self,
        task: str,
        *,
        protocol: str = "lerobot",
        quality: str = "light",
        observation_size: int | None = None,
        episode_length: int | None = None,
    ):
        tasks = resolve_libero_tasks(task)
        if len(tasks) != 1:
            raise ValueError(f"an environment has one task, got {len(tasks)} from {task!r}")
        self.protocol: Protocol = find_protocol(protocol)
        self.quality = check_libero_quality(quality)
        self.suite, number = locate(tasks[0])
        size = check_size(self.protocol.image_size if observation_size is None else observation_size)
        with contextlib.redirect_stdout(io.StringIO()):  # the order of tasks, each time
            suite = benchmark.get_benchmark_dict()[self.suite]()
        self._states_file = states_file(suite.tasks[number])
        check_states(self._states_file)
        super().__init__(
            suite,
            number,
            self.suite,
            episode_length=episode_length or self.protocol.steps(self.suite),
            obs_type="pixels_agent_pos",
            observation_width=size,
            observation_height=size,
            num_steps_wait=self.protocol.settle_steps,
            control_freq=CONTROL_HZ,
            hard_reset=False,
        )
        self.task = tasks[0]
        self.rendering = True
        self._painter: Painter | None = None
        self._seen: mujoco.MjData | None = None
        self._pictures: dict[str, np.ndarray] | None = None
        self._stale, self._steps, self._raw = True, 0, None
        self._expert, self._miss, self._aside = None, None, None

    def reset(self, seed: int | None = None, **kwargs) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: 0..49 (official initial state) or from `SAMPLED_FROM` on (drawn).
            kwargs: Gymnasium's.

        Raises:
            ValueError: For other seeds, or if no collision-free start can be drawn.
        """
        seed = 0 if seed is None else int(seed)
        official = 0 <= seed < len(self._init_states)
        if not official and seed < SAMPLED_FROM:
            raise ValueError(
                f"seeds of {self.task} are 0..{len(self._init_states) - 1} (official initial states) or from "
                f"{SAMPLED_FROM} on (drawn), got {seed}"
            )
        self._ensure_env()
        # Fixtures are placed by NumPy's generator, and no initial state holds them.
        self._env.seed(self.protocol.env_seed if official else seed)
        self._raw = reset_simulator(self._env, self.task, self._homes)
        if official:
            self._raw = self._env.set_init_state(self._init_states[seed])
        self._steps, self._pictures, self._stale, self._expert = 0, None, True, None
        self._miss, self._aside = None, None
        first = self._raw
        if not self.protocol.refresh:
            self._draw()
        for _ in range(self.protocol.settle_steps):
            self.idle()
        if not self.protocol.refresh:
            self._raw, self._stale = first, False
        for robot in self._env.robots:
            robot.controller.use_delta = True
        return self._observe(), {"is_success": False}

    def idle(self) -> None:
        """One settle step of the protocol, whose gripper command is no policy's and stays as it is."""
        self._raw = self._physics.step(self._env, [0.0] * 6 + [self.protocol.settle_gripper])[0]
        self._stale = True

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Execute one action; unlike LeRobot's environment, success does not reset the scene.

        Args:
            action: (7,), clipped to [-1, 1] by the simulator.

        Returns:
            Observation, reward, ``terminated`` (success), ``truncated`` (step limit without it), info with
            ``is_success``.
        """
        if self._raw is None:
            raise ValueError("step() before reset(): call reset(seed=...) first")
        action = np.array(action, dtype=np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f"an action is seven finite numbers, got shape {action.shape}: {action}")
        if self.protocol.binary_gripper:
            action[6] = 1.0 if action[6] > 0 else -1.0
        # robosuite refuses to go on after its own horizon or success; the limit here is ours.
        self._env.env.done = False
        self._raw, reward, _, _ = self._physics.step(self._env, action)
        self._steps, self._stale = self._steps + 1, True
        terminated = bool(self._env.check_success())
        truncated = not terminated and self._steps >= self._max_episode_steps
        info = {"task": self.task, "done": terminated, "is_success": terminated}
        return self._observe(), float(reward), terminated, truncated, info

    def observation(self) -> dict[str, np.ndarray]:
        """The current observation with freshly drawn pictures, whatever ``rendering`` says."""
        return {
            **{f"pixels.{name}": image for name, image in self._draw().items()},
            "agent_pos": self.state(),
        }

    def state(self) -> np.ndarray:
        """What a policy reads, (8,) float64; see the class."""
        return robot_state(self._raw, self.protocol.state_rotation)

    def render(self) -> np.ndarray:
        """The scene camera's picture (size, size, 3) uint8, upright."""
        self._ensure_env()
        return orient(
            self._draw()["image"], orientation_between(self.protocol.image_orientation, "upside_down")
        )

    def privileged_state(self) -> np.ndarray:
        """Positions and velocities of everything, float64; its length differs from task to task."""
        return self._env.get_sim_state()

    def known_state(self) -> np.ndarray:
        """Where the thing to be moved is and where it belongs, (6,) float64; see `goal_positions`."""
        return goal_positions(self._env.env, self._seen)

    def expert_action(self) -> np.ndarray:
        """What the scripted expert would do now, (7,) float32 in [-1, 1]; it begins with the first call."""
        from lerobot_policy_vita_vla.demos.libero_expert import Expert

        if self._raw is None:
            raise ValueError("expert_action() before reset(): call reset(seed=...) first")
        if self._expert is None:
            self._expert = Expert(self._env.env, self._miss, self._aside)
        return self._expert.action()

    def let_expert_miss(self, rng: np.random.Generator) -> int:
        """Before an episode's first `expert_action`: let its first grasp miss; returns steps it may cost."""
        from lerobot_policy_vita_vla.demos.libero_miss import LONGER

        self._miss = rng
        return LONGER

    def let_expert_set_aside(self, rng: np.random.Generator) -> int:
        """Before an episode's first `expert_action`: let it set a thing down beside its place at first.

        Returns:
            Steps that it may cost; 0 where nothing belongs onto a thing.
        """
        from lerobot_policy_vita_vla.demos.libero_aside import LONGER, applies

        if not applies(self._env.env):
            return 0
        self._aside = rng
        return LONGER

    def executed_action(self) -> np.ndarray | None:
        """What to execute instead of the last `expert_action`, (7,), while it makes a mistake; else None."""
        return self._expert.executed if self._expert is not None else None

    def close(self) -> None:
        """Free the simulator and the drawing context."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None
        if self._env is not None:
            self._env.close()
            self._env = None

    def _ensure_env(self) -> None:
        if self._env is not None:
            return
        env = build_simulator(self._task_bddl_file, self.control_freq, ASSETS)
        model = env.sim.model._model
        try:
            check_length(self._states_file, self._init_states.shape[1], 1 + model.nq + model.nv)
        except ValueError:
            env.close()
            raise
        self._env, self._seen, self._homes = env, mujoco.MjData(model), fixture_homes(env.env)
        self._physics = SharedStages(env.sim)
        env.env.add_observable(snapshot(self._seen, model, env.sim.data._data, self.control_freq))

    def _observe(self) -> dict[str, np.ndarray]:
        if self.rendering or self._pictures is None:
            self._draw()
        pictures = {f"pixels.{name}": image.copy() for name, image in self._pictures.items()}
        return {**pictures, "agent_pos": self.state()}

    def _draw(self) -> dict[str, np.ndarray]:
        if not self._stale and self._pictures is not None:
            return self._pictures
        if self._painter is None:
            model, size = self._env.sim.model._model, self.observation_height
            self._painter = Painter(model, self._seen, size, self.quality)
        raw = self._painter.draw()
        self._pictures = {name: orient(image, self.protocol.image_orientation) for name, image in raw.items()}
        self._stale = False
        return self._pictures
