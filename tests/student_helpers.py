"""A teacher of a few hundred numbers, batches and students for the tests of the `vla` package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from torch import nn

from lerobot_policy_vita_vla.contracts import ActionSpec, TeacherTargets
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder
from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig

T, A, S, E, B, PX = 3, 4, 4, 16, 4, 32
CAMERA = "observation.images.front"
TEACHER_CAMERA = "observation.image"
TASKS = ["Open a door with a revolving joint", "Press a button from the top", "slide", "Push a plate"]
SPEC = ActionSpec(("x", "y", "z", "gripper"), (0.0,) * 4, (1.0,) * 4, (3,), "binary")
STATS = {
    "action": {"min": np.full(A, -1.0), "max": np.full(A, 1.0)},
    "observation.state": {"mean": np.arange(S) * 1.0, "std": np.full(S, 2.0)},
}

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler (apt-get install g++)"
)


class FakeTeacher(nn.Module):
    """Features that depend on image, state and step; the protocol of contracts.Teacher."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.feature_dim, self.chunk_size, self.action_spec = E, T, SPEC
        self.cameras, self.state_dim = (TEACHER_CAMERA,), S
        self.decoder = ActionDecoder(kind="seer", feature_dim=E, spec=SPEC)
        for parameter in self.decoder.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.register_buffer("image_weight", torch.randn(3 * 4 * 4, T * E, generator=generator))
        self.register_buffer("state_weight", torch.randn(S, T * E, generator=generator))

    def targets(self, batch):
        assert not torch.is_grad_enabled()
        image = torch.nn.functional.adaptive_avg_pool2d(batch[TEACHER_CAMERA], 4).flatten(1)
        mixed = image @ self.image_weight + batch["observation.state"] @ self.state_weight
        return TeacherTargets(torch.tanh(mixed).view(-1, T, E))

    def predict_action_chunk(self, batch):
        with torch.no_grad():
            return self.decoder.to_action(self.decoder(self.targets(batch).features_BTE))


def same_actions(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two policies with the same weights answer alike.

    Not bit by bit: weights that were read from a file lie where the file has them, and on some processors
    matrix products round differently when an operand is aligned differently.
    """
    return torch.allclose(found, wanted, rtol=0, atol=1e-6)


def save_teacher(folder: Path, teacher: FakeTeacher | None = None) -> Path:
    """A teacher's folder, as far as the student's config looks at it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"type": "fake", "chunk_size": T}))
    torch.save((teacher or FakeTeacher()).state_dict(), folder / "weights.pt")
    return folder


def install_loader(monkeypatch, change=None) -> None:
    """Make `load_teacher` read what `save_teacher` wrote; ``change(teacher)`` may spoil it."""

    def load_teacher(path, device="cpu"):
        teacher = FakeTeacher()
        teacher.load_state_dict(torch.load(Path(path) / "weights.pt"))
        if change is not None:
            change(teacher)
        return teacher.eval().to(device)

    monkeypatch.setattr("lerobot_policy_vita_vla.teacher.load.load_teacher", load_teacher)


def make_config(teacher: Path | None, vlm: Path, **settings) -> VitaVLAConfig:
    """A config with the features of a small dataset."""
    visual = PolicyFeature(type=FeatureType.VISUAL, shape=(3, PX, PX))
    state = PolicyFeature(type=FeatureType.STATE, shape=(S,))
    settings = {"dtype": "float32", "device": "cpu", "lr": 1e-3} | settings
    return VitaVLAConfig(
        vlm=str(vlm),
        teacher_path=str(teacher) if teacher else None,
        input_features={CAMERA: visual, "observation.state": state},
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(A,))},
        **settings,
    )


def make_batch(seed: int = 0, size: int = B) -> dict:
    """A batch as LeRobot's preprocessor leaves it."""
    generator = torch.Generator().manual_seed(seed)
    action = torch.rand(size, T, A, generator=generator) * 2 - 1
    action[..., 3] = action[..., 3].sign()
    is_pad = torch.zeros(size, T, dtype=torch.bool)
    is_pad[-1, -1] = True
    return {
        CAMERA: torch.rand(size, 3, PX, PX, generator=generator),
        "observation.state": torch.randn(size, S, generator=generator) * 2,
        "task": [TASKS[i % len(TASKS)] for i in range(size)],
        "action": action,
        "action_is_pad": is_pad,
    }
