"""Datasets that this package did not record: what is known of them, and how it is written down.

    meta/vita_vla.json is there  -> what it says goes into every checkpoint, as for our own recordings
    it is not                    -> frames per second, picture size and statistics go there, no meaning

`declare` writes the file for a dataset whose makers' code tells what its numbers mean. It is never applied
unasked: two datasets with the same columns may mean different things.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.conventions import RECORDING_FILE, RecordingInfo, statistics_hash
from lerobot_policy_vita_vla.demos import libero_suite
from lerobot_policy_vita_vla.demos.check_files import PICTURES, Layout, read_layout
from lerobot_policy_vita_vla.demos.findings import Findings
from lerobot_policy_vita_vla.files import read_json

logger = logging.getLogger(__name__)

ACTION, STATE = "action", "observation.state"
DECLARED_AS, FPS_LABEL = "declared_as", "fps_label"
"""Keys of `RecordingInfo.settings`: which entry of `KNOWN`, and what meta/info.json calls the frame rate."""


@dataclass(frozen=True)
class KnownDataset:
    """A dataset of others.

    Args:
        suite: Of whose tasks.
        protocol: Key of `libero_suite.PROTOCOLS` with the same conventions.
        quality: Key of `libero_suite.LIBERO_QUALITIES`.
        image_size: Height and width, pixels.
        cameras: Keys of the pictures.
        state_dim: S.
        action_dim: A.
        control_hz: Actions per second at which the frames were made.
        fps_label: What meta/info.json says instead.
        source: Where this is known from.
    """

    suite: str
    protocol: str
    quality: str
    image_size: int
    cameras: tuple[str, ...]
    state_dim: int
    action_dim: int
    control_hz: float
    fps_label: float
    source: str


_HUB = KnownDataset(
    suite="libero",
    protocol="lerobot",
    quality="standard",
    image_size=256,
    cameras=tuple(f"observation.images.{name}" for name in libero_suite.CAMERAS),
    state_dim=8,
    action_dim=7,
    control_hz=libero_suite.CONTROL_HZ,
    fps_label=10,
    source="openpi's converter writes fps=10, one frame per control step; robosuite takes 20 a second",
)
KNOWN = {"lerobot/libero": _HUB, "HuggingFaceVLA/libero": _HUB}
"""Name on the hub -> what its makers' code says."""


def remembered(dataset_meta: Any) -> dict[str, Any]:
    """What a checkpoint keeps of its dataset: `RecordingInfo` as plain JSON types; empty without a dataset.

    Args:
        dataset_meta: LeRobot's dataset metadata, or None.

    Raises:
        ValueError: The dataset's two descriptions name different frame rates.
    """
    if (root := getattr(dataset_meta, "root", None)) is None:
        return {}
    path = Path(root) / "meta" / "info.json"
    if (told := RecordingInfo.load(root)) is not None:
        if path.is_file():
            _check_rate(told, read_json(path)["fps"], root)
        return _with_true_hash(told, path.with_name("stats.json"))
    if not path.is_file():
        return {}
    written = read_json(path)
    sizes = {_size(f["shape"]) for f in written["features"].values() if f["dtype"] in PICTURES}
    name = looks_like(written)
    logger.warning(
        "%s does not say what its numbers mean (no %s): rotations, gripper sign and picture orientation will "
        "not be checked%s",
        root,
        RECORDING_FILE,
        f". If it is {name}: {command(root, name)}" if name else "",
    )
    info = RecordingInfo("", {}, "", sizes.pop()[0] if len(sizes) == 1 else 0, written["fps"], "")
    if (stats := path.with_name("stats.json")).is_file():
        info.statistics_hash = statistics_hash(read_json(stats))
    return info.to_dict()


def _check_rate(told: RecordingInfo, fps: float, root: str | Path) -> None:
    if told.control_hz != fps and not is_label(told, fps):
        raise ValueError(
            f"{root}: meta/info.json says {fps:g} frames per second, {RECORDING_FILE} says "
            f"{told.control_hz:g} actions per second. Find out which is true, and write it into the other "
            f"file:\n  vita-vla demos replay {root}"
        )


def _with_true_hash(told: RecordingInfo, stats: Path) -> dict[str, Any]:
    # What is trained is scaled by the numbers that are there, whatever was recorded.
    found = statistics_hash(read_json(stats)) if stats.is_file() else told.statistics_hash
    if told.statistics_hash and found != told.statistics_hash:
        logger.warning(
            "%s is not the one that was recorded (statistics_hash %s there, %s in %s): what is trained now "
            "has another scale than what was trained before. Restore it, or train teacher and student again "
            "on this dataset",
            stats,
            found,
            told.statistics_hash,
            RECORDING_FILE,
        )
        told.statistics_hash = found
    return told.to_dict()


def command(root: str | Path, name: str) -> str:
    """The line that declares a dataset."""
    return f"vita-vla demos declare {root} --as {name}"


def looks_like(info: Mapping[str, Any]) -> str | None:
    """The entry of `KNOWN` whose columns, sizes and frame rate a dataset has; None if none is like it.

    Args:
        info: ``meta/info.json``.
    """
    return next((name for name, known in KNOWN.items() if not _misfits(info, known)), None)


def declare(root: str | Path, name: str) -> RecordingInfo:
    """Write down what a dataset's numbers mean, from what is known of it.

    Args:
        root: Its folder.
        name: Key of `KNOWN`.

    Returns:
        What ``meta/vita_vla.json`` now says.

    Raises:
        ValueError: If the name is unknown, the dataset cannot be read, says something itself, or is visibly
            not what it is declared to be: columns, sizes, frame rate, gripper range, instructions.
    """
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN, n=1)
        raise ValueError(
            f"nothing is known of {name!r}{f'; did you mean {near[0]}?' if near else ''}; known are "
            f"{list(KNOWN)}. Write {RECORDING_FILE} by hand for others (docs/conventions.md)"
        )
    root, known = Path(root).expanduser().resolve(), KNOWN[name]
    layout, found = read_layout(root, name)
    if layout is None or not Findings(found).ok:
        raise ValueError(f"{root} cannot be read:\n{Findings(found)}")
    there = RecordingInfo.load(root)
    if there is not None and DECLARED_AS not in there.settings:
        raise ValueError(f"{root} was recorded by this package: {RECORDING_FILE} says what its numbers mean")
    if problems := [*_misfits(layout.info, known), *_gripper(layout), *_instructions(layout)]:
        raise ValueError(f"{root} is not {name}:\n  " + "\n  ".join(problems))
    conventions = libero_suite.find_protocol(known.protocol).conventions(known.image_size)
    tasks = _tasks()
    info = RecordingInfo(
        suite=known.suite,
        tasks={text: tasks[text] for text in layout.tasks.values()},
        quality=known.quality,
        observation_size=known.image_size,
        control_hz=known.control_hz,
        camera=",".join(libero_suite.CAMERAS.values()),
        image_orientation=conventions.image_orientation,
        action_meaning=dict(libero_suite.ACTION_MEANING),
        versions={"lerobot": version("lerobot")},
        statistics_hash=statistics_hash(layout.stats),
        settings={"protocol": known.protocol, DECLARED_AS: name, FPS_LABEL: layout.info["fps"]},
        conventions=conventions.to_dict(),
    )
    info.save(root)
    return info


def is_label(info: RecordingInfo, fps: float) -> bool:
    """Whether a frame rate that differs from the control rate is known to be a mere label."""
    return info.settings.get(FPS_LABEL) == fps


def _size(shape: list[int]) -> tuple[int, int]:
    return tuple(shape[:2] if shape[-1] == 3 else shape[1:])


def _misfits(info: Mapping[str, Any], known: KnownDataset) -> list[str]:
    features, found = info["features"], []
    cameras = [key for key, feature in features.items() if feature["dtype"] in PICTURES]
    if sorted(cameras) != sorted(known.cameras):
        found.append(f"its cameras are {cameras}, not {list(known.cameras)}")
    wanted = (known.image_size, known.image_size)
    found += [
        f"{key} has {_size(features[key]['shape'])} pixels, not {wanted}"
        for key in cameras
        if key in known.cameras and _size(features[key]["shape"]) != wanted
    ]
    for key, dim in ((STATE, known.state_dim), (ACTION, known.action_dim)):
        if (shape := list(features.get(key, {}).get("shape", []))) != [dim]:
            found.append(f"{key} has shape {shape}, not [{dim}]")
    if info["fps"] not in (known.fps_label, known.control_hz):
        found.append(
            f"meta/info.json says {info['fps']:g} frames per second, neither {known.control_hz:g} (the "
            f"simulator's control rate) nor the label {known.fps_label:g} that its converter writes: convert "
            "the demonstrations again, one frame per control step"
        )
    return found


def _gripper(layout: Layout) -> list[str]:
    # Humans open and close; a range that is not -1..1 is another convention.
    low, high = (float(layout.stats[ACTION][name][-1]) for name in ("min", "max"))
    if abs(low + 1) < 1e-3 and abs(high - 1) < 1e-3:
        return []
    return [
        f"its gripper command goes from {low:g} to {high:g}, not from -1 (opens) to 1 (closes): convert it "
        "with 1 - 2 * opening, where 1 means open, or 2 * closing - 1, where 1 means closed"
    ]


def _instructions(layout: Layout) -> list[str]:
    known = _tasks()
    unknown = [text for text in layout.tasks.values() if text not in known]
    if not unknown:
        return []
    near = difflib.get_close_matches(unknown[0], known, n=1)
    return [
        f"{len(unknown)} of its {len(layout.tasks)} instructions are not LIBERO's, such as {unknown[0]!r}"
        + (f" (nearest: {near[0]!r})" if near else "")
    ]


def _tasks() -> dict[str, str]:
    # Two suites may share an instruction.
    found: dict[str, list[str]] = {}
    for suite, names in libero_suite.task_names().items():
        for number in range(len(names)):
            task = f"{suite}_{number}"
            found.setdefault(libero_suite.instruction(task), []).append(task)
    return {text: ",".join(tasks) for text, tasks in found.items()}
