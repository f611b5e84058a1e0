"""Playing a manifest's episodes with a policy: `evaluate`.

    worker processes                       this process
    simulators, queues, histories  --observations-->  one policy, calls of several rows
                                   <----chunks------

The outcome of an episode is a function of the policy and the episode alone: not of the number of workers, of
the order, or of which episodes run at the same time (`play`, `batching`).
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lerobot_policy_vita_vla.chunking import check_chunking
from lerobot_policy_vita_vla.demos.scenes import check_ready, scenes_of
from lerobot_policy_vita_vla.evaluation import results
from lerobot_policy_vita_vla.evaluation.batching import BatchPlan, settle_batch
from lerobot_policy_vita_vla.evaluation.checks import check_device, check_recording, check_same_run
from lerobot_policy_vita_vla.evaluation.manifest import Manifest, load_manifest
from lerobot_policy_vita_vla.evaluation.play import play
from lerobot_policy_vita_vla.evaluation.pool import EpisodeQueue, WorkerPool
from lerobot_policy_vita_vla.evaluation.predictor import (
    ChunkPredictor,
    checkpoint_folder,
    load_predictor,
    read_recording,
)
from lerobot_policy_vita_vla.evaluation.record import RunRecord
from lerobot_policy_vita_vla.evaluation.worker import Settings
from lerobot_policy_vita_vla.files import read_json
from lerobot_policy_vita_vla.teacher.load import checkpoint_fingerprint

SCENE_KEYS = ("suite", "protocol", "quality", "observation_size", "episode_length")
"""What worker settings take over from the manifest."""

EXPERT = "expert"
"""Name under which the simulator's scripted expert can be evaluated: what the suite allows at best."""

ROWS = 8
"""Most rows per inference call (our choice: on one core a student of the quickstart's size takes 16 ms for
one row, 8 per row at 4 rows and 6 per row from 8 rows on)."""


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def evaluate(
    policy: str | Path | ChunkPredictor,
    manifest: Manifest | str | Path,
    out_dir: str | Path,
    *,
    label: str,
    workers: int | None = None,
    envs_per_worker: int | None = None,
    inference_batch: int | None = None,
    videos_per_task: tuple[int, int] = (1, 1),
    device: str | None = None,
    n_action_steps: int | None = None,
    temporal_ensemble_coeff: float | None = None,
    resume: bool = True,
    allow_other_recording: bool = False,
    threads: int | None = None,
    fresh_simulators: bool = False,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Play every episode of a manifest with one policy and write the results to a folder.

    Running it again continues where it stopped and returns at once when everything is played. A script that
    calls this needs the usual ``if __name__ == "__main__":``, since it starts processes.

    Args:
        policy: A LeRobot checkpoint (folder, training run or hub id), `EXPERT`, or a
            `predictor.ChunkPredictor` such as `predictor.PolicyPredictor` around a policy in memory.
        manifest: The episodes, or the path of their file.
        out_dir: Folder of this policy's results; see `results` for its files.
        label: Name in tables and reports.
        workers: Simulator processes; None: one per core that this process may use, since any of them may
            wait for the policy.
        envs_per_worker: Episodes at a time in each; None: as many as make two inference calls.
        inference_batch: Most rows per inference call; None: `ROWS`. Smaller where `batching.settle_batch`
            finds that rows would depend on each other.
        videos_per_task: How many failures and how many successes of each task are filmed.
        device: Where the policy runs; None: ``cuda`` if there is one.
        n_action_steps: Actions executed per prediction, instead of the policy's own setting; given alone it
            also turns temporal ensembling off, and execution starts at the chunk's first action.
        temporal_ensemble_coeff: Ensembling instead of the policy's own setting; one action per prediction.
        resume: False deletes what the folder holds of an earlier evaluation and starts over.
        allow_other_recording: Go on although the policy was trained on other pictures, or on these episodes.
        threads: CPU threads of inference; None: half of the cores where the policy runs on them (our choice:
            a small policy takes about as long as its simulators), else 1.
        fresh_simulators: Build a new simulator for every episode instead of resetting one by its seed; slow,
            and needed only where `resets` finds that a reset leaves something behind.
        command: Recorded in the results; None takes this process's own command line.
        progress: Show a progress bar with the time left and the success so far.

    Returns:
        The content of ``result.json``.

    Raises:
        ValueError: If the folder holds results of something else, the policy was trained on another
            recording, or it does not fit the simulator; what a simulator process refuses.
        RuntimeError: If a simulator process fails; finished episodes are kept.
    """
    started = time.monotonic()
    manifest = manifest if isinstance(manifest, Manifest) else load_manifest(manifest)
    check_ready(manifest.suite)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    if threads is None:
        threads = max(1, usable_cores() // 2) if device == "cpu" else 1
    rows = inference_batch or ROWS
    workers = usable_cores() if workers is None else workers
    if envs_per_worker is None:
        envs_per_worker = math.ceil(2 * rows / max(1, workers))
    folder = Path(out_dir)
    if not resume:
        _delete_results(folder)
    identity = {
        "manifest_hash": manifest.hash,
        "policy_fingerprint": _fingerprint(policy),
        "n_action_steps": n_action_steps,
        "temporal_ensemble_coeff": temporal_ensemble_coeff,
        "device": device,
        "inference_batch": inference_batch,
        "threads": threads,
    }
    done = results.read_episodes(folder)
    finished = len(done) == len(manifest.episodes)
    # Without an episode there is nothing to mix: an attempt that failed at the start may be made otherwise.
    run = check_same_run(folder, identity, finished=finished) if done else {}
    if finished and (folder / results.RESULT_FILE).is_file():
        return results.read_result(folder)
    from_path = isinstance(policy, str | Path) and policy != EXPERT
    if from_path:
        check_recording(read_recording(policy), manifest, allow=allow_other_recording)
    run = {
        **run,
        **identity,
        "label": label,
        "policy_path": str(policy) if isinstance(policy, str | Path) else None,
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "created": run.get("created") or datetime.now(UTC).isoformat(timespec="seconds"),
    }
    record = RunRecord(folder, manifest, run, done, videos_per_task, progress)
    threads_before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(threads)
    queue = EpisodeQueue(record.remaining(), math.ceil(workers * envs_per_worker / rows))
    room = _picture_bytes(manifest, _history(policy))
    try:
        with WorkerPool(workers, envs_per_worker, suite=manifest.suite, picture_bytes=room) as pool:
            # The simulators import, and the first ones are built, while the policy loads.
            begins = {slot: queue.next(None, pool.home(slot)) for slot in pool.slots}
            first = {slot: episode for slot, episode in begins.items() if episode is not None}
            pool.begin(_settings(manifest, fresh_simulators=fresh_simulators), first)
            predictor = policy
            if from_path:
                predictor = load_predictor(
                    policy,
                    manifest,
                    device=device,
                    n_action_steps=n_action_steps,
                    temporal_ensemble_coeff=temporal_ensemble_coeff,
                )
            elif policy != EXPERT and not (n_action_steps is temporal_ensemble_coeff is None):
                raise ValueError("for a policy in memory, set the execution where the predictor is made")
            predictor, settings, plan = _prepare(predictor, manifest, rows)
            settings = replace(settings, fresh_simulators=fresh_simulators)
            record.begin(predictor, settings, plan)
            pool.setup(settings)
            play(pool, predictor, plan, record, queue, first)
    finally:
        torch.set_num_threads(threads_before)
        record.close(time.monotonic() - started)
    return record.result


def _settings(manifest: Manifest, **settings: Any) -> Settings:
    return Settings(**{key: getattr(manifest, key) for key in SCENE_KEYS}, **settings)


def _prepare(predictor, manifest: Manifest, rows: int) -> tuple[Any, Settings, BatchPlan]:
    if predictor == EXPERT:
        return None, _settings(manifest, uses_images=False, expert=True), BatchPlan(1, True, False)
    plan, (_, chunk_size, action_dim) = settle_batch(
        predictor.predict, manifest, rows, predictor.n_obs_steps, rounds=predictor.rounds
    )
    if action_dim != (takes := scenes_of(manifest.suite).action_dim):
        raise ValueError(f"the policy gives {action_dim} numbers per action, {manifest.suite} takes {takes}")
    settings = settings_of(predictor, manifest, chunk_size)
    check_chunking(
        settings.chunk_size, settings.n_action_steps, settings.ensemble_coeff, settings.execute_from
    )
    return predictor, settings, plan


def settings_of(predictor: ChunkPredictor, manifest: Manifest, chunk_size: int) -> Settings:
    """How a policy plays a manifest's episodes.

    Args:
        predictor: The policy.
        manifest: The episodes.
        chunk_size: Actions of its chunks.
    """
    return _settings(
        manifest,
        chunk_size=chunk_size,
        n_action_steps=predictor.n_action_steps or chunk_size - predictor.execute_from,
        ensemble_coeff=predictor.ensemble_coeff,
        execute_from=predictor.execute_from,
        n_obs_steps=predictor.n_obs_steps,
        uses_images=predictor.uses_images,
    )


def _picture_bytes(manifest: Manifest, history: int) -> int:
    return len(scenes_of(manifest.suite).cameras) * history * manifest.observation_size**2 * 3


def _history(policy: str | Path | ChunkPredictor) -> int:
    """Observations per prediction, before the policy is loaded."""
    if policy == EXPERT:
        return 1
    if not isinstance(policy, str | Path):
        return policy.n_obs_steps
    return read_json(checkpoint_folder(policy) / "config.json").get("n_obs_steps") or 1


def _fingerprint(policy: str | Path | ChunkPredictor) -> str:
    if policy == EXPERT:
        return EXPERT
    if isinstance(policy, str | Path):
        return checkpoint_fingerprint(checkpoint_folder(policy))
    return policy.fingerprint


def _delete_results(folder: Path) -> None:
    for name in (results.RUN_FILE, results.EPISODES_FILE, results.RESULT_FILE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / results.VIDEO_FOLDER, ignore_errors=True)
