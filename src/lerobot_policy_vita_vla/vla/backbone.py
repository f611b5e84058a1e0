"""A Hugging Face VLM as the student's trunk. Only this file knows the inside of such models.

State and query embeddings enter by a forward hook on the token embedding module, which overwrites the last
columns; out come the last hidden states of those columns, never words (the head over the vocabulary is not
called). Two ways to the same numbers:

    one pass    base model over [prefix, suffix]                          the VLM learns, or nothing does
    cached      base model over the prefix without gradient, keeping      the VLM stands still but gradients
                keys and values; decoder over the suffix with gradient    reach state encoder and queries

What makes it work in any family (measured in nine of them): position ids are always explicit, padding is on
the left (sliding windows count physical columns), a frozen VLM stays in eval().

A history (turns.py) has slots in every turn, not only at the end, and a step's images see the queries before
them, which are learned. It therefore takes one pass with gradient in training. In acting, the keys and values
of the steps so far serve the next one (`turns_pass`), until the window is full and its oldest step leaves:
all later keys and values depended on that step, so then the whole prompt is computed anew.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import DynamicCache

from lerobot_policy_vita_vla.contracts import check_shape
from lerobot_policy_vita_vla.vla.caches import Past, PrefixCache, PrefixDone
from lerobot_policy_vita_vla.vla.pictures import PictureWriter, StoredPictures
from lerobot_policy_vita_vla.vla.prompts import Prompt, PromptEncoder
from lerobot_policy_vita_vla.vla.turns import TurnEncoder, TurnPrompt
from lerobot_policy_vita_vla.vla.vlm_contract import check_vlm, parts_of, projectors

CAUSAL_TOKEN_TYPE = {"paligemma": 1}
"""token_type_ids of causal text after the prompt, where it is not 0 (PaliGemma: 0 is bidirectional)."""

READS_BOTH_WAYS = "token_type_ids"
"""The input by which a family marks tokens that see later ones (Gemma 3: the tokens of one image), which it
honours only in a first pass; a prompt of such a family cannot be continued from its keys and values."""


class VLMBackbone(nn.Module):
    """Hidden states of a VLM at tokens that are not words.

    Args:
        vlm: A ``...ForConditionalGeneration`` of transformers.
        processor: Its processor.
        template: Text of the user's turn, with ``{instruction}``.
        system_prompt: Text of the system's turn, none where empty.

    Attributes:
        cached: Whether training runs the prefix without gradient (stages in which the whole VLM is frozen).
        turns: Set by `read_histories`: how several steps are read; None: single steps.
    """

    def __init__(
        self, vlm: nn.Module, processor: Any, *, template: str = "{instruction}", system_prompt: str = ""
    ):
        super().__init__()
        check_vlm(vlm, processor)
        self.vlm, self.processor = vlm, processor
        self.cached = False
        self.width: int = vlm.config.get_text_config().hidden_size
        base = vlm.base_model
        model_type = vlm.config.model_type
        self.prompts = PromptEncoder(
            processor,
            template=template,
            accepts=frozenset(inspect.signature(base.forward).parameters) - {"labels", "position_ids"},
            positions=self._positions,
            suffix_values={"token_type_ids": CAUSAL_TOKEN_TYPE.get(model_type, 0)},
            system_prompt=system_prompt,
            limit=getattr(vlm.config.get_text_config(), "max_position_embeddings", None),
        )
        self.turns: TurnEncoder | None = None
        self._suffix: Tensor | None = None
        self._slots: tuple[Tensor, Tensor] | None = None
        self._suffix_shape, self._writes = torch.Size(), 0
        self._pictures = PictureWriter(vlm)
        vlm.get_input_embeddings().register_forward_hook(self._write_suffix)
        for projector in projectors(base):
            projector.register_forward_hook(self._match_embedding_dtype)

    def forward(
        self, images: Sequence[Tensor] | StoredPictures, instructions: Sequence[str], suffix_BSD: Tensor
    ) -> Tensor:
        """Last hidden states of the suffix.

        Args:
            images: One (B, 3, H, W) per camera, in [0, 1]; or their embeddings, computed before.
            instructions: B texts.
            suffix_BSD: Embeddings of the suffix, (B, S', D).

        Returns:
            (B, S', D).
        """
        check_shape("suffix embeddings", suffix_BSD, len(instructions), None, self.width)
        with torch.no_grad():
            prompt = self.prompts.encode(images, instructions, suffix_BSD.shape[1])
        # A suffix in another type than the weights makes the decoder's first layer raise.
        suffix_BSD = suffix_BSD.to(self.vlm.get_input_embeddings().weight.dtype)
        if self.cached and torch.is_grad_enabled():
            return self.cached_pass(prompt, suffix_BSD)
        return self.one_pass(prompt, suffix_BSD)

    def one_pass(self, prompt: Prompt, suffix_BSD: Tensor) -> Tensor:
        """Prefix and suffix together, gradient through whatever requires it."""
        ids = prompt.tokens["input_ids"]
        with self._injecting(ids.shape, suffix_BSD), self._pictures.showing(ids, prompt.pictures):
            out = self.vlm.base_model(
                **prompt.tokens, **prompt.pixels, position_ids=prompt.position_ids, use_cache=False
            )
        return out.last_hidden_state[:, -prompt.suffix_length :]

    def cached_pass(self, prompt: Prompt, suffix_BSD: Tensor) -> Tensor:
        """Prefix without gradient, then the suffix on its keys and values, with gradient."""
        assert not self.vlm.base_model.training, "a model in train() drops the cache under checkpointing"
        split = -prompt.suffix_length
        prefix = {name: value[:, :split] for name, value in prompt.tokens.items()}
        cache = PrefixCache(config=self.vlm.config.get_text_config())
        # Sharded models gather and free their weights in hooks that leaving early would skip.
        cache.leaves_early = not (dist.is_available() and dist.is_initialized())
        shown = self._pictures.showing(prefix["input_ids"], prompt.pictures)
        with torch.no_grad(), contextlib.suppress(PrefixDone), shown:
            self.vlm.base_model(
                **prefix,
                **prompt.pixels,
                position_ids=prompt.position_ids[..., :split],
                past_key_values=cache,
                use_cache=True,
            )
        cache.leaves_early = False
        # The cache is extended in place, so it serves one suffix and is thrown away.
        out = self.vlm.base_model.get_decoder()(
            inputs_embeds=suffix_BSD,
            attention_mask=prompt.tokens["attention_mask"],
            position_ids=prompt.position_ids[..., split:],
            past_key_values=cache,
            use_cache=True,
        )
        return out.last_hidden_state

    def read_histories(self, *, num_queries: int, has_state: bool, separator: str = "") -> None:
        """Read one turn per step from now on; see `turns.TurnEncoder`."""
        self.turns = TurnEncoder(
            self.prompts, num_queries=num_queries, has_state=has_state, separator=separator
        )

    def turns_pass(
        self, images: Sequence[Tensor], instructions: Sequence[str], slots_nSD: Tensor, valid_BH: Tensor
    ) -> Tensor:
        """Last hidden states of the slots of all steps, with gradient through whatever requires it.

        Args:
            images: One (B, H, 3, h, w) per camera, in [0, 1].
            instructions: B texts.
            slots_nSD: Embeddings of state and queries of the n valid steps, sample by sample.
            valid_BH: True for the steps that exist, the last ones of a row.

        Returns:
            (n, S', D).
        """
        with torch.no_grad():
            prompt = self.turns.encode(images, instructions, valid_BH)
        return self._run_turns(prompt, slots_nSD, None)

    @torch.no_grad()
    def turn_step(
        self,
        images: Sequence[Tensor],
        instructions: Sequence[str],
        slots_nSD: Tensor,
        valid_BH: Tensor,
        past: Past | None = None,
    ) -> tuple[Tensor, Past | None]:
        """Last hidden states of the newest step's slots; the earlier steps need not be computed again.

        Args:
            images: As of `turns_pass`, always the whole window.
            instructions: Likewise.
            slots_nSD: Likewise.
            valid_BH: Likewise.
            past: What an earlier call returned. It is used if the prompt starts with the same columns, and
                serves once, since it is extended in place. Otherwise everything is computed: when the oldest
                step left the window, an instruction changed, or samples with instructions of different
                lengths share a batch (their padding moves as they grow).

        Returns:
            (B, S', D), and the past of all steps given, or None in families that cannot be continued.
        """
        ids = self.turns.lay_out(images, instructions, valid_BH).tokens["input_ids"]
        done = 0
        if past is not None and past.keys_values.get_seq_length() != past.input_ids.shape[1]:
            raise ValueError(
                "this past has served already: a step extends its keys and values in place. Go on from what "
                "the last step returned, or call without a past"
            )
        if past is not None and torch.equal(ids[:, : past.input_ids.shape[1]], past.input_ids):
            done = past.input_ids.shape[1]
        prompt = self.turns.encode(images, instructions, valid_BH, done)
        cache = past.keys_values if done else None
        # A lone picture is shown to LLaVA-OneVision otherwise than several; a step's picture would be alone.
        changes = len(images) == 1 and "batch_num_images" in prompt.pixels
        if cache is None and READS_BOTH_WAYS not in prompt.tokens and not changes:
            cache = DynamicCache(config=self.vlm.config.get_text_config())
        hidden_nSD = self._run_turns(prompt, slots_nSD[prompt.given], cache)
        newest = torch.ones_like(prompt.rows[:, 0], dtype=torch.bool)
        newest[:-1] = prompt.rows[1:, 0] != prompt.rows[:-1, 0]
        return hidden_nSD[newest], Past(cache, ids) if cache is not None else None

    def _run_turns(self, prompt: TurnPrompt, slots_nSD: Tensor, cache: DynamicCache | None) -> Tensor:
        check_shape("slot embeddings", slots_nSD, *prompt.columns.shape, self.width)
        slots_nSD = slots_nSD.to(self.vlm.get_input_embeddings().weight.dtype)
        slots = prompt.rows, prompt.columns
        with self._injecting(prompt.tokens["input_ids"].shape, slots_nSD, slots):
            out = self.vlm.base_model(
                **prompt.tokens,
                **prompt.pixels,
                position_ids=prompt.position_ids,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return out.last_hidden_state[slots]

    @property
    def embedding_std(self) -> float:
        """Spread of the token embeddings as the decoder sees them (some families scale inside the module)."""
        embedding = self.vlm.get_input_embeddings()
        ids = torch.arange(min(embedding.num_embeddings, 4096), device=embedding.weight.device)
        with torch.no_grad():
            return embedding(ids.unsqueeze(0)).float().std().item()

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """language, vision, projector, lm_head and, with LoRA, adapters: every parameter once, by name."""
        return parts_of(self.vlm)

    def set_mode(self, training_language: bool) -> None:
        """Put the VLM in eval(), but the language model in train() where it learns (for checkpointing)."""
        self.vlm.eval()
        if training_language:
            self.vlm.base_model.get_decoder().train()

    def checkpoint_gradients(self) -> None:
        """Recompute activations in backward wherever the model is in train()."""
        checkpoint_gradients(self.vlm)

    def _positions(self, inputs: dict[str, Tensor]) -> Tensor:
        """Position ids of one unpadded sample: the family's own image grid positions, or 0, 1, 2, ..."""
        base = self.vlm.base_model
        if not hasattr(base, "get_rope_index"):
            return torch.arange(inputs["input_ids"].shape[1]).unsqueeze(0)
        if "mm_token_type_ids" not in inputs:
            raise ValueError(
                f"{type(self.vlm).__name__} has positions of several axes, but its processor gives no "
                "mm_token_type_ids, without which they are silently wrong; update transformers"
            )
        names = inspect.signature(base.get_rope_index).parameters
        positions, _ = base.get_rope_index(**{k: v for k, v in inputs.items() if k in names})
        return positions

    @contextlib.contextmanager
    def _injecting(
        self, ids_shape: torch.Size, suffix: Tensor, slots: tuple[Tensor, Tensor] | None = None
    ) -> Iterator[None]:
        self._suffix, self._slots, self._suffix_shape, self._writes = suffix, slots, ids_shape, 0
        try:
            yield
            assert self._writes == 1, f"the suffix was written {self._writes} times, expected once"
        finally:
            self._suffix = self._slots = None

    def _write_suffix(self, module: nn.Module, args: tuple, embedded: Tensor) -> Tensor | None:
        # By column, not by token id; inert unless a pass of ours is running.
        if self._suffix is None or args[0].shape != self._suffix_shape:
            return None
        self._writes += 1
        if self._slots is not None:
            return embedded.index_put(self._slots, self._suffix.to(embedded.dtype))
        return torch.cat([embedded[:, : -self._suffix.shape[1]], self._suffix.to(embedded.dtype)], dim=1)

    def _match_embedding_dtype(self, module: nn.Module, args: tuple, output: Any) -> Any:
        # Under autocast the projector's output is bfloat16 and the embeddings are float32; SmolVLM writes the
        # one into the other without casting, which raises.
        if isinstance(output, Tensor):
            return output.to(self.vlm.get_input_embeddings().weight.dtype)
        return output


def checkpoint_gradients(vlm: nn.Module) -> None:
    """Recompute a VLM's activations in backward wherever it is in train()."""
    vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # transformers also makes every embedding's output require gradients, the image encoder's too, which only
    # the reentrant kind needs: a frozen encoder would keep its activations and run a backward for nothing.
    vlm.disable_input_require_grads()
