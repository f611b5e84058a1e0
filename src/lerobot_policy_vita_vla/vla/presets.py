"""Named sets of hyper-parameters: ours, and those of the paper's scripts, every value with its source.

    --policy.preset=paper-libero                                what the paper says
    --policy.preset=paper-calvin --policy.preset_follows=code   what its code does, where they differ
    --policy.preset=paper-libero --policy.align_loss=norm       one of the differences by itself

A flag wins over the preset. What belongs to a run and not to a policy (batch size, epochs, seed) is in
`RUNS`; docs/presets.md shows everything. "Code" is the authors' published code: VITA-VLA's training and
evaluation scripts, some of which lost line continuations when they were published.
"""

from __future__ import annotations

from typing import Any, NamedTuple

FOLLOWS = ("paper", "code")


class Option(NamedTuple):
    """A value and where it comes from.

    Attributes:
        value: What the policy's field of this name gets; what the paper says, where the code says otherwise.
        source: Where the value is from.
        code: What the published code does instead, or None where there is no difference.
        difference: How the two differ.
    """

    value: Any
    source: str
    code: Any = None
    difference: str = ""


SYSTEM_PROMPT = (
    "You are an AI robot and your name is VITA. You are a large language model in the field of embodied "
    "intelligence. You combine macro action instructions (maybe None), the arm state (the first six values "
    "are the arm's, the seventh is the gripper's) and observations (primary image, wrist image), and predict "
    "step by step only three future actions at each step."
)
"""What the code's system prompt says, in our words: the exact wording is not part of the paper."""

OURS = {
    "n_obs_steps": Option(1, "our choice: as good at small scale, and the prefix needs no gradient"),
    "n_action_steps": Option(None, "our choice: T, the whole chunk, or 1 when ensembling"),
    "temporal_ensemble_coeff": Option(None, "our choice: open loop is T times cheaper"),
    "execute_from": Option(0, "our choice: a chunk's first action is the one for now"),
    "prompt": Option("{instruction}", "our choice: what the VLM was pretrained on"),
    "system_prompt": Option("", "our choice: other VLMs were not trained with one"),
    "query_separator": Option("", "our choice: blanks carry nothing"),
    "query_init_std": Option(
        0.0,
        "our choice: 0 takes the spread of the VLM's own token embeddings; beside longer ones it goes blind",
    ),
    "standardise_state": Option(True, "our choice: robots report radians, metres and millimetres alike"),
    "one_hot_gripper": Option(False, "our choice: the dataset's own number"),
    "align_loss": Option("mse", "paper, section 3.3"),
    "smooth_l1_beta": Option(
        0.1, "our choice: closer to the MAE that the paper names, better at small scale"
    ),
    "gripper_weight": Option(0.01, "paper, section 3.4"),
    "image_shift_px": Option(0, "our choice: no augmentation"),
    "wrist_shift_px": Option(None, "our choice: as all cameras"),
    "shift_draw": Option("together", "our choice: the target answers the very picture that the student sees"),
    "lr": Option(1e-4, "code: AdamW, both stages"),
    "weight_decay": Option(1e-4, "code"),
    "grad_clip_norm": Option(1.0, "our choice: guards small batches"),
    "schedule": Option("cosine", "our choice: linear warm-up, cosine to 3 %"),
    "warmup_fraction": Option(0.1, "code"),
    "schedule_accumulation": Option(1, "our choice: one step of the schedule per update"),
}

_PAPER = {
    "n_action_steps": Option(1, "code, evaluation: one action per inference"),
    "prompt": Option("{instruction} {state}", "code: the state ends the user's turn, behind a blank"),
    "system_prompt": Option(SYSTEM_PROMPT, "code, its content in our words"),
    "query_separator": Option(" ", "code: blanks between action tokens are tokens"),
    "query_init_std": Option(1.0, "code: the action token is drawn with standard deviation 1"),
    "standardise_state": Option(False, "code: raw state"),
    "align_loss": Option(
        "mse",
        "paper, section 3.3",
        "norm",
        "paper: mean squared difference; code: mean Euclidean length of it",
    ),
    "smooth_l1_beta": Option(
        0.0, "paper, section 3.4: MAE", 1.0, "paper: MAE (beta 0); code: smooth-L1 with beta 1"
    ),
    "gripper_weight": Option(
        0.01,
        "paper, section 3.4",
        0.0,
        "paper: 0.01 x cross-entropy; in the published code a line break cuts the term off",
    ),
    "image_shift_px": Option(10, "code: random shift at 200 and 224 px; here pixels of the recorded picture"),
    "wrist_shift_px": Option(4, "code: likewise, the wrist camera"),
    "shift_draw": Option("apart", "code: drawn for every frame, for teacher and student apart"),
    "lr": Option(1e-4, "code: AdamW, both stages"),
    "weight_decay": Option(1e-4, "code"),
    "grad_clip_norm": Option(0.0, "code: no clipping is set"),
    "schedule": Option(
        "warmup_decay", "code: 'cosine' maps to DeepSpeed's WarmupDecayLR, log warm-up, linear decay"
    ),
    "warmup_fraction": Option(0.1, "code"),
}


def _warmup(accumulation: int) -> Option:
    return Option(
        1,
        "code, as its settings mean it: warm-up over a tenth of the run",
        accumulation,
        f"the code counts micro-batches but steps once per update of {accumulation}: the warm-up spans "
        f"{accumulation * 10} % of the run and the rate hardly decays",
    )


PRESETS: dict[str, dict[str, Option]] = {
    "ours": OURS,
    "paper-libero": OURS
    | _PAPER
    | {
        "n_obs_steps": Option(7, "code, LIBERO scripts: sequence length 7"),
        "temporal_ensemble_coeff": Option(0.01, "code, LIBERO evaluation: weights exp(-0.01 i), 0 = oldest"),
        "execute_from": Option(0, "code, LIBERO evaluation: what the chunks say about the present step"),
        "one_hot_gripper": Option(False, "code, LIBERO: two finger positions"),
        "schedule_accumulation": _warmup(4),
    },
    "paper-calvin": OURS
    | _PAPER
    | {
        "n_obs_steps": Option(10, "code, CALVIN scripts: sequence length 10"),
        "temporal_ensemble_coeff": Option(None, "code, CALVIN evaluation: no ensembling"),
        "execute_from": Option(
            1, "code, CALVIN evaluation: the second predicted action, no reason stated (Seer: the first)"
        ),
        "one_hot_gripper": Option(True, "code, CALVIN: open or closed (value < 1 is the first)"),
        "schedule_accumulation": _warmup(8),
    },
}


class Run(NamedTuple):
    """What a script of the paper passes besides the policy's own settings.

    Attributes:
        gpus: Processes.
        batch_size: Samples per process and micro-batch.
        accumulation: Micro-batches per update.
        epochs: That the schedule spans.
        used: Which epoch's checkpoint goes on.
    """

    gpus: int
    batch_size: int
    accumulation: int
    epochs: int
    used: str

    @property
    def samples_per_update(self) -> int:
        """Over all processes."""
        return self.gpus * self.batch_size * self.accumulation


RUNS: dict[str, dict[str, Run]] = {
    "paper-libero": {
        "align (LIBERO-90)": Run(8, 8, 4, 40, "5, by file names"),
        "finetune (LIBERO-90), only_finetune": Run(8, 4, 4, 20, "2, by file names"),
        "finetune (Spatial)": Run(8, 4, 4, 30, "unknown"),
        "finetune (Object)": Run(8, 4, 4, 20, "unknown"),
        "finetune (Goal)": Run(1, 4, 4, 20, "unknown"),
        "finetune (Long)": Run(8, 4, 4, 30, "unknown"),
    },
    "paper-calvin": {
        "align": Run(8, 8, 8, 20, "2"),
        "finetune": Run(8, 4, 8, 4, "0 and 1 are evaluated"),
        "only_finetune": Run(8, 4, 8, 20, "unknown"),
        "freeze_vlm": Run(8, 8, 8, 20, "unknown"),
    },
}
RUN_FLAGS = {
    "--seed=42": "code",
    "--num_workers=8": "code",
    "--policy.dtype=bfloat16": "code: bf16; ours too",
}

NOT_OFFERED = {
    "CALVIN pads its history behind the last frame in evaluation": "histories grow here, as on LIBERO",
    "real robot: gripper width by L1 with weight 1000": "a continuous gripper is scaled to [-1, 1] and "
    "regressed as an arm dimension is; the weight belongs to its unscaled unit",
    "images of 200 x 200 px, 49 tokens": "belongs to the VLM's processor, which the converter writes",
    "DeepSpeed ZeRO-2": "sharding is LeRobot's",
}


def preset_values(preset: str, follows: str) -> dict[str, Any]:
    """Field -> value of a preset.

    Args:
        preset: A key of `PRESETS`.
        follows: ``"paper"`` or ``"code"``: whose value counts where they differ.

    Raises:
        ValueError: For an unknown name.
    """
    if preset not in PRESETS:
        raise ValueError(f"--policy.preset must be one of {tuple(PRESETS)}, got {preset!r}")
    if follows not in FOLLOWS:
        raise ValueError(f"--policy.preset_follows must be one of {FOLLOWS}, got {follows!r}")
    from_code = follows == "code"
    return {
        name: option.code if from_code and option.difference else option.value
        for name, option in PRESETS[preset].items()
    }
