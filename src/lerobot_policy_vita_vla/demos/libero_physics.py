"""LIBERO's physics without what robosuite computes again: the same numbers in less time.

In each of an action's 25 steps of physics robosuite calls MuJoCo's forward dynamics three times at one state:
before the controller, inside of it, and as the first part of ``mj_step``. What depends on positions and
velocities alone (kinematics, collisions, mass matrix, the constraints' Jacobians) comes out alike each time
and is most of the work; here it is computed the first time only. Accelerations are computed each time: the
constraint solver starts from its own last answer, and so every state stays, bit by bit, what robosuite's own
sequence gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mujoco
import numpy as np

if TYPE_CHECKING:
    from libero.libero.envs.env_wrapper import ControlEnv
    from robosuite.utils.binding_utils import MjSim


class SharedStages:
    """Lets a simulator skip repeated stages inside of `step`; elsewhere it is as robosuite made it.

    Args:
        sim: robosuite's simulator. With the integrator RK4, which ``mj_step2`` cannot do, nothing is skipped.
    """

    def __init__(self, sim: MjSim):
        self._sim, self._model, self._data = sim, sim.model._model, sim.data._data
        self._known: tuple[np.ndarray, np.ndarray] | None = None
        self._usable = self._model.opt.integrator != mujoco.mjtIntegrator.mjINT_RK4

    def step(
        self, env: ControlEnv, action: Sequence[float]
    ) -> tuple[dict[str, np.ndarray], float, bool, dict]:
        """``env.step(action)``.

        Args:
            env: The simulator's environment. What it changes between two steps of physics may be positions,
                velocities, controls and forces, but not the model.
            action: (7,), as the environment takes it.

        Returns:
            What the environment returns.
        """
        if not self._usable:
            return env.step(action)
        self._known = None
        self._sim.forward, self._sim.step = self._forward, self._step_physics
        try:
            return env.step(action)
        finally:
            del self._sim.forward, self._sim.step  # the class's own again

    def _forward(self) -> None:
        if self._is_known():
            mujoco.mj_forwardSkip(self._model, self._data, mujoco.mjtStage.mjSTAGE_VEL, 0)
        else:
            mujoco.mj_forward(self._model, self._data)
            self._known = self._data.qpos.copy(), self._data.qvel.copy()

    def _step_physics(self) -> None:
        if self._is_known():
            mujoco.mj_step2(self._model, self._data)
        else:
            mujoco.mj_step(self._model, self._data)
        self._known = None

    def _is_known(self) -> bool:
        if self._known is None:
            return False
        positions, velocities = self._known
        return np.array_equal(positions, self._data.qpos) and np.array_equal(velocities, self._data.qvel)
