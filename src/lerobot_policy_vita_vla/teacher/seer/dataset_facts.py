"""What `SeerPolicy` takes over from the dataset when training starts: filled into its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lerobot_policy_vita_vla.contracts import PRIVILEGED_STATE, ActionSpec
from lerobot_policy_vita_vla.demos.checkpoint_records import go_on
from lerobot_policy_vita_vla.demos.declared import remembered

if TYPE_CHECKING:
    from lerobot_policy_vita_vla.teacher.seer.configuration_seer import SeerConfig
    from lerobot_policy_vita_vla.teacher.seer.network import SeerNetwork

STATE, ACTION = "observation.state", "action"
# Below this, a number of the state counts as constant; dividing by its spread would only amplify noise.
SMALLEST_STD = 1e-4
# Of Meta-World's privileged state: the object and the goal.
METAWORLD_SIZE, METAWORLD_POSITIONS = 39, (4, 5, 6, 36, 37, 38)


def fill_config(config: SeerConfig, stats: dict[str, Any] | None, dataset_meta: Any) -> None:
    """Note action scales, gripper dimensions and recording conventions in ``config``.

    What a checkpoint already knows is kept: its action statistics belong to its weights.

    Raises:
        ValueError: A fresh policy without statistics, or without a way to tell the gripper; a dataset with
            other conventions than the checkpoint's.
    """
    if not config.action_spec:
        if not stats or ACTION not in stats:
            raise ValueError(
                "a fresh seer policy takes its action scale from a dataset's statistics, and none were given;"
                " train it with --dataset.repo_id/--dataset.root, or load a checkpoint with --policy.path"
            )
        spec = ActionSpec.from_stats(
            feature_names(dataset_meta, ACTION),
            stats[ACTION],
            gripper_dims=config.gripper_dims,
            gripper_kind=config.gripper_kind,
        )
        config.action_spec = spec.to_dict()
    if config.encoder == "pretrained" and config.gripper_state_dims is None:
        names = feature_names(dataset_meta, STATE) or []
        config.gripper_state_dims = [i for i, name in enumerate(names) if "gripper" in name.lower()]
        if not config.gripper_state_dims:
            raise ValueError(
                f"which numbers of the state are the gripper's? Their names {names} do not say; pass for "
                "instance --policy.gripper_state_dims='[6, 7]'"
            )
    if config.auxiliary_weight > 0 and stats and PRIVILEGED_STATE not in stats:
        raise ValueError(
            f"auxiliary_weight {config.auxiliary_weight} needs the dataset's {PRIVILEGED_STATE}, which it "
            "does not have; pass --policy.auxiliary_weight=0"
        )
    if config.auxiliary_weight > 0 and config.auxiliary_indices is None:
        size = len(torch.as_tensor(stats[PRIVILEGED_STATE]["mean"]).flatten()) if stats else METAWORLD_SIZE
        config.auxiliary_indices = list(METAWORLD_POSITIONS if size == METAWORLD_SIZE else range(size))
    config.recording = go_on(config.recording, remembered(dataset_meta))


@torch.no_grad()
def fill_statistics(network: SeerNetwork, config: SeerConfig, stats: dict[str, Any] | None) -> None:
    """Copy the dataset's statistics into the network's buffers; a checkpoint's overwrite them."""
    if not stats:
        return
    network.state_mean.copy_(torch.as_tensor(stats[STATE]["mean"]).flatten())
    network.state_std.copy_(torch.as_tensor(stats[STATE]["std"]).flatten().clamp_min(SMALLEST_STD))
    if config.gripper_state_one_hot:
        # A class is told by the raw number.
        network.state_mean[config.gripper_state_dims] = 0.0
        network.state_std[config.gripper_state_dims] = 1.0
    if config.auxiliary_weight > 0:
        mean = torch.as_tensor(stats[PRIVILEGED_STATE]["mean"]).flatten()
        network.auxiliary_mean.copy_(mean[config.auxiliary_indices])


def feature_names(dataset_meta: Any, key: str) -> list[str] | None:
    """A feature's names per dimension, flat; None where the dataset has none."""
    features = getattr(dataset_meta, "features", None) or {}
    names = features.get(key, {}).get("names")
    if isinstance(names, dict):
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    return [str(name) for name in names] if names else None
