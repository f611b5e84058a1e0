"""What an evaluation refuses: pictures a policy never saw, episodes it was trained on, results of two kinds
mixed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lerobot_policy_vita_vla.conventions import Conventions, RecordingInfo
from lerobot_policy_vita_vla.conversion import Conversion, plan_conversion
from lerobot_policy_vita_vla.demos.checkpoint_records import EVALUATED_UNDER, STATE_ROTATIONS, read_record
from lerobot_policy_vita_vla.demos.scenes import LIBERO, conventions, scenes_of
from lerobot_policy_vita_vla.evaluation.manifest import Manifest
from lerobot_policy_vita_vla.evaluation.results import RUN_FILE

logger = logging.getLogger(__name__)

MEANINGS = {
    "manifest_hash": "another manifest",
    "policy_fingerprint": "another policy",
    "n_action_steps": "another n_action_steps",
    "temporal_ensemble_coeff": "another temporal_ensemble_coeff",
    "device": "another device",
    "inference_batch": "another inference_batch",
    "threads": "another number of inference threads",
}
"""What `run.json` records of a run, each with the words for a difference."""

NUMERICS = ("device", "inference_batch", "threads")
"""Settings that move the last bits: they must not change in the middle, but do not matter once all is
played."""


def check_recording(recording: Mapping[str, Any], manifest: Manifest, *, allow: bool = False) -> None:
    """Compare how a policy's demonstrations were recorded with what a manifest shows.

    Args:
        recording: `conventions.RecordingInfo` as the checkpoint stores it; empty where it stores none
            (LeRobot's own policies), which is logged.
        manifest: What is about to be played.
        allow: Log the differences and go on.

    Raises:
        ValueError: If the pictures or the control rate differ, if another convention differs and cannot be
            converted without loss, or if evaluation episodes were demonstrated in training.
    """
    if not recording:
        logger.warning(
            "the policy does not say how its demonstrations were recorded; it will see %s pictures of %d px",
            manifest.quality,
            manifest.observation_size,
        )
        return
    world = conventions(manifest.suite, manifest.observation_size, manifest.protocol)
    info = read_record(recording, world.state_rotation)
    found = info.picture_differences(
        {
            "suite": manifest.suite,
            "quality": manifest.quality,
            "observation_size": manifest.observation_size,
            "control_hz": scenes_of(manifest.suite).control_hz,
        }
    )
    trained_under = info.settings.get("protocol")
    if trained_under and manifest.protocol and trained_under != manifest.protocol:
        found.append(
            f"protocol: demonstrations were made under {trained_under!r}, the manifest plays "
            f"{manifest.protocol!r}; results under two protocols are not comparable"
        )
    if conversion := conversion_of(recording, manifest):
        try:
            plan_conversion(conversion.policy, conversion.world)
        except ValueError as error:
            found += str(error).splitlines()
        else:
            for step in conversion.steps:
                logger.info("converted: %s", step)
    if len(given := info.settings.get(STATE_ROTATIONS, ())) > 1:
        logger.info(
            "the state holds the hand's orientation as %s; the policy was trained with %s and its authors "
            "evaluate it with %s (docs/seer_checkpoints.md)",
            world.state_rotation,
            given[0],
            given[1],
        )
    for task in manifest.tasks:
        first, last = info.seeds.get(task, (1, 0))
        seen = [e.seed for e in manifest.episodes if e.task == task and first <= e.seed <= last]
        if seen:
            found.append(
                f"seeds of {task}: demonstrations used {first}..{last}, the manifest repeats {len(seen)}"
            )
    if info.suite and info.seeds and not set(manifest.tasks) & set(info.seeds):
        logger.warning(
            "none of these tasks was demonstrated to the policy, which knows %s",
            ", ".join(sorted(info.seeds)),
        )
    if not info.suite:
        logger.warning(
            "the policy's demonstrations do not say what their numbers mean: rotations, gripper and picture "
            "orientation are not checked (vita-vla demos declare, docs/libero.md)"
        )
    if not found:
        return
    lines = "\n  ".join(found)
    if not info.suite and not allow:
        raise ValueError(
            f"the policy was trained on something else than this manifest plays:\n  {lines}\n"
            "Its demonstrations do not say what they are. If they are known, declare them and train again "
            "(vita-vla demos declare ROOT --as lerobot/libero); if the frame rate is a mere label, write the "
            'true one as "fps" into their meta/info.json, or pass --allow-differences'
        )
    if not allow:
        raise ValueError(
            f"the policy was trained on something else than this manifest plays:\n  {lines}\n"
            f"Play {_flags(info)}, on seeds that were not demonstrated, or pass "
            "--allow-differences if measuring exactly this is the point (Python: allow_other_recording=True)"
        )
    logger.warning("evaluating although the recording differs:\n  %s", lines)


def _flags(info: RecordingInfo) -> str:
    protocol = info.settings.get("protocol") or info.settings.get(EVALUATED_UNDER)
    which = "--suite" if info.suite.startswith(LIBERO.name) else "--tasks"
    tasks = list(info.seeds) or info.task_names
    shown = ",".join(tasks[:2]) + (",..." if len(tasks) > 2 else "")
    flags = f"{which} {shown} " if shown else ""
    flags += f"--quality {info.quality} --size {info.observation_size}"
    return flags + (f" --protocol {protocol}" if protocol else "")


def conversion_of(recording: Mapping[str, Any], manifest: Manifest) -> Conversion | None:
    """How a policy and the simulator understand each other; None where the policy declares no conventions.

    Whether that loses nothing is `check_recording`'s to say.

    Args:
        recording: `conventions.RecordingInfo` as the checkpoint stores it.
        manifest: What is played.
    """
    if not recording.get("conventions"):
        return None
    world = conventions(manifest.suite, manifest.observation_size, manifest.protocol)
    policy = read_record(recording, world.state_rotation).conventions
    return Conversion(Conventions.from_dict(policy), world)


def check_device(device: str) -> None:
    """Raise ValueError for a device that there is not, naming those that there are.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
    """
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    more = {"mps": torch.backends.mps.is_available, "xpu": torch.xpu.is_available}
    there += [name for name, is_available in more.items() if is_available()]
    if device not in (*there, *(name.partition(":")[0] for name in there)):
        raise ValueError(f"--device {device}: this machine has no such device; it has {', '.join(there)}")


def check_same_run(folder: Path, wanted: Mapping[str, Any], *, finished: bool) -> dict[str, Any]:
    """Refuse to continue a folder that holds results of something else.

    Args:
        folder: Evaluation folder.
        wanted: Keys of `MEANINGS` of the run that is asked for.
        finished: All episodes are there, so that settings of the machine no longer matter.

    Returns:
        The stored ``run.json``, empty if there is none.

    Raises:
        ValueError: Naming each difference and the ways out.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text())
    compared = [key for key in MEANINGS if not (finished and key in NUMERICS)]
    different = [
        f"{MEANINGS[key]} ({_short(stored.get(key))} there, {_short(wanted[key])} now)"
        for key in compared
        if stored.get(key) != wanted[key]
    ]
    if different:
        raise ValueError(
            f"{folder} holds results of {', '.join(different)}. Use another label, or start over with "
            "resume=False, which deletes them"
        )
    return stored


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
