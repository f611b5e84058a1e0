"""What the numbers and pictures of CALVIN and LIBERO mean to Seer's released checkpoints.

None of it is in a checkpoint; it comes from the scripts that trained and evaluated them. It goes into the
imported teacher's configuration, where data, environment and student are compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot_policy_vita_vla.contracts import ActionSpec
from lerobot_policy_vita_vla.conventions import OF_ACTIONS, OF_STATES, Conventions, RecordingInfo
from lerobot_policy_vita_vla.demos.checkpoint_records import EVALUATED_UNDER, STATE_ROTATIONS

MOTION = ("x", "y", "z", "roll", "pitch", "yaw")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark as Seer saw it.

    Args:
        suite: Name of the simulator suite.
        cameras: Batch key -> height and width of the pictures; the one that looks at the scene comes first.
        camera: The simulator's names of them.
        state: Name of each number of the state.
        gripper_state_dims: Which of them are the gripper's.
        gripper_state_one_hot: See `SeerConfig`.
        ensemble_coeff: m of Seer's temporal ensembling; None where it executes each chunk's first action.
        conventions: What pictures, states and actions mean.
        meaning: The action's dimensions in words.
        remarks: What of Seer's own use differs between training and evaluation, or is not obvious.
    """

    suite: str
    cameras: dict[str, tuple[int, int]]
    camera: str
    state: tuple[str, ...]
    gripper_state_dims: tuple[int, ...]
    gripper_state_one_hot: bool
    ensemble_coeff: float | None
    conventions: Conventions
    meaning: dict[str, str]
    remarks: dict[str, Any] = field(default_factory=dict)

    def action_spec(self) -> ActionSpec:
        """Six arm numbers in [-1, 1] as they are, and a gripper that is either -1 or 1."""
        return ActionSpec((*MOTION, "gripper"), (0.0,) * 7, (1.0,) * 7, (6,), "binary")

    def recording(self, settings: dict[str, Any]) -> RecordingInfo:
        """The record that the checkpoint carries; ``settings`` say where it was imported from."""
        return RecordingInfo(
            suite=self.suite,
            tasks={},
            quality="standard",
            observation_size=self.conventions.image_size[0],
            control_hz=int(self.conventions.control_hz),
            camera=self.camera,
            image_orientation="as the simulator draws it",
            action_meaning=self.meaning,
            settings={**settings, "state": list(self.state), **self.remarks},
            conventions=self.conventions.to_dict(),
        )


CALVIN = Benchmark(
    suite="calvin",
    cameras={"observation.images.primary": (200, 200), "observation.images.wrist": (84, 84)},
    camera="rgb_static,rgb_gripper",
    state=(*MOTION, "gripper"),
    gripper_state_dims=(6,),
    gripper_state_one_hot=True,
    ensemble_coeff=None,
    conventions=Conventions(
        image_size=(200, 200),
        control_hz=30,
        action_mode="delta",
        position_unit=0.02,
        gripper_open=1.0,
        gripper_closed=-1.0,
        # calvin_env adds it to the hand's Euler angles; it composes no rotations.
        action_rotation=OF_ACTIONS,
        rotation_unit=0.05,
        state_rotation="euler_xyz",
    ),
    meaning={
        "x,y,z": "displacement of the hand, 1 is 0.02 m (CALVIN's rel_actions)",
        "roll,pitch,yaw": "added to the hand's Euler angles xyz, 1 is 0.05 rad",
        "gripper": "-1 close, 1 open",
    },
    remarks={"state_source": "robot_obs: its first six numbers and its last, the gripper command"},
)

LIBERO = Benchmark(
    suite="libero",
    # LeRobot's names of LIBERO's cameras.
    cameras={"observation.images.image": (128, 128), "observation.images.image2": (128, 128)},
    camera="agentview,robot0_eye_in_hand",
    state=(*MOTION, "gripper_left", "gripper_right"),
    gripper_state_dims=(6, 7),
    gripper_state_one_hot=False,
    ensemble_coeff=0.01,
    conventions=Conventions(
        image_size=(128, 128),
        control_hz=20,
        settle_steps=5,
        refreshed=False,
        action_mode="delta",
        position_unit=0.05,
        gripper_open=-1.0,
        gripper_closed=1.0,
        action_rotation="axis_angle",
        rotation_unit=0.5,
        # What the weights were trained on; Seer's own evaluation gives them Euler angles, see the remarks.
        state_rotation=OF_STATES,
    ),
    meaning={
        "x,y,z": "displacement of the hand, 1 is 0.05 m (LIBERO's OSC controller)",
        "roll,pitch,yaw": "rotation of the hand as an axis-angle vector in the world's frame, 1 is 0.5 rad",
        "gripper": "-1 open, 1 close",
    },
    remarks={
        "finetuned_on": "libero_10",
        # Training: LIBERO's ee_ori, an axis-angle vector, wrapped like Euler angles. Evaluation: true Euler
        # angles xyz of the hand's quaternion.
        STATE_ROTATIONS: [OF_STATES, "euler_xyz"],
        EVALUATED_UNDER: "seer",
        "settle": "5 steps of the zero action; the first observation is the one before them",
    },
)

BENCHMARKS = {"calvin": CALVIN, "calvin-large": CALVIN, "libero": LIBERO}
"""Layout's name -> its benchmark."""
