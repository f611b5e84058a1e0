"""What LIBERO's scene keeps to itself between resets and within an action, and an episode depends on."""

from __future__ import annotations

import mujoco
import numpy as np
from robosuite.utils.observables import Observable, sensor
from scipy.spatial.transform import Rotation

from lerobot_policy_vita_vla.conventions import OF_STATES
from lerobot_policy_vita_vla.conversion import wrap_as_euler
from lerobot_policy_vita_vla.demos.libero_world import in_order


def fixture_homes(env) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Body -> position and quaternion of each fixture in the scene's XML, from before any reset moved it.

    LIBERO draws things onto a fixture relative to where it is, and then adds where it will be; what the last
    reset left there would count twice.

    Args:
        env: LIBERO's own environment, just built.
    """
    found = {}
    for fixture in env.fixtures_dict.values():
        element = env.model.root.find(f".//body[@name='{fixture.root_body}']")
        numbers = [
            np.array(element.get(name, default).split(), dtype=np.float64)
            for name, default in (("pos", "0 0 0"), ("quat", "1 0 0 0"))
        ]
        found[env.sim.model.body_name2id(fixture.root_body)] = tuple(numbers)
    return found


def goal_positions(env, seen: mujoco.MjData) -> np.ndarray:
    """Where the next goal's thing is and where it belongs, (6,) float64, metres in the world's frame.

    The next goal is the first that does not hold yet, once all hold the last. A goal that names one thing
    only (a drawer to be opened) gives its position twice.

    Args:
        env: LIBERO's own environment.
        seen: The moment that pictures show (`snapshot`).
    """
    goals = in_order(env.parsed_problem["goal_state"])
    goal = next((goal for goal in goals if not env._eval_predicate(goal)), goals[-1])

    def position(name: str) -> np.ndarray:
        if name in env.object_sites_dict:
            return seen.site_xpos[env.sim.model.site_name2id(name)]
        return seen.xpos[env.obj_body_id[name]]

    return np.concatenate([position(goal[1]), position(goal[-1])])


def robot_state(raw: dict[str, np.ndarray], rotation: str) -> np.ndarray:
    """What a policy reads of the robot, (8,) float64: hand (metres), orientation, two finger positions.

    Args:
        raw: robosuite's observation.
        rotation: ``"axis_angle_2pi"``, ``"axis_angle_2pi_as_euler"`` or ``"euler_xyz"``
            (`conventions.ROTATIONS`), radians.
    """
    quaternion = np.asarray(raw["robot0_eef_quat"], dtype=np.float64)
    if rotation == "euler_xyz":
        angles = Rotation.from_quat(quaternion).as_euler("xyz")
    else:
        angles = _axis_angle(quaternion)
        if rotation == OF_STATES:
            angles = wrap_as_euler(angles[None])[0]
    return np.concatenate([raw["robot0_eef_pos"], angles, raw["robot0_gripper_qpos"]])


def snapshot(seen: mujoco.MjData, model: mujoco.MjModel, data: mujoco.MjData, rate: int) -> Observable:
    """An observable that keeps the moment at which robosuite looks, to be drawn later if anyone asks.

    robosuite samples what a policy sees (state and pictures) after the first of the 25 physics steps of an
    action, not after the last.

    Args:
        seen: Where the moment is kept.
        model: The scene.
        data: Its state.
        rate: Samples per second.
    """

    @sensor(modality="snapshot")
    def keep(obs_cache) -> np.ndarray:
        mujoco.mj_copyData(seen, model, data)
        return np.zeros(1)

    observable = Observable(name="snapshot", sensor=keep, sampling_rate=rate)
    observable.set_active(False)  # it is not part of what robosuite hands out
    return observable


def _axis_angle(quaternion: np.ndarray) -> np.ndarray:
    # LeRobot's LiberoProcessorStep: the angle follows the quaternion's sign, up to 2 pi.
    w = np.clip(quaternion[3], -1.0, 1.0)
    sine = np.sqrt(max(1.0 - w * w, 0.0))
    return quaternion[:3] * (2.0 * np.arccos(w) / sine) if sine > 1e-10 else np.zeros(3)
