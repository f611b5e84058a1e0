"""Settings of the student, `VitaVLAPolicy`. Imports no model code: LeRobot imports this at every start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig

from lerobot_policy_vita_vla.contracts import TEACHER_FEATURES, reasons_shown
from lerobot_policy_vita_vla.files import read_json
from lerobot_policy_vita_vla.optimizer import FusedAdamWConfig
from lerobot_policy_vita_vla.vla.accumulation import AccumulatingAdamWConfig
from lerobot_policy_vita_vla.vla.presets import preset_values
from lerobot_policy_vita_vla.vla.schedule import WarmupDecayConfig
from lerobot_policy_vita_vla.vla.settings_checks import check_settings

SCHEDULE_SPAN = 1_000_000
FINAL_LR_FRACTION = 0.03


@PreTrainedConfig.register_subclass("vita_vla")
@dataclass
class VitaVLAConfig(PreTrainedConfig):
    """Settings of the student: a vision-language model that acts through its teacher's decoder.

    Fields marked "filled in" are written when the policy is made and read when a checkpoint is loaded; leave
    them alone on the command line. Fields that default to None take the preset's value (presets.py, which
    names the sources; ours in brackets below) unless they say otherwise.

    Args:
        preset: ``"ours"``, ``"paper-libero"`` or ``"paper-calvin"``: the values of the paper's scripts.
        preset_follows: ``"paper"`` or ``"code"``: whose value counts where the two differ.
        n_obs_steps: H, time steps that the student reads, one chat turn each [1] (paper: 7 on LIBERO, 10 on
            CALVIN). Every step is supervised; an episode's first steps have a shorter prompt.
        vlm: The vision-language model: ``"mini"`` (ships with the package), a local folder or a hub id.
        vlm_revision: Hub revision of ``vlm``.
        vlm_dtype: Type in which the VLM's weights are held. ``"bfloat16"`` halves a frozen VLM's memory;
            training in it loses small updates, so prefer ``"float32"`` when the language model trains.
        vlm_config: Filled in: the VLM's own configuration, so that loading needs neither hub nor ``vlm``.
        save_vlm: ``"full"`` stores the VLM in every checkpoint (loads offline, anywhere); ``"reference"``
            leaves a frozen VLM out and reads it from ``vlm`` again (refused where its weights are trained).
        attn_implementation: ``"auto"`` is sdpa, but eager for the language model on CPU, where its backward
            is faster.
        prompt: Text of the user's turn [{instruction}]; ``{instruction}`` is replaced by the task,
            ``{state}`` by the state's token, which otherwise opens the assistant's turn.
        system_prompt: Text of the system's turn, none where empty [].
        query_separator: Text between the action queries [].
        teacher_path: Folder of the trained teacher (its run's output folder will do). Needed to start; a
            checkpoint acts without it.
        stage: ``"align"``: VLM frozen, features regressed onto the teacher's. ``"finetune"``: language model
            and added parts imitate the demonstrations; continues an align checkpoint (``--policy.path``).
            ``"only_finetune"``: the same without alignment (the paper's ablation). ``"freeze_vlm"``:
            finetune's loss with the VLM frozen (the paper's ablation).
        chunk_size: T, actions predicted at once. None takes the teacher's (they must agree).
        n_action_steps: Actions executed before the next prediction, 1..T [T, or 1 when ensembling].
        temporal_ensemble_coeff: m of the averaging of overlapping chunks with weights exp(-m i), i = 0 oldest
            [none]. Where one of these two is given, neither they nor ``execute_from`` come from the preset.
        execute_from: Index in the chunk of the first action that is executed [0].
        allow_other_size: Act on pictures of another size than the demonstrations' instead of refusing them.
        num_queries: Action queries; T must be a multiple. None: T, one per action (paper).
        shared_queries: One vector for all queries, told apart by position only (paper); False: one each.
        query_init_std: Spread of the queries' initial values; 0 takes that of the VLM's token embeddings [0].
        use_state_encoder: False drops the state token (ablation).
        gripper_state_dims: State dimensions encoded as the gripper's. None: those whose name has "gripper".
        standardise_state: Scale the state by the dataset's mean and deviation before it is encoded [true].
        one_hot_gripper: Encode the gripper's one number as two, open or closed (below 1 or not) [false].
        decoder: Filled in: shape and action spec of the decoder.
        decoder_init: ``"teacher"`` (paper) or ``"scratch"`` (ablation; not for align).
        align_loss: ``"mse"`` on features (the paper's formula) or ``"norm"``, the mean Euclidean distance
            (the official code) [mse].
        align_weight: Weight of the alignment term kept during finetune (paper: 0). Needs the teacher.
        smooth_l1_beta: Threshold of the arm's smooth-L1 loss in scaled action units [0.1]; 0 is the MAE.
        gripper_weight: Weight of the gripper's cross-entropy [0.01].
        image_shift_px: Random shift of training images by up to this many pixels [0].
        wrist_shift_px: The same for cameras whose name contains "wrist"; None: as all.
        shift_draw: ``"together"``: student, teacher and all steps of a sample see the same shift;
            ``"apart"``: drawn for each [together].
        lr: Peak learning rate of the added parts and the decoder [1e-4].
        lr_language: Peak learning rate of the language model. None: ``lr`` (paper).
        weight_decay: AdamW [1e-4].
        grad_clip_norm: Largest gradient norm; 0 does not clip [1].
        accumulation: Batches whose gradients make one update; ``--steps`` counts batches (accumulation.py).
        schedule: ``"cosine"`` to 3 % or ``"warmup_decay"`` (schedule.py) [cosine].
        warmup_fraction: Part of the run that warms the learning rate up [0.1].
        schedule_accumulation: See `schedule.WarmupDecayConfig` [1].
        ema_decay: Decay of the averaged weights, which act and start the next stage; 0: none (paper).
        lora_rank: Rank of low-rank adapters on the language model at finetune; 0 trains it in full (paper).
        lora_alpha: Scale of the adapters. None: 2 x rank.
        lora_targets: Layers of a block that carry adapters, such as [q_proj, v_proj]. None: all.
        gradient_checkpointing: Recompute the language model's activations in backward at finetune.
        compile_model: Compile the language model's layers at finetune (compiling.py).
        dtype: ``"bfloat16"`` runs forward and prediction under autocast (paper); ``"float32"`` does not.
        vision_features: Folder of image embeddings that were computed before (`vita-vla vlm features`), for
            training with the same demonstrations and image encoder; None encodes pictures in every step.
        engine: ``"auto"`` predicts through the inference engine (engine.py), or says once why it cannot and
            goes the plain way; ``"off"`` always goes the plain way.
        precision: ``"full"``, or the engine's language model in ``"int8"`` or ``"float8"``; `vita-vla bench
            precision` says what that does to actions and success, and sets it (engine_precision.py).
        teacher_cameras: Which of our cameras feeds each of the teacher's (teacher's key: ours). Filled in
            where the names tell.
        vlm_changed: Filled in: whether a stage so far changed the VLM's own weights.
        recording: Filled in: how the demonstrations were recorded (`conventions.RecordingInfo`).
    """

    preset: str = "ours"
    preset_follows: str = "paper"
    n_obs_steps: int | None = None  # type: ignore[assignment]

    # Vision-language model
    vlm: str = "mini"
    vlm_revision: str | None = None
    vlm_dtype: str = "float32"
    vlm_config: dict[str, Any] = field(default_factory=dict)
    save_vlm: str = "full"
    attn_implementation: str = "auto"
    prompt: str | None = None
    system_prompt: str | None = None
    query_separator: str | None = None

    # Teacher and stage
    teacher_path: str | None = None
    stage: str = "align"

    # Actions
    chunk_size: int | None = None
    n_action_steps: int | None = None
    temporal_ensemble_coeff: float | None = None
    execute_from: int | None = None
    allow_other_size: bool = False

    # Added parts
    num_queries: int | None = None
    shared_queries: bool = True
    query_init_std: float | None = None
    use_state_encoder: bool = True
    gripper_state_dims: list[int] | None = None
    standardise_state: bool | None = None
    one_hot_gripper: bool | None = None
    decoder: dict[str, Any] = field(default_factory=dict)
    decoder_init: str = "teacher"

    # Losses and augmentation
    align_loss: str | None = None
    align_weight: float = 0.0
    smooth_l1_beta: float | None = None
    gripper_weight: float | None = None
    image_shift_px: int | None = None
    wrist_shift_px: int | None = None
    shift_draw: str | None = None

    # Optimisation
    lr: float | None = None
    lr_language: float | None = None
    weight_decay: float | None = None
    grad_clip_norm: float | None = None
    schedule: str | None = None
    warmup_fraction: float | None = None
    schedule_accumulation: int | None = None
    accumulation: int = 1
    ema_decay: float = 0.0
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_targets: list[str] | None = None
    gradient_checkpointing: bool = False
    compile_model: bool = False
    dtype: str = "bfloat16"
    vision_features: str | None = None
    engine: str = "auto"
    precision: str = "full"

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
        # Before LeRobot's own checks, which read n_obs_steps.
        with reasons_shown():
            self._fill_in_preset()
        super().__post_init__()
        with reasons_shown():
            if self.chunk_size is None and self.teacher_path is not None:
                # The dataset is cut into chunks before any policy exists, so T has to be known from here on.
                self.chunk_size = _teacher_chunk_size(self.teacher_path)
            if self.chunk_size is not None and self.n_action_steps is None:
                ahead = max(self.chunk_size - self.execute_from, 1)
                self.n_action_steps = ahead if self.temporal_ensemble_coeff is None else 1
            check_settings(self)

    def _fill_in_preset(self) -> None:
        values = preset_values(self.preset, self.preset_follows)
        if self.n_action_steps is not None or self.temporal_ensemble_coeff is not None:
            # How predictions are executed is one decision: who makes it, makes all of it.
            del values["n_action_steps"], values["temporal_ensemble_coeff"]
            values["execute_from"] = 0
        for name, value in values.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

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
    def reads_turns(self) -> bool:
        """Whether the prompt is made of turns with slots of their own (turns.py)."""
        return self.n_obs_steps > 1 or "{state}" in self.prompt or self.query_separator != ""

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """The H frames up to now; None where it is one."""
        return list(range(1 - self.n_obs_steps, 1)) if self.n_obs_steps > 1 else None

    @property
    def action_delta_indices(self) -> list[int]:
        """The T actions from each of the H steps on (paper: a window of H + T)."""
        if self.chunk_size is None:
            raise ValueError(
                "the chunk size is unknown: pass --policy.teacher_path=<trained teacher> (its chunk size is "
                "taken) or --policy.chunk_size=<T>"
            )
        return list(range(1 - self.n_obs_steps, self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW (paper); groups with their own rates come from the policy."""
        common = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.accumulation > 1:
            clipping = {"accumulation": self.accumulation, "clip_norm": self.grad_clip_norm}
            return AccumulatingAdamWConfig(**common, **clipping)
        return FusedAdamWConfig(**common, grad_clip_norm=self.grad_clip_norm)

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig | WarmupDecayConfig:
        """Linear warm-up over ``warmup_fraction`` of the run, cosine over all of it; or `schedule.py`'s."""
        if self.schedule == "warmup_decay":
            return WarmupDecayConfig(
                warmup_fraction=self.warmup_fraction, accumulation=self.schedule_accumulation
            )
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
        self.input_features = {k: v for k, v in self.input_features.items() if k != TEACHER_FEATURES}
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
    saved = read_json(folder / "config.json")
    size = saved.get("chunk_size")
    if not isinstance(size, int):
        raise ValueError(
            f"the teacher at {folder} is a policy of type {saved.get('type')!r}, which names no chunk_size "
            f"in its config.json; policies that can teach: {sorted(LOADERS)}"
        )
    return size
