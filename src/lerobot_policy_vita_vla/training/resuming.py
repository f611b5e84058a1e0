"""Whether a checkpoint can be resumed by as many processes as run now.

LeRobot continues the data order from step x batch size x processes. With another number of processes it warns
and goes on with other batches than an uninterrupted run would see, unless the product stays the same: the
samples of one update are then the same ones, shared out otherwise. Optimiser states written under FSDP are
keyed by names, others by numbers, and neither loads as the other.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


def check_resume(checkpoint: Path, batch_size: int | None = None) -> None:
    """Refuse to resume where the run would not go on as it began.

    Args:
        checkpoint: ``RUN/checkpoints/STEP``.
        batch_size: ``--batch_size`` given for the resumed run; None: the checkpoint's.

    Raises:
        ValueError: Naming the processes and batch size that fit, or the kind of training state.
    """
    state = checkpoint / "training_state"
    if not (state / "training_step.json").is_file():
        raise ValueError(
            f"{checkpoint} has no training_state/training_step.json: its weights can start a new run "
            "(--policy.path), but no run can go on from it"
        )
    saved = json.loads((state / "training_step.json").read_text())
    _check_kind(checkpoint, state)
    before, samples = saved.get("num_processes"), saved.get("batch_size")
    if before is None or samples is None:
        return  # LeRobot before 0.6 did not write them down
    now = int(os.environ.get("WORLD_SIZE", "1"))
    given = samples if batch_size is None else batch_size
    if given * now == samples * before:
        return
    total = samples * before
    fix = (
        f"pass --batch_size={total // now}"
        if total % now == 0
        else f"start {before} processes, or a number that divides {total}"
    )
    raise ValueError(
        f"{checkpoint} was written by {before} processes with {samples} samples each, {total} per update; "
        f"{now} with {given} each are {now * given}, and the run would go on with other batches. "
        f"To go on as it began, {fix}"
    )


def _check_kind(checkpoint: Path, state: Path) -> None:
    file = state / "optimizer_param_groups.json"
    if not file.is_file():
        return
    groups = json.loads(file.read_text())
    names = [p for group in groups for p in group.get("params", [])]
    by_name = bool(names) and isinstance(names[0], str)
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    if by_name == sharded or not names:
        return
    made, runs = ("under FSDP", "does not use it") if by_name else ("without FSDP", "uses it")
    raise ValueError(
        f"the optimiser's state in {checkpoint} was written {made}, and this run {runs}; LeRobot cannot load "
        "one as the other. Start as before, or begin a new run from the weights: "
        f"--policy.path={checkpoint / 'pretrained_model'}"
    )
