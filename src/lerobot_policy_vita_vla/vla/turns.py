"""The prompt of several steps: one chat turn per step, oldest first, each with its own state and queries.

    [system] [user: images, instruction | assistant: state, queries] [user: ... | assistant: ...] ...
             '--------------- step 1 -----------------------------'  '------- step 2 -----------'

This is the paper's multi-turn prompt. Its own order has the state at the end of the user's turn, which
``{state}`` in the template asks for, and a blank between queries (``separator``); ours keeps them together.
Attention is causal, so a step never sees a later one, and what was computed for a step stays valid when the
next is appended. An episode's first steps make a short prompt: nothing stands for steps that do not exist.

A step's state and queries are *slots*: columns whose embedding the backbone replaces. Chat templates are
text, so the padding token stands in for a slot while text is rendered and tokenized (it occurs nowhere else),
and an ordinary token takes its place afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lerobot_policy_vita_vla.vla.prompts import PADDING, PromptEncoder, as_bytes, pad_left

STATE = "{state}"


class TurnPrompt(NamedTuple):
    """A batch of histories as the VLM takes it. n: steps of all samples together.

    Attributes:
        tokens: Per-token inputs, (B, L): ``input_ids``, ``attention_mask``, what else the model asks for.
        position_ids: (B, L) or (3, B, L).
        pixels: Image inputs.
        rows: (n, S') sample of each slot, steps in order.
        columns: (n, S') column of each slot, in the order state, queries.
        given: Which of all the batch's steps these n are, (all steps,) bool.
    """

    tokens: dict[str, Tensor]
    position_ids: Tensor
    pixels: dict[str, Tensor]
    rows: Tensor
    columns: Tensor
    given: Tensor

    def behind(self, length: int) -> TurnPrompt:
        """What is left when the first ``length`` columns have been computed; the mask stays whole."""
        tokens = {k: v if k == "attention_mask" else v[:, length:] for k, v in self.tokens.items()}
        new = (self.columns >= length).all(dim=1)
        return TurnPrompt(
            tokens,
            self.position_ids[..., length:],
            self.pixels,
            self.rows[new],
            self.columns[new] - length,
            new,
        )


class TurnEncoder:
    """Encode histories for one VLM.

    Args:
        prompts: Encodes single steps; gives template, processor and positions.
        num_queries: K.
        has_state: Whether a step has a slot for its state.
        separator: Text between the queries of a step.
    """

    def __init__(self, prompts: PromptEncoder, *, num_queries: int, has_state: bool, separator: str = ""):
        self.prompts, self.num_queries, self.has_state = prompts, num_queries, has_state
        self.separator = separator
        self.slot = prompts.processor.tokenizer.pad_token
        self._rows: dict[tuple, tuple[dict[str, Tensor], Tensor, Tensor]] = {}
        if getattr(prompts.processor, "chat_template", None) is None:
            raise ValueError(
                f"{type(prompts.processor).__name__} has no chat template, hence no turns: a history "
                "needs one turn per step. Use --policy.n_obs_steps=1, or a VLM with a chat template"
            )

    @property
    def slots_per_step(self) -> int:
        """S', state and queries."""
        return self.num_queries + self.has_state

    def text(self, instruction: str, num_images: int, steps: int) -> str:
        """The prompt of ``steps`` steps as text, up to its last slot, the padding token for every slot."""
        words = self.prompts.template.replace("{instruction}", instruction)
        in_user = STATE in words
        words = words.replace(STATE, self.slot if self.has_state else "").rstrip()
        answer = self.separator.join([self.slot] * self.num_queries)
        if self.has_state and not in_user:
            answer = self.slot + self.separator + answer
        turn = [
            self.prompts.user_turn(words, num_images),
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        text = self.prompts.render(turn * steps, add_generation_prompt=False)
        return text[: text.rfind(self.slot) + len(self.slot)]

    def encode(
        self, images: Sequence[Tensor], instructions: Sequence[str], valid_BH: Tensor, done: int = 0
    ) -> TurnPrompt:
        """Make a batch.

        Args:
            images: One (B, H, 3, h, w) per camera, RGB in [0, 1].
            instructions: B texts.
            valid_BH: True for the steps that exist; they are the last ones of a row.
            done: Columns that are computed already; they and their images are left out.
        """
        prompt = self.lay_out(images, instructions, valid_BH).behind(done)
        frames = [as_bytes(image) for image in images]
        samples: list[list[Tensor]] = [[] for _ in instructions]
        steps = valid_BH.nonzero().tolist()
        for (b, h), given in zip(steps, prompt.given.tolist(), strict=True):
            if given:
                samples[b] += [frame[b, h] for frame in frames]
        return prompt._replace(pixels=self.prompts.pixels_of(samples))

    def lay_out(self, images: Sequence[Tensor], instructions: Sequence[str], valid_BH: Tensor) -> TurnPrompt:
        """The prompt without its pixels, arguments as of `encode`."""
        sizes, device = tuple(tuple(image.shape[-2:]) for image in images), images[0].device
        steps = valid_BH.sum(dim=1).cpu()
        rows = [
            self._row(text, sizes, count) for text, count in zip(instructions, steps.tolist(), strict=True)
        ]
        tokens, positions = pad_left([row[:2] for row in rows], self.prompts.processor.tokenizer.pad_token_id)
        length = tokens["input_ids"].shape[1]
        columns = torch.cat([slots + length - row["input_ids"].shape[1] for row, _, slots in rows])
        samples = torch.arange(len(rows)).repeat_interleave(steps)
        return TurnPrompt(
            {name: value.to(device) for name, value in tokens.items()},
            positions.to(device),
            {},
            samples[:, None].expand_as(columns).to(device),
            columns.to(device),
            torch.ones(len(columns), dtype=torch.bool, device=device),
        )

    def _row(self, instruction: str, sizes: tuple, steps: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Tokens (1, n), positions and slot columns (steps, S') of one unpadded prompt."""
        key = (instruction, sizes, steps)
        if key in self._rows:
            return self._rows[key]
        if len(self._rows) >= 4096:
            self._rows.clear()
        prompts = self.prompts
        text = self.text(instruction, len(sizes), steps)
        self._check_slots(text.count(self.slot), steps)
        inputs = prompts.process(text, sizes * steps)
        tokens: dict[str, Any] = {k: v for k, v in inputs.items() if k == "input_ids" or k in PADDING}
        slots = (tokens["input_ids"][0] == prompts.processor.tokenizer.pad_token_id).nonzero()[:, 0]
        self._check_slots(len(slots), steps)
        # What the processor writes behind the text (PaliGemma a line break) belongs to no step.
        tokens = {name: value[:, : slots[-1] + 1].clone() for name, value in tokens.items()}
        for name, value in ({"input_ids": prompts.placeholder_id} | prompts.suffix_values).items():
            if name in tokens:
                tokens[name][0, slots] = value
        prompts.check_length(tokens["input_ids"].shape[1], len(sizes) * steps)
        row = tokens, prompts.positions(inputs | tokens), slots.view(steps, -1)
        self._rows[key] = row
        return row

    def _check_slots(self, found: int, steps: int) -> None:
        if found != steps * self.slots_per_step:
            raise ValueError(
                f"the chat template of {type(self.prompts.processor).__name__} made {found} places of the "
                f"{steps * self.slots_per_step} for states and queries: it drops or repeats turns, or writes "
                f"the padding token {self.slot!r} itself. Use --policy.n_obs_steps=1 or another VLM"
            )
