"""Meta-World for the golden replay."""

from __future__ import annotations

import numpy as np

from lerobot_policy_vita_vla.contracts import PRIVILEGED_STATE
from lerobot_policy_vita_vla.conventions import Conventions, RecordingInfo
from lerobot_policy_vita_vla.demos.simulator import Tolerances
from lerobot_policy_vita_vla.demos.suite import CONTROL_HZ, MAX_EPISODE_LENGTH, SUITE

IMAGE, STATE = "observation.image", "observation.state"

PHYSICS_HZ = 400
"""Meta-World's physics step is 2.5 ms."""

SUBSTEPS = (1, 2, 3, 4, 5, 8, 10, 20)
"""Physics steps per action to try; Meta-World itself takes 5."""


def metaworld_conventions(observation_size: int) -> Conventions:
    """What LeRobot's Meta-World environment, and ours, means."""
    return Conventions(
        image_size=(observation_size, observation_size),
        control_hz=CONTROL_HZ,
        # Against the camera `corner2`, which hangs upside down.
        image_orientation="rotated_180",
        action_dim=4,
        position_unit=0.01,
        gripper_open=-1.0,
        gripper_closed=1.0,
    )


class MetaworldSimulator:
    """Replays recordings of `demos.record`.

    Args:
        info: The recording's own description: tasks, seeds, render quality, picture size.
    """

    tolerances = Tolerances(start=3e-5, path=5e-3, picture=6.0)
    """Between what was measured (docs/conventions.md): the same machine replays bit by bit, and actions
    changed in their last bit move a number by 2.6e-5 at most; one settle step too many moves one by 2.7e-4 at
    the first frame, 100 Hz instead of 80 by 0.017 along the path; another orientation is 10.6 grey levels
    off."""
    control_rates = tuple(PHYSICS_HZ / substeps for substeps in SUBSTEPS)
    max_steps = MAX_EPISODE_LENGTH

    def __init__(self, info: RecordingInfo | None):
        if info is None or info.suite != SUITE:
            raise ValueError(
                "the Meta-World replay needs to know tasks and seeds, which `vita-vla demos record` writes "
                "to meta/vita_vla.json; this dataset has none, so its episodes' starts are not known"
            )
        self._info = info
        self.conventions = metaworld_conventions(info.observation_size)
        self._env = None

    def starts(self, instruction: str, number: int) -> list[tuple[str, int]]:
        """See `Simulator.starts`: (task, seed)."""
        if instruction not in self._info.tasks:
            raise ValueError(
                f"the instruction {instruction!r} is none of the recorded ones: {sorted(self._info.tasks)}"
            )
        names = self._info.task_names
        for field in ("seeds", "kept", "tried"):
            if missing := [name for name in names if name not in getattr(self._info, field)]:
                raise ValueError(
                    f"meta/vita_vla.json names no {field} of {', '.join(missing)}, so that its episodes' "
                    "starts are not known: restore the file from a copy, or record again with "
                    f"vita-vla demos record --tasks {','.join(names)}"
                )
        likely, others = [], []
        for task in self._info.tasks[instruction].split(","):
            first, last = self._info.seeds[task]
            kept, tried = self._info.kept[task], self._info.tried[task]
            # Episodes are stored task by task, by seed; an attempt that failed is not there.
            for seed in range(first, last + 1):
                near = 0 <= seed - first - number <= tried - kept
                (likely if 0 <= number < kept and near else others).append((task, seed))
            number -= kept
        return likely + others

    def reset(self, start: tuple[str, int], control_hz: float) -> None:
        """See `Simulator.reset`."""
        from lerobot_policy_vita_vla.demos.metaworld import SceneEnv

        task, seed = start
        if self._env is None or self._env.task != task:
            self.close()
            self._env = SceneEnv(
                task,
                quality=self._info.quality,
                observation_size=self._info.observation_size,
            )
            self._env.reset(seed=seed)  # builds the simulator, whose substeps are set next
        self._env.rendering = False
        self._env._env.frame_skip = round(PHYSICS_HZ / control_hz)
        self._env.reset(seed=seed)

    def idle(self) -> None:
        """One step in place with an open gripper."""
        self.step(np.array([0.0, 0.0, 0.0, -1.0], dtype=np.float32))

    def step(self, action: np.ndarray) -> None:
        """See `Simulator.step`."""
        self._env.step(np.asarray(action, dtype=np.float32))

    def state(self) -> dict[str, np.ndarray]:
        """What the policy reads (4,), and all that Meta-World knows (39,)."""
        full = self._env.privileged_state()
        return {STATE: full[:4], PRIVILEGED_STATE: full}

    def render(self) -> dict[str, np.ndarray]:
        """The one camera."""
        return {IMAGE: self._env.render()}

    def close(self) -> None:
        """See `Simulator.close`."""
        if self._env is not None:
            self._env.close()
            self._env = None
