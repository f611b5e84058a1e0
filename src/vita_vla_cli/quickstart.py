"""The whole pipeline as a list of the user's own commands, each skipped when it is done already.

    demos -> teacher --> align ---> finetune -------> eval_finetune --> report
                    '--> vision --> only_finetune --> eval, agreement

Each step is `vita-vla ...` in a process of its own: what the reader sees is what the reader can type. Steps
below each other in the drawing run at the same time, half of the cores each: the small tensors of a mini VLM
use a second core badly. Both finetunes read the frozen image encoder's features (vision), which are a large
part of their steps; align itself sees no picture twice and does without. All policies play the episodes of
one manifest: the two evaluations are one that does not wait for the last training.
"""

from __future__ import annotations

import os
from pathlib import Path

from vita_vla_cli.recipe import Recipe
from vita_vla_cli.steps import Step


def plan(run: Path, recipe: Recipe, device: str | None = None) -> list[Step]:
    """The steps of a run, in order.

    Args:
        run: Run folder.
        recipe: Budgets.
        device: Passed to the training and evaluation verbs; None lets them choose.
    """
    on = ("--device", device) if device else ()
    tasks = ",".join(recipe.tasks)
    demos, manifest = run / "demos", run / "manifest.json"

    def train(verb: str, stage: str, *flags: str) -> tuple[str, ...]:
        steps, batch, lr, extra = recipe.stage(verb)
        budget = (
            "--steps",
            str(steps),
            "--batch-size",
            str(batch),
            "--lr",
            f"{lr:g}",
            "--seed",
            str(recipe.seed),
        )
        places = ("--demos", str(demos), "--out", str(run / stage))
        return (verb, *places, *flags, *budget, *on, *extra)

    half = max(1, (os.cpu_count() or 1) // 2)
    vision = run / "vision"
    stored = (f"--policy.vision_features={vision}",)
    teacher = ("--teacher", str(run / "teacher"))
    first, last = ("teacher", "align", "only_finetune"), "finetune"
    return [
        Step(
            "demos",
            ("demos", "record", "--tasks", tasks, "--episodes", str(recipe.episodes_per_task))
            + ("--root", str(demos), "--size", str(recipe.observation_size), "--quality", recipe.quality)
            + ("--seed", str(recipe.demo_seed), "--workers", str(recipe.workers)),
            makes=(demos,),
            leftovers=(run / "demos.recording",),
            resumes=True,
        ),
        Step(
            "teacher",
            train("teacher", "teacher"),
            ("demos",),
            (run / "teacher",),
        ),
        Step(
            "align",
            train("align", "align", *teacher),
            ("demos", "teacher"),
            (run / "align",),
            beside=True,
            threads=half,
        ),
        Step(
            "vision",
            ("vlm", "features", "--demos", str(demos), "--out", str(vision), *on),
            # Not the teacher, but beside align: the teacher's step makes better use of a second core.
            ("demos", "teacher"),
            (vision,),
            (run / "vision.partial",),
            beside=True,
            threads=half,
        ),
        Step(
            "only_finetune",
            (*train("finetune", "only_finetune", "--only-finetune", *teacher), *stored),
            ("demos", "teacher", "vision"),
            (run / "only_finetune",),
            beside=True,
            threads=half,
        ),
        Step(
            "finetune",
            (*train("finetune", "finetune", "--from", str(run / "align")), *stored),
            ("demos", "align", "vision"),
            (run / "finetune",),
            beside=True,
            threads=half,
        ),
        Step(
            "eval",
            ("eval", *(str(run / p) for p in first), "--run", str(run), "--tasks", tasks)
            + ("--episodes", str(recipe.eval_episodes), "--seed", str(recipe.eval_seed))
            + ("--size", str(recipe.observation_size), "--quality", recipe.quality)
            + ("--episode-length", str(recipe.episode_length))
            + ("--workers", str(min(half, recipe.workers)), *on),
            first,
            (manifest, *(run / "eval" / p for p in first)),
            resumes=True,
            beside=True,
            threads=half,
        ),
        Step(
            "eval_finetune",
            ("eval", str(run / last), "--run", str(run), "--workers", str(recipe.workers), *on),
            (last, "eval"),
            (run / "eval" / last,),
            resumes=True,
            beside=True,
        ),
        Step(
            "agreement",
            ("eval", *(str(run / p) for p in (*first[1:], last)), "--run", str(run))
            + ("--agreement", str(run / "teacher"), "--demos", str(demos), *on),
            (*first, last),
            (run / "agreement.json",),
            beside=True,
            threads=half,
        ),
        Step(
            "report",
            ("report", str(run)),
            ("eval", "eval_finetune", "agreement"),
            (run / "report.html",),
            replaces=True,
        ),
    ]
