"""Playing a manifest's episodes with a policy: `evaluate`.

    worker processes                       this process
    simulators, queues, histories  --observations-->  one policy, fixed batches
                                   <----chunks------

The outcome of an episode is a function of the policy and the episode alone: not of the number of workers, of
    the
order, or of which episodes run at the same time.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lerobot_policy_vita_vla.chunking import check_chunking
from lerobot_policy_vita_vla.demos.scenes import check_ready, scenes_of
from lerobot_policy_vita_vla.evaluation import results
from lerobot_policy_vita_vla.evaluation.batching import BatchPlan, settle_batch
from lerobot_policy_vita_vla.evaluation.checks import check_recording, check_same_run
from lerobot_policy_vita_vla.evaluation.manifest import Episode, Manifest, load_manifest
from lerobot_policy_vita_vla.evaluation.pool import EpisodeQueue, WorkerPool
from lerobot_policy_vita_vla.evaluation.predictor import (
    ChunkPredictor,
    checkpoint_folder,
    fingerprint,
    load_predictor,
    read_recording,
)
from lerobot_policy_vita_vla.evaluation.record import RunRecord
from lerobot_policy_vita_vla.evaluation.worker import Settings

SCENE_KEYS = ("suite", "protocol", "quality", "observation_size", "episode_length")
"""What worker settings take over from the manifest."""

EXPERT = "expert"
"""Name under which the simulator's scripted expert can be evaluated: what the suite allows at best."""

CPU_ROWS, GPU_ROWS = 4, 8
"""Rows per inference call (our choice: at 4 a small policy on one core spends half the time per row that it
needs alone; a GPU has room for more)."""


def evaluate(
    policy: str | Path | ChunkPredictor,
    manifest: Manifest | str | Path,
    out_dir: str | Path,
    *,
    label: str,
    workers: int = 2,
    envs_per_worker: int = 4,
    inference_batch: int | None = None,
    videos_per_task: tuple[int, int] = (1, 1),
    device: str | None = None,
    n_action_steps: int | None = None,
    temporal_ensemble_coeff: float | None = None,
    resume: bool = True,
    allow_other_recording: bool = False,
    threads: int = 1,
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
        workers: Simulator processes.
        envs_per_worker: Episodes at a time in each.
        inference_batch: Rows per inference call; None: `CPU_ROWS` or `GPU_ROWS`. Smaller where
            `predictor.settle_batch` finds that rows would depend on each other.
        videos_per_task: How many failures and how many successes of each task are filmed.
        device: Where the policy runs; None: ``cuda`` if there is one.
        n_action_steps: Actions executed per prediction, instead of the policy's own setting; given alone it
            also turns temporal ensembling off, and execution starts at the chunk's first action.
        temporal_ensemble_coeff: Ensembling instead of the policy's own setting; one action per prediction.
        resume: False deletes what the folder holds of an earlier evaluation and starts over.
        allow_other_recording: Go on although the policy was trained on other pictures, or on these episodes.
        threads: CPU threads of inference (our choice: 1; simulators need the cores more than a small policy).
        command: Recorded in the results; None takes this process's own command line.
        progress: Show a progress bar with the time left and the success so far.

    Returns:
        The content of ``result.json``.

    Raises:
        ValueError: If the folder holds results of something else, the policy was trained on another
            recording, or it does not fit the simulator.
        RuntimeError: If a simulator process fails; finished episodes are kept.
    """
    started = time.monotonic()
    manifest = manifest if isinstance(manifest, Manifest) else load_manifest(manifest)
    check_ready(manifest.suite)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
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
    run = check_same_run(folder, identity, finished=finished)
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
    try:
        # The simulators import while the policy loads.
        with WorkerPool(workers, envs_per_worker, suite=manifest.suite) as pool:
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
            rows = inference_batch or (CPU_ROWS if device == "cpu" else GPU_ROWS)
            predictor, settings, plan = _prepare(predictor, manifest, rows)
            record.begin(predictor, settings, plan)
            pool.setup(settings)
            _play(pool, predictor, plan, record)
    finally:
        torch.set_num_threads(threads_before)
        record.close(time.monotonic() - started)
    return record.result


def _prepare(predictor, manifest: Manifest, rows: int) -> tuple[Any, Settings, BatchPlan]:
    scene = {key: getattr(manifest, key) for key in SCENE_KEYS}
    if predictor == EXPERT:
        return None, Settings(**scene, uses_images=False, expert=True), BatchPlan(1, True, False)
    plan, (_, chunk_size, action_dim) = settle_batch(predictor.predict, manifest, rows, predictor.n_obs_steps)
    if action_dim != (takes := scenes_of(manifest.suite).action_dim):
        raise ValueError(f"the policy gives {action_dim} numbers per action, {manifest.suite} takes {takes}")
    settings = Settings(
        **scene,
        chunk_size=chunk_size,
        n_action_steps=predictor.n_action_steps or chunk_size - predictor.execute_from,
        ensemble_coeff=predictor.ensemble_coeff,
        execute_from=predictor.execute_from,
        n_obs_steps=predictor.n_obs_steps,
        uses_images=predictor.uses_images,
    )
    check_chunking(
        settings.chunk_size, settings.n_action_steps, settings.ensemble_coeff, settings.execute_from
    )
    return predictor, settings, plan


def _play(pool: WorkerPool, predictor: ChunkPredictor | None, plan: BatchPlan, record: RunRecord) -> None:
    queue = EpisodeQueue(record.remaining())
    running: dict[int, Episode] = {}
    waiting: list[tuple[int, dict]] = []
    asked: Counter[int] = Counter()

    def start(slot: int, task: str | None) -> None:
        if (episode := queue.next(task)) is not None:
            running[slot], asked[slot] = episode, 0
            pool.send(slot, "episode", (episode, record.films(episode.task)))

    for slot in pool.slots:
        start(slot, None)
    while running:
        # A call costs the same full or not: half of the episodes may as well wait while the others simulate.
        enough = min(plan.rows, (len(running) + 1) // 2)
        for kind, slot, content in pool.receive(block=len(waiting) < enough):
            if kind == "observation":
                waiting.append((slot, content))
            elif kind == "finished":
                episode = running.pop(slot)
                record.add(episode, content)
                start(slot, episode.task)
            else:
                record.set_renderer(*content)
        if len(waiting) >= enough:
            rows, waiting = _next_batch(waiting, plan)
            if plan.stochastic:
                slot = rows[0][0]
                torch.manual_seed(_noise_seed(running[slot].seed, asked[slot]))
            # Padded to a fixed number of rows: the kernels chosen, and their rounding, depend on it.
            observations = [observation for _, observation in rows]
            chunks = predictor.predict(observations + observations[:1] * (plan.rows - len(rows)))
            for (slot, _), chunk in zip(rows, chunks, strict=False):
                if not np.isfinite(chunk).all():
                    raise ValueError(
                        f"the policy gave an action that is not finite in episode {running[slot].id}"
                    )
                asked[slot] += 1
                pool.send(slot, "chunk", chunk)


def _next_batch(waiting: list[tuple[int, dict]], plan: BatchPlan) -> tuple[list, list]:
    """Split off the rows of the next call, oldest first, of one instruction unless the plan mixes them."""
    task = waiting[0][1]["task"]
    rows, rest = [], []
    for item in waiting:
        fits = len(rows) < plan.rows and (plan.mixed_tasks or item[1]["task"] == task)
        (rows if fits else rest).append(item)
    return rows, rest


def _noise_seed(episode_seed: int, prediction: int) -> int:
    return int(np.random.SeedSequence([episode_seed, prediction]).generate_state(1)[0])


def _fingerprint(policy: str | Path | ChunkPredictor) -> str:
    if policy == EXPERT:
        return EXPERT
    return fingerprint(checkpoint_folder(policy)) if isinstance(policy, str | Path) else policy.fingerprint


def _delete_results(folder: Path) -> None:
    for name in (results.RUN_FILE, results.EPISODES_FILE, results.RESULT_FILE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / results.VIDEO_FOLDER, ignore_errors=True)
