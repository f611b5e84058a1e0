"""Opening a student's checkpoint and loading it strictly, within a stage or into the next one.

A checkpoint folder holds, beside LeRobot's own files,

    config.json         settings, stage, the VLM's configuration, the decoder's shape and action scale
    model.safetensors   all weights (the VLM's too, unless save_vlm=reference), averages under ``ema.``
    vlm_processor/      tokenizer, chat template and image settings of the VLM
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lerobot_policy_vita_vla.ema import PREFIX as EMA_PREFIX
from lerobot_policy_vita_vla.ema import fold_average
from lerobot_policy_vita_vla.files import read_json
from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig
from lerobot_policy_vita_vla.vla.lora import adapted_names
from lerobot_policy_vita_vla.vla.stages import check_stage_order

VLM_PREFIX = "network.backbone.vlm."
FIXED = (
    "preset",
    "preset_follows",
    "one_hot_gripper",
    "chunk_size",
    "num_queries",
    "shared_queries",
    "use_state_encoder",
    "decoder_init",
)
BEFORE = {"preset": "ours", "preset_follows": "paper", "one_hot_gripper": False}
"""What students were made with before these settings existed, which their checkpoints do not name."""
FILLED_IN = ("vlm_config", "decoder", "gripper_state_dims", "teacher_cameras", "recording", "vlm_changed")


@dataclass(frozen=True)
class Checkpoint:
    """A student's checkpoint on disk.

    Args:
        folder: The ``pretrained_model`` folder.
        config: Its config.json.
    """

    folder: Path
    config: dict[str, Any]

    @property
    def has_vlm(self) -> bool:
        """Whether the VLM's weights are inside."""
        return self.config.get("save_vlm", "full") == "full"


def open_checkpoint(path: str | Path, revision: str | None = None) -> Checkpoint:
    """Open a local folder, or download one from the hub first."""
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute() or str(path).count("/") != 1:
            raise ValueError(
                f"no checkpoint at {path}; a run's last one is <run>/checkpoints/last/pretrained_model"
            )
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(path), revision=revision))
    if not (folder / "config.json").is_file():
        inside = (
            " (did you mean its subfolder pretrained_model?)"
            if (folder / "pretrained_model").is_dir()
            else ""
        )
        raise ValueError(f"{folder} has no config.json{inside}")
    config = read_json(folder / "config.json")
    if config.get("type") != "vita_vla":
        raise ValueError(f"{folder} holds a policy of type {config.get('type')!r}, expected 'vita_vla'")
    return Checkpoint(folder, config)


def continue_from(config: VitaVLAConfig, checkpoint: Checkpoint) -> None:
    """Check that ``config`` may continue the checkpoint, and take over what was filled in there.

    Raises:
        ValueError: For a stage out of order or a setting that was fixed when the student was made.
    """
    saved = checkpoint.config
    check_stage_order(config.stage, saved["stage"])
    fixed = (*FIXED, "vlm") if checkpoint.has_vlm else FIXED
    for name in fixed:
        if name not in saved and name not in BEFORE:
            raise ValueError(f"{checkpoint.folder}/config.json lacks {name!r}: the checkpoint is damaged")
        before = saved.get(name, BEFORE.get(name))
        if getattr(config, name) != before:
            raise ValueError(
                f"--policy.{name}={getattr(config, name)} differs from the checkpoint's {before}, which "
                f"was fixed when {checkpoint.folder} was first trained; start a new student to change it"
            )
    for name in FILLED_IN:
        if not getattr(config, name):
            setattr(config, name, saved[name])


def load_strictly(policy: nn.Module, state: dict[str, Tensor], checkpoint: Checkpoint) -> bool:
    """Load a checkpoint's weights into a policy built for it.

    Where the stage changes, averaged weights become the weights (they are what was evaluated); where it goes
    on, the average goes on too.

    Returns:
        Whether an average was loaded.

    Raises:
        ValueError: Naming weights that are missing or not expected.
    """
    config = policy.config
    expected = policy.state_dict()
    averages = {name for name in expected if name.startswith(EMA_PREFIX)}
    same_stage = config.stage == checkpoint.config["stage"]
    state = fold_average(state, keep=same_stage and bool(averages))
    loaded_average = any(name.startswith(EMA_PREFIX) for name in state)
    if config.uses_lora:
        state = adapted_names(state, set(expected))
    present = {expected[name].data_ptr() for name in state if name in expected}
    missing = []
    for name, value in expected.items():
        # Tied weights are stored once; adapters and an average may start at this stage.
        tied = value.data_ptr() in present
        fresh = not same_stage and ".lora_" in name or name in averages and not loaded_average
        from_reference = name.startswith(VLM_PREFIX) and not checkpoint.has_vlm
        if name not in state and not (tied or fresh or from_reference):
            missing.append(name)
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        raise ValueError(
            f"the weights in {checkpoint.folder} do not fit: missing {_some(missing)}; not expected "
            f"{_some(unexpected)}. The checkpoint is damaged, or a setting that shapes the network changed"
        )
    policy.load_state_dict(state, strict=False)
    return loaded_average


def leave_out_vlm(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """A hook of ``state_dict`` that drops the VLM's own weights; adapters stay."""
    for key in [key for key in state if key.startswith(prefix + VLM_PREFIX) and ".lora_" not in key]:
        del state[key]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) + more) if names else "none"
