"""A Hugging Face VLM as the student's trunk. Only this file knows the inside of such models.

State and query embeddings enter by a forward hook on the token embedding module, which overwrites the last
columns; out come the last hidden states of those columns, never words (the head over the vocabulary is not
called). Two ways to the same numbers:

    one pass    base model over [prefix, suffix]                          the VLM learns, or nothing does
    cached      base model over the prefix without gradient, keeping      the VLM stands still but gradients
                keys and values; decoder over the suffix with gradient    reach state encoder and queries

What makes it work in any family (measured in nine of them): position ids are always explicit, padding is on
the left (sliding windows count physical columns), a frozen VLM stays in eval().
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
from transformers.modeling_layers import GradientCheckpointingLayer

from lerobot_policy_vita_vla.contracts import check_shape
from lerobot_policy_vita_vla.vla.prompts import Prompt, PromptEncoder

CAUSAL_TOKEN_TYPE = {"paligemma": 1}
"""token_type_ids of causal text after the prompt, where it is not 0 (PaliGemma: 0 is bidirectional)."""


class VLMBackbone(nn.Module):
    """Hidden states of a VLM at tokens that are not words.

    Args:
        vlm: A ``...ForConditionalGeneration`` of transformers.
        processor: Its processor.
        template: Text of the user's turn, with ``{instruction}``.

    Attributes:
        cached: Whether training runs the prefix without gradient (stages in which the whole VLM is frozen).
    """

    def __init__(self, vlm: nn.Module, processor: Any, *, template: str = "{instruction}"):
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
        )
        self._suffix: Tensor | None = None
        self._suffix_shape, self._writes = torch.Size(), 0
        vlm.get_input_embeddings().register_forward_hook(self._write_suffix)
        for projector in _projectors(base):
            projector.register_forward_hook(self._match_embedding_dtype)

    def forward(self, images: Sequence[Tensor], instructions: Sequence[str], suffix_BSD: Tensor) -> Tensor:
        """Last hidden states of the suffix.

        Args:
            images: One (B, 3, H, W) per camera, in [0, 1].
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
        with self._injecting(prompt.tokens["input_ids"].shape, suffix_BSD):
            out = self.vlm.base_model(
                **prompt.tokens, **prompt.pixels, position_ids=prompt.position_ids, use_cache=False
            )
        return out.last_hidden_state[:, -prompt.suffix_length :]

    def cached_pass(self, prompt: Prompt, suffix_BSD: Tensor) -> Tensor:
        """Prefix without gradient, then the suffix on its keys and values, with gradient."""
        assert not self.vlm.base_model.training, "a model in train() drops the cache under checkpointing"
        split = -prompt.suffix_length
        prefix = {name: value[:, :split] for name, value in prompt.tokens.items()}
        cache = _PrefixCache(config=self.vlm.config.get_text_config())
        # Sharded models gather and free their weights in hooks that leaving early would skip.
        cache.leaves_early = not (dist.is_available() and dist.is_initialized())
        with torch.no_grad(), contextlib.suppress(_PrefixDone):
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

    @property
    def embedding_std(self) -> float:
        """Spread of the token embeddings as the decoder sees them (some families scale inside the module)."""
        embedding = self.vlm.get_input_embeddings()
        ids = torch.arange(min(embedding.num_embeddings, 4096), device=embedding.weight.device)
        with torch.no_grad():
            return embedding(ids.unsqueeze(0)).float().std().item()

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """language, vision, projector, lm_head and, with LoRA, adapters: every parameter once, by name."""
        base = self.vlm.base_model
        projector = {id(p) for module in _projectors(base, inside_vision=True) for p in module.parameters()}
        language = {id(p) for p in base.get_decoder().parameters()}
        vision = {id(p) for p in base.get_encoder(modality="image").parameters()} - projector
        inside = {id(p) for p in base.parameters()}
        parts = {part: {} for part in ("vision", "projector", "language", "lm_head", "adapters")}
        for name, parameter in self.vlm.named_parameters():
            key = id(parameter)
            if key in language:
                # Tied word embeddings are listed under the decoder's name and belong to it.
                part = "adapters" if ".lora_" in name else "language"
            elif key in vision:
                part = "vision"
            else:
                part = "projector" if key in inside else "lm_head"
            parts[part][f"vlm.{name}"] = parameter
        return parts

    def set_mode(self, training_language: bool) -> None:
        """Put the VLM in eval(), but the language model in train() where it learns (for checkpointing)."""
        self.vlm.eval()
        if training_language:
            self.vlm.base_model.get_decoder().train()

    def checkpoint_gradients(self) -> None:
        """Recompute activations in backward wherever the model is in train()."""
        self.vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def block_names(self) -> list[str]:
        """Class names of the repeated transformer blocks, the units of sharded training."""
        return sorted(
            {type(m).__name__ for m in self.vlm.modules() if isinstance(m, GradientCheckpointingLayer)}
        )

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
    def _injecting(self, ids_shape: torch.Size, suffix_BSD: Tensor) -> Iterator[None]:
        self._suffix, self._suffix_shape, self._writes = suffix_BSD, ids_shape, 0
        try:
            yield
            assert self._writes == 1, f"the suffix was written {self._writes} times, expected once"
        finally:
            self._suffix = None

    def _write_suffix(self, module: nn.Module, args: tuple, embedded: Tensor) -> Tensor | None:
        # By column, not by token id; inert unless a pass of ours is running.
        if self._suffix is None or args[0].shape != self._suffix_shape:
            return None
        self._writes += 1
        return torch.cat([embedded[:, : -self._suffix.shape[1]], self._suffix.to(embedded.dtype)], dim=1)

    def _match_embedding_dtype(self, module: nn.Module, args: tuple, output: Any) -> Any:
        # Under autocast the projector's output is bfloat16 and the embeddings are float32; SmolVLM writes the
        # one into the other without casting, which raises.
        if isinstance(output, Tensor):
            return output.to(self.vlm.get_input_embeddings().weight.dtype)
        return output


class _PrefixDone(Exception):  # noqa: N818
    """Raised where the prefix pass has stored all that the suffix will read."""


class _PrefixCache(DynamicCache):
    """Keys and values of the prefix; ends the prefix pass as soon as the last layer's are stored.

    What the last layer does after that (attention, MLP, the final norm) nobody reads; in a model of eight
    layers it is an eighth of the work. The pass is left by an exception, so the post-forward hooks of the
    modules around the last attention do not run.
    """

    leaves_early = True

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any):
        stored = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self.leaves_early and layer_idx == len(self.layers) - 1:
            raise _PrefixDone
        return stored


def _projectors(base: nn.Module, *, inside_vision: bool = False) -> list[nn.Module]:
    """Modules between image encoder and decoder; in Qwen-VL they are the encoder's mergers."""
    vision, language = base.get_encoder(modality="image"), base.get_decoder()
    found = [child for child in base.children() if child is not vision and child is not language]
    if inside_vision:
        found += [child for name, child in vision.named_children() if "merger" in name]
    return found


def check_vlm(vlm: nn.Module, processor: Any) -> None:
    """Raise ValueError naming what a model lacks to serve as the student's trunk."""
    name = type(vlm).__name__

    def require(met: bool, requirement: str) -> None:
        if not met:
            raise ValueError(
                f"{name} cannot be the student's VLM: {requirement}. Models of the SmolVLM, InternVL and "
                "Qwen-VL families are tested"
            )

    base = getattr(vlm, "base_model", vlm)
    require(base is not vlm, "it needs a base model without a vocabulary head (vlm.base_model)")
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
    inside = set(base.modules())
    require(
        decoder is not base and decoder in inside, "it needs a decoder of its own (base_model.get_decoder())"
    )
    encoder = base.get_encoder(modality="image") if hasattr(base, "get_encoder") else base
    require(
        encoder is not base and encoder is not decoder and encoder in inside,
        "it needs an image encoder of its own (base_model.get_encoder(modality='image'))",
    )
    require(
        vlm.get_input_embeddings() in set(decoder.modules()),
        "its token embedding must be a part of its decoder",
    )
    for module, label, needed in (
        (base, "base model", ("input_ids", "pixel_values", "position_ids", "past_key_values")),
        (decoder, "decoder", ("inputs_embeds", "attention_mask", "position_ids", "past_key_values")),
    ):
        accepted = inspect.signature(module.forward).parameters
        missing = [argument for argument in needed if argument not in accepted]
        require(not missing, f"its {label} must accept {', '.join(missing)}")
    images, tokenizer = getattr(processor, "image_processor", None), getattr(processor, "tokenizer", None)
    require(
        images is not None and tokenizer is not None, "its processor needs an image_processor and a tokenizer"
    )
    require(
        getattr(images, "backend", None) == "torchvision",
        f"its image processor must work on tensors (backend 'torchvision'), got {type(images).__name__}",
    )
    require(tokenizer.pad_token_id is not None, "its tokenizer needs a padding token")
