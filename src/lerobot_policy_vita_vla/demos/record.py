"""Recording scripted-expert demonstrations into one LeRobotDataset, in parallel and resumably.

    worker processes: attempt (task, seed) -> scratch/<task>/00007.npz or .failed     } at the same time;
    this process:     next demonstration in order -> LeRobotDataset in scratch/dataset } order is fixed
    at the end:       scratch/dataset is moved to root, scratch is deleted

So the dataset's folder exists only once it is complete. A recording that was stopped, by Ctrl-C, a full disk
or a crash, goes on from its attempts when the same command runs again; writing starts over, which costs 4 ms
per frame. Episodes do not depend on the number of workers: attempt i of a task uses seed + i, and the first
``episodes_per_task`` successes are kept.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.conventions import RECORDING_FILE, RecordingInfo, statistics_hash
from lerobot_policy_vita_vla.demos import scenes as suites
from lerobot_policy_vita_vla.demos.dataset import DatasetWriter
from lerobot_policy_vita_vla.demos.expert import (
    Disturbance,
    forget_scenes,
    load_demonstration,
    run_attempt,
)
from lerobot_policy_vita_vla.demos.gl import ensure_gl
from lerobot_policy_vita_vla.demos.plan import TaskPlan, recording_settings, refuse_differences
from lerobot_policy_vita_vla.demos.workers import check_workers, worker_pool

logger = logging.getLogger(__name__)


def record(
    tasks: str | Sequence[str],
    episodes_per_task: int,
    root: str | Path,
    *,
    quality: str = "light",
    observation_size: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    disturbance: Disturbance | None = None,
    repo_id: str | None = None,
    progress: bool = True,
    on_attempt: Callable[[int, int], None] | None = None,
    protocol: str | None = None,
    mistakes: dict[str, float] | None = None,
) -> RecordingInfo:
    """Record demonstrations, or return at once if ``root`` already holds exactly this recording.

    Args:
        tasks: Task names or groups of one suite (`scenes.resolve`).
        episodes_per_task: Successful episodes to keep for each task.
        root: Folder of the new LeRobotDataset.
        quality: Key of `suite.RENDER_QUALITIES` or `libero_suite.LIBERO_QUALITIES`.
        observation_size: Height and width of pictures, pixels; None is the suite's or the protocol's.
        seed: Seed of each task's first attempt; None is the suite's. Keep it away from evaluation's seeds.
        workers: Simulator processes; None takes one per core, at most 8; 1 runs inside this process.
        disturbance: How the expert is disturbed; None takes the defaults.
        repo_id: Name for the hub; None derives it from the folder's name.
        progress: Show a progress bar.
        on_attempt: Called with (attempts finished, episodes written) after every finished attempt.
        protocol: LIBERO: key of `libero_suite.PROTOCOLS`; None is ``"lerobot"``.
        mistakes: Share of attempts with each of the expert's mistakes, by field of `expert.Disturbance`; what
            is not named is the disturbance's, or without one the suite's.

    Returns:
        What was recorded, as stored in ``meta/vita_vla.json``.

    Raises:
        ValueError: For unknown tasks and numbers out of range, before anything is written; if ``root`` holds
            something else (names the difference); if an expert fails too often.
        OSError: If the disk is full; nothing that was finished is lost.
    """
    spec = tasks if isinstance(tasks, str) else ",".join(tasks)
    scenes = suites.scenes_of(suites.suite_of_tasks(spec))
    names = suites.resolve(scenes.name, spec)
    if scenes.name == suites.LIBERO.name:
        protocol = protocol or "lerobot"
    suites.check_look(scenes.name, quality, protocol)
    observation_size = suites.picture_size(scenes.name, protocol, observation_size)
    seed = scenes.demo_seed if seed is None else seed
    if episodes_per_task < 1:
        raise ValueError(f"episodes_per_task must be at least 1, got {episodes_per_task}: change --episodes")
    suites.check_seeds(scenes.name, seed, episodes_per_task)
    count = min(os.cpu_count() or 1, 8) if workers is None else workers
    check_workers(count)
    root = Path(root)
    settings = recording_settings(
        names, episodes_per_task, quality, observation_size, seed, disturbance, protocol, mistakes
    )
    if root.exists():
        return _finished_recording(root, settings)
    scratch = root.with_name(root.name + ".recording")
    suites.check_ready(scenes.name)
    # Here, so that workers inherit the choice instead of each making and announcing it.
    ensure_gl()
    _open_scratch(scratch, settings)
    plans = [TaskPlan(name, settings, str(scratch / "attempts")) for name in names]
    try:
        with _bar(len(names) * episodes_per_task, progress) as bar:
            dataset = DatasetWriter(
                _emptied(scratch / "dataset"),
                repo_id=repo_id or f"local/{root.name}",
                scenes=scenes,
                observation_size=observation_size,
            )
            writer = _Writer(dataset, scenes.name, plans, bar)
            _run(plans, writer, count, on_attempt, scenes.module)
            info = _describe(settings, plans, writer.dataset.finish())
    except KeyboardInterrupt:
        _explain(scratch, plans, "interrupted")
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _explain(scratch, plans, "the disk is full")
        raise OSError(
            errno.ENOSPC,
            f"the disk that holds {scratch} is full. Free some space (an episode at 96 px takes about 1 MB) "
            "and run the same command again: finished episodes are kept",
        ) from error
    finally:
        forget_scenes()
    info.save(scratch / "dataset")
    root.parent.mkdir(parents=True, exist_ok=True)
    os.replace(scratch / "dataset", root)
    shutil.rmtree(scratch)
    for plan in plans:
        logger.info("%s: kept %d of %d attempts", plan.task, plan.wanted, plan.tried)
    return info


class _Writer:
    """Appends demonstrations in their final order: task by task, by attempt."""

    def __init__(self, dataset: DatasetWriter, suite: str, plans: list[TaskPlan], bar):
        self.dataset, self._suite = dataset, suite
        self.written = 0
        self._bar = bar
        self._plans = plans
        self._position = (0, 0)

    def append_next(self) -> bool:
        """Write the next demonstration if it is there; returns whether anything moved on."""
        index, number = self._position
        if index == len(self._plans):
            return False
        plan = self._plans[index]
        if number not in plan.outcomes:
            if plan.kept < plan.wanted:
                return False
            self._position = (index + 1, 0)
            return True
        if plan.outcomes[number]:
            demonstration = load_demonstration(plan.attempt(number).path)
            self.dataset.append(demonstration, suites.instruction(self._suite, plan.task))
            self.written += 1
            self._bar.update(1)
        failed = sum(p.tried - p.kept for p in self._plans)
        self._bar.set_postfix_str(f"{plan.task}, {failed} failed attempts dropped", refresh=False)
        self._position = (index, number + 1)
        return True


def _emptied(root: Path) -> Path:
    # Left over from a recording that was stopped.
    shutil.rmtree(root, ignore_errors=True)
    return root


def _run(plans: list[TaskPlan], writer: _Writer, workers: int, on_attempt, module: str) -> None:
    jobs: dict[Future, tuple[TaskPlan, int]] = {}
    # Twice as many jobs as workers keeps them busy while this process writes an episode. One worker is this
    # process: a second job would put off writing the first, and the progress bar would run at half speed.
    most = 1 if workers == 1 else 2 * workers
    with worker_pool(workers, module) as pool:
        while True:
            for plan in plans:
                while len(jobs) < most and (attempt := plan.next_attempt()):
                    jobs[pool.submit(run_attempt, attempt)] = (plan, attempt.number)
            moved = writer.append_next()
            done = [job for job in jobs if job.done()]
            if not done and not moved:
                if not jobs:
                    break
                done = list(wait(jobs, return_when=FIRST_COMPLETED).done)
            for job in done:
                plan, number = jobs.pop(job)
                plan.finished(number, job.result())
                if on_attempt is not None:
                    on_attempt(sum(p.tried for p in plans), writer.written)


def _describe(settings: dict[str, Any], plans: list[TaskPlan], stats: dict) -> RecordingInfo:
    tasks: dict[str, str] = {}
    scenes, size = suites.scenes_of(settings["suite"]), settings["observation_size"]
    protocol = settings.get("protocol")
    declared = {}
    if protocol:
        conventions = suites.conventions(scenes.name, size, protocol)
        declared = {"conventions": conventions.to_dict(), "image_orientation": conventions.image_orientation}
    for plan in plans:
        instruction = suites.instruction(scenes.name, plan.task)
        tasks[instruction] = f"{tasks[instruction]},{plan.task}" if instruction in tasks else plan.task
    return RecordingInfo(
        suite=scenes.name,
        tasks=tasks,
        quality=settings["quality"],
        observation_size=size,
        control_hz=scenes.control_hz,
        camera=scenes.camera,
        action_meaning=dict(scenes.action_meaning),
        seeds={p.task: [settings["seed"], settings["seed"] + p.tried - 1] for p in plans},
        kept={p.task: p.kept for p in plans},
        tried={p.task: p.tried for p in plans},
        noise=settings["noise"],
        versions={name: version(name) for name in scenes.packages},
        statistics_hash=statistics_hash(stats),
        settings=settings,
        **declared,
    )


def _finished_recording(root: Path, settings: dict[str, Any]) -> RecordingInfo:
    info = RecordingInfo.load(root)
    if info is None:
        raise ValueError(
            f"{root} exists and is not a recording of this package (no {RECORDING_FILE}); "
            "choose another folder"
        )
    refuse_differences(root, info.settings, settings)
    logger.info("%s already holds this recording: %d episodes", root, sum(info.kept.values()))
    return info


def _open_scratch(scratch: Path, settings: dict[str, Any]) -> None:
    path = scratch / "settings.json"
    # Settings without an attempt are those of a recording that never began: nothing would be mixed.
    if path.is_file() and _finished(scratch):
        refuse_differences(scratch, json.loads(path.read_text()), settings)
        return
    scratch.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(settings, indent=2))
    os.replace(unfinished, path)


def _finished(scratch: Path, task: str = "*") -> list[Path]:
    return [p for p in (scratch / "attempts").glob(f"{task}/*") if p.suffix in (".npz", ".failed")]


def _explain(scratch: Path, plans: list[TaskPlan], reason: str) -> None:
    # Counted on the disk: workers have finished the attempts they were at, of which the plans do not know.
    there = [sum(path.suffix == ".npz" for path in _finished(scratch, plan.task)) for plan in plans]
    wanted = sum(plan.wanted for plan in plans)
    kept = sum(min(plan.wanted, found) for plan, found in zip(plans, there, strict=True))
    logger.warning(
        "recording stopped: %s. %d of %d episodes are in %s; run the same command to go on",
        reason,
        kept,
        wanted,
        scratch,
    )


@contextlib.contextmanager
def _bar(total: int, shown: bool):
    from tqdm import tqdm

    with tqdm(total=total, desc="demos", unit="episode", disable=not shown) as bar:
        yield bar
