"""Train and score variants of the recipe at equal budgets, on one episode manifest, into one table.

A variant is two lists of changed settings, one per stage; everything else is shared: demonstrations, teacher,
VLM, steps, batch size, seed, episodes. Variants that agree on stage 1 share its checkpoint. Each training run
is the same command line that a user would type, so every row of the table can be repeated by hand; finished
runs are kept and skipped when the command is given again.

The same command may run in several processes at a time: each takes what no other is at. All students are
trained before the first plays, because training times stand in the table and decide what equal time is: no
simulator may run beside them.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lerobot_policy_vita_vla.training.sharing import Busy, claim, each_once

CLI = (sys.executable, "-m", "vita_vla_cli")
TRAINED = Path("checkpoints/last/pretrained_model")


@dataclass(frozen=True)
class Variant:
    """What a row of the table changes.

    Args:
        why: What the comparison with ``two_stage`` shows.
        align: Settings changed in stage 1, or None for no stage 1.
        finetune: Settings changed in stage 2, or None for no stage 2.
        equal_compute: Give stage 2 the time that two-stage spends on stage 1, as further steps.
    """

    why: str
    align: tuple[str, ...] | None = ()
    finetune: tuple[str, ...] | None = ()
    equal_compute: bool = False


def _both(*settings: str) -> dict:
    return {"align": settings, "finetune": settings}


VARIANTS: dict[str, Variant] = {
    "two_stage": Variant("the recipe: align, then finetune"),
    "only_finetune": Variant("what alignment adds, at equal finetune steps", align=None),
    "only_finetune_equal_compute": Variant(
        "what alignment adds, at equal total time", align=None, equal_compute=True
    ),
    "align_only": Variant("what finetune adds; the VLM was never trained", finetune=None),
    "freeze_vlm": Variant("what training the language model adds", finetune=("--policy.stage=freeze_vlm",)),
    "one_stage": Variant(
        "both losses at once in place of two stages", align=None, finetune=("--policy.align_weight=1",)
    ),
    "drop_align_term": Variant(
        "stage 2 without the alignment term, as in the paper", finetune=("--policy.align_weight=0",)
    ),
    "ema": Variant("what averaging the weights adds", **_both("--policy.ema_decay=0.99")),
    "no_state_encoder": Variant("what the state token adds", **_both("--policy.use_state_encoder=false")),
    "one_query": Variant("one query for the whole chunk", **_both("--policy.num_queries=1")),
    "separate_queries": Variant("one vector per query", **_both("--policy.shared_queries=false")),
    "scratch_decoder": Variant(
        "what the teacher's decoder adds", align=None, finetune=("--policy.decoder_init=scratch",)
    ),
}


@dataclass(frozen=True)
class Job:
    """One trained student: a variant at a budget with a seed."""

    variant: str
    finetune_steps: int
    seed: int

    @property
    def name(self) -> str:
        """Folder and policy label."""
        return f"{self.variant}-{self.finetune_steps}-seed{self.seed}"


def run_ablation(
    run: Path,
    *,
    demos: Path,
    teacher: Path,
    manifest: Path,
    vlm: str = "mini",
    variants: Sequence[str] = tuple(VARIANTS),
    align_steps: int,
    finetune_steps: Sequence[int],
    seeds: Sequence[int] = (0,),
    batch_size: int = 64,
    settings: Sequence[str] = (),
    align_settings: Sequence[str] = (),
    finetune_settings: Sequence[str] = (),
    workers: int = 2,
    episodes_keep_videos: int = 0,
) -> list[dict]:
    """Train every variant at every budget with every seed, score all on one manifest, write one table.

    Args:
        run: Folder for the trained variants (``run/students``), their episodes (``run/eval``) and the table.
        demos: LeRobotDataset of demonstrations.
        teacher: Trained teacher (a pretrained_model folder or a training run).
        manifest: Episode manifest shared by all.
        vlm: Vision-language model.
        variants: Names from `VARIANTS`.
        align_steps: Steps of stage 1.
        finetune_steps: Steps of stage 2; several make a curve.
        seeds: Training seeds.
        batch_size: Of both stages.
        settings: Further ``--policy.x=y`` for both stages of all variants.
        align_settings: The same for stage 1 only.
        finetune_settings: The same for stage 2 only.
        workers: Simulation processes.
        episodes_keep_videos: Videos of failures and successes to keep per task.

    Returns:
        One row per job: label, variant, why, finetune_steps, steps (trained in the last stage), seed,
        train_seconds (of that stage), success_rate, low, high, n_episodes.

    Raises:
        ValueError: A variant that does not exist, or one that needs another to be trained first.
        RuntimeError: A training run failed; what was finished before it is kept.
    """
    from lerobot_policy_vita_vla.evaluation.ablations import compare_with_two_stage
    from lerobot_policy_vita_vla.evaluation.manifest import load_manifest
    from lerobot_policy_vita_vla.evaluation.results import RESULT_FILE, write_json
    from lerobot_policy_vita_vla.evaluation.runner import evaluate

    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise ValueError(f"unknown variants {unknown}; there are: {', '.join(VARIANTS)}")
    students = run / "students"
    students.mkdir(parents=True, exist_ok=True)
    jobs = [
        # align_only is the same at every finetune budget
        Job(name, 0 if VARIANTS[name].finetune is None else steps, seed)
        for seed in seeds
        for steps in finetune_steps
        for name in variants
    ]
    jobs = list(dict.fromkeys(jobs))
    _check_references(jobs, students)
    common = ["--demos", str(demos), "--teacher", str(teacher), "--vlm", vlm]
    common += ["--batch-size", str(batch_size)]
    aligning, finetuning = [*settings, *align_settings], [*settings, *finetune_settings]
    episodes = load_manifest(manifest)
    trained: dict[Job, Path] = {}
    rows: dict[Job, dict] = {}

    def train(job: Job) -> None:
        trained[job] = _train(job, students, common, align_steps, aligning, finetuning)

    def play(job: Job) -> None:
        with claim(students / f"{job.name}.eval"):
            known = (run / "eval" / job.name / RESULT_FILE).is_file()
            result = evaluate(
                trained[job] / TRAINED,
                episodes,
                run / "eval" / job.name,
                label=job.name,
                workers=workers,
                videos_per_task=(episodes_keep_videos, episodes_keep_videos),
            )
        rows[job] = _row(job, trained[job], result)
        if not known:
            write_table()

    def write_table() -> None:
        # While several processes play, each writes what it has seen; all of them end with the whole table.
        seen = [rows[job] for job in jobs if job in rows]
        table = {"rows": seen, "comparisons": compare_with_two_stage(seen, run / "eval")}
        write_json(run / "ablations.json", table)

    each_once(jobs, train)
    each_once(jobs, play)
    write_table()
    return [rows[job] for job in jobs]


def _row(job: Job, trained: Path, result: dict) -> dict:
    return {
        "label": job.name,
        "variant": job.variant,
        "why": VARIANTS[job.variant].why,
        "finetune_steps": job.finetune_steps,
        "steps": _trained_steps(trained),
        "seed": job.seed,
        "train_seconds": _seconds(trained),
        **result["overall"],
    }


def _reference(job: Job) -> Job:
    return replace(job, variant="two_stage")


def _check_references(jobs: Sequence[Job], students: Path) -> None:
    """Refuse equal time with a two-stage that neither is trained nor will be, before anything trains."""
    for job in (job for job in jobs if VARIANTS[job.variant].equal_compute):
        needed = _reference(job)
        if needed not in jobs and not _finished(students / needed.name):
            raise ValueError(
                f"{job.variant} takes as long as two_stage with {job.finetune_steps} finetune steps and seed "
                f"{job.seed}, which is not trained: add two_stage to the list of variants"
            )


def _train(
    job: Job,
    students: Path,
    common: list[str],
    align_steps: int,
    align_settings: list[str],
    finetune_settings: list[str],
) -> Path:
    def align_run(variant: Variant) -> tuple[Path, list[str]]:
        changed = [*align_settings, *variant.align]
        key = hashlib.sha256(" ".join(changed).encode()).hexdigest()[:8]
        return students / f"align-{align_steps}-{key}-seed{job.seed}", changed

    variant = VARIANTS[job.variant]
    seed = ["--seed", str(job.seed)]
    start = ["--only-finetune"]
    if variant.align is not None:
        align, changed = align_run(variant)
        _run("align", align, [*common, *seed, "--steps", str(align_steps), *changed])
        if variant.finetune is None:
            return align
        start = ["--from", str(align)]
    steps, out = job.finetune_steps, students / job.name
    if variant.equal_compute:
        align, _ = align_run(VARIANTS["two_stage"])
        steps += _equal_compute_steps(align, students / _reference(job).name)
    changed = [*finetune_settings, *variant.finetune]
    _run("finetune", out, [*common, *seed, *start, "--steps", str(steps), *changed])
    return out


def _finished(out: Path) -> bool:
    return (out / TRAINED / "config.json").exists()


def _run(verb: str, out: Path, arguments: list[str]) -> None:
    """Run one training command unless its checkpoint is there already; `Busy` where another process does."""
    command = [*CLI, verb, *arguments, "--out", str(out)]
    out.parent.mkdir(parents=True, exist_ok=True)
    log, asked = out.parent / f"{out.name}.log", out.parent / f"{out.name}.command"
    with claim(out):
        if _finished(out):
            if asked.exists() and asked.read_text() != shlex.join(arguments):
                raise ValueError(
                    f"{out} was trained with other settings:\n  was: {asked.read_text()}\n  now: "
                    f"{shlex.join(arguments)}\none table holds one recipe: choose another --out"
                )
            return
        asked.write_text(shlex.join(arguments))
        if out.exists():  # a run that was interrupted before its only checkpoint
            out.rename(out.with_name(f"{out.name}.interrupted-{int(out.stat().st_mtime)}"))
        with log.open("w") as file:
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        tail = "\n".join(log.read_text().splitlines()[-8:])
        raise RuntimeError(
            f"{shlex.join(command)}\nfailed with exit code {done.returncode}; {log} ends:\n{tail}"
        )


def _log_rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]


def _step_seconds(run: Path) -> float:
    rows = _log_rows(run)
    return sum(row["update_s"] + row["dataloading_s"] for row in rows) / len(rows)


def _trained_steps(run: Path) -> int:
    return _log_rows(run)[-1]["step"]


def _seconds(run: Path) -> float:
    return round(_step_seconds(run) * _trained_steps(run), 1)


def _equal_compute_steps(align: Path, reference: Path) -> int:
    """Finetune steps that take as long as two-stage's stage 1 with the same seed did."""
    with claim(reference):  # its times are known once its process has let go of it
        if not _finished(reference):
            raise Busy(reference)
        return round(_seconds(align) / _step_seconds(reference))
