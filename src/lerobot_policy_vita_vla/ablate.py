"""Train and score variants of the recipe at equal budgets, on one episode manifest, into one table.

A variant is two lists of changed settings, one per stage; everything else is shared: demonstrations, teacher,
VLM, steps, batch size, seed, episodes. Variants that agree on stage 1 share its checkpoint. Each training run
is the same command line that a user would type, so every row of the table can be repeated by hand; finished
runs are kept and skipped when the command is given again.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    "keep_align_term": Variant("the alignment term kept in stage 2", finetune=("--policy.align_weight=1",)),
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
        One row per job: label, variant, finetune_steps, seed, success_rate, low, high, n_episodes, seconds.

    Raises:
        ValueError: A variant that does not exist.
        RuntimeError: A training run failed; what was finished before it is kept.
    """
    from lerobot_policy_vita_vla.evaluation.manifest import load_manifest
    from lerobot_policy_vita_vla.evaluation.results import write_json
    from lerobot_policy_vita_vla.evaluation.runner import evaluate

    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise ValueError(f"unknown variants {unknown}; there are: {', '.join(VARIANTS)}")
    run.mkdir(parents=True, exist_ok=True)
    common = ["--demos", str(demos), "--teacher", str(teacher), "--vlm", vlm]
    common += ["--batch-size", str(batch_size)]
    episodes = load_manifest(manifest)
    rows = []
    for seed in seeds:
        for steps in finetune_steps:
            for name in variants:
                job = Job(name, 0 if VARIANTS[name].finetune is None else steps, seed)
                if any(row["label"] == job.name for row in rows):
                    continue  # align_only is the same at every finetune budget
                trained = _train(
                    job,
                    run / "students",
                    common,
                    align_steps,
                    [*settings, *align_settings],
                    [*settings, *finetune_settings],
                )
                result = evaluate(
                    trained / TRAINED,
                    episodes,
                    run / "eval" / job.name,
                    label=job.name,
                    workers=workers,
                    videos_per_task=(episodes_keep_videos, episodes_keep_videos),
                )
                rows.append(
                    {
                        "label": job.name,
                        "variant": name,
                        "why": VARIANTS[name].why,
                        "finetune_steps": job.finetune_steps,
                        "steps": _trained_steps(trained),
                        "seed": seed,
                        "train_seconds": _seconds(trained),
                        **result["overall"],
                    }
                )
                table = {"rows": rows, "comparisons": compare_with_two_stage(rows, run / "eval")}
                write_json(run / "ablations.json", table)
    return rows


def compare_with_two_stage(rows: Sequence[dict], eval_folder: Path) -> list[dict]:
    """Two-stage minus every other variant at the same finetune budget, over the training seeds they share.

    Args:
        rows: The table's rows.
        eval_folder: Holds one folder of episodes per row, named by its label.

    Returns:
        One entry per variant and budget: ``variant``, ``finetune_steps``, and what
        `evaluation.statistics.seed_comparison` gives (difference with a bootstrap interval over runs and
        episodes) plus ``p_value``, the exact McNemar test over all paired episodes.
    """
    from lerobot_policy_vita_vla.evaluation.results import outcomes
    from lerobot_policy_vita_vla.evaluation.statistics import mcnemar_exact, seed_comparison

    by_key = {(row["variant"], row["finetune_steps"], row["seed"]): row["label"] for row in rows}
    found = []
    for variant, steps in sorted({(v, n) for v, n, _ in by_key if v != "two_stage"}):
        for budget in sorted({n for v, n, _ in by_key if v == "two_stage"}) if steps == 0 else [steps]:
            seeds = [
                seed
                for v, n, seed in by_key
                if (v, n) == (variant, steps) and ("two_stage", budget, seed) in by_key
            ]
            if not seeds:
                continue
            ours, theirs = (
                [outcomes(eval_folder / by_key[name, n, seed]) for seed in seeds]
                for name, n in (("two_stage", budget), (variant, steps))
            )
            pairs = [(a[key], b[key]) for a, b in zip(ours, theirs, strict=True) for key in a]
            p_value = mcnemar_exact(pairs.count((True, False)), pairs.count((False, True)))
            comparison = seed_comparison(ours, theirs)
            found.append({"variant": variant, "finetune_steps": budget, **comparison, "p_value": p_value})
    return found


def _train(
    job: Job,
    students: Path,
    common: list[str],
    align_steps: int,
    align_settings: list[str],
    finetune_settings: list[str],
) -> Path:
    variant = VARIANTS[job.variant]
    seed = ["--seed", str(job.seed)]
    align = None
    if variant.align is not None:
        changed = [*align_settings, *variant.align]
        key = hashlib.sha256(" ".join(changed).encode()).hexdigest()[:8]
        align = students / f"align-{align_steps}-{key}-seed{job.seed}"
        _run("align", align, [*common, *seed, "--steps", str(align_steps), *changed])
        if variant.finetune is None:
            return align
    steps, out = job.finetune_steps, students / job.name
    if variant.equal_compute:
        steps += _equal_compute_steps(students, job)
    start = ["--only-finetune"] if align is None else ["--from", str(align)]
    changed = [*finetune_settings, *variant.finetune]
    _run("finetune", out, [*common, *seed, *start, "--steps", str(steps), *changed])
    return out


def _run(verb: str, out: Path, arguments: list[str]) -> None:
    """Run one training command unless its checkpoint is there already."""
    if (out / TRAINED / "config.json").exists():
        return
    if out.exists():  # a run that was interrupted before its only checkpoint
        out.rename(out.with_name(f"{out.name}.interrupted-{int(out.stat().st_mtime)}"))
    command = [*CLI, verb, *arguments, "--out", str(out)]
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.parent / f"{out.name}.log"
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


def _equal_compute_steps(students: Path, job: Job) -> int:
    """Finetune steps that take as long as two-stage's stage 1 with the same seed did."""
    aligns = [
        path for path in students.glob(f"align-*-seed{job.seed}") if (path / "train_log.jsonl").exists()
    ]
    reference = students / Job("two_stage", job.finetune_steps, job.seed).name
    if not aligns or not (reference / "train_log.jsonl").exists():
        raise ValueError("only_finetune_equal_compute needs two_stage before it in the list of variants")
    return round(_seconds(aligns[0]) / _step_seconds(reference))
