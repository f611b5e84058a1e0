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
processed, by the image processor itself, on the batch's device. Prompts of several steps are in turns.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lerobot_policy_vita_vla.vla.pictures import StoredPictures

TILING = ("crop_to_patches", "do_image_splitting", "do_pan_and_scan")
"""Switches of image processors that cut an image into tiles: robots' images are small, so always off."""

PADDING = {"attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0}
"""Per-token inputs besides the ids, and their value on padding."""

MOST_VIEWS = 2
MOST_ROWS = 256
"""Prompts that are kept."""
"""Pictures that one camera's image may become. LLaVA-OneVision shows a lone image twice, whole and as its one
tile, and has no switch for it; anything above is a grid of tiles."""


class Prompt(NamedTuple):
    """A batch as the VLM takes it, suffix placeholders included.

    Attributes:
        tokens: Per-token inputs, (B, L+S'), S' = suffix length: ``input_ids``, ``attention_mask``, and what
            else the model asks for.
        position_ids: (B, L+S') or (3, B, L+S').
        pixels: Image inputs, shapes as the VLM's family has them.
        suffix_length: S'.
        pictures: Image embeddings (B, N x n, D) in the place of pixels, which are then empty.
    """

    tokens: dict[str, Tensor]
    position_ids: Tensor
    pixels: dict[str, Tensor]
    suffix_length: int
    pictures: Tensor | None = None


class PromptEncoder:
    """Encode batches for one VLM.

    Args:
        processor: The VLM's processor.
        template: Text of the user's turn with ``{instruction}``.
        accepts: Names of the VLM's inputs; whatever else the processor makes is dropped.
        positions: Extended inputs of one sample -> position ids (1, n) or (3, 1, n).
        suffix_values: Value of each per-token input on the suffix.
        system_prompt: Text of the system's turn, none where empty.
        limit: Longest prompt in tokens, suffix included; None: any.
    """

    def __init__(
        self,
        processor: Any,
        *,
        template: str,
        accepts: frozenset[str],
        positions: Callable[[dict[str, Tensor]], Tensor],
        suffix_values: dict[str, int],
        system_prompt: str = "",
        limit: int | None = None,
    ):
        self.processor, self.template, self.accepts = processor, template, accepts
        self.positions, self.suffix_values = positions, suffix_values
        self.system_prompt, self.limit = system_prompt, limit
        if system_prompt and getattr(processor, "chat_template", None) is None:
            raise ValueError(
                f"{type(processor).__name__} has no chat template, hence no place for a system prompt; "
                'pass --policy.system_prompt=""'
            )
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
        return self.render([self.user_turn(words, num_images)], add_generation_prompt=True)

    def user_turn(self, words: str, num_images: int) -> dict[str, Any]:
        """The user's message of one step."""
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": words}]
        return {"role": "user", "content": content}

    def render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        """Messages as the VLM's chat template writes them, behind the system's turn."""
        if self.system_prompt:
            system = [{"type": "text", "text": self.system_prompt}]
            messages = [{"role": "system", "content": system}, *messages]
        return self.processor.apply_chat_template(
            messages,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            # SmolVLM adds video options of its own and warns about them unless it finds this dictionary.
            processor_kwargs={"padding": False},
        )

    def encode(
        self, images: Sequence[Tensor] | StoredPictures, instructions: Sequence[str], suffix_length: int
    ) -> Prompt:
        """Make a batch.

        Args:
            images: One (B, 3, H, W) per camera, RGB in [0, 1]; or their embeddings, computed before.
            instructions: B texts.
            suffix_length: S'.
        """
        stored = images.embeddings_BND if isinstance(images, StoredPictures) else None
        if stored is None:
            sizes, device = tuple(tuple(image.shape[-2:]) for image in images), images[0].device
        else:
            sizes, device = images.sizes, stored.device
        distinct = tuple(sorted(set(instructions)))
        key = (distinct, sizes, suffix_length, device)
        if key not in self._tables:
            if len(self._tables) >= 64:
                # Batches of many tasks draw ever new sets of instructions; rows stay cached.
                self._tables.clear()
            rows = [self._row(instruction, sizes, suffix_length) for instruction in distinct]
            tokens, positions = pad_left(rows, self.processor.tokenizer.pad_token_id)
            self._tables[key] = {k: v.to(device) for k, v in tokens.items()}, positions.to(device)
        tokens, positions = self._tables[key]
        index = torch.tensor([distinct.index(instruction) for instruction in instructions], device=device)
        tokens = {name: table.index_select(0, index) for name, table in tokens.items()}
        positions = positions.index_select(-2, index)
        if stored is not None:
            return Prompt(tokens, positions, {}, suffix_length, stored)
        return Prompt(tokens, positions, self.pixels(images), suffix_length)

    def row(
        self, instruction: str, sizes: tuple[tuple[int, int], ...], suffix_length: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Per-token inputs (1, n) and position ids (1, n) or (3, 1, n) of one sample, made once, on the host.

        Args:
            instruction: Its text.
            sizes: (h, w) of each camera's picture.
            suffix_length: S'.
        """
        return self._row(instruction, sizes, suffix_length)

    def pixels(self, images: Sequence[Tensor]) -> dict[str, Tensor]:
        """Images (B, 3, H, W), bytes or in [0, 1], one per camera -> the VLM's image inputs."""
        frames = [as_bytes(image) for image in images]
        return self.pixels_of([list(sample) for sample in zip(*frames, strict=True)])

    def pixels_of(self, samples: list[list[Tensor]]) -> dict[str, Tensor]:
        """Bytes (3, H, W), the images of each sample in the order of its prompt -> the VLM's image inputs."""
        return self._keep(self._process_images(samples))

    def _process_images(self, samples: list[list[Tensor]]) -> dict[str, Tensor]:
        processor = self.processor.image_processor
        # All images of a batch have one size per camera; padding them one by one would only cost time.
        equal = len({tuple(image.shape) for image in samples[0]}) == len({len(s) for s in samples}) == 1
        padding = {"do_pad": False} if equal and hasattr(processor, "do_pad") else {}
        return processor(images=samples, return_tensors="pt", **self.image_options, **padding)

    def _row(self, instruction: str, sizes: tuple, suffix_length: int) -> tuple[dict[str, Tensor], Tensor]:
        key = (instruction, sizes, suffix_length)
        if key not in self._rows:
            inputs = self.process(self.text(instruction, len(sizes)), sizes)
            tokens = {k: v for k, v in inputs.items() if k == "input_ids" or k in PADDING}
            values = {"input_ids": self.placeholder_id, "attention_mask": 1} | self.suffix_values
            tokens = {
                k: torch.cat([v, v.new_full((1, suffix_length), values.get(k, 0))], 1)
                for k, v in tokens.items()
            }
            self.check_length(tokens["input_ids"].shape[1], len(sizes))
            if len(self._rows) >= MOST_ROWS:  # a server may be asked in ever new words
                del self._rows[next(iter(self._rows))]
            self._rows[key] = tokens, self.positions(inputs | tokens)
        return self._rows[key]

    def process(self, text: str, sizes: tuple) -> dict[str, Tensor]:
        """What the processor makes of one prompt with blank images of these sizes."""
        bos = self.processor.tokenizer.bos_token
        # A template that writes the start token itself must not get a second one.
        extra = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
        blank = [torch.zeros(3, *size, dtype=torch.uint8) for size in sizes]
        made = self.processor(text=[text], images=[blank], return_tensors="pt", **self.image_options, **extra)
        inputs = self._keep(made)
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        if (views := _views_per_image(inputs, len(sizes))) > MOST_VIEWS:
            raise ValueError(
                f"{type(self.processor.image_processor).__name__} cuts each image of {sizes[0][0]} x "
                f"{sizes[0][1]} px into {views} tiles, and none of the switches {TILING} turns that off: the "
                f"prompt would be {inputs['input_ids'].shape[1]} tokens long. Give it smaller images, change "
                "its settings in the VLM's preprocessor_config.json, or choose another VLM"
            )
        return inputs

    def check_length(self, length: int, num_images: int) -> None:
        """Raise ValueError for a prompt of ``length`` tokens that the model has no positions for."""
        if self.limit is not None and length > self.limit:
            raise ValueError(
                f"the prompt has {length} tokens ({num_images} images among them), but the VLM reads at most "
                f"{self.limit}; use fewer cameras, smaller images or a shorter history "
                "(--policy.n_obs_steps), or a VLM with a longer context"
            )

    def _keep(self, made: Any) -> dict[str, Tensor]:
        return {name: value for name, value in made.items() if name in self.accepts}


def as_bytes(image: Tensor) -> Tensor:
    """[0, 1] -> 0..255: as bytes, which camera frames are, a processor resizes and rounds as for a file.

    What is bytes already stays as it is.
    """
    if image.dtype == torch.uint8:
        return image
    return (image * 255.0).round_().clamp_(0, 255).to(torch.uint8)


def _views_per_image(inputs: dict[str, Tensor], num_images: int) -> int:
    """How many pictures the image processor makes of each image."""
    if "image_grid_thw" in inputs:
        return len(inputs["image_grid_thw"]) // num_images
    # (..., 3, H, W), with any axes for samples, images and tiles in front.
    return inputs["pixel_values"].shape[:-3].numel() // num_images


def pad_left(
    rows: list[tuple[dict[str, Tensor], Tensor]], pad_id: int, length: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of one sample each -> per-token inputs (R, n) and position ids (R, n) or (3, R, n).

    n is the longest row's length, or ``length`` where that is more.
    """
    length = max(length, *(tokens["input_ids"].shape[1] for tokens, _ in rows))
    fill = {"input_ids": pad_id} | PADDING

    def pad(row: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(row, (length - row.shape[-1], 0), value=value)

    names = rows[0][0].keys()
    tokens = {name: torch.cat([pad(row[name], fill[name]) for row, _ in rows]) for name in names}
    return tokens, torch.cat([pad(positions, 0) for _, positions in rows], dim=-2)
