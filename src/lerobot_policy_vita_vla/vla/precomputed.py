"""What was computed of the demonstrations before training, and whether it may still be used.

    teacher features   a column of the dataset, made by `vita-vla teacher features`; align then never runs
                       the teacher
    vision features    a folder beside it, made by `vita-vla vlm features` and named by
                       ``--policy.vision_features``; no stage then runs the frozen image encoder

Both hold for one set of demonstrations and for unchanged pictures only, and each names the weights that it
comes from. Whatever does not agree is an error with the command that makes it anew: wrong targets train
without a word.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lerobot_policy_vita_vla.contracts import TEACHER_FEATURES
from lerobot_policy_vita_vla.demos.fingerprint import fingerprint
from lerobot_policy_vita_vla.vla.pictures import StoredPictures

if TYPE_CHECKING:
    from lerobot_policy_vita_vla.vla.backbone import VLMBackbone
    from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig

TEACHER_RECORD = "meta/teacher_features.json"
"""Beside a dataset's column of teacher features: what they come from."""

VISION_FACTS, VISION_DATA = "features.json", "features.bin"


def teacher_hash(path: str | Path) -> str:
    """Identity of a teacher: its settings and weights, normalisation included.

    Args:
        path: Its run or checkpoint folder.
    """
    from lerobot_policy_vita_vla.teacher.load import checkpoint_fingerprint, find_pretrained_model

    return checkpoint_fingerprint(find_pretrained_model(path))


def vision_hash(backbone: VLMBackbone, dtype: str) -> str:
    """Identity of what turns pictures into embeddings: encoder, projector, image processor, arithmetic."""
    processor = backbone.processor.image_processor.to_dict()
    settings = {"processor": processor, "options": backbone.prompts.image_options, "dtype": dtype}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    parts = backbone.parts()
    for name, parameter in sorted((parts["vision"] | parts["projector"]).items()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class Precomputed:
    """Gives a batch's precomputed parts, where there are any.

    Args:
        config: The student's settings.
        dataset_meta: LeRobot's dataset metadata; None where nothing trains, then there are none.

    Attributes:
        targets: Whether batches carry the teacher's features.
        vision: The stored image embeddings, or None.

    Raises:
        ValueError: What is there comes from another teacher, dataset or camera, or pictures are augmented.
    """

    def __init__(self, config: VitaVLAConfig, dataset_meta: Any):
        self.config = config
        root = getattr(dataset_meta, "root", None)
        features = getattr(dataset_meta, "features", {})
        self.targets = config.needs_teacher and root is not None and TEACHER_FEATURES in features
        if self.targets:
            _check_targets(config, Path(root))
        self.vision: VisionStore | None = None
        if config.vision_features is not None and root is not None:
            self.vision = VisionStore(config.vision_features)
            self.vision.check_data(config, fingerprint(root))

    def targets_of(self, batch: dict[str, Any], valid_BH: Tensor | None) -> Tensor:
        """The teacher's features of a batch (B, T, E); of a history, (n, T, E) of the n steps that exist."""
        stored = batch[TEACHER_FEATURES]
        rows = stored if valid_BH is None else stored[valid_BH]
        return rows.reshape(len(rows), self.config.chunk_size, -1)

    def pictures_of(self, batch: dict[str, Any], backbone: VLMBackbone) -> StoredPictures | None:
        """The batch's image embeddings, None where pixels are to be encoded."""
        if self.vision is None:
            return None
        self.vision.check_weights(backbone, self.config.dtype)
        shapes = [feature.shape for feature in self.config.image_features.values()]
        return StoredPictures(self.vision.rows(batch["index"]), tuple(tuple(s[-2:]) for s in shapes))


def _refuse_augmentation(config: VitaVLAConfig, what: str) -> None:
    if config.image_shift_px or config.wrist_shift_px:
        raise ValueError(
            f"{what} were computed of the pictures as they are, but training shifts them at random; pass "
            "--policy.image_shift_px=0 --policy.wrist_shift_px=0, or train without them"
        )


def _check_targets(config: VitaVLAConfig, root: Path) -> None:
    again = f"vita-vla teacher features --demos DEMOS --teacher {config.teacher_path} --out NEW_DEMOS"
    file = root / TEACHER_RECORD
    if not file.is_file():
        raise ValueError(
            f"{root} has a column {TEACHER_FEATURES} but no {TEACHER_RECORD} that says which teacher it "
            f"comes from; make it again: {again}"
        )
    record = json.loads(file.read_text())
    _refuse_augmentation(config, f"the teacher features in {root}")
    if record["teacher"] != teacher_hash(config.teacher_path):
        raise ValueError(
            f"the teacher features in {root} come from another teacher than --policy.teacher_path="
            f"{config.teacher_path}; make them again: {again}"
        )
    if record["dataset"] != fingerprint(root):
        raise ValueError(
            f"the demonstrations in {root} have changed since the teacher's features were computed; make "
            f"them again: {again}"
        )
    if config.teacher_cameras and record["cameras"] != config.teacher_cameras:
        raise ValueError(
            f"the teacher features in {root} were computed with the cameras {record['cameras']}, training "
            f"uses {config.teacher_cameras} (teacher's: data's); set --policy.teacher_cameras, or make them "
            f"again: {again}"
        )


class VisionStore:
    """Image embeddings of every frame of a dataset, on disk, in the order of its global ``index``.

    Args:
        folder: As `training.vision_features.store_vision` wrote it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        file = self.folder / VISION_FACTS
        if not file.is_file():
            raise ValueError(
                f"no stored vision features at {folder} ({VISION_FACTS} is missing); make them with "
                f"`vita-vla vlm features --demos DEMOS --out {folder}`, or go without: "
                "--policy.vision_features=null"
            )
        self.facts: dict[str, Any] = json.loads(file.read_text())
        rows, tokens, width = (self.facts[name] for name in ("rows", "tokens", "width"))
        dtype = getattr(torch, self.facts["stored_as"])
        data = self.folder / VISION_DATA
        expected = rows * tokens * width * dtype.itemsize
        if not data.is_file() or data.stat().st_size != expected:
            raise ValueError(f"{data} is cut off or missing, expected {expected} bytes; {self._again()}")
        # Mapped, not read: pages come in as they are used, and processes share them.
        flat = torch.from_file(str(data), shared=False, size=rows * tokens * width, dtype=dtype)
        self._rows = flat.view(rows, tokens, width)
        self._checked = False

    def rows(self, index: Tensor) -> Tensor:
        """Embeddings (B, N x n, D) of frames, by their global index, on the index's device."""
        if int(index.max()) >= len(self._rows):
            raise ValueError(
                f"the batch has frame {int(index.max())}, {self.folder} holds {len(self._rows)}; "
                f"{self._again()}"
            )
        return self._rows[index.cpu()].to(index.device)

    def check_data(self, config: VitaVLAConfig, dataset: str) -> None:
        """Raise ValueError unless these are the pictures that training reads."""
        if config.n_obs_steps > 1 or config.reads_turns:
            raise ValueError(
                "stored vision features are for prompts of one step; pass --policy.vision_features=null, or "
                "--policy.n_obs_steps=1 and a prompt without {state}"
            )
        _refuse_augmentation(config, f"the vision features in {self.folder}")
        cameras = list(config.image_features)
        if self.facts["cameras"] != cameras:
            raise ValueError(
                f"{self.folder} holds the cameras {self.facts['cameras']}, training reads {cameras}; "
                f"{self._again()}"
            )
        if self.facts["dataset"] != dataset:
            raise ValueError(f"{self.folder} was computed of other demonstrations; {self._again()}")

    def check_weights(self, backbone: VLMBackbone, dtype: str) -> None:
        """Raise ValueError unless this encoder made them; looks once, since a frozen encoder stays."""
        if self._checked:
            return
        if self.facts["vision"] != vision_hash(backbone, dtype):
            raise ValueError(
                f"{self.folder} was computed by another image encoder, image processor or precision than "
                f"this student's (dtype={dtype}); {self._again()}"
            )
        self._checked = True

    def _again(self) -> str:
        return (
            f"make it again: rm -r {self.folder}; vita-vla vlm features --demos DEMOS --vlm VLM "
            f"--out {self.folder}"
        )
