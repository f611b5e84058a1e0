"""From images and instructions to a VLM's inputs, through its own processor.

One sample, read causally from left to right, padded on the left:

    [padding] [chat: user, images of camera 1..N, instruction, assistant] | [state] [query 1] ... [query K]
              '----------------- prefix, L tokens ---------------------'    '------- suffix, 1+K ---------'

The prefix is what the VLM's processor makes of a user's turn with N images and the instruction, ready for
the assistant's answer; processors without a chat template get the image markers, then the instruction. The
suffix is the start of that answer. Its columns hold an ordinary token id as a placeholder, whose embedding
the backbone replaces: no new vocabulary. (The paper puts the state into the user's turn; behind it, the
prefix does not depend on what is learned in stage 1 and needs no gradient.)

The text of an instruction never changes, so its token row is made once and cached; per batch only pixels are
processed, by the image processor itself, on the batch's device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILING = ("crop_to_patches", "do_image_splitting", "do_pan_and_scan")
"""Switches of image processors that cut an image into tiles: robots' images are small, so always off."""

PADDING = {"attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0}
"""Per-token inputs besides the ids, and their value on padding."""


class Prompt(NamedTuple):
    """A batch as the VLM takes it, suffix placeholders included.

    Attributes:
        tokens: Per-token inputs, (B, L+S'), S' = suffix length: ``input_ids``, ``attention_mask``, and what
            else the model asks for.
        position_ids: (B, L+S') or (3, B, L+S').
        pixels: Image inputs, shapes as the VLM's family has them.
        suffix_length: S'.
    """

    tokens: dict[str, Tensor]
    position_ids: Tensor
    pixels: dict[str, Tensor]
    suffix_length: int


class PromptEncoder:
    """Encode batches for one VLM.

    Args:
        processor: The VLM's processor.
        template: Text of the user's turn with ``{instruction}``.
        accepts: Names of the VLM's inputs; whatever else the processor makes is dropped.
        positions: Extended inputs of one sample -> position ids (1, n) or (3, 1, n).
        suffix_values: Value of each per-token input on the suffix.
    """

    def __init__(
        self,
        processor: Any,
        *,
        template: str,
        accepts: frozenset[str],
        positions: Callable[[dict[str, Tensor]], Tensor],
        suffix_values: dict[str, int],
    ):
        self.processor, self.template, self.accepts = processor, template, accepts
        self.positions, self.suffix_values = positions, suffix_values
        images, tokenizer = processor.image_processor, processor.tokenizer
        self.image_options: dict[str, Any] = {name: False for name in TILING if hasattr(images, name)}
        if hasattr(images, "max_image_size") and "do_image_splitting" in self.image_options:
            # Without tiles, Idefics' processor would enlarge to the tiled size only to shrink again.
            self.image_options["size"] = dict(images.max_image_size)
        special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
        self.placeholder_id = next(i for i in range(len(tokenizer)) if i not in special)
        self._rows: dict[tuple, tuple[dict[str, Tensor], Tensor]] = {}
        self._tables: dict[tuple, tuple[dict[str, Tensor], Tensor]] = {}

    def text(self, instruction: str, num_images: int) -> str:
        """The prompt as text, one marker per image."""
        words = self.template.replace("{instruction}", instruction)
        if getattr(self.processor, "chat_template", None) is None:
            return self.processor.image_token * num_images + words
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": words}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=False,
            # SmolVLM adds video options of its own and warns about them unless it finds this dictionary.
            processor_kwargs={"padding": False},
        )

    def encode(self, images: Sequence[Tensor], instructions: Sequence[str], suffix_length: int) -> Prompt:
        """Make a batch.

        Args:
            images: One (B, 3, H, W) per camera, RGB in [0, 1].
            instructions: B texts.
            suffix_length: S'.
        """
        sizes, device = tuple(tuple(image.shape[-2:]) for image in images), images[0].device
        distinct = tuple(sorted(set(instructions)))
        key = (distinct, sizes, suffix_length, device)
        if key not in self._tables:
            if len(self._tables) >= 64:
                # Batches of many tasks draw ever new sets of instructions; rows stay cached.
                self._tables.clear()
            rows = [self._row(instruction, sizes, suffix_length) for instruction in distinct]
            tokens, positions = _pad_left(rows, self.processor.tokenizer.pad_token_id)
            self._tables[key] = {k: v.to(device) for k, v in tokens.items()}, positions.to(device)
        tokens, positions = self._tables[key]
        index = torch.tensor([distinct.index(instruction) for instruction in instructions], device=device)
        tokens = {name: table.index_select(0, index) for name, table in tokens.items()}
        return Prompt(tokens, positions.index_select(-2, index), self.pixels(images), suffix_length)

    def pixels(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """Images (B, 3, H, W) in [0, 1], one per camera -> the VLM's image inputs."""
        # Camera frames are bytes; as bytes the processor resizes and rounds exactly as it does for a file.
        frames = [(image * 255.0).round_().clamp_(0, 255).to(torch.uint8) for image in images]
        return self._keep(self._process_images([list(sample) for sample in zip(*frames, strict=True)]))

    def _process_images(self, samples: list[list[Tensor]]) -> dict[str, Tensor]:
        processor = self.processor.image_processor
        # All images of a batch have one size per camera; padding them one by one would only cost time.
        equal = len({tuple(image.shape) for image in samples[0]}) == 1
        padding = {"do_pad": False} if equal and hasattr(processor, "do_pad") else {}
        return processor(images=samples, return_tensors="pt", **self.image_options, **padding)

    def _row(self, instruction: str, sizes: tuple, suffix_length: int) -> tuple[dict[str, Tensor], Tensor]:
        key = (instruction, sizes, suffix_length)
        if key not in self._rows:
            text = self.text(instruction, len(sizes))
            bos = self.processor.tokenizer.bos_token
            # A template that writes the start token itself must not get a second one.
            extra = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
            blank = [torch.zeros(3, *size, dtype=torch.uint8) for size in sizes]
            made = self.processor(
                text=[text], images=[blank], return_tensors="pt", **self.image_options, **extra
            )
            inputs = self._keep(made)
            inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
            tokens = {k: v for k, v in inputs.items() if k == "input_ids" or k in PADDING}
            values = {"input_ids": self.placeholder_id, "attention_mask": 1} | self.suffix_values
            tokens = {
                k: torch.cat([v, v.new_full((1, suffix_length), values.get(k, 0))], 1)
                for k, v in tokens.items()
            }
            self._rows[key] = tokens, self.positions(inputs | tokens)
        return self._rows[key]

    def _keep(self, made: Any) -> dict[str, Tensor]:
        return {name: value for name, value in made.items() if name in self.accepts}


def _pad_left(rows: list[tuple[dict[str, Tensor], Tensor]], pad_id: int) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of one sample each -> per-token inputs (R, n) and position ids (R, n) or (3, R, n)."""
    length = max(tokens["input_ids"].shape[1] for tokens, _ in rows)
    fill = {"input_ids": pad_id} | PADDING

    def pad(row: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(row, (length - row.shape[-1], 0), value=value)

    names = rows[0][0].keys()
    tokens = {name: torch.cat([pad(row[name], fill[name]) for row, _ in rows]) for name in names}
    return tokens, torch.cat([pad(positions, 0) for _, positions in rows], dim=-2)
