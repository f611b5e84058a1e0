"""Instruction encoders: strings -> one vector each.

* `HashedInstructionEncoder`: words and pairs of neighbouring words, hashed into a trained table. No
  vocabulary file, no download, and instructions that differ in a word or in word order get different vectors.
* `ClipInstructionEncoder`: the paper's frozen CLIP ViT-B/32 text model.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class HashedInstructionEncoder(nn.Module):
    """Mean of hashed word and word-pair embeddings.

    Args:
        n_buckets: Rows of the table.
        dim: Width of the vectors.
    """

    # Two rows per word: two words collide only where both of their hashes do.
    N_HASHES = 2

    def __init__(self, *, n_buckets: int = 1024, dim: int = 64):
        super().__init__()
        self.n_buckets, self.dim = n_buckets, dim
        self.table = nn.EmbeddingBag(n_buckets, dim, mode="mean")
        self._known: dict[str, list[int]] = {}

    def forward(self, instructions: Sequence[str]) -> Tensor:
        """B strings -> (B, dim); an empty instruction gives zeros."""
        bags = [self._buckets(text) for text in instructions]
        device = self.table.weight.device
        offsets = torch.tensor([0] + [len(bag) for bag in bags[:-1]]).cumsum(0)
        flat = torch.tensor([bucket for bag in bags for bucket in bag], dtype=torch.long)
        return self.table(flat.to(device), offsets.to(device))

    def _buckets(self, text: str) -> list[int]:
        if text not in self._known:
            words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
            grams = words + [f"{a} {b}" for a, b in zip(words, words[1:], strict=False)]
            # crc32 gives the same number in every process, unlike hash().
            self._known[text] = [
                zlib.crc32(f"{seed}:{gram}".encode()) % self.n_buckets
                for gram in grams
                for seed in range(self.N_HASHES)
            ]
        return self._known[text]


class ClipInstructionEncoder(nn.Module):
    """CLIP's projected text embedding, frozen; every distinct instruction is encoded once.

    Args:
        model: A `transformers.CLIPTextModelWithProjection`.
        tokenizer: Its tokenizer, or None where only parameters are counted.
    """

    def __init__(self, *, model: nn.Module, tokenizer: Any):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.dim = model.config.projection_dim
        self._known: dict[str, Tensor] = {}
        self.register_load_state_dict_post_hook(lambda module, _: module._known.clear())

    @torch.no_grad()
    def forward(self, instructions: Sequence[str]) -> Tensor:
        """B strings -> (B, dim)."""
        device = self.model.text_projection.weight.device
        if new := sorted(set(instructions) - self._known.keys()):
            length = self.model.config.max_position_embeddings
            tokens = self.tokenizer(
                new, padding=True, truncation=True, max_length=length, return_tensors="pt"
            ).to(device)
            vectors = self.model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).text_embeds
            self._known.update(zip(new, vectors.float(), strict=True))
        return torch.stack([self._known[text].to(device) for text in instructions])


def load_clip(source: str | Path) -> tuple[nn.Module, Any]:
    """CLIP's text model and tokenizer from a folder or hub id.

    Raises:
        ValueError: ``source`` does not hold all of the text model's weights.
    """
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    model, info = CLIPTextModelWithProjection.from_pretrained(source, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(
            f"{source} lacks weights of CLIP's text model: {sorted(info['missing_keys'])[:5]} ..."
        )
    # Of the whole CLIP; position_ids were stored by older versions of transformers.
    known = ("vision_model.", "visual_projection.", "logit_scale", "text_model.embeddings.position_ids")
    if unknown := sorted(key for key in info["unexpected_keys"] if not key.startswith(known)):
        raise ValueError(
            f"{source} holds weights that its config.json does not describe "
            f"({model.config.num_hidden_layers} layers): {unknown[:5]} ... Part of CLIP's text model would "
            "be left out; get config.json and weights again, from one place"
        )
    return model, AutoTokenizer.from_pretrained(source)


def clip_from_config(config: dict[str, Any]) -> nn.Module:
    """CLIP's text model with random weights, for a checkpoint to overwrite; {} gives ViT-B/32's shapes."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig(**config))
