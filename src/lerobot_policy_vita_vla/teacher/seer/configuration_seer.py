"""Configuration of the policy ``seer``: the paper's teacher."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig

from lerobot_policy_vita_vla.chunking import check_chunking
from lerobot_policy_vita_vla.contracts import GRIPPER_KINDS, PRIVILEGED_STATE, TEACHER_FEATURES, reasons_shown
from lerobot_policy_vita_vla.optimizer import FusedAdamWConfig
from lerobot_policy_vita_vla.teacher.seer.presets import PRESETS, SeerPreset

DTYPES = ("float32", "bfloat16")
HISTORIES = ("repeat", "grow")

# LeRobot's cosine schedule shrinks itself to the run's number of steps when that is smaller than its own;
# with this many, warm-up and decay span exactly ``warmup_fraction`` and all of every run.
LONGER_THAN_ANY_RUN = 10_000_000


@PreTrainedConfig.register_subclass("seer")
@dataclass
class SeerConfig(PreTrainedConfig):
    """Settings of `SeerPolicy`.

    Fields that default to None take the value of `preset` (see ``presets.py``, which names the sources).

    Args:
        preset: ``"tiny"`` (CPU), ``"base"`` or ``"large"`` (the published networks).
        n_obs_steps: H, time steps of observation (paper: 7 on LIBERO, 10 on CALVIN; 1 is our fast default).
        allow_other_size: Act on pictures of another size than the demonstrations' instead of refusing them.
        history: What stands for steps before an episode's start. ``"repeat"``: its first observation, as in
            LeRobot's datasets. ``"grow"``: nothing; the history grows from 1 to H steps (Seer's evaluation).
        chunk_size: T, actions predicted per step (paper: 3).
        n_action_steps: Actions executed before the next prediction, 1..chunk_size.
        temporal_ensemble_coeff: m of temporal ensembling (paper's evaluation: 0.01), or None.
        encoder: ``"pretrained"`` or ``"conv"``.
        width: E, the trunk's and the action features' width.
        n_layers: Trunk blocks.
        n_heads: Attention heads per block.
        resampler_queries: Image tokens per camera of the Perceiver resampler.
        foresight_tokens: Foresight queries per camera, a square number.
        queries_read_peers: Whether foresight queries read each other, and action queries each other.
        image_size: Pixels per side at the encoder; pictures of another size are resized. None with the conv
            encoder keeps the recorded size.
        conv_layers: 3 or 4 convolutions of the conv encoder; the fourth sees more context and finds small
            objects more exactly, for an eighth more time per step.
        vision_encoder: Folder or hub id of the frozen MAE ViT; read once, when training starts.
        text_encoder: Folder or hub id of the frozen CLIP text model; read once, when training starts.
        vision_config: Filled in: the frozen ViT's own configuration, so that a checkpoint loads offline.
        text_config: Filled in: the frozen text model's own configuration.
        gripper_state_dims: Which numbers of the state are the gripper's (published networks encode them
            apart); None takes those whose name contains "gripper".
        gripper_state_one_hot: The gripper's state is one number, -1 closed or 1 open, and is encoded as one
            of two classes (Seer on CALVIN) instead of as it is.
        gripper_dims: Which action dimensions are the gripper; None takes those whose name contains "gripper".
        gripper_kind: ``"binary"``, ``"continuous"`` or ``"auto"`` (from the dataset's statistics).
        action_spec: Filled in: meaning and scale of the action dimensions (`contracts.ActionSpec`).
        use_images: False replaces every picture by black: the baseline that shows what seeing is worth.
        use_state: False replaces the state by its mean.
        use_instruction: False replaces the instruction by an empty one.
        smooth_l1_beta: Threshold of the arm's smooth-L1, scaled action units.
        gripper_weight: Weight of the gripper's cross-entropy (paper: 0.01).
        foresight_weight: Weight of the predicted-image loss; > 0 loads the frames ``foresight_steps`` ahead.
        foresight_steps: How far ahead the predicted image lies (Seer's code: 3).
        auxiliary_weight: Weight of predicting object positions from the image tokens; needs a dataset with
            the privileged ``observation.environment_state``.
        auxiliary_indices: Which numbers of the privileged state are predicted. None, filled in: of
            Meta-World's 39 the object's position (4:7) and the goal's (36:39), else all.
        auxiliary_scale: Standardises the predicted numbers, same unit (metres): our choice, about the spread
            of an object's position within one task.
        image_shift_px: Largest random shift per axis in training, pixels at the encoder.
        brightness: Largest relative random brightness change in training.
        dropout: Of the trunk.
        dtype: ``"float32"`` or ``"bfloat16"`` (autocast; needs AMX or AVX512-BF16 to be fast on a CPU).
        lr: Peak learning rate.
        weight_decay: AdamW's weight decay.
        warmup_fraction: Part of the run during which the learning rate rises.
        grad_clip_norm: Gradient clipping.
        ema_decay: Decay of the moving average of the weights that acts in place of them; 0 keeps none.
        recording: Filled in: how the demonstrations were recorded (``meta/vita_vla.json`` of the dataset).
        push_to_hub: Off by default, so that training needs no network.
    """

    preset: str = "tiny"
    n_obs_steps: int = 1
    history: str = "repeat"
    allow_other_size: bool = False
    chunk_size: int = 3
    n_action_steps: int = 3
    temporal_ensemble_coeff: float | None = None

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(
            ("VISUAL", "STATE", "ENV", "ACTION"), NormalizationMode.IDENTITY
        )
    )

    encoder: str | None = None
    width: int | None = None
    n_layers: int | None = None
    n_heads: int | None = None
    resampler_queries: int | None = None
    foresight_tokens: int | None = None
    queries_read_peers: bool | None = None
    image_size: int | None = None
    conv_layers: int = 4
    vision_encoder: str = "facebook/vit-mae-base"
    text_encoder: str = "openai/clip-vit-base-patch32"
    vision_config: dict[str, Any] = field(default_factory=dict)
    text_config: dict[str, Any] = field(default_factory=dict)

    gripper_state_dims: list[int] | None = None
    gripper_state_one_hot: bool = False
    gripper_dims: list[int] | None = None
    gripper_kind: str = "auto"
    action_spec: dict[str, Any] = field(default_factory=dict)

    use_images: bool = True
    use_state: bool = True
    use_instruction: bool = True

    smooth_l1_beta: float | None = None
    gripper_weight: float = 0.01
    foresight_weight: float | None = None
    foresight_steps: int = 3
    auxiliary_weight: float | None = None
    auxiliary_indices: list[int] | None = None
    auxiliary_scale: float = 0.05
    image_shift_px: int | None = None
    brightness: float | None = None
    dropout: float | None = None

    dtype: str = "float32"
    lr: float | None = None
    weight_decay: float | None = None
    warmup_fraction: float = 0.05
    grad_clip_norm: float | None = None
    ema_decay: float | None = None

    recording: dict[str, Any] = field(default_factory=dict)
    push_to_hub: bool = False  # type: ignore[assignment]

    def __post_init__(self):
        super().__post_init__()
        with reasons_shown():
            self._check()

    def _check(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {self.preset!r}")
        for entry in fields(SeerPreset):
            if getattr(self, entry.name) is None:
                setattr(self, entry.name, getattr(PRESETS[self.preset], entry.name))
        check_chunking(self.chunk_size, self.n_action_steps, self.temporal_ensemble_coeff)
        _check_choice("encoder", self.encoder, ("conv", "pretrained"))
        _check_choice("gripper_kind", self.gripper_kind, (*GRIPPER_KINDS, "auto"))
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("history", self.history, HISTORIES)
        _check_choice("conv_layers", self.conv_layers, (3, 4))
        if self.n_obs_steps < 1:
            raise ValueError(f"n_obs_steps must be at least 1, got {self.n_obs_steps}")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction must lie in [0, 1), got {self.warmup_fraction}")
        if self.width % self.n_heads or self.width % 16:
            raise ValueError(
                f"width must be a multiple of n_heads and of 16, got {self.width} and {self.n_heads} heads"
            )
        if round(self.foresight_tokens**0.5) ** 2 != self.foresight_tokens or self.foresight_tokens < 1:
            raise ValueError(f"foresight_tokens must be a square number >= 1, got {self.foresight_tokens}")

    @property
    def cameras(self) -> tuple[str, ...]:
        """Batch keys of the cameras, in the order of their tokens."""
        return tuple(self.image_features)

    @property
    def state_dim(self) -> int:
        """S."""
        return self.robot_state_feature.shape[0]

    def validate_features(self) -> None:
        """Check what the dataset offers and drop the privileged state from the inputs.

        Raises:
            ValueError: No camera, no proprioceptive state or no action; a size that foresight cannot use.
        """
        never_read = (PRIVILEGED_STATE, TEACHER_FEATURES)
        self.input_features = {k: v for k, v in self.input_features.items() if k not in never_read}
        found = sorted(self.input_features) + sorted(self.output_features)
        for what, feature in (
            ("a camera (observation.image or observation.images.<name>)", self.image_features),
            ("observation.state", self.robot_state_feature),
            ("action", self.action_feature),
        ):
            if not feature:
                raise ValueError(f"seer needs {what}; the dataset or environment offers {found}")
        if self.image_size is None:
            self.image_size = next(iter(self.image_features.values())).shape[-1]
        if self.foresight_weight > 0 and self.image_size % 16:
            raise ValueError(
                f"foresight predicts patches of 16 px, so image_size must be a multiple of 16, got "
                f"{self.image_size}; pass --policy.image_size={self.image_size // 16 * 16 or 16} or "
                "--policy.foresight_weight=0"
            )

    @property
    def history_indices(self) -> list[int]:
        """Frames of the observation history relative to now: 1-H .. 0."""
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """Frames to load for training: the history and, for foresight, what each of its steps should predict.

        LeRobot loads every ``observation.*`` column at these frames: foresight doubles the cost of loading.
        """
        if self.foresight_weight > 0:
            ahead = {i + self.foresight_steps for i in self.history_indices}
            return sorted(ahead.union(self.history_indices))
        return self.history_indices if self.n_obs_steps > 1 else None

    @property
    def action_delta_indices(self) -> list[int]:
        """Actions to load: every step of the history predicts its own chunk (paper: window = H + T)."""
        return list(range(1 - self.n_obs_steps, self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards are used."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW (paper section 4)."""
        return FusedAdamWConfig(
            lr=self.lr, weight_decay=self.weight_decay, grad_clip_norm=self.grad_clip_norm
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """Linear warm-up over ``warmup_fraction`` of the run, cosine decay over all of it."""
        return CosineDecayWithWarmupSchedulerConfig(
            num_warmup_steps=int(self.warmup_fraction * LONGER_THAN_ANY_RUN),
            num_decay_steps=LONGER_THAN_ANY_RUN,
            peak_lr=self.lr,
            decay_lr=0.01 * self.lr,
        )


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
