"""A student's weights, gradients and optimiser states spread over several devices: torch's own FSDP2.

    mesh of one axis    FSDP: every device holds 1/n of everything
    mesh of two axes    HSDP: copies over the first (between machines), shards over the second (inside one)

Each unit of wrap_units.py is gathered when it runs and freed behind it. Gradients are averages over all
devices, as one process would compute them on the whole batch.

`lerobot-train` 0.6 shards through accelerate and FSDP1 (configs/fsdp.yaml, docs/scale.md): it calls
``policy.forward``, behind which FSDP2's hooks do not run, and gathers checkpoints by FSDP1's functions. These
here are for loops of one's own, and what the tests hold against one process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lerobot_policy_vita_vla.vla.wrap_units import wrap_units

if TYPE_CHECKING:
    from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy


def make_mesh(device: str, *, shards: int, replicas: int = 1) -> DeviceMesh:
    """The devices as (shards,) or, with several replicas, (replicas, shards).

    Args:
        device: ``"cuda"`` or ``"cpu"``.
        shards: Devices over which one copy of the model is spread.
        replicas: Copies of the model.

    Raises:
        ValueError: The product is not the number of processes.
    """
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if shards * replicas != world:
        raise ValueError(
            f"{replicas} replicas x {shards} shards are {replicas * shards} processes, but {world} run; "
            f"start as many (torchrun --nproc-per-node={replicas * shards}) or choose shards={world}"
        )
    if replicas == 1:
        return init_device_mesh(device, (shards,))
    return init_device_mesh(device, (replicas, shards), mesh_dim_names=("replicate", "shard"))


def shard_policy(policy: VitaVLAPolicy, mesh: DeviceMesh) -> VitaVLAPolicy:
    """Shard a student in place; make its optimiser afterwards.

    Args:
        policy: The same weights in every process.
        mesh: See `make_mesh`.

    Raises:
        ValueError: For a VLM without wrap units, or a policy that averages its weights.
    """
    if policy.ema is not None:
        raise ValueError(
            "the averaged weights (--policy.ema_decay) hold on to the whole parameters, which sharding takes "
            "apart; pass --policy.ema_decay=0"
        )
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for _, unit in wrap_units(policy.network):
        fully_shard(unit, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    # Acting does not go through forward().
    register_fsdp_forward_method(policy, "predict_action_chunk")
    return policy


def full_state(policy: nn.Module) -> dict[str, Tensor]:
    """The whole weights on the CPU of the first process, nothing elsewhere; call it in every process."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    # What does not divide evenly is gathered with padding behind it, which safetensors refuses to write.
    return {k: v if v.untyped_storage().nbytes() == v.nbytes else v.clone() for k, v in state.items()}


def save_sharded(policy: VitaVLAPolicy, folder: Path) -> None:
    """Write a checkpoint that loads without sharding too; call it in every process."""
    state = full_state(policy)
    if torch.distributed.get_rank() == 0:
        policy.save_pretrained(folder, state_dict=state)
    torch.distributed.barrier()


def check_fsdp_request() -> None:
    """Refuse what `accelerate launch` asks of a trainer that cannot do it, before anything is loaded.

    Raises:
        ValueError: FSDP2 was asked for.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() not in ("1", "true"):
        return
    if os.environ.get("FSDP_VERSION", "1") != "1":
        raise ValueError(
            "lerobot-train 0.6 cannot train with FSDP2: it would stop at the first step or the first "
            "checkpoint. Use FSDP1, which it can save and resume:\n"
            "  accelerate launch --config_file configs/fsdp.yaml ...\n"
            "or set fsdp_version: 1 in your own file"
        )
