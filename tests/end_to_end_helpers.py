"""LeRobot's command lines as a user types them, a dataset of noise, and an arm that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lerobot.robots import Robot, RobotConfig

CAMERA, STATE, ACTION = "observation.image", "observation.state", "action"
SMALL = ("--num_workers=0", "--batch_size=4", "--log_freq=1", "--seed=7", "--policy.device=cpu")


def lerobot(command: str, *flags: str) -> str:
    """Run one of LeRobot's console scripts in a process of its own; its output.

    Nothing is set but what keeps it on one core and off the network: the plugin must be found by itself.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    script = Path(sys.executable).parent / command
    done = subprocess.run([script, *flags], env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{command} {' '.join(flags)}\n{output[-6000:]}"
    return output


def dataset_flags(root: Path) -> tuple[str, ...]:
    return (f"--dataset.repo_id=local/{root.name}", f"--dataset.root={root}")


def checkpoint(run: Path, step: str = "last") -> Path:
    return run / "checkpoints" / step / "pretrained_model"


@contextmanager
def moved_away(folder: Path):
    """As if a folder had been deleted."""
    elsewhere = folder.rename(folder.with_name(folder.name + ".moved"))
    try:
        yield
    finally:
        elsewhere.rename(folder)


def noise_dataset(root: Path, *, cameras=(CAMERA,), actions: int = 4, size: int = 32, fps: int = 80) -> Path:
    """Two episodes of noise in [-1, 1], without a recording's description: somebody's own data."""
    from lerobot.datasets import LeRobotDataset

    picture = {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channels"]}
    features = {
        **dict.fromkeys(cameras, picture),
        STATE: {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
        ACTION: {"dtype": "float32", "shape": (actions,), "names": [f"joint_{i}" for i in range(actions)]},
    }
    dataset = LeRobotDataset.create("local/noise", fps, features, root=root, use_videos=False)
    generator = np.random.default_rng(0)
    for task in ("open the door", "close the drawer"):
        for _ in range(8):
            frame = {key: generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for key in cameras}
            frame[STATE] = generator.uniform(-1, 1, 4).astype(np.float32)
            # Within what the recording's gripper reaches, -1 to 0.6.
            frame[ACTION] = generator.uniform(-0.6, 0.6, actions).astype(np.float32)
            dataset.add_frame({**frame, "task": task})
        dataset.save_episode()
    dataset.finalize()
    return root


@RobotConfig.register_subclass("imaginary_arm")
@dataclass(kw_only=True)
class ImaginaryArmConfig(RobotConfig):
    pass


class ImaginaryArm(Robot):
    """A robot with one camera, found by LeRobot through the name of its configuration's class."""

    config_class, name = ImaginaryArmConfig, "imaginary_arm"
    received: list[dict] = []
    axes = ("x.pos", "y.pos", "z.pos", "gripper.pos")

    def __init__(self, config):
        super().__init__(config)
        self._connected = False

    @property
    def observation_features(self) -> dict:
        return {**dict.fromkeys(self.axes, float), "front": (32, 32, 3)}

    @property
    def action_features(self) -> dict:
        return dict.fromkeys(self.axes, float)

    is_connected = property(lambda self: self._connected)
    is_calibrated = property(lambda self: True)

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True

    def disconnect(self) -> None:
        self._connected = False

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict:
        return {**dict.fromkeys(self.axes, 0.1), "front": np.full((32, 32, 3), 128, np.uint8)}

    def send_action(self, action: dict) -> dict:
        self.received.append(action)
        return action
