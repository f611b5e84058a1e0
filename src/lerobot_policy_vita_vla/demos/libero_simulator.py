"""LIBERO's own environment: built and reset so that what goes wrong is named, not tried again for ever."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
from libero.libero.envs.env_wrapper import ControlEnv
from robosuite.utils.errors import RandomizationError

from lerobot_policy_vita_vla.demos.libero_install import explain_failure

MOST_DRAWS = 20
"""Our choice: attempts at a collision-free start before giving up; LIBERO itself would try for ever."""


def build_simulator(bddl_file: str, control_freq: int, assets: Path) -> ControlEnv:
    """Compile a task's scene.

    Args:
        bddl_file: LIBERO's description of it.
        control_freq: Actions per second.
        assets: Where its meshes and textures are, for errors.

    Raises:
        ValueError: Assets are missing (names files and command).
    """
    try:
        # Without robosuite's own drawing: its contexts, once there are two, draw each other's pictures.
        return ControlEnv(
            bddl_file_name=bddl_file,
            use_camera_obs=False,
            has_offscreen_renderer=False,
            control_freq=control_freq,
            hard_reset=False,
        )
    except (OSError, ValueError) as error:
        if (explained := explain_failure(error, assets)) is not None:
            raise explained from error
        raise


def reset_simulator(
    env: ControlEnv, task: str, homes: dict[int, tuple[np.ndarray, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Draw a start.

    Args:
        env: As `build_simulator` made it.
        task: Its name, for errors.
        homes: Where fixtures are before they are moved (`libero_state.fixture_homes`).

    Returns:
        robosuite's observation.

    Raises:
        ValueError: No start without collisions in `MOST_DRAWS` draws.
    """
    # Not through LIBERO's own reset(), which swallows every exception and tries again for ever.
    for robot in env.robots:
        # The command that the gripper is ramping to; without this it reaches into the next episode.
        robot.gripper.current_action = np.zeros(robot.gripper.dof)
    model = env.sim.model._model
    for body, (position, quaternion) in homes.items():
        model.body_pos[body], model.body_quat[body] = position, quaternion
    for _ in range(MOST_DRAWS):
        with contextlib.suppress(RandomizationError):
            return env.env.reset()
    raise ValueError(f"no start of {task} without collisions in {MOST_DRAWS} draws; take another seed")
