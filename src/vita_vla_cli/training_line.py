"""Friendly flags -> the plain `lerobot-train` argument list that does the same.

    teacher   --policy.type=seer      --policy.preset=tiny
    align     --policy.type=vita_vla  --policy.stage=align     --policy.teacher_path=...  --policy.vlm=...
    finetune  --policy.path=<align>   --policy.stage=finetune
    ... without alignment: as align, with --policy.stage=only_finetune

Nothing is hidden in a verb: what it adds to these is the list `COMMON`, each entry with its reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMMON = (
    # Frames lie in memory (training/frame_cache.py); each worker would import all of LeRobot again, 5-10 s.
    "--num_workers=0",
    # torchcodec without FFmpeg libraries prints a hundred lines of traceback, then falls back to this one.
    "--dataset.video_backend=pyav",
    # Evaluation is a verb of its own, on a manifest.
    "--env_eval_freq=0",
    "--eval_steps=0",
    # LeRobot's default pushes to the hub and fails without an account.
    "--policy.push_to_hub=false",
    "--wandb.enable=false",
)
PRIVILEGED_STATE = "observation.environment_state"
TEACHER_FEATURES = "observation.teacher_features"
SAVE_ONLY_AT_END_BELOW = 5_000
LOG_LINES = 50
STAGES = ("finetune", "only_finetune", "freeze_vlm")
DATASET_PARTS = ("meta/stats.json", "meta/tasks.parquet", "meta/episodes/*/*.parquet", "data/*/*.parquet")
TRAIN_CONFIG = "checkpoints/last/pretrained_model/train_config.json"


def compose(
    stage: str,
    *,
    demos: Path,
    out: Path,
    steps: int,
    batch_size: int,
    seed: int,
    preset: str | None = None,
    vlm: str | None = None,
    teacher: str | None = None,
    start: str | None = None,
    lr: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    """Arguments of `lerobot-train` for one stage.

    Args:
        stage: ``teacher``, ``align``, ``finetune``, ``only_finetune`` or ``freeze_vlm``.
        demos: Folder of a LeRobotDataset.
        out: Output folder of the run.
        steps: Updates.
        batch_size: Samples per update.
        seed: Of initialisation and data order.
        preset: Size of the teacher.
        vlm: The student's VLM.
        teacher: Trained teacher: a checkpoint folder or a hub id.
        start: Checkpoint folder of the alignment, for ``finetune`` and ``freeze_vlm``.
        lr: Peak learning rate; None leaves the policy's own.
        device: None lets LeRobot choose.
        dtype: None leaves the policy's own.
        extra: Arguments of `lerobot-train` (``--name=value``); they win over ours of the same name.

    Raises:
        ValueError: ``extra`` holds something else than ``--name=value``.
    """
    check_extra(extra)
    policy = {"device": device, "dtype": dtype, "lr": None if lr is None else f"{lr:g}"}
    if stage == "teacher":
        other_type = _value(extra, "policy.type") not in (
            None,
            "seer",
        )  # ACT and others have no preset, and other names
        kind = {"type": "seer"} if other_type else {"type": "seer", "preset": preset}
        policy = kind | (
            {"device": device, "input_features": _robots_inputs(demos)} if other_type else policy
        )
    elif start is not None:
        policy = {"path": start, "stage": stage, "teacher_path": teacher} | policy
    else:
        policy = {"type": "vita_vla", "stage": stage, "vlm": vlm, "teacher_path": teacher} | policy
    ours = [
        *(f"--policy.{name}={value}" for name, value in policy.items() if value is not None),
        f"--dataset.repo_id=local/{demos.absolute().name}",
        f"--dataset.root={demos}",
        f"--output_dir={out}",
        f"--steps={steps}",
        f"--batch_size={batch_size}",
        f"--seed={seed}",
        f"--log_freq={max(1, steps // LOG_LINES)}",
        f"--save_freq={0 if steps < SAVE_ONLY_AT_END_BELOW else SAVE_ONLY_AT_END_BELOW}",
        *COMMON,
    ]
    given = {_name(flag) for flag in extra}
    if "policy.path" in given:  # LeRobot refuses a path beside a type
        given.add("policy.type")
    return [flag for flag in ours if _name(flag) not in given] + list(extra)


def check_extra(extra: Sequence[str]) -> None:
    """Refuse what `lerobot-train` could not read as ``--name=value``."""
    for flag in extra:
        if not re.fullmatch(r"--[A-Za-z][\w.]*=.*", flag, flags=re.DOTALL):
            raise ValueError(
                f"unknown argument {flag!r}; see the verb's --help, or pass lerobot-train's own arguments as "
                "--name=value, for example --policy.ema_decay=0.99 or --log_freq=10"
            )


def dataset_folder(path: Path) -> Path:
    """Check that a folder holds a LeRobotDataset with all its parts.

    LeRobot answers a missing part by asking the hub for the dataset, whose error says nothing about it.
    """
    info = path / "meta" / "info.json"
    if not info.is_file():
        if nested := sorted(inner.parents[1] for inner in path.glob("*/meta/info.json")):
            raise ValueError(f"--demos {path}: no LeRobotDataset there; did you mean --demos {nested[0]}?")
        if path.with_name(path.name + ".recording").is_dir():
            raise ValueError(
                f"--demos {path}: its recording has not finished (there is {path}.recording); the command "
                "that started it, given again, continues it"
            )
        raise ValueError(
            f"--demos {path}: no LeRobotDataset there (meta/info.json is missing). Record one:\n"
            f"  vita-vla demos record --tasks door-open,drawer-open --episodes 60 --root {path}"
        )
    read_json(info)
    if missing := [part for part in DATASET_PARTS if not any(path.glob(part))]:
        raise ValueError(
            f"--demos {path}: the dataset is incomplete, {', '.join(missing)} missing. Its recording was not "
            f"finished, or not all of it was copied; what is wrong with it:\n  vita-vla demos check {path}"
        )
    tables = (file for part in DATASET_PARTS[1:] for file in sorted(path.glob(part)))
    if damaged := next((file for file in tables if not _is_whole(file)), None):
        raise ValueError(
            f"--demos {path}: {damaged} is cut off: a copy or a recording did not finish. Copy or record it "
            f"again; what else is wrong:\n  vita-vla demos check {path}"
        )
    return path


def dataset_since_moved(config: Path, demos: Path, extra: Sequence[str]) -> list[str]:
    """What a resumed run must be told about its dataset: nothing, unless the folder has moved.

    Args:
        config: The run's train_config.json.
        demos: Folder of the dataset, as given with ``--resume``.
        extra: Arguments of `lerobot-train`, which may name the folder themselves.

    Raises:
        ValueError: The run was trained on another dataset, or ``demos`` does not hold one.
    """
    saved = read_json(config)
    # The hub's, or named as LeRobot does.
    if saved["dataset"]["root"] is None or _value(extra, "dataset.root") is not None:
        return []
    root = Path(saved["dataset"]["root"])
    if root.absolute() == demos.absolute():
        return []
    dataset_folder(demos)
    if root.exists():
        if root.samefile(demos):
            return []
        raise ValueError(
            f"--demos {demos}: the run to be resumed was trained on {root}. Name that folder, or start a run "
            "on these demonstrations: without --resume, with another --out"
        )
    from lerobot_policy_vita_vla.conventions import statistics_hash

    known = (saved["policy"].get("recording") or {}).get("statistics_hash")
    if known and known != statistics_hash(read_json(demos / "meta" / "stats.json")):
        raise ValueError(
            f"--demos {demos}: the run to be resumed was trained on {root}, which is gone, and these "
            "demonstrations have other statistics. Name where that dataset lies now"
        )
    return [f"--dataset.root={demos}"]


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file that must hold an object.

    Raises:
        ValueError: It does not; names the file.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # bytes that are no text are one, too
        raise ValueError(f"{path} is damaged ({error}); copy it again, or make it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object {{...}}; copy it again")
    return content


def _is_whole(parquet: Path) -> bool:
    with parquet.open("rb") as file:
        file.seek(max(0, parquet.stat().st_size - 4))
        return file.read() == b"PAR1"  # a parquet file's last bytes


def checkpoint_folder(
    path: str, *, flag: str, fix: str, online: bool = False, must_exist: bool = True
) -> str:
    """The `pretrained_model` folder of a run, from the run's folder or from itself.

    Args:
        path: What the user gave: a training run, a checkpoint folder, or a hub id with ``--online``.
        flag: Name of the argument, for the message.
        fix: Command that makes such a checkpoint.
        online: Whether hub ids are allowed.
        must_exist: False names the folder that a run will have, for printing a command ahead of time.

    Raises:
        ValueError: No checkpoint there; the message says what was looked for.
    """
    folder = Path(path)
    for candidate in (
        folder,
        folder / "pretrained_model",
        folder / "checkpoints" / "last" / "pretrained_model",
    ):
        if (candidate / "config.json").is_file():
            return str(candidate)
    if online and not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        return path
    if not must_exist:
        return str(folder / "checkpoints" / "last" / "pretrained_model")
    if folder.is_file():
        raise ValueError(f"{flag} {path}: that is a file; pass the folder it lies in, {folder.parent}")
    if folder.name == "checkpoints" and (folder / "last").exists():
        raise ValueError(f"{flag} {path}: pass the run's folder itself, {folder.parent}")
    if (folder / "meta" / "info.json").is_file():
        problem = "that is a dataset, not a trained policy"
    elif folder.is_dir():
        problem = "there is no finished checkpoint in it (checkpoints/last/pretrained_model/config.json)"
    else:
        problem = "no such folder (a model of the hub needs --online)"
    raise ValueError(f"{flag} {path}: {problem}. Make one:\n  {fix}")


def _robots_inputs(demos: Path) -> str | None:
    """Inputs of a policy that would else read everything: all that a robot has too, as JSON.

    None where the dataset holds nothing else. Seer leaves the simulator's state out by itself.
    """
    info = demos / "meta" / "info.json"
    features = read_json(info).get("features", {}) if info.is_file() else {}
    if not {PRIVILEGED_STATE, TEACHER_FEATURES} & set(features):
        return None
    inputs = {}
    for key, feature in features.items():
        if feature["dtype"] in ("image", "video"):
            height, width, channels = feature["shape"]
            inputs[key] = {"type": "VISUAL", "shape": [channels, height, width]}
        elif key.startswith("observation.") and key not in (PRIVILEGED_STATE, TEACHER_FEATURES):
            inputs[key] = {"type": "STATE", "shape": list(feature["shape"])}
    return json.dumps(inputs)


def _name(flag: str) -> str:
    return flag.removeprefix("--").split("=", 1)[0]


def _value(flags: Sequence[str], name: str) -> str | None:
    return next((flag.split("=", 1)[1] for flag in flags if _name(flag) == name), None)
