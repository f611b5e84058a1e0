"""A simulator of seven-number actions for the golden replay: a turning hand, fingers, something that falls.

It has LIBERO's conventions (axis-angle in the world's frame, settle steps, 20 Hz) in forty lines of numpy,
and is what a user's own simulator has to look like.
"""

from dataclasses import replace

import numpy as np
from lerobot.datasets import LeRobotDataset
from scipy.spatial.transform import Rotation

from lerobot_policy_vita_vla.conventions import Conventions, RecordingInfo, statistics_hash
from lerobot_policy_vita_vla.conversion import Conversion
from lerobot_policy_vita_vla.demos.replay_play import begin
from lerobot_policy_vita_vla.demos.simulator import Tolerances

SIZE, INSTRUCTION, STARTS = 24, "turn and lift", 5


class ToyArm:
    """Poses are a function of the start; every substep closes a tenth of the way to the target."""

    conventions = Conventions(
        image_size=(SIZE, SIZE),
        control_hz=20,
        settle_steps=10,
        position_unit=0.05,
        action_rotation="axis_angle",
        rotation_unit=0.5,
        state_rotation="axis_angle_2pi",
    )
    tolerances = Tolerances(start=1e-5, path=2e-3, picture=3.0)
    control_rates = (10.0, 20.0, 40.0)
    max_steps = 200

    def __init__(self, info=None):
        self.info = info

    def starts(self, instruction, number):
        return list(range(number, STARTS))

    def reset(self, start, control_hz):
        rng = np.random.default_rng(start)
        self.substeps = round(200 / control_hz)
        self.position = rng.uniform(-0.2, 0.2, 3)
        # Turned by more than pi, as LIBERO's downward hand often is: the sign of its quaternion matters.
        self.turn = Rotation.from_rotvec([3.4 + 0.1 * rng.random(), 0.2, -0.1])
        self.fingers, self.height = 0.0, 0.1 + 0.05 * rng.random()

    def idle(self):
        self.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))

    def step(self, action):
        action = np.clip(np.asarray(action, dtype=np.float64), -1, 1)
        goal = self.position + 0.05 * action[:3]
        turn = Rotation.from_rotvec(0.5 * action[3:6] / self.substeps)
        for _ in range(self.substeps):
            self.position = self.position + 0.1 * (goal - self.position)
            self.turn = Rotation.from_quat((turn * self.turn).as_quat())
            self.fingers = float(np.clip(self.fingers + 0.01 * action[6], -0.5, 0.5))
            self.height = max(0.0, self.height - 0.0008)

    def state(self):
        rotation = np.concatenate([self.position, self.turn.as_quat(), [self.fingers, -self.fingers]])
        quaternions = replace(self.conventions, state_rotation="quaternion_xyzw")
        hand = Conversion(self.conventions, quaternions).state(rotation)
        return {
            "observation.state": hand.astype(np.float32),
            "observation.environment_state": np.array([self.height], dtype=np.float32),
        }

    def render(self):
        picture = np.linspace(0, 90, SIZE * SIZE * 3).reshape(SIZE, SIZE, 3)
        picture[: SIZE // 3, : SIZE // 2, 0] += 120
        row, column = ((self.position[:2] * 20 + SIZE / 2).clip(2, SIZE - 3)).astype(int)
        picture[row - 2 : row + 3, column - 2 : column + 3] = 255
        return {"observation.image": picture.astype(np.uint8)}

    def close(self):
        pass


class TwoCameras(ToyArm):
    """The same with a camera at its wrist, whose pictures may be smaller."""

    wrist_size = SIZE

    def render(self):
        front = super().render()["observation.image"]
        wrist = np.roll(front[:, ::-1], 5, axis=0)[: self.wrist_size, : self.wrist_size]
        return {"observation.images.front": front, "observation.images.wrist": wrist}


def record_toy(
    root, declared: Conventions, truth: Conventions, *, frames=30, arm=None, wrist=None
) -> RecordingInfo:
    """A dataset recorded under ``truth`` that says it was recorded under ``declared``.

    Args:
        root: Its folder.
        declared: What it says.
        truth: What it is.
        frames: Of each episode.
        arm: The simulator.
        wrist: Orientation of the wrist's pictures, where it is another than the truth's.
    """
    arm, rng = arm or ToyArm(), np.random.default_rng(1)
    spec = {"observation.state": 8, "observation.environment_state": 1, "action": 7}
    features = {name: {"dtype": "float32", "shape": (size,), "names": None} for name, size in spec.items()}
    begin(arm, 0, truth)
    names = {key: key if "images" in key else "observation.images.front" for key in arm.render()}
    picture = {"dtype": "image", "names": ["height", "width", "channels"]}
    cameras = {names[key]: {**picture, "shape": drawn.shape} for key, drawn in arm.render().items()}
    dataset = LeRobotDataset.create(
        repo_id="local/toy",
        fps=20,
        root=root,
        features={**features, **cameras},
        use_videos=False,
    )
    seen, told = Conversion(truth, arm.conventions), Conversion(arm.conventions, truth)
    beside = Conversion(replace(truth, image_orientation=wrist or truth.image_orientation), arm.conventions)
    for start in range(2):
        begin(arm, start, truth)
        for _ in range(frames):
            action = rng.uniform(-0.9, 0.9, 7).astype(np.float32)
            state = arm.state()
            dataset.add_frame(
                {
                    "observation.state": seen.state(state["observation.state"]).astype(np.float32),
                    "observation.environment_state": state["observation.environment_state"],
                    **{
                        names[key]: (beside if "wrist" in key else seen).pictures(drawn)
                        for key, drawn in arm.render().items()
                    },
                    # What the policy would have to say for this to happen.
                    "action": told.actions(action).astype(np.float32),
                    "task": INSTRUCTION,
                }
            )
            arm.step(action)
        dataset.save_episode()
    dataset.finalize()
    info = RecordingInfo("toy", {INSTRUCTION: "toy"}, "plain", SIZE, 20, "front")
    info.conventions, info.statistics_hash = declared.to_dict(), statistics_hash(dataset.meta.stats)
    info.save(root)
    return info
