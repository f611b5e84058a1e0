"""A frozen image encoder's output for every frame of a dataset, on disk: `vita-vla vlm features`.

All stages keep image encoder and projector frozen, so what they make of a picture never changes, and with a
small backbone they are most of a training step. Stored, a frame costs (N cameras x n tokens x D) numbers:
14 kB for the mini VLM, 246 kB for SmolVLM2-500M with two cameras (67 GB for LIBERO), 3.7 MB for the 7B shape
(1 TB, for a seventh of the step: not worth it). Therefore the size is said first, and refused where it takes
more than a stated share of what is free.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lerobot_policy_vita_vla.demos.dataset import VIDEO_BACKEND
from lerobot_policy_vita_vla.demos.fingerprint import fingerprint
from lerobot_policy_vita_vla.vla.building import build_backbone
from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig
from lerobot_policy_vita_vla.vla.pictures import StoredPictures, embed_pictures
from lerobot_policy_vita_vla.vla.precomputed import VISION_DATA, VISION_FACTS, vision_hash

if TYPE_CHECKING:
    from lerobot_policy_vita_vla.vla.backbone import VLMBackbone

logger = logging.getLogger(__name__)

TRIAL = 2
"""Frames on which stored embeddings are compared with pixels before anything is written."""


def store_vision(
    demos: Path,
    out: Path,
    *,
    vlm: str = "mini",
    dtype: str = "bfloat16",
    vlm_dtype: str = "float32",
    device: str = "cpu",
    batch_size: int = 64,
    disk_share: float = 0.25,
    limit_gib: float = 2.0,
) -> Path:
    """Encode every frame once.

    Args:
        demos: Folder of the LeRobotDataset.
        out: Folder to make; must not exist. Until it is whole it is called ``<out>.partial``.
        vlm: As ``--policy.vlm``.
        dtype: As ``--policy.dtype`` of the training that will read it.
        vlm_dtype: As ``--policy.vlm_dtype`` of that training.
        device: Where the encoder runs.
        batch_size: Frames at once.
        disk_share: Largest part of the free disk that may be taken.
        limit_gib: Largest size of pictures that are decoded into memory at once.

    Returns:
        ``out``.

    Raises:
        ValueError: ``out`` exists, the disk is too small, or this VLM uses image features otherwise than as
            embeddings in the prompt.
    """
    from lerobot.datasets import LeRobotDataset

    from lerobot_policy_vita_vla.training.frame_cache import every_frame

    if out.exists():
        raise ValueError(f"{out} exists already; remove it (rm -r {out}) or choose another --out")
    if not 0 < disk_share <= 1:
        raise ValueError(f"--disk-share must lie in (0, 1], got {disk_share}")
    dataset = LeRobotDataset(
        f"local/{demos.absolute().name}", root=demos, return_uint8=True, video_backend=VIDEO_BACKEND
    )
    cameras = list(dataset.meta.camera_keys)
    config = VitaVLAConfig(vlm=vlm, dtype=dtype, vlm_dtype=vlm_dtype, device=device, chunk_size=1)
    backbone = build_backbone(config).to(device).eval()

    def encode(batch: dict[str, Any]) -> Tensor:
        images = [_bytes(batch[camera]).to(device) for camera in cameras]
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return embed_pictures(backbone.vlm, backbone.prompts.pixels(images), len(images[0]))

    trial = torch.utils.data.default_collate([dataset[i] for i in range(min(TRIAL, len(dataset)))])
    first = encode(trial)
    _compare(backbone, [_bytes(trial[c]).to(device) for c in cameras], trial["task"], first, config)
    _, tokens, width = first.shape
    # Under autocast the numbers are bfloat16 already, held in float32.
    stored_as = torch.bfloat16 if torch.equal(first, first.bfloat16().to(first.dtype)) else torch.float32
    count = len(dataset) * tokens * width
    _check_disk(out, count * stored_as.itemsize, len(dataset), disk_share)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows, flat = 0, torch.from_file(str(partial / VISION_DATA), shared=True, size=count, dtype=stored_as)
    store = flat.view(len(dataset), tokens, width)
    for batch in every_frame(dataset, batch_size, limit_gib):
        made = encode(batch).cpu()
        if not torch.equal(made, made.to(stored_as).to(made.dtype)):
            raise ValueError(
                f"frame {rows} and on do not fit into {stored_as}: the encoder's arithmetic changes between "
                "batches; store them with --dtype float32"
            )
        if not torch.equal(batch["index"].flatten(), torch.arange(rows, rows + len(made))):
            raise ValueError(
                f"the frames of {demos} are not in the order of their index; record or merge again"
            )
        store[rows : rows + len(made)] = made.to(stored_as)
        rows += len(made)
    facts = {
        "rows": len(dataset),
        "tokens": tokens,
        "width": width,
        "stored_as": str(stored_as).removeprefix("torch."),
        "cameras": cameras,
        "dataset": fingerprint(demos),
        "vision": vision_hash(backbone, dtype),
        "vlm": vlm,
    }
    (partial / VISION_FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    partial.rename(out)
    return out


def _bytes(image: Tensor) -> Tensor:
    return image if image.dtype == torch.uint8 else (image * 255.0).round().to(torch.uint8)


@torch.no_grad()
def _compare(
    backbone: VLMBackbone,
    images: list[Tensor],
    tasks: list[str],
    embeddings_BND: Tensor,
    config: VitaVLAConfig,
) -> None:
    """Refuse a VLM whose hidden states differ when its image embeddings are given instead of pixels."""
    suffix = torch.zeros(len(tasks), 1, backbone.width, device=embeddings_BND.device)
    stored = StoredPictures(embeddings_BND, tuple(tuple(image.shape[-2:]) for image in images))
    with torch.autocast(embeddings_BND.device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
        seen = backbone(images, tasks, suffix)
        try:
            given = backbone(stored, tasks, suffix)
        except ValueError:
            given = torch.full_like(seen, torch.nan)
    if not torch.equal(seen, given):
        raise ValueError(
            f"{type(backbone.vlm).__name__} uses image features in other places than the prompt, so that "
            "stored ones would not be what it sees; train it without --policy.vision_features"
        )


def _check_disk(out: Path, size: int, frames: int, share: float) -> None:
    place = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    logger.info(
        "vision features: %d frames of %.1f kB take %.2f GiB of %.1f GiB free at %s",
        frames,
        size / frames / 1000,
        size / 2**30,
        free / 2**30,
        place,
    )
    if size > share * free:
        raise ValueError(
            f"that is more than {share:.0%} of the free disk. Take more with --disk-share, another disk with "
            "--out, or train without stored features"
        )
