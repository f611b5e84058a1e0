"""How closely a student follows its teacher, on recorded observations and without a simulator.

Success rates say whether the student acts well; agreement says whether distillation did what it was for. Both
answer the same observations, and actions are compared in the decoder's scaled units, where 1 is half of a
dimension's range.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lerobot_policy_vita_vla.contracts import ActionSpec
from lerobot_policy_vita_vla.conventions import match_cameras
from lerobot_policy_vita_vla.demos.dataset import VIDEO_BACKEND
from lerobot_policy_vita_vla.evaluation.checks import check_device
from lerobot_policy_vita_vla.evaluation.predictor import checkpoint_folder, load_policy

SAMPLES = 512
"""Our choice: the mean absolute difference is then known to a few per cent."""

STATE = "observation.state"


SMALLEST_SPREAD = 0.01
"""Scaled action units, a hundredth of half a dimension's range: what varies less counts as constant."""


class Answers(NamedTuple):
    """What both said about n observations.

    Attributes:
        teacher, student: (n, T, A) action chunks, environment units.
        demonstrated: (n, T, A) what the demonstration did.
        is_pad: (n, T) True behind an episode's end.
        teacher_features, student_features: (n, T, E), or None where a policy has no decoder of ours.
    """

    teacher: np.ndarray
    student: np.ndarray
    demonstrated: np.ndarray
    is_pad: np.ndarray
    teacher_features: np.ndarray | None
    student_features: np.ndarray | None


def agreement(
    student: str | Path,
    teacher: str | Path,
    dataset_root: str | Path,
    *,
    device: str = "cpu",
    samples: int = SAMPLES,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare a student's predictions with its teacher's on a sample of a dataset's frames.

    Args:
        student: Checkpoint or training run of any LeRobot policy.
        teacher: Checkpoint or training run of the teacher.
        dataset_root: Folder of a LeRobotDataset with the cameras that both know.
        device: Where both run.
        samples: Frames to compare, drawn without replacement; all where the dataset has fewer.
        batch_size: Frames at a time.
        seed: Of the draw.

    Returns:
        Plain JSON types; see `compare_answers`, plus what was compared.
    """
    from lerobot_policy_vita_vla.teacher.load import load_teacher

    check_device(device)
    master = load_teacher(checkpoint_folder(teacher), device)
    policy, preprocess, postprocess = load_policy(checkpoint_folder(student), device)
    batches = _batches(Path(dataset_root), policy, master, samples, batch_size, seed)
    answers = _ask(master, policy, preprocess, postprocess, batches, device)
    return {
        "student": str(student),
        "teacher": str(teacher),
        "dataset": str(dataset_root),
        **compare_answers(answers, master.action_spec),
    }


def compare_answers(answers: Answers, spec: ActionSpec) -> dict[str, Any]:
    """The numbers of an agreement report.

    Returns:
        ``n``; ``action_names``; ``mae``, ``r2`` and ``correlation`` as T lists of A numbers (None where the
        teacher's answer does not vary, and for binary dimensions, which are not regressed);
        ``gripper_agreement``, per step the fraction of equal open/close decisions (None without a binary
        dimension); ``overall`` with the means of these; ``teacher_mae`` and ``student_mae``, A numbers each:
        distance to the demonstrations, padding left out; ``features`` with ``r2`` per step and ``overall``
        (None where the student does not share the teacher's decoder input).
    """
    offset, scale = np.asarray(spec.offset), np.asarray(spec.scale)
    teacher, student, demo = (
        (values - offset) / scale for values in (answers.teacher, answers.student, answers.demonstrated)
    )
    binary = list(spec.binary_dims)
    arm = np.isin(np.arange(spec.dim), spec.arm_dims)
    mae = np.abs(teacher - student).mean(0)
    r2, correlation = _r2(teacher, student), _correlation(teacher, student)
    for table in (r2, correlation):
        table[:, ~arm] = np.nan
    equal = (teacher > 0) == (student > 0)
    same = equal[:, :, binary].mean((0, 2)) if binary else None
    valid = ~answers.is_pad
    return {
        "n": len(teacher),
        "action_names": list(spec.names),
        "mae": _plain(mae),
        "r2": _plain(r2),
        "correlation": _plain(correlation),
        "gripper_agreement": _plain(same) if binary else None,
        "overall": {
            "mae": float(mae[:, arm].mean()),
            "r2": _mean(r2),
            "correlation": _mean(correlation),
            "gripper_agreement": float(same.mean()) if binary else None,
        },
        "teacher_mae": _plain(np.abs(teacher - demo)[valid].mean(0)),
        "student_mae": _plain(np.abs(student - demo)[valid].mean(0)),
        "features": _feature_agreement(answers.teacher_features, answers.student_features),
    }


def _feature_agreement(teacher: np.ndarray | None, student: np.ndarray | None) -> dict[str, Any] | None:
    if teacher is None or student is None or teacher.shape != student.shape:
        return None
    # One number per step: variance explained over all E features together, so that dead ones do not count.
    residual = ((teacher - student) ** 2).sum((0, 2))
    total = ((teacher - teacher.mean(0)) ** 2).sum((0, 2))
    return {
        "r2": _plain(1 - residual / np.maximum(total, 1e-12)),
        "overall": float(1 - residual.sum() / max(total.sum(), 1e-12)),
    }


def _history(config: Any) -> int:
    return getattr(config, "n_obs_steps", 1) or 1


def _batches(
    root: Path, policy, teacher, samples: int, batch_size: int, seed: int
) -> Iterator[dict[str, Any]]:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
    from torch.utils.data import DataLoader, Subset

    meta = LeRobotDatasetMetadata(root.name, root=root)
    frames = max(_history(policy.config), _history(getattr(getattr(teacher, "policy", None), "config", None)))
    deltas = {"action": [t / meta.fps for t in range(teacher.chunk_size)]}
    if frames > 1:
        deltas |= dict.fromkeys((*meta.camera_keys, STATE), [t / meta.fps for t in range(1 - frames, 1)])
    dataset = LeRobotDataset(root.name, root=root, delta_timestamps=deltas, video_backend=VIDEO_BACKEND)
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(len(dataset))[:samples])
    # In this process: starting loader processes costs more than reading a few hundred frames.
    yield from DataLoader(Subset(dataset, chosen.tolist()), batch_size=batch_size)


@torch.inference_mode()
def _ask(teacher, policy, preprocess, postprocess, batches: Iterator[dict[str, Any]], device: str) -> Answers:
    rows: dict[str, list[np.ndarray]] = {name: [] for name in Answers._fields}
    entering: list[torch.Tensor] = []
    decoder = getattr(getattr(policy, "network", None), "decoder", None)
    # What enters the decoder are the action features, in the student and in the teacher alike.
    hook = None
    if decoder is not None:
        hook = decoder.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    for batch in batches:
        # With the marks of what LeRobot repeats before an episode starts: a history must not read it as seen.
        seen = {key: value for key, value in batch.items() if key == "task" or key.startswith("observation.")}
        seen |= {key: value.to(device) for key, value in seen.items() if torch.is_tensor(value)}
        # A student knows from alignment which camera is which.
        cameras = getattr(policy.config, "teacher_cameras", None) or match_cameras(
            teacher.cameras,
            [key for key in seen if key.startswith("observation.image") and not key.endswith("_is_pad")],
        )
        for_teacher = {**seen, **{want: seen[have] for want, have in cameras.items()}}
        rows["teacher"].append(teacher.predict_action_chunk(for_teacher).float().cpu().numpy())
        rows["teacher_features"].append(teacher.targets(for_teacher).features_BTE.float().cpu().numpy())
        entering.clear()
        rows["student"].append(_student_chunk(policy, preprocess, postprocess, seen))
        if entering:
            rows["student_features"].append(entering[-1].float().cpu().numpy())
        rows["demonstrated"].append(batch["action"].numpy())
        rows["is_pad"].append(batch["action_is_pad"].numpy())
    if hook is not None:
        hook.remove()
    gathered = {name: np.concatenate(parts) if parts else None for name, parts in rows.items()}
    steps = gathered["teacher"].shape[1]
    if gathered["student"].shape[1] < steps:
        raise ValueError(
            f"the student predicts {gathered['student'].shape[1]} actions at once, the teacher {steps}: it "
            "cannot be this teacher's student"
        )
    return Answers(**{**gathered, "student": gathered["student"][:, :steps]})


def _student_chunk(policy, preprocess, postprocess, seen: dict[str, Any]) -> np.ndarray:
    steps = _history(policy.config)
    if steps == 1:
        seen = {key: value for key, value in seen.items() if not key.endswith("_is_pad")}
        seen = {key: value[:, -1] if _has_frames(key, value) else value for key, value in seen.items()}
    policy.reset()
    predict = policy.chunk_of_history if steps > 1 else policy.predict_action_chunk
    chunk = predict(preprocess(seen))
    rows, length, dims = chunk.shape
    return postprocess(chunk.reshape(rows * length, dims).float()).reshape(rows, length, -1).cpu().numpy()


def _has_frames(key: str, value: Any) -> bool:
    return torch.is_tensor(value) and value.ndim == (5 if key.startswith("observation.image") else 3)


def _r2(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    total = ((reference - reference.mean(0)) ** 2).sum(0)
    residual = ((reference - other) ** 2).sum(0)
    return np.where(_varies(reference), 1 - residual / np.maximum(total, 1e-30), np.nan)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    varies = _varies(a) & _varies(b)
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.where(varies, (a * b).sum(0) / np.maximum(norm, 1e-30), np.nan)


def _varies(values: np.ndarray) -> np.ndarray:
    # A gripper that never moves is regressed to a constant with some noise, which nobody has to explain.
    return values.std(0) > SMALLEST_SPREAD


def _mean(table: np.ndarray) -> float | None:
    return None if np.isnan(table).all() else float(np.nanmean(table))


def _plain(values: np.ndarray) -> list:
    if values.ndim > 1:
        return [_plain(row) for row in values]
    # JSON has no NaN.
    return [None if np.isnan(value) else round(float(value), 6) for value in values]
