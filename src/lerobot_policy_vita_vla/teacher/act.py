"""LeRobot's ACT in the role of a teacher.

ACT (Zhao et al. 2023) ends in one linear layer behind its transformer decoder:

    ACT's own preprocessing -> transformer -> features (B, T, E) -> action_head -> normalised chunk

The features are read at the input of ``action_head`` by a hook; ``action_head`` and the statistics that turn
its output into environment units become an `ActionDecoder` of kind ``"linear"``. ACT reads no instruction: it
can teach one task, or tasks that its pictures and state tell apart.
"""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lerobot_policy_vita_vla.contracts import PRIVILEGED_STATE, ActionSpec, TeacherTargets
from lerobot_policy_vita_vla.conventions import RECORDING_FILE, RecordingInfo
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder

logger = logging.getLogger(__name__)


class ACTTeacher:
    """A trained ACT behind the protocol `contracts.Teacher`; read-only.

    Args:
        policy: A `lerobot.policies.act.modeling_act.ACTPolicy` with its weights.
        folder: Its ``pretrained_model`` folder, for the pipelines saved with it.
        device: Where it runs.
    """

    uses_language = False

    def __init__(self, policy: Any, folder: Path, device: torch.device | str):
        config = policy.config
        if PRIVILEGED_STATE in config.input_features:
            raise ValueError(
                f"this ACT reads {PRIVILEGED_STATE}, which only a simulator knows, so nothing could be learnt"
                " from it for a robot; train it without: `vita-vla teacher --policy.type=act` leaves that "
                "column out, lerobot-train does with --policy.input_features"
            )
        self.policy = policy.eval().requires_grad_(False)
        self.folder = folder
        self.chunk_size: int = config.chunk_size
        self.feature_dim: int = config.dim_model
        self.cameras: tuple[str, ...] = tuple(config.image_features)
        self.state_dim: int = config.robot_state_feature.shape[0] if config.robot_state_feature else 0
        self.recording: dict[str, Any] = recording_beside(folder)
        self.to(device)
        head = policy.model.action_head
        self.action_spec = _action_spec(self._unnormalizer(), head.out_features)
        self.decoder = ActionDecoder(kind="linear", feature_dim=self.feature_dim, spec=self.action_spec)
        self.decoder.head.load_state_dict(head.state_dict())
        self.decoder.eval().requires_grad_(False).to(device)
        logger.warning(
            "ACT ignores the instruction: it teaches only tasks that pictures and state tell apart"
        )

    def to(self, device: torch.device | str) -> ACTTeacher:
        """Move weights and pipelines."""
        from lerobot.policies.factory import make_pre_post_processors

        self.policy.to(device)
        if hasattr(self, "decoder"):
            self.decoder.to(device)
        self._preprocessor, self._postprocessor = make_pre_post_processors(
            self.policy.config,
            pretrained_path=str(self.folder),
            preprocessor_overrides={"device_processor": {"device": torch.device(device).type}},
        )
        return self

    @torch.no_grad()
    def targets(self, batch: dict[str, Any]) -> TeacherTargets:
        """Action features (B, T, E), float32; of a history, the last step's."""
        tapped: list[Tensor] = []

        def tap(_module: Any, inputs: tuple[Tensor]) -> None:
            tapped.append(inputs[0])

        handle = self.policy.model.action_head.register_forward_pre_hook(tap)
        try:
            self.policy.predict_action_chunk(self._preprocess(batch))
        finally:
            handle.remove()
        return TeacherTargets(tapped[0].float())

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any]) -> Tensor:
        """Action chunk (B, T, A) in environment units, through the decoder that a student takes over."""
        return self.decoder.to_action(self.decoder(self.targets(batch).features_BTE))

    def _preprocess(self, batch: dict[str, Any]) -> dict[str, Any]:
        observation = {}
        for key, value in batch.items():
            if not key.startswith("observation.") or not isinstance(value, Tensor) or key.endswith("_is_pad"):
                continue
            n_dims = 4 if "image" in key else 2
            observation[key] = value[:, -1] if value.ndim > n_dims else value
        observation.pop(PRIVILEGED_STATE, None)
        processed = self._preprocessor(observation)
        if missing := [key for key in self.policy.config.input_features if key not in processed]:
            raise ValueError(f"the ACT teacher reads {missing}; the batch has {sorted(observation)}")
        return processed

    def _unnormalizer(self) -> Any:
        from lerobot.processor import UnnormalizerProcessorStep

        steps = [s for s in self._postprocessor.steps if isinstance(s, UnnormalizerProcessorStep)]
        if len(steps) != 1:
            raise ValueError(
                f"{self.folder}/policy_postprocessor.json has {len(steps)} unnormalizer steps, expected one"
            )
        return steps[0]


@cache
def recording_beside(folder: Path) -> dict[str, Any]:
    """What an ACT checkpoint does not keep: the record of the dataset that it was trained on.

    Args:
        folder: A ``pretrained_model`` folder.

    Returns:
        `RecordingInfo` as plain JSON types, without the statistics' hash, since the dataset may have been
        replaced; empty, and said once, where there is none to be found.
    """
    path, root = folder / "train_config.json", None
    if path.is_file():
        root = (json.loads(path.read_text()).get("dataset") or {}).get("root")
    info = RecordingInfo.load(root) if root else None
    if info is None:
        where = f"{Path(root) / RECORDING_FILE} is not there" if root else f"{path} names no dataset's folder"
        logger.warning(
            "%s does not say how its demonstrations were recorded (%s): its conventions are not compared",
            folder,
            where,
        )
        return {}
    return {**info.to_dict(), "statistics_hash": ""}


def _action_spec(unnormalizer: Any, n_dims: int) -> ActionSpec:
    """What ACT's postprocessor does to an action, as scale and offset.

    ACT regresses every dimension, its gripper too, so none of them is a logit.
    """
    from lerobot.configs import FeatureType, NormalizationMode

    mode = unnormalizer.norm_map.get(FeatureType.ACTION, NormalizationMode.IDENTITY)
    stats = {k: torch.as_tensor(v).flatten() for k, v in unnormalizer.stats.get("action", {}).items()}
    if mode is NormalizationMode.IDENTITY:
        offset, scale = torch.zeros(n_dims), torch.ones(n_dims)
    elif mode is NormalizationMode.MEAN_STD:
        offset, scale = stats["mean"], stats["std"]
    elif mode is NormalizationMode.MIN_MAX:
        offset, scale = (stats["max"] + stats["min"]) / 2, (stats["max"] - stats["min"]) / 2
    else:
        raise ValueError(
            f"this ACT normalises actions by {mode.value}; MEAN_STD, MIN_MAX and IDENTITY are supported:"
            " the others are not one scale and offset per dimension"
        )
    names = tuple(f"action_{i}" for i in range(n_dims))
    # A constant dimension has no spread; its scale only has to be positive.
    return ActionSpec(names, tuple(offset.tolist()), tuple(scale.clamp_min(1e-8).tolist()))
