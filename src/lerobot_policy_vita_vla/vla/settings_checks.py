"""Which settings of the student contradict each other, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lerobot_policy_vita_vla.chunking import check_chunking

if TYPE_CHECKING:
    from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig

STAGES = ("align", "finetune", "only_finetune", "freeze_vlm")

CHOICES: dict[str, tuple] = {
    "stage": STAGES,
    "dtype": ("float32", "bfloat16"),
    "vlm_dtype": ("float32", "bfloat16"),
    "attn_implementation": ("auto", "eager", "sdpa", "flash_attention_2"),
    "save_vlm": ("full", "reference"),
    "engine": ("auto", "off"),
    "precision": ("full", "int8", "float8"),
    "align_loss": ("mse", "norm"),
    "decoder_init": ("teacher", "scratch"),
    "shift_draw": ("together", "apart"),
    "schedule": ("cosine", "warmup_decay"),
}


def check_settings(config: VitaVLAConfig) -> None:
    """Raise ValueError for a setting out of its range, or two that exclude each other."""
    for name, allowed in CHOICES.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"--policy.{name} must be one of {allowed}, got {getattr(config, name)!r}")
    if config.precision != "full" and config.engine == "off":
        raise ValueError(
            f"--policy.precision={config.precision} is the inference engine's, which --policy.engine=off "
            "leaves out; pass --policy.engine=auto or --policy.precision=full"
        )
    for name in ("n_obs_steps", "schedule_accumulation", "accumulation"):
        if getattr(config, name) < 1:
            raise ValueError(f"--policy.{name} must be at least 1, got {getattr(config, name)}")
    if config.chunk_size is not None:
        check_chunking(
            config.chunk_size, config.n_action_steps, config.temporal_ensemble_coeff, config.execute_from
        )
        if config.num_queries is not None and (
            config.num_queries < 1 or config.chunk_size % config.num_queries != 0
        ):
            raise ValueError(
                f"chunk_size ({config.chunk_size}) must be a multiple of num_queries, "
                f"got {config.num_queries}"
            )
    if config.accumulation > 1 and config.ema_decay > 0:
        raise ValueError(
            f"the weights' average advances with every batch, but with accumulation={config.accumulation} "
            "they change with every update only; pass --policy.ema_decay=0 or --policy.accumulation=1"
        )
    if not 0.0 <= config.warmup_fraction < 1.0:
        raise ValueError(f"warmup_fraction must lie in [0, 1), got {config.warmup_fraction}")
    if "{instruction}" not in config.prompt:
        raise ValueError(f"prompt must contain {{instruction}}, got {config.prompt!r}")
    if config.prompt.count("{state}") > 1:
        raise ValueError(f"prompt may contain {{state}} once, got {config.prompt!r}")
    _check_stage(config)


def _check_stage(config: VitaVLAConfig) -> None:
    if config.stage == "align" and config.decoder_init == "scratch":
        raise ValueError(
            "align matches the features that the teacher's own decoder reads, so decoder_init must be "
            "'teacher'; use decoder_init=scratch with stage finetune, only_finetune or freeze_vlm"
        )
    if config.lora_rank < 0:
        raise ValueError(f"lora_rank must be 0 (no adapters) or positive, got {config.lora_rank}")
    if config.save_vlm == "reference" and (
        config.vlm_changed or config.trains_language and not config.uses_lora
    ):
        raise ValueError(
            f"up to stage {config.stage!r} the language model is trained, which save_vlm=reference would "
            "leave out of the checkpoint; pass --policy.save_vlm=full"
        )
