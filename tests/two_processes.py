"""What test_distributed.py looks at: trainings by one process and by two, run in children of one process.

    python tests/two_processes.py FOLDER

Importing LeRobot takes longer than everything that is measured, so it is imported once and then forked; what
a child calls is the console script's own function, under the environment that torchrun gives it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.scripts import lerobot_train

from end_to_end_helpers import SMALL, checkpoint, dataset_flags, noise_dataset
from lerobot_policy_vita_vla.evaluation.agreement import agreement
from lerobot_policy_vita_vla.training.launch import run_training
from lerobot_policy_vita_vla.training.sharding import make_mesh, save_sharded, shard_policy
from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy
from tiny_vlms import save

STEPS = 4
CAMERA = "observation.image"
NEXT_PORT = iter(range(29500 + os.getpid() % 400, 40000))


def in_children(function: Callable[[int], object], world: int = 1) -> None:
    """Run ``function(rank)`` in ``world`` forked processes, as torchrun would start them."""
    port = str(next(NEXT_PORT))
    children = []
    for rank in range(world):
        if (pid := os.fork()) == 0:
            if world > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
                os.environ |= {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    "LOCAL_WORLD_SIZE": str(world),
                }
            try:
                function(rank)
                sys.stdout.flush()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(pid)
    codes = [os.waitpid(pid, 0)[1] for pid in children]
    if any(codes):
        sys.exit(f"{function.__name__} failed in a child: wait statuses {codes}")


def lerobot_training(*flags: str, world: int = 1) -> None:
    """`lerobot-train` itself."""

    def train(rank: int) -> None:
        sys.argv = ["lerobot-train", *flags]
        lerobot_train.main()

    in_children(train, world)


def trainings(folder: Path) -> None:
    """The same updates by one process with 4 samples and by two with 2 each, once resumed in the middle."""
    data = dataset_flags(folder / "demos")
    small = [flag for flag in SMALL if "batch_size" not in flag]
    lerobot_training(
        "--policy.type=seer",
        "--policy.preset=tiny",
        "--policy.auxiliary_weight=0",
        *data,
        f"--output_dir={folder / 'teacher'}",
        "--steps=1",
        *SMALL,
    )
    align = [
        "--policy.type=vita_vla",
        "--policy.stage=align",
        f"--policy.vlm={folder / 'vlm'}",
        "--policy.dtype=float32",
        "--policy.lr=1e-3",
        f"--policy.teacher_path={checkpoint(folder / 'teacher')}",
        *data,
        *small,
    ]
    run = f"--output_dir={folder / 'one'}"
    lerobot_training(*align, run, f"--steps={STEPS}", "--batch_size=4")
    two = [
        *align,
        f"--output_dir={folder / 'two'}",
        f"--steps={STEPS}",
        "--batch_size=2",
        f"--save_freq={STEPS // 2}",
    ]
    lerobot_training(*two, world=2)
    # What a crash before the last checkpoint would have left.
    (folder / "two" / "checkpoints" / f"{STEPS:06d}").rename(folder / "straight")
    (folder / "two" / "checkpoints" / "last").unlink()
    middle = checkpoint(folder / "two", f"{STEPS // 2:06d}") / "train_config.json"

    def resume(rank: int) -> None:
        run_training([f"--config_path={middle}", "--resume=true"])

    in_children(resume, 2)
    for name, world in (("one", 1), ("two", 2)):
        lerobot_training(
            f"--policy.path={checkpoint(folder / name)}",
            "--policy.stage=finetune",
            f"--output_dir={folder / f'{name}_finetune'}",
            "--steps=2",
            f"--batch_size={4 // world}",
            *data,
            *small,
            world=world,
        )

    def evaluate(rank: int) -> None:
        found = agreement(
            checkpoint(folder / "two_finetune"),
            checkpoint(folder / "teacher"),
            folder / "demos",
            samples=8,
            batch_size=4,
        )
        (folder / "agreement.json").write_text(json.dumps(found, default=str))

    in_children(evaluate)


def student(folder: Path, stage: str) -> VitaVLAPolicy:
    start = checkpoint(folder / "one")
    config = PreTrainedConfig.from_pretrained(start, cli_overrides=[f"--stage={stage}"])
    config.gradient_checkpointing = stage == "finetune"
    return VitaVLAPolicy.from_pretrained(start, config=config).train()


def batch_of(rows: slice, policy: VitaVLAPolicy) -> dict:
    generator = torch.Generator().manual_seed(0)
    steps = policy.config.chunk_size
    action = torch.rand(4, steps, 4, generator=generator) * 2 - 1
    return {
        CAMERA: torch.rand(4, 3, 32, 32, generator=generator)[rows],
        "observation.state": torch.randn(4, 4, generator=generator)[rows],
        "task": ["open the door", "close the drawer", "press a button", "slide"][rows],
        "action": action[rows],
        "action_is_pad": torch.zeros(4, steps, dtype=torch.bool)[rows],
    }


def update(
    policy: VitaVLAPolicy, rows: slice
) -> tuple[float, dict[str, torch.Tensor], torch.optim.Optimizer]:
    """One update; the loss, the gradients and the optimiser."""
    optimizer = torch.optim.AdamW(policy.get_optim_params())
    loss, _ = policy(batch_of(rows, policy))
    loss.backward()
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    optimizer.step()
    return loss.item(), gradients, optimizer


def sharding(folder: Path) -> None:
    """One update of each stage by one process, and by two that share everything."""

    def whole(rank: int) -> None:
        for stage in ("align", "finetune"):
            policy = student(folder, stage)
            loss, gradients, optimizer = update(policy, slice(0, 4))
            weights = {k: v.clone() for k, v in policy.state_dict().items()}
            torch.save((loss, gradients, weights), folder / f"whole_{stage}.pt")

    def sharded(rank: int) -> None:
        torch.distributed.init_process_group("gloo")
        for stage in ("align", "finetune"):
            policy = student(folder, stage)
            total = sum(p.numel() for p in policy.parameters())
            shard_policy(policy, make_mesh("cpu", shards=2))
            held = sum(p.to_local().numel() for p in policy.parameters())
            loss, gradients, optimizer = update(policy, slice(2 * rank, 2 * rank + 2))
            mean = torch.tensor(loss) / 2
            torch.distributed.all_reduce(mean)
            gradients = {name: gradient.full_tensor() for name, gradient in gradients.items()}
            states = [v for s in optimizer.state.values() for v in s.values() if v.ndim]
            state_held = sum(v.to_local().numel() for v in states)
            save_sharded(policy, folder / f"sharded_{stage}")
            chunk = policy.eval().predict_action_chunk(batch_of(slice(0, 4), policy))
            if rank == 0:
                torch.save((mean.item(), gradients, chunk), folder / f"sharded_{stage}.pt")
                sizes = {"parameters": total, "held": held, "state_held": state_held}
                (folder / f"sizes_{stage}.json").write_text(json.dumps(sizes))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    in_children(whole)
    in_children(sharded, 2)


def main(folder: Path) -> None:
    """Everything, into a folder."""
    in_children(lambda rank: noise_dataset(folder / "demos"))
    in_children(lambda rank: save("smolvlm", folder / "vlm"))
    trainings(folder)
    sharding(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
