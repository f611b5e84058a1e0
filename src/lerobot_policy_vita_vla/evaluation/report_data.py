"""Reads a run folder for the report page; nothing here draws or decides.

A run folder as the verbs leave it (every part is optional except one finished evaluation)::

    demos/meta/             info.json, tasks.parquet
    teacher/ align/ ...     train_log.jsonl, command.txt, checkpoints/last/pretrained_model/
    manifest.json           the episodes that every policy plays
    eval/<label>/           result.json, episodes.jsonl, videos/
    agreement.json  timing.json  ablation/ablations.json

A missing part becomes a line that says which command makes it; a part that cannot be read is a `ValueError`
with the file's name, since a page that silently lacks a policy would mislead.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STAGES = ("teacher", "align", "finetune", "only_finetune")
"""Training stages in the order of the pipeline; a run may hold further stage folders (ablations)."""

POLICY_ORDER = ("teacher", "finetune", "only_finetune", "align", "freeze_vlm")
"""How policies are listed; labels that are not named here follow, sorted."""

HOW_TO_MAKE = {
    "demos": "vita-vla demos record --tasks TASKS --root RUN/demos",
    "teacher": "vita-vla teacher --demos RUN/demos",
    "align": "vita-vla align --demos RUN/demos --teacher RUN/teacher",
    "finetune": "vita-vla finetune --demos RUN/demos --from RUN/align",
    "only_finetune": "vita-vla finetune --demos RUN/demos --only-finetune --teacher RUN/teacher",
    "agreement": "vita-vla eval RUN/align RUN/finetune --agreement RUN/teacher --demos RUN/demos",
    "videos": "vita-vla eval RUN/finetune --videos 1",
    "ablations": "vita-vla ablate RUN",
}
"""The command that makes each part of a run folder (RUN), shown where the part is missing.

timing.json is not among them: only `vita-vla quickstart` measures, and it never takes over what others made.
"""


@dataclass(frozen=True)
class Evaluation:
    """One policy's finished evaluation, ``eval/<label>/``."""

    label: str
    folder: Path
    result: dict[str, Any]
    episodes: list[dict[str, Any]]

    @property
    def overall(self) -> dict[str, Any]:
        """``success_rate`` in [0, 1], ``low``, ``high`` (Wilson 95 %), ``n_episodes``."""
        return self.result["overall"]

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """The same numbers per task."""
        return self.result["tasks"]


@dataclass(frozen=True)
class Stage:
    """One training stage's folder."""

    name: str
    log: list[dict[str, Any]]
    command: str | None
    settings: dict[str, Any]
    weights_sha256: str | None


@dataclass(frozen=True)
class Run:
    """Everything the page shows about one run folder."""

    path: Path
    manifest: dict[str, Any]
    demos: dict[str, Any] | None
    stages: list[Stage]
    evaluations: list[Evaluation]
    agreement: dict[str, Any] | None = None
    timing: dict[str, Any] | None = None
    ablations: dict[str, Any] | None = None
    unfinished: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    def evaluation(self, label: str) -> Evaluation | None:
        """The evaluation with this label, or None."""
        return next((e for e in self.evaluations if e.label == label), None)

    def stage(self, name: str) -> Stage | None:
        """The stage with this name, or None."""
        return next((s for s in self.stages if s.name == name), None)


def read_run(path: Path) -> Run:
    """Read one run folder.

    Raises:
        ValueError: The folder, its manifest or any finished evaluation is missing, a file is not valid JSON,
            lacks a key, or contradicts another one.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"no run folder at {path}; `vita-vla quickstart` makes one, or give another path")
    manifest = read_json(path / "manifest.json", ("suite", "episodes", "hash"), missing="vita-vla eval")
    evaluations, unfinished = [], []
    for folder in sorted(p for p in path.glob("eval/*") if p.is_dir()):
        if (folder / "result.json").exists():
            evaluations.append(_read_evaluation(folder))
        else:
            unfinished.append(folder.name)
    if not evaluations:
        raise ValueError(
            f"{path} holds no finished evaluation (eval/<label>/result.json); run `vita-vla eval`"
        )
    evaluations.sort(key=lambda e: _rank(e.label))
    names = [*STAGES, *sorted({p.parent.name for p in path.glob("*/train_log.jsonl")} - set(STAGES))]
    return Run(
        path=path,
        manifest=manifest,
        demos=_read_demos(path / "demos"),
        stages=[_read_stage(path / name) for name in names if (path / name).is_dir()],
        evaluations=evaluations,
        agreement=_optional(path / "agreement.json"),
        timing=_optional(path / "timing.json", ("steps",)),
        ablations=_optional(path / "ablation" / "ablations.json", ("rows",)),
        unfinished=unfinished,
    )


def read_json(path: Path, keys: tuple[str, ...] = (), *, missing: str | None = None) -> dict[str, Any]:
    """A JSON object with at least `keys`.

    Args:
        path: The file.
        keys: Keys that it must have.
        missing: The command that makes the file, for the error where it does not exist.

    Raises:
        ValueError: The file is missing, is no JSON object or lacks a key.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist" + (f"; run `{missing}`" if missing else ""))
    return _parse(path.read_text(), str(path), keys)


def read_jsonl(path: Path, keys: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """One JSON object per line, blank lines aside; errors name the file and the line."""
    lines = path.read_text().splitlines()
    return [_parse(line, f"{path} line {i}", keys) for i, line in enumerate(lines, 1) if line.strip()]


def _parse(text: str, where: str, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON ({error}); make it again or delete it") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} should hold a JSON object, got {type(value).__name__}")
    if absent := [key for key in keys if key not in value]:
        raise ValueError(f"{where} lacks {absent}; it has {sorted(value)}")
    return value


def _optional(path: Path, keys: tuple[str, ...] = ()) -> dict[str, Any] | None:
    return read_json(path, keys) if path.exists() else None


def _read_evaluation(folder: Path) -> Evaluation:
    result = read_json(folder / "result.json", ("label", "overall", "tasks", "manifest_hash"))
    for name, rate in [("overall", result["overall"]), *result["tasks"].items()]:
        absent = [key for key in ("success_rate", "n_episodes", "low", "high") if key not in rate]
        if absent:
            raise ValueError(f"{folder / 'result.json'}: {name} lacks {absent}")
    episodes_path = folder / "episodes.jsonl"
    if not episodes_path.is_file():
        raise ValueError(
            f"{episodes_path} does not exist although result.json does; run `vita-vla eval` again"
        )
    episodes = read_jsonl(episodes_path, ("id", "task", "seed", "success"))
    n_said = result["overall"]["n_episodes"]
    successes_said = round(result["overall"]["success_rate"] * n_said)
    if (n_said, successes_said) != (len(episodes), sum(bool(e["success"]) for e in episodes)):
        raise ValueError(
            f"{folder / 'result.json'} counts {successes_said} successes in {n_said} episodes, "
            f"episodes.jsonl has {sum(bool(e['success']) for e in episodes)} in {len(episodes)}; run "
            "`vita-vla eval` again"
        )
    return Evaluation(folder.name, folder, result, episodes)


def _read_stage(folder: Path) -> Stage:
    log, command = folder / "train_log.jsonl", folder / "command.txt"
    checkpoint = folder / "checkpoints" / "last" / "pretrained_model"
    settings = _optional(checkpoint / "train_config.json") or {}
    return Stage(
        name=folder.name,
        log=_without_repeats(read_jsonl(log, ("step",))) if log.exists() else [],
        command=command.read_text().strip() if command.exists() else None,
        settings=settings,
        weights_sha256=_weights_sha256(checkpoint),
    )


def _without_repeats(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A resumed training repeats the steps since its last checkpoint: what came later counts."""
    kept: list[dict[str, Any]] = []
    for row in log:
        while kept and kept[-1]["step"] >= row["step"]:
            kept.pop()
        kept.append(row)
    return kept


def _read_demos(folder: Path) -> dict[str, Any] | None:
    info_path = folder / "meta" / "info.json"
    if not info_path.exists():
        return None
    info = read_json(info_path, ("total_episodes", "total_frames", "fps"))
    instructions: list[str] = []
    tasks_path = folder / "meta" / "tasks.parquet"
    if tasks_path.exists():
        import pandas

        # LeRobot 3.0 keeps the instruction as the table's index.
        instructions = [str(task) for task in pandas.read_parquet(tasks_path).index]
    return {**info, "instructions": instructions}


def _weights_sha256(checkpoint: Path) -> str | None:
    """One hash over all weight files of a checkpoint, in the order of their names."""
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        return None
    hashes = []
    for path in files:
        with path.open("rb") as stream:
            hashes.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _rank(label: str) -> tuple[int, str]:
    return (POLICY_ORDER.index(label) if label in POLICY_ORDER else len(POLICY_ORDER), label)
