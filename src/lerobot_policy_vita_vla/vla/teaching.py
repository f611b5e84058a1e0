"""The teacher as the student sees it: a read-only source of targets, checked before it teaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lerobot_policy_vita_vla.contracts import ActionSpec, Teacher
from lerobot_policy_vita_vla.conventions import compare_statistics, match_cameras, statistics_hash
from lerobot_policy_vita_vla.demos.checkpoint_records import read_pair, same_units
from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig


class TeacherSource:
    """A teacher on the student's device, fed with the student's cameras under its own names.

    Args:
        path: Its checkpoint.
        device: Where it runs.
    """

    def __init__(self, path: str, device: str | torch.device):
        from lerobot_policy_vita_vla.teacher.load import load_teacher

        self.device = torch.device(device)
        self.teacher: Teacher = load_teacher(path, device=str(device))

    def targets(
        self, batch: dict[str, Any], cameras: Mapping[str, str], valid_BH: Tensor | None = None
    ) -> Tensor:
        """Action features (B, T, E) without gradient; of a history, (n, T, E) of the n steps that exist.

        Args:
            batch: The student's batch.
            cameras: Teacher's camera key -> ours.
            valid_BH: Which steps of a history exist; None without a history.
        """
        seen = {key: value for key, value in batch.items() if key not in cameras.values()}
        seen |= {theirs: batch[ours] for theirs, ours in cameras.items()}
        with torch.no_grad():
            if valid_BH is None:
                return self.teacher.targets(seen).features_BTE.detach()
            if getattr(self.teacher, "n_obs_steps", 1) > 1:
                return self.teacher.targets_of_every_step(seen)[valid_BH].detach()
            return self.teacher.targets(_step_by_step(seen, valid_BH)).features_BTE.detach()


def _step_by_step(batch: dict[str, Any], valid_BH: Tensor) -> dict[str, Any]:
    """Every step that exists as a sample of its own, for a teacher that reads one step."""
    rows = {
        key: value[valid_BH]
        for key, value in batch.items()
        if key.startswith("observation.") and not key.endswith("_is_pad") and isinstance(value, Tensor)
    }
    counts = valid_BH.sum(dim=1).tolist()
    rows["task"] = [task for task, count in zip(batch["task"], counts, strict=True) for _ in range(count)]
    return rows


def require_teacher(config: VitaVLAConfig, device: str | torch.device) -> TeacherSource:
    """Load the teacher that ``config.teacher_path`` names, or explain why one is needed."""
    if config.teacher_path is None:
        raise ValueError(
            f"stage {config.stage!r} needs the teacher: pass --policy.teacher_path=<its checkpoint's "
            "pretrained_model folder>. It gives the targets of align, the shape and initial weights of the "
            "decoder, and the scale of the actions"
        )
    return TeacherSource(config.teacher_path, device)


def check_teacher(
    teacher: Teacher, config: VitaVLAConfig, dataset_stats: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, str]:
    """Match a teacher with the student's data.

    Returns:
        Teacher's camera key -> the student's camera key.

    Raises:
        ValueError: If history, chunk size, action or state size, cameras, pictures or action statistics do
            not fit.
    """
    problems = []
    if (steps := getattr(teacher, "n_obs_steps", 1)) not in (1, config.n_obs_steps):
        reads = "the current observation only" if config.n_obs_steps == 1 else f"{config.n_obs_steps} steps"
        raise ValueError(
            f"the teacher at {config.teacher_path} reads a history of {steps} steps (n_obs_steps), the "
            f"student {reads}; train the teacher with --policy.n_obs_steps=1, or the student with "
            f"--policy.n_obs_steps={steps}"
        )
    if steps > 1 and not hasattr(teacher, "targets_of_every_step"):
        raise ValueError(
            f"the teacher at {config.teacher_path} reads a history but gives features of its last step only; "
            "train it with --policy.n_obs_steps=1"
        )
    if teacher.chunk_size != config.chunk_size:
        problems.append(f"it predicts {teacher.chunk_size} steps, the student chunk_size={config.chunk_size}")
    action, state = config.action_feature, config.robot_state_feature
    if action is not None and action.shape[0] != teacher.action_spec.dim:
        problems.append(f"it acts with {teacher.action_spec.dim} numbers, the data has {action.shape[0]}")
    if state is not None and state.shape[0] != teacher.state_dim:
        problems.append(f"it reads a state of {teacher.state_dim} numbers, the data has {state.shape[0]}")
    taught_on = getattr(teacher, "recording", None)
    if not problems and "action" in (dataset_stats or {}) and not _same_numbers(taught_on, dataset_stats):
        problems = compare_statistics(
            dataset_stats,
            action_spec=teacher.action_spec,
            bounded=_is_bounded(teacher.decoder.config()),
            same_units=same_units(config.recording, taught_on),
        )
    if records := read_pair(config.recording, taught_on):
        problems += records[0].picture_differences(records[1].to_dict())
    if problems:
        raise ValueError(
            f"the teacher at {config.teacher_path} does not fit: "
            + "; ".join(problems)
            + ". Train the teacher on this dataset, or the student on the teacher's"
        )
    return _teacher_cameras(teacher, config)


def _teacher_cameras(teacher: Teacher, config: VitaVLAConfig) -> dict[str, str]:
    ours, given = list(config.image_features), dict(config.teacher_cameras)
    if not given:
        # LeRobot renames cameras only where a checkpoint goes on: --rename_map is refused for a new student.
        return match_cameras(teacher.cameras, ours, flag="--policy.teacher_cameras")
    if set(given) != set(teacher.cameras) or not set(given.values()) <= set(ours):
        raise ValueError(
            f"--policy.teacher_cameras={given} must name one of the data's cameras {ours} for each of the "
            f"teacher's {list(teacher.cameras)} (the teacher's: the data's)"
        )
    return given


def check_decoder_scale(
    config: VitaVLAConfig,
    dataset_stats: Mapping[str, Mapping[str, Any]] | None,
    trained_on: Mapping[str, Any] | None = None,
) -> None:
    """Raise ValueError if a checkpoint's decoder scales actions otherwise than the dataset at hand.

    Args:
        config: With the checkpoint's decoder.
        dataset_stats: LeRobot's statistics of the dataset at hand.
        trained_on: The checkpoint's `conventions.RecordingInfo`, as plain JSON types.
    """
    if dataset_stats is None or "action" not in dataset_stats or _same_numbers(trained_on, dataset_stats):
        return
    spec, bounded = ActionSpec.from_dict(config.decoder["spec"]), _is_bounded(config.decoder)
    declared = same_units(config.recording, trained_on)
    if problems := compare_statistics(dataset_stats, action_spec=spec, bounded=bounded, same_units=declared):
        raise ValueError(
            "the student's decoder and this dataset scale actions differently: "
            + "; ".join(problems)
            + ". Continue on the dataset it was aligned on, or start a new teacher and student"
        )


def _same_numbers(recording: Mapping[str, Any] | None, stats: Mapping[str, Mapping[str, Any]]) -> bool:
    # What learned from these very numbers fits them, however little of its range some of them use: a hand
    # that never tilts, as in many LIBERO tasks, is not in other units.
    known = (recording or {}).get("statistics_hash")
    return bool(known) and known == statistics_hash(stats)


def _is_bounded(decoder: Mapping[str, Any]) -> bool:
    return decoder["kind"] == "seer"
