"""Tiny teachers and batches, shared by the tests of the teacher."""

from __future__ import annotations

import types

import torch
from lerobot.configs import FeatureType, PolicyFeature

from lerobot_policy_vita_vla.contracts import PRIVILEGED_STATE
from lerobot_policy_vita_vla.teacher.seer.configuration_seer import SeerConfig
from lerobot_policy_vita_vla.teacher.seer.modeling_seer import SeerPolicy

SIZE, S, A, P = 32, 4, 4, 39
TASKS = ["open the door", "close the drawer"]


def features(cameras=("observation.image",), size=SIZE, state_dim=S, action_dim=A) -> dict:
    inputs = {key: PolicyFeature(FeatureType.VISUAL, (3, size, size)) for key in cameras}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (state_dim,))
    inputs[PRIVILEGED_STATE] = PolicyFeature(FeatureType.ENV, (P,))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (action_dim,))}
    return {"input_features": inputs, "output_features": outputs}


def statistics(state_dim=S, action_dim=A) -> dict:
    two_valued = {"mean": torch.zeros(action_dim), "std": torch.ones(action_dim)}
    return {
        "observation.state": {"mean": torch.arange(state_dim) / 10, "std": torch.full((state_dim,), 0.5)},
        PRIVILEGED_STATE: {"mean": torch.zeros(P), "std": torch.ones(P)},
        "action": {"min": -torch.ones(action_dim), "max": torch.ones(action_dim), **two_valued},
    }


def meta(root=None) -> types.SimpleNamespace:
    names = {"observation.state": ["x", "y", "z", "gripper_opening"], "action": ["x", "y", "z", "gripper"]}
    return types.SimpleNamespace(features={k: {"names": v} for k, v in names.items()}, root=root)


def make_policy(**settings) -> SeerPolicy:
    torch.manual_seed(0)
    cameras = settings.pop("cameras", ("observation.image",))
    small = {"width": 32, "n_layers": 2, "n_heads": 4, "device": "cpu"}
    config = SeerConfig(**{**small, **settings}, **features(cameras))
    policy = SeerPolicy(config, dataset_stats=statistics(), dataset_meta=meta())
    # Zero-initialised conditioning would hide what the instruction reaches.
    film = getattr(policy.network.image_encoder, "film", None)
    if film is not None:
        torch.nn.init.normal_(film.weight, std=0.1)
    return policy


def observation(config: SeerConfig, batch_size=2, seed=0, steps=None) -> dict:
    """One observation per sample; with ``steps``, that many on a frame axis."""
    generator = torch.Generator().manual_seed(seed)
    axis = () if steps is None else (steps,)
    batch = {key: torch.rand(batch_size, *axis, 3, SIZE, SIZE, generator=generator) for key in config.cameras}
    batch["observation.state"] = torch.randn(batch_size, *axis, config.state_dim, generator=generator)
    batch["task"] = [TASKS[i % 2] for i in range(batch_size)]
    return batch


def training_batch(config: SeerConfig, batch_size=2, seed=0) -> dict:
    """What LeRobot's dataset and preprocessor deliver for this configuration."""
    frames = config.observation_delta_indices
    batch = observation(config, batch_size, seed, None if frames is None else len(frames))
    generator = torch.Generator().manual_seed(seed + 1)
    axis = () if frames is None else (len(frames),)
    n_actions = len(config.action_delta_indices)
    batch[PRIVILEGED_STATE] = 0.1 * torch.randn(batch_size, *axis, P, generator=generator)
    action = 2 * torch.rand(batch_size, n_actions, A, generator=generator) - 1
    action[..., 3] = action[..., 3].sign()
    batch["action"], batch["action_is_pad"] = action, torch.zeros(batch_size, n_actions, dtype=torch.bool)
    return batch
