"""Settings of the student, `VitaVLAPolicy`. Imports no model code: LeRobot imports this at every start."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig

from lerobot_policy_vita_vla.chunking import check_chunking
from lerobot_policy_vita_vla.contracts import reasons_shown

STAGES = ("align", "finetune", "only_finetune", "freeze_vlm")
SCHEDULE_SPAN = 1_000_000
FINAL_LR_FRACTION = 0.03

_CHOICES: dict[str, tuple] = {
    "stage": STAGES,
    "dtype": ("float32", "bfloat16"),
    "vlm_dtype": ("float32", "bfloat16"),
    "attn_implementation": ("auto", "eager", "sdpa", "flash_attention_2"),
    "save_vlm": ("full", "reference"),
    "align_loss": ("mse", "norm"),
    "decoder_init": ("teacher", "scratch"),
}


@PreTrainedConfig.register_subclass("vita_vla")
@dataclass
class VitaVLAConfig(PreTrainedConfig):
    """Settings of the student: a vision-language model that acts through its teacher's decoder.

    Fields marked "filled in" are written when the policy is made and read when a checkpoint is loaded; leave
    them alone on the command line.

    Args:
        vlm: The vision-language model: ``"mini"`` (ships with the package), a local folder or a hub id.
        vlm_revision: Hub revision of ``vlm``.
        vlm_dtype: Type in which the VLM's weights are held. ``"bfloat16"`` halves a frozen VLM's memory;
            training in it loses small updates, so prefer ``"float32"`` when the language model trains.
        vlm_config: Filled in: the VLM's own configuration, so that loading needs neither hub nor ``vlm``.
        save_vlm: ``"full"`` stores the VLM in every checkpoint (loads offline, anywhere); ``"reference"``
            leaves a frozen VLM out and reads it from ``vlm`` again (refused where its weights are trained).
        attn_implementation: ``"auto"`` is sdpa, but eager for the language model on CPU, where its backward
            is faster.
        prompt: Text of the user's turn; ``{instruction}`` is replaced by the task.
        teacher_path: Folder of the trained teacher (its run's output folder will do). Needed to start; a
            checkpoint acts without it.
        stage: ``"align"``: VLM frozen, features regressed onto the teacher's. ``"finetune"``: language model
            and added parts imitate the demonstrations; continues an align checkpoint (``--policy.path``).
            ``"only_finetune"``: the same without alignment (the paper's ablation). ``"freeze_vlm"``:
            finetune's loss with the VLM frozen (the paper's ablation).
        chunk_size: T, actions predicted at once. None takes the teacher's (they must agree).
        n_action_steps: Actions executed before the next prediction, 1..T. None: T, or 1 when ensembling.
        temporal_ensemble_coeff: m of the averaging of overlapping chunks with weights exp(-m i), i = 0 oldest
            (official evaluation: 0.01), or None.
        num_queries: Action queries; T must be a multiple. None: T, one per action (paper).
        shared_queries: One vector for all queries, told apart by position only (paper); False: one each.
        use_state_encoder: False drops the state token (ablation).
        gripper_state_dims: State dimensions encoded as the gripper's. None: those whose name has "gripper".
        decoder: Filled in: shape and action spec of the decoder.
        decoder_init: ``"teacher"`` (paper) or ``"scratch"`` (ablation; not for align).
        align_loss: ``"mse"`` on features (the paper's formula) or ``"norm"``, the mean Euclidean distance
            (the official code).
        align_weight: Weight of the alignment term kept during finetune (paper: 0). Needs the teacher.
        smooth_l1_beta: Threshold of the arm's smooth-L1 loss in scaled action units. Official code 1; our
            choice 0.1: closer to the MAE that the paper names, and better at small scale.
        gripper_weight: Weight of the gripper's cross-entropy (paper: 0.01).
        image_shift_px: Random shift of training images by up to this many pixels (paper: 10 at 224 px).
        lr: Peak learning rate of the added parts and the decoder (paper: 1e-4).
        lr_language: Peak learning rate of the language model. None: ``lr`` (paper).
        weight_decay: AdamW (paper: 1e-4).
        grad_clip_norm: Largest gradient norm (our choice: 1; the paper's code does not clip).
        warmup_fraction: Part of the run that warms the learning rate up, then cosine to 3 % (our choice).
        ema_decay: Decay of the averaged weights, which act and start the next stage; 0: none (paper).
        lora_rank: Rank of low-rank adapters on the language model at finetune; 0 trains it in full (paper).
        lora_alpha: Scale of the adapters. None: 2 x rank.
        gradient_checkpointing: Recompute the language model's activations in backward at finetune.
        dtype: ``"bfloat16"`` runs forward and prediction under autocast (paper); ``"float32"`` does not.
        teacher_cameras: Which of our cameras feeds each of the teacher's (teacher's key: ours). Filled in
            where the names tell.
        vlm_changed: Filled in: whether a stage so far changed the VLM's own weights.
        recording: Filled in: how the demonstrations were recorded (`conventions.RecordingInfo`).
    """

    # Vision-language model
    vlm: str = "mini"
    vlm_revision: str | None = None
    vlm_dtype: str = "float32"
    vlm_config: dict[str, Any] = field(default_factory=dict)
    save_vlm: str = "full"
    attn_implementation: str = "auto"
    prompt: str = "{instruction}"

    # Teacher and stage
    teacher_path: str | None = None
    stage: str = "align"

    # Actions
    chunk_size: int | None = None
    n_action_steps: int | None = None
    temporal_ensemble_coeff: float | None = None

    # Added parts
    num_queries: int | None = None
    shared_queries: bool = True
    use_state_encoder: bool = True
    gripper_state_dims: list[int] | None = None
    decoder: dict[str, Any] = field(default_factory=dict)
    decoder_init: str = "teacher"

    # Losses and augmentation
    align_loss: str = "mse"
    align_weight: float = 0.0
    smooth_l1_beta: float = 0.1
    gripper_weight: float = 0.01
    image_shift_px: int = 0

    # Optimisation
    lr: float = 1e-4
    lr_language: float | None = None
    weight_decay: float = 1e-4
    grad_clip_norm: float = 1.0
    warmup_fraction: float = 0.1
    ema_decay: float = 0.0
    lora_rank: int = 0
    lora_alpha: float | None = None
    gradient_checkpointing: bool = False
    dtype: str = "bfloat16"

    teacher_cameras: dict[str, str] = field(default_factory=dict)
    vlm_changed: bool = False
    recording: dict[str, Any] = field(default_factory=dict)
    push_to_hub: bool = False

    # LeRobot would replace a pipeline's statistics by the current dataset's at stage 2, so it scales nothing:
    # state and actions are scaled by buffers inside the network (contracts.py).
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.IDENTITY,
            "ENV": NormalizationMode.IDENTITY,
            "ACTION": NormalizationMode.IDENTITY,
        }
    )

    def __post_init__(self):
        super().__post_init__()
        with reasons_shown():
            self._check()

    def _check(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"--policy.{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.n_obs_steps != 1:
            raise ValueError(
                "the student reads the current observation only, so n_obs_steps must be 1, "
                f"got {self.n_obs_steps}"
            )
        if self.chunk_size is None and self.teacher_path is not None:
            # The dataset is cut into chunks before any policy exists, so T has to be known from here on.
            self.chunk_size = _teacher_chunk_size(self.teacher_path)
        if self.chunk_size is not None:
            if self.n_action_steps is None:
                self.n_action_steps = self.chunk_size if self.temporal_ensemble_coeff is None else 1
            check_chunking(self.chunk_size, self.n_action_steps, self.temporal_ensemble_coeff)
            if self.num_queries is not None and (
                self.num_queries < 1 or self.chunk_size % self.num_queries != 0
            ):
                raise ValueError(
                    f"chunk_size ({self.chunk_size}) must be a multiple of num_queries, "
                    f"got {self.num_queries}"
                )
        self._check_stage()

    def _check_stage(self) -> None:
        if self.stage == "align" and self.decoder_init == "scratch":
            raise ValueError(
                "align matches the features that the teacher's own decoder reads, so decoder_init must be "
                "'teacher'; use decoder_init=scratch with stage finetune, only_finetune or freeze_vlm"
            )
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must be 0 (no adapters) or positive, got {self.lora_rank}")
        if self.save_vlm == "reference" and (self.vlm_changed or self.trains_language and not self.uses_lora):
            raise ValueError(
                f"up to stage {self.stage!r} the language model is trained, which save_vlm=reference would "
                "leave out of the checkpoint; pass --policy.save_vlm=full"
            )
        if not 0.0 <= self.warmup_fraction < 1.0:
            raise ValueError(f"warmup_fraction must lie in [0, 1), got {self.warmup_fraction}")
        if "{instruction}" not in self.prompt:
            raise ValueError(f"prompt must contain {{instruction}}, got {self.prompt!r}")

    @property
    def trains_language(self) -> bool:
        """Whether this stage changes weights of the language model (adapters count)."""
        return self.stage in ("finetune", "only_finetune")

    @property
    def uses_lora(self) -> bool:
        """Whether the language model carries adapters in this stage."""
        return self.trains_language and self.lora_rank > 0

    @property
    def needs_teacher(self) -> bool:
        """Whether training this stage calls the teacher."""
        return self.stage == "align" or self.align_weight > 0

    @property
    def observation_delta_indices(self) -> None:
        """No history."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The T actions from the current step on."""
        if self.chunk_size is None:
            raise ValueError(
                "the chunk size is unknown: pass --policy.teacher_path=<trained teacher> (its chunk size is "
                "taken) or --policy.chunk_size=<T>"
            )
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW (paper); groups with their own rates come from the policy."""
        return AdamWConfig(lr=self.lr, weight_decay=self.weight_decay, grad_clip_norm=self.grad_clip_norm)

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """Linear warm-up over ``warmup_fraction`` of the run, cosine over all of it."""
        # LeRobot shrinks a schedule that is longer than the run in proportion; one of a million steps
        # therefore turns a fraction of the run into steps, which a config cannot know.
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=int(self.warmup_fraction * SCHEDULE_SPAN),
            num_decay_steps=SCHEDULE_SPAN,
            peak_lr=self.lr,
            decay_lr=FINAL_LR_FRACTION * self.lr,
        )

    def validate_features(self) -> None:
        """Check that the dataset has what the policy reads."""
        if not self.image_features:
            raise ValueError("the policy needs at least one camera (a feature observation.image*), got none")
        if self.action_feature is None:
            raise ValueError("the policy needs the feature 'action'")
        if self.use_state_encoder and self.robot_state_feature is None:
            raise ValueError(
                "the dataset has no observation.state; pass --policy.use_state_encoder=false to go without"
            )


def _teacher_chunk_size(teacher_path: str) -> int:
    from lerobot_policy_vita_vla.teacher.load import LOADERS, find_pretrained_model

    folder = find_pretrained_model(teacher_path)
    saved = json.loads((folder / "config.json").read_text())
    size = saved.get("chunk_size")
    if not isinstance(size, int):
        raise ValueError(
            f"the teacher at {folder} is a policy of type {saved.get('type')!r}, which names no chunk_size "
            f"in its config.json; policies that can teach: {sorted(LOADERS)}"
        )
    return size
