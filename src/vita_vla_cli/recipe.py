"""Every number of the quickstart, and the defaults of the single verbs at the same scale.

One place, so that the commands a reader copies from the help do what the quickstart does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """Budgets of one run of the whole pipeline on two CPU cores.

    Args:
        tasks: Meta-World tasks; both recordings and episodes of the evaluation use exactly these.
        episodes_per_task: Successful demonstrations recorded per task.
        observation_size: Width and height of a picture, pixels.
        quality: Render quality, a key of ``demos.RENDER_QUALITIES``.
        episode_length: Steps after which an episode counts as failed.
        workers: Simulation processes while recording and evaluating.
        teacher_steps: Updates of the teacher.
        align_steps: Updates of the alignment (VLM frozen).
        finetune_steps: Updates of the finetuning, two-stage and without alignment alike, so that the two
            differ in nothing but the alignment before.
        teacher_batch: Samples per update.
        align_batch: Samples per update.
        finetune_batch: Samples per update.
        teacher_lr: Peak learning rate.
        align_lr: Peak learning rate.
        finetune_lr: Peak learning rate.
        teacher_flags: Further LeRobot arguments of this stage, verbatim.
        align_flags: As above.
        finetune_flags: As above; also for the run without alignment.
        kept_alignment: Weight of the alignment term in the finetuning of an aligned student (paper: 0, with
            which success falls before it recovers: docs/schedules.md).
        eval_episodes: Episodes per task and policy, the same for every policy.
        eval_seed: First episode seed; must lie outside the recording's.
        demo_seed: First seed of the recording.
        seed: Seed of initialisation and data order.
    """

    tasks: tuple[str, ...] = (
        "button-press-topdown-v3",
        "door-unlock-v3",
        "handle-press-v3",
        "plate-slide-v3",
        "window-open-v3",
    )
    episodes_per_task: int = 60
    observation_size: int = 96
    quality: str = "light"
    episode_length: int = 200
    workers: int = 2
    teacher_steps: int = 2000
    align_steps: int = 300
    finetune_steps: int = 300
    teacher_batch: int = 64
    align_batch: int = 64
    finetune_batch: int = 64
    teacher_lr: float = 1e-3
    align_lr: float = 1e-3
    finetune_lr: float = 7e-4
    teacher_flags: tuple[str, ...] = ()
    align_flags: tuple[str, ...] = ()
    finetune_flags: tuple[str, ...] = ()
    kept_alignment: float = 1.0
    eval_episodes: int = 20
    eval_seed: int = 50_000
    demo_seed: int = 20_000
    seed: int = 1000

    def stage(self, stage: str) -> tuple[int, int, float, tuple[str, ...]]:
        """Steps, batch size, learning rate and further flags of a training stage."""
        name = {"teacher": "teacher", "align": "align"}.get(stage, "finetune")
        return tuple(getattr(self, f"{name}_{field}") for field in ("steps", "batch", "lr", "flags"))


FULL = Recipe()

# Shows that every part works; its rates say nothing about the method.
FAST = replace(
    FULL,
    tasks=("button-press-topdown-v3", "drawer-close-v3"),
    episodes_per_task=6,
    teacher_steps=40,
    align_steps=20,
    finetune_steps=20,
    teacher_batch=32,
    align_batch=32,
    finetune_batch=32,
    eval_episodes=2,
)
