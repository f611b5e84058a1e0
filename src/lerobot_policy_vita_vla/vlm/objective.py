"""What the mini VLM is trained on: scenes as tokens, and the losses that say where things are.

The loss of one batch is the sum of three (equal weights, our choice)::

    captions    cross-entropy on every token of the caption. A number's target is a small bell (1 cm wide)
                around the true coordinate: saying 43 for 42.6 is nearly right, and plain cross-entropy does
                not know that.
    image       where in the picture each point lies (which image token) and where in the world, read from the
                image tokens alone by a linear head. It trains the vision tower without the detour through the
                language model, which starts to look only when there is something to see.
    text        all positions at once, read from the last hidden state at the prompt's end and at every
                caption token by a linear head. A policy's query tokens will stand in the same place.

Both heads are thrown away afterwards.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lerobot_policy_vita_vla.vlm.captions import (
    DESCRIBE,
    NUMBERS,
    caption,
    instructions,
    scene_names,
    to_centimetres,
)
from lerobot_policy_vita_vla.vlm.model import END, chat
from lerobot_policy_vita_vla.vlm.scenes import POINTS, Scenes

METRES_PER_UNIT = 0.1
"""The heads count in decimetres, so that their errors are of order one when training starts."""

BELL_CM = 1.0
"""Standard deviation of a number's target, centimetres. Our choice: one number word."""


class Losses(NamedTuple):
    """The parts of the loss of one batch, each a scalar tensor."""

    captions: Tensor
    image: Tensor
    text: Tensor


class PositionHeads(nn.Module):
    """The linear heads that pre-training adds and throws away."""

    def __init__(self, width: int, image_tokens: int):
        super().__init__()
        self.grid = math.isqrt(image_tokens)
        self.image = nn.Linear(width, len(POINTS) * 4)
        self.text = nn.Linear(width, len(POINTS) * 3)

    def image_loss(self, tokens: Tensor, points: Tensor, pixels: Tensor, known: Tensor) -> Tensor:
        """Loss on image tokens (B, n, D); points (B, 4, 3) in units, pixels (B, 4, 2), known (B, 4) bool."""
        B, n, _ = tokens.shape
        out = self.image(tokens).float().view(B, n, len(POINTS), 4)
        cell = (pixels * self.grid).long()
        inside = known & ((cell >= 0) & (cell < self.grid)).all(-1)
        target = (cell[..., 1] * self.grid + cell[..., 0]).clamp(0, n - 1)
        where = out[..., 0].transpose(1, 2)  # (B, 4, n)
        place = (where.softmax(-1)[..., None] * out[..., 1:].transpose(1, 2)).sum(2)  # (B, 4, 3)
        error = F.smooth_l1_loss(place, points, beta=0.1, reduction="none").mean(-1)
        return F.cross_entropy(where[inside], target[inside]) + error[known].mean()

    def text_loss(self, hidden: Tensor, points: Tensor, known: Tensor) -> Tensor:
        """Loss on hidden states (M, D) with each row's points (M, 4, 3) in units and known (M, 4)."""
        place = self.text(hidden).float().view(-1, len(POINTS), 3)
        return F.smooth_l1_loss(place, points, beta=0.1, reduction="none").mean(-1)[known].mean()


class CaptionData:
    """Scenes turned into tokens, kept in memory.

    Args:
        scenes: Pictures and positions.
        processor: Of the VLM.
    """

    def __init__(self, scenes: Scenes, processor):
        self.scenes, self.pad = scenes, processor.tokenizer.pad_token_id
        names = scenes.task_names
        self.task_prompts = [prompt_ids(processor, instructions()[name]) for name in names]
        self.free_prompt = prompt_ids(processor, DESCRIBE)
        tasks = [names[task] for task in scenes.tasks]
        texts = [caption(*row) for row in zip(tasks, scenes.points, scenes.gripper, strict=True)]
        self.captions = [
            torch.tensor(ids) for ids in processor.tokenizer([f" {text}{END}" for text in texts])["input_ids"]
        ]
        self.number_ids = torch.tensor(
            processor.tokenizer.convert_tokens_to_ids([f"\u0120{number}" for number in range(NUMBERS)])
        )
        self.known = torch.tensor([[name is not None for name in scene_names(task)] for task in tasks])
        self.centimetres = torch.from_numpy(to_centimetres(scenes.points)).float()
        centre = torch.tensor([0.0, 0.6, 0.15])
        self.units = (torch.from_numpy(scenes.points) - centre) / METRES_PER_UNIT
        self.pixels = torch.from_numpy(scenes.pixels)

    def __len__(self) -> int:
        return len(self.scenes)

    def batch(self, rows: Tensor, free: Tensor) -> dict[str, Tensor]:
        """Tokens of the scenes at `rows`, prompts without a task where `free`; padded on the right.

        Returns:
            ids (B, L); ``answer`` (B, L) True on caption tokens; ``values`` (B, L) the coordinate in
            centimetres that a number token stands for, NaN elsewhere; and the scenes' units, pixels and
            known.
        """
        tasks = self.scenes.tasks
        ids, answers, values = [], [], []
        for row, is_free in zip(rows.tolist(), free.tolist(), strict=True):
            prompt = self.free_prompt if is_free else self.task_prompts[tasks[row]]
            text = self.captions[row]
            value = torch.full((len(prompt) + len(text),), math.nan)
            spoken = torch.cat(
                [torch.zeros(len(prompt), dtype=torch.bool), torch.isin(text, self.number_ids)]
            )
            value[spoken] = self.centimetres[row][self.known[row]].flatten()
            ids.append(torch.cat([prompt, text]))
            answers.append(torch.arange(len(value)) >= len(prompt))
            values.append(value)
        pad = nn.utils.rnn.pad_sequence
        return {
            "ids": pad(ids, True, self.pad),
            "answer": pad(answers, True, False),
            "values": pad(values, True, math.nan),
            "images": torch.from_numpy(self.scenes.images[rows.numpy()]),
            "units": self.units[rows],
            "pixels": self.pixels[rows],
            "known": self.known[rows],
        }


def prompt_ids(processor, text: str) -> Tensor:
    """Token ids of the prompt for one picture and `text`, exactly as the processor makes them."""
    size = processor.image_processor.size["longest_edge"]
    blank = np.zeros((size, size, 3), dtype=np.uint8)
    return processor(text=[chat(processor, text)], images=[[blank]], return_tensors="pt")["input_ids"][0]


def losses(
    model, heads: PositionHeads, batch: dict[str, Tensor], pixels: Tensor, number_ids: Tensor
) -> Losses:
    """The three losses of a batch.

    Args:
        model: The VLM.
        heads: Position heads of its width.
        batch: What `CaptionData.batch` returned.
        pixels: (B, 3, h, w) in [-1, 1], what the processor would make of the batch's pictures.
        number_ids: Token ids of the number words.
    """
    base = model.model
    tokens = base.connector(base.vision_model(pixel_values=pixels).last_hidden_state)
    embeds = base.text_model.get_input_embeddings()(batch["ids"])
    image_columns = (batch["ids"] == model.config.image_token_id)[..., None].expand_as(embeds)
    embeds = embeds.masked_scatter(image_columns, tokens.to(embeds.dtype))
    # No mask: padding is on the right, where causal attention does not look back from.
    hidden = base.text_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    asked = batch["answer"].roll(-1, 1)  # the prompt's last token and every caption token but the last
    asked[:, -1] = False
    target_ids, values = batch["ids"].roll(-1, 1)[asked], batch["values"].roll(-1, 1)[asked]
    states = hidden[asked]
    log_p = model.lm_head(states).float().log_softmax(-1)
    is_number = ~values.isnan()
    word_loss = -log_p[~is_number].gather(1, target_ids[~is_number][:, None])
    bell = -0.5 * ((torch.arange(NUMBERS) - values[is_number].clamp(0, NUMBERS - 1)[:, None]) / BELL_CM) ** 2
    bell = bell.softmax(-1)
    # The bell's own entropy is subtracted, so that a perfect model scores 0.
    number_loss = (bell * (bell.clamp_min(1e-12).log() - log_p[is_number][:, number_ids])).sum(-1)
    captions = (word_loss.sum() + number_loss.sum()) / len(target_ids)
    owner = torch.arange(len(asked))[:, None].expand_as(asked)[asked]
    image = heads.image_loss(tokens, batch["units"], batch["pixels"], batch["known"])
    return Losses(captions, image, heads.text_loss(states, batch["units"][owner], batch["known"][owner]))


def to_pixels(images: Tensor, jitter: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """Pictures as the vision tower wants them, in random light if `jitter` is set.

    Args:
        images: (B, h, w, 3) uint8.
        jitter: Largest relative change of contrast, and of brightness in units of half the range.
        generator: Source of randomness.

    Returns:
        (B, 3, h, w) float32 in [-1, 1], without jitter exactly what the processor gives.
    """
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    if jitter:
        change = (torch.rand(2, len(pixels), 1, 1, 1, generator=generator) * 2 - 1) * jitter
        pixels = (pixels * (1 + change[0]) + change[1]).clamp(-1, 1)
    return pixels
