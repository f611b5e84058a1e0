"""Camera frames to a VLM's pixel input as a few operations on one stack, instead of one by one.

A Hugging Face image processor takes pictures as a list, looks at each, groups them by size and sorts them
back, on the host. What it does to their pixels is two of its own methods, `resize` and a normalisation, and
both take a stack:

    bytes (B, 3, h, w) per camera --resize--> bytes (B, 3, H, W) --(x - mean) / std--> pixel_values

So these are called directly, on the device where the frames are, and the result is the same bit for bit.
`restate` compares the two on random frames before it trusts itself; a processor it does not know, or that
does something else besides, is used as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from lerobot_policy_vita_vla.vla.prompts import PromptEncoder, as_bytes

ToPixels = Callable[[Sequence[Tensor]], Tensor]
"""One (B, 3, h, w) per camera, bytes or [0, 1] -> ``pixel_values``."""

STEPS = ("do_resize", "do_rescale", "do_normalize")


class Unfit(Exception):  # noqa: N818
    """Something the engine has no fast way for; says what."""


def restate(prompts: PromptEncoder, sizes: Sequence[tuple[int, int]], device: torch.device) -> ToPixels:
    """The image processor's work on frames of these sizes, as operations on stacks.

    Args:
        prompts: Holds the processor and how it is called.
        sizes: (h, w) of each camera.
        device: Where the frames are.

    Raises:
        Unfit: The processor is not known, or gives other pixels than its two methods.
    """
    processor = prompts.processor.image_processor
    kind = type(processor).__name__
    if kind not in LAYOUTS:
        raise Unfit(f"{kind} has no known way to be applied to a stack of frames")
    if not all(getattr(processor, step, None) for step in STEPS):
        raise Unfit(f"{kind} is told to leave out one of {', '.join(STEPS)}")
    resize, arrange = LAYOUTS[kind]
    # In the processor's own order of operations, which decides the last bit.
    per_byte = 1.0 / processor.rescale_factor
    mean, std = (
        (torch.tensor(list(values), device=device) * per_byte).view(-1, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )

    def to_pixels(frames: Sequence[Tensor]) -> Tensor:
        seen = [resize(processor, prompts.image_options, as_bytes(frame)) for frame in frames]
        return arrange(processor, [(frame.to(torch.float32) - mean).div_(std) for frame in seen])

    generator = torch.Generator().manual_seed(0)
    samples = [torch.randint(0, 256, (2, 3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    samples = [sample.to(device) for sample in samples]
    wanted, found = prompts.pixels(samples), to_pixels(samples)
    if found.shape != wanted["pixel_values"].shape or not torch.equal(found, wanted["pixel_values"]):
        raise Unfit(f"{kind} gives other pixels than its resizing and normalisation do")
    return to_pixels


def _size(value: Any) -> SizeDict:
    return value if isinstance(value, SizeDict) else SizeDict(**dict(value))


def _to_rectangle(processor: Any, options: dict[str, Any], frames_B3hw: Tensor) -> Tensor:
    return processor.resize(frames_B3hw, _size(processor.size), resample=processor.resample)


def _to_square(processor: Any, options: dict[str, Any], frames_B3hw: Tensor) -> Tensor:
    # First the longest edge, then a square: for pictures that are not square these are two roundings.
    size = _size(options.get("size", processor.size))
    edge = _size(processor.max_image_size).longest_edge
    seen = processor.resize(frames_B3hw, size, resample=processor.resample)
    return processor.resize(seen, SizeDict(height=edge, width=edge), resample=processor.resample)


def _to_whole_patches(processor: Any, options: dict[str, Any], frames_B3hw: Tensor) -> Tensor:
    size = _size(processor.size)
    height, width = smart_resize(
        *frames_B3hw.shape[-2:],
        factor=processor.patch_size * processor.merge_size,
        min_pixels=size.shortest_edge,
        max_pixels=size.longest_edge,
    )
    return processor.resize(frames_B3hw, SizeDict(height=height, width=width), resample=processor.resample)


def _one_stack(processor: Any, seen: list[Tensor]) -> Tensor:
    return torch.stack(seen, dim=1).flatten(0, 1)


def _per_sample(processor: Any, seen: list[Tensor]) -> Tensor:
    return torch.stack(seen, dim=1)


def _patches(processor: Any, seen: list[Tensor]) -> Tensor:
    """(patches of all pictures, values of a patch): merged neighbours together, the frame twice in time."""
    side, merge, times = processor.patch_size, processor.merge_size, processor.temporal_patch_size
    rows = []
    for frame_B3HW in seen:
        batch, channels, height, width = frame_B3HW.shape
        down, across = height // side // merge, width // side // merge
        cut = frame_B3HW.view(batch, channels, down, merge, side, across, merge, side)
        cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
        cut = cut.expand(-1, -1, -1, -1, -1, -1, times, -1, -1)
        rows.append(cut.reshape(batch, down * across * merge**2, -1))
    return torch.cat(rows, dim=1).flatten(0, 1)


LAYOUTS: dict[str, tuple[Callable, Callable]] = {
    "GotOcr2ImageProcessor": (_to_rectangle, _one_stack),
    "SmolVLMImageProcessor": (_to_square, _per_sample),
    "Idefics3ImageProcessor": (_to_square, _per_sample),
    "Qwen2VLImageProcessor": (_to_whole_patches, _patches),
}
"""How each processor resizes, and the shape of ``pixel_values`` that its VLM takes."""
