"""Whole LeRobot policies around a VLM with random weights: our student, its teacher, and SmolVLA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lerobot_policy_vita_vla.bench import random_vlm, students

CAMERAS = ("observation.images.front", "observation.images.wrist")


def features(image: int) -> dict[str, dict]:
    """What every policy reads and gives, as arguments of its configuration; pictures of ``image`` pixels."""
    from lerobot.configs.types import FeatureType, PolicyFeature

    picture = PolicyFeature(type=FeatureType.VISUAL, shape=(3, image, image))
    state = PolicyFeature(type=FeatureType.STATE, shape=(students.STATE,))
    action = PolicyFeature(type=FeatureType.ACTION, shape=(students.ACTION,))
    return {
        "input_features": dict.fromkeys(CAMERAS, picture) | {"observation.state": state},
        "output_features": {"action": action},
    }


def stats() -> dict[str, dict[str, np.ndarray]]:
    """Statistics of a dataset whose states and actions lie in [-1, 1]."""
    sizes = {"observation.state": students.STATE, "action": students.ACTION}
    values = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0}
    return {key: {k: np.full(n, v, np.float32) for k, v in values.items()} for key, n in sizes.items()}


def tiny_teacher(image: int, device: str) -> Any:
    """Seer, preset tiny, with random weights."""
    from lerobot_policy_vita_vla.teacher.seer.configuration_seer import SeerConfig
    from lerobot_policy_vita_vla.teacher.seer.modeling_seer import SeerPolicy

    config = SeerConfig(
        preset="tiny",
        device=device,
        chunk_size=students.CHUNK,
        auxiliary_weight=0.0,
        action_spec=students.LIBERO.spec.to_dict(),
        **features(image),
    )
    return SeerPolicy(config)


def finetune_policy(vlm: str | Path, teacher: Path, image: int, device: str) -> Any:
    """Our student in stage only_finetune, whose step is finetune's.

    Args:
        vlm: Folder, or ``"mini"``.
        teacher: Where a random teacher is written; it gives the decoder and the actions' scale.
        image: Pixels along each side of the two cameras' pictures.
        device: Where it runs.
    """
    from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig
    from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy

    tiny_teacher(image, device).save_pretrained(teacher)
    config = VitaVLAConfig(
        stage="only_finetune",
        teacher_path=str(teacher),
        vlm=str(vlm),
        dtype="bfloat16",
        device=device,
        **features(image),
    )
    return VitaVLAPolicy(config, dataset_stats=stats()).to(device)


def smolvla(vlm: Path, shape: random_vlm.Shape, device: str, **settings: Any) -> Any:
    """LeRobot's policy around the VLM of a folder; what ``settings`` do not say is its own default."""
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    config = SmolVLAConfig(
        vlm_model_name=str(vlm),
        num_vlm_layers=shape.text[2],
        resize_imgs_with_padding=(shape.image, shape.image),
        device=device,
        **features(shape.image),
        **settings,
    )
    return SmolVLAPolicy(config)
