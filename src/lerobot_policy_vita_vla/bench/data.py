"""Loader throughput: LeRobot's own reader against the frame cache, and the share of a training step.

Both sides are PyTorch loaders over the same recorded pictures with the same batches, in this process, as
`vita-vla` trains (a worker process imports LeRobot for 5-10 s first). The step beside which the share is
given is a finetune step of the mini VLM.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lerobot_policy_vita_vla.bench import harness, students

FPS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--batch-size", type=int, default=64, help="samples (default: %(default)s)")
    parser.add_argument("--image-px", type=int, default=96, help="of a picture (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=1000, help="recorded (default: %(default)s)")
    parser.set_defaults(rounds=9)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Record, read both ways in turns, train for the share."""
    batch_size, image, frames = (4, 32, 20) if args.toy else (args.batch_size, args.image_px, args.frames)
    with tempfile.TemporaryDirectory() as folder:
        dataset = _record(Path(folder) / "demos", image, frames)
        readers = {
            "LeRobot's loader": _batches(dataset, batch_size, cached=False),
            "frame cache": _batches(dataset, batch_size, cached=True),
        }
        found = harness.side_by_side(readers, rounds=args.rounds)
        step = _mini_step(Path(folder) / "teacher", readers["frame cache"])
        trained = harness.side_by_side({"finetune step, mini VLM": step}, rounds=max(2, args.rounds // 3))
    ratio = found["ratios"]["LeRobot's loader/frame cache"]
    update = trained["sides"]["finetune step, mini VLM"]["median_s"]
    seconds = {name: side["median_s"] for name, side in found["sides"].items()}
    return {
        "dtype": "uint8 pictures",
        "setting": (
            f"{frames} frames of two cameras of {image} px, stored as PNG, chunks of {students.CHUNK} "
            f"actions, batch {batch_size}, no worker processes."
        ),
        "comparisons": {"a batch": found, "a step": trained},
        "headline": {
            "data_speedup": "batches per second, frame cache / LeRobot's loader",
            "data_samples_per_s": "samples per second, frame cache",
            "data_samples_per_s_lerobot": "samples per second, LeRobot's loader",
            "data_share": "loader's share of a finetune step, frame cache",
            "data_share_lerobot": "loader's share of a finetune step, LeRobot's loader",
        },
        **harness.with_interval("data_speedup", ratio),
        "data_samples_per_s": batch_size / seconds["frame cache"],
        "data_samples_per_s_lerobot": batch_size / seconds["LeRobot's loader"],
        "data_share": seconds["frame cache"] / (seconds["frame cache"] + update),
        "data_share_lerobot": seconds["LeRobot's loader"] / (seconds["LeRobot's loader"] + update),
    }


def _record(root: Path, image: int, frames: int) -> Any:
    """Noise, which is the worst case for a picture format."""
    from lerobot.datasets import LeRobotDataset

    from lerobot_policy_vita_vla.bench.policies import CAMERAS

    picture = {"dtype": "image", "shape": (image, image, 3), "names": ["height", "width", "channels"]}
    features = dict.fromkeys(CAMERAS, picture) | {
        "observation.state": _vector(students.STATE),
        "action": _vector(students.ACTION),
    }
    dataset = LeRobotDataset.create("local/bench", FPS, features, root=root, use_videos=False)
    draw = np.random.default_rng(0)
    for number in range(frames):
        frame = {camera: draw.integers(0, 256, (image, image, 3), np.uint8) for camera in CAMERAS}
        frame |= {"observation.state": draw.normal(size=students.STATE).astype(np.float32)}
        frame |= {"action": draw.uniform(-1, 1, students.ACTION).astype(np.float32)}
        dataset.add_frame(frame | {"task": students.INSTRUCTION})
        if (number + 1) % 50 == 0 or number + 1 == frames:
            dataset.save_episode()
    dataset.finalize()
    ahead = {"action": [i / FPS for i in range(students.CHUNK)]}
    return LeRobotDataset("local/bench", root=root, delta_timestamps=ahead, return_uint8=True)


def _vector(size: int) -> dict[str, Any]:
    return {"dtype": "float32", "shape": (size,), "names": [f"{i}" for i in range(size)]}


def _batches(dataset: Any, batch_size: int, *, cached: bool) -> Callable[[], dict]:
    """Gives the next batch of an endless loader."""
    from torch.utils.data import DataLoader

    from lerobot_policy_vita_vla.training.frame_cache import CachedDataset, already_collated

    source, collate = (CachedDataset(dataset), already_collated) if cached else (dataset, None)
    order = torch.Generator().manual_seed(0)

    def endless() -> Iterator[dict]:
        while True:
            yield from DataLoader(
                source, batch_size, shuffle=True, drop_last=True, collate_fn=collate, generator=order
            )

    batches = endless()
    return lambda: next(batches)


def _mini_step(teacher: Path, batches: Callable[[], dict]) -> Callable[[], None]:
    from lerobot_policy_vita_vla.bench.policies import CAMERAS, finetune_policy
    from lerobot_policy_vita_vla.bench.train import lerobot_step

    batch = batches()
    # As the training loop hands pictures on.
    batch |= {camera: batch[camera].float() / 255 for camera in CAMERAS}
    policy = finetune_policy("mini", teacher, batch[CAMERAS[0]].shape[-1], "cpu")
    return lerobot_step(policy, batch, "cpu")
