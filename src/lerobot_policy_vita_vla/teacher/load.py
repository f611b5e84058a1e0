"""From a path to a teacher."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lerobot_policy_vita_vla.contracts import Teacher
from lerobot_policy_vita_vla.files import read_json

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def load_teacher(path: str | Path, device: torch.device | str = "cpu") -> Teacher:
    """Load a trained policy as a teacher: in eval mode, frozen, offline.

    Args:
        path: A ``pretrained_model`` folder, a checkpoint folder that holds one, or a training run's output
            folder (its last checkpoint is taken).
        device: Where it runs.

    Raises:
        ValueError: There is no such checkpoint, its type is not supported, or its weights are incomplete.
    """
    folder = find_pretrained_model(path)
    kind = read_json(folder / CONFIG).get("type")
    if kind not in LOADERS:
        raise ValueError(
            f"{folder} holds a policy of type {kind!r}, which cannot teach; supported: {sorted(LOADERS)}"
        )
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}: the checkpoint is incomplete, copy or train it again")
    teacher = LOADERS[kind](folder, device)
    logger.info(
        "teacher %s from %s: T=%d E=%d, cameras %s",
        kind,
        folder,
        teacher.chunk_size,
        teacher.feature_dim,
        ", ".join(teacher.cameras),
    )
    return teacher


def checkpoint_fingerprint(folder: Path) -> str:
    """SHA-256 over a checkpoint's weights, configuration and processors: what it computes.

    LeRobot's policies keep their normalisation beside the weights, ours inside.

    Args:
        folder: A ``pretrained_model`` folder.
    """
    digest = hashlib.sha256()
    for file in sorted((*folder.glob("*.safetensors"), *folder.glob("*.json"))):
        # Paths and budgets, not part of what acts, and rewritten by a mere copy of the checkpoint.
        if file.name == "train_config.json":
            continue
        digest.update(file.name.encode())
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def find_pretrained_model(path: str | Path) -> Path:
    """The ``pretrained_model`` folder that ``path`` means; see `load_teacher`."""
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(
            f"no teacher at {path}; train one with `lerobot-train --policy.type=seer ...` or get one with"
            f" `hf download <repo> --local-dir {path}`"
        )
    if (folder := locate_checkpoint(path)) is not None:
        return folder
    looked = ", ".join(str(folder) for folder in _candidates(path))
    raise ValueError(f"no {CONFIG} in {looked}; give a pretrained_model, checkpoint or output folder")


def locate_checkpoint(path: str | Path) -> Path | None:
    """The ``pretrained_model`` folder that ``path`` means, or None.

    Args:
        path: The folder itself, a checkpoint folder that holds it, or a training run (its last checkpoint).
    """
    return next((folder for folder in _candidates(Path(path)) if (folder / CONFIG).is_file()), None)


def _candidates(path: Path) -> tuple[Path, ...]:
    return path, path / "pretrained_model", path / "checkpoints" / "last" / "pretrained_model"


def _load_config(folder: Path, device: torch.device | str) -> Any:
    from lerobot.configs import PreTrainedConfig

    # The saved device may be one that this machine lacks.
    return PreTrainedConfig.from_pretrained(folder, cli_overrides=[f"--device={torch.device(device).type}"])


def _load_seer(folder: Path, device: torch.device | str) -> Teacher:
    from lerobot_policy_vita_vla.teacher.seer.modeling_seer import SeerPolicy
    from lerobot_policy_vita_vla.teacher.seer.teacher import SeerTeacher

    config = _load_config(folder, device)
    # A teacher acts with its averaged weights and is never trained on: keep one copy.
    config.ema_decay = 0.0
    return SeerTeacher(SeerPolicy.from_pretrained(folder, config=config)).to(device)


def _load_act(folder: Path, device: torch.device | str) -> Teacher:
    from lerobot.policies.act.modeling_act import ACTPolicy

    from lerobot_policy_vita_vla.teacher.act import ACTTeacher
    from lerobot_policy_vita_vla.teacher.weights import load_strictly, read_weights

    config = _load_config(folder, device)
    # Its backbone's weights are in the checkpoint; the name would only download others to be overwritten.
    config.pretrained_backbone_weights = None
    policy = ACTPolicy(config)
    load_strictly(policy, read_weights(folder / WEIGHTS), folder / WEIGHTS)
    return ACTTeacher(policy, folder, device)


LOADERS: dict[str, Callable[[Path, torch.device | str], Teacher]] = {"act": _load_act, "seer": _load_seer}
