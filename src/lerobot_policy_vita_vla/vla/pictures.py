"""Image embeddings that were computed before, written where the VLM would have put its own.

    prompt       [ <image> x n, camera 1 ] [ <image> x n, camera 2 ] [ instruction ] ...
    embedding         row                       row                     row
    overwritten   stored embeddings (B, N x n, D)                       untouched

A VLM that gets no pixels skips its image encoder. A forward hook on its token embedding then fills the image
tokens' columns, in order, which is what the families do themselves after encoding. Families in which image
features enter elsewhere too (Qwen3-VL adds them to several layers) differ; `training.vision_features`
compares both ways before it stores anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IMAGE_TOKEN = ("image_token_id", "image_token_index")
"""Names under which configurations keep the id of a prompt's image tokens."""


@dataclass(frozen=True)
class StoredPictures:
    """Stands for a batch's images where their embeddings are known.

    Args:
        embeddings_BND: (B, N x n, D), of all cameras in the order of the prompt, n tokens each.
        sizes: (h, w) of each camera's pictures, which decide the prompt.
    """

    embeddings_BND: Tensor
    sizes: tuple[tuple[int, int], ...]


class PictureWriter:
    """Writes stored image embeddings into a VLM's prompt, one pass at a time; inert otherwise.

    Args:
        vlm: A ``...ForConditionalGeneration`` of transformers.
    """

    def __init__(self, vlm: nn.Module):
        self.vlm = vlm
        self._pending: tuple[Tensor, Tensor] | None = None
        vlm.get_input_embeddings().register_forward_hook(self._write)

    @property
    def token_id(self) -> int:
        """Id of the prompt's image tokens."""
        found = [getattr(self.vlm.config, name, None) for name in IMAGE_TOKEN]
        return next(token for token in found if token is not None)

    @contextlib.contextmanager
    def showing(self, input_ids: Tensor, embeddings_BND: Tensor | None) -> Iterator[None]:
        """Within this context, a pass over ``input_ids`` sees these pictures; None: the pixels it is given.

        Raises:
            ValueError: The prompt has another number of image tokens.
        """
        if embeddings_BND is not None:
            places = input_ids == self.token_id
            wanted, given = int(places.sum()), embeddings_BND.shape[0] * embeddings_BND.shape[1]
            if wanted != given:
                raise ValueError(
                    f"the prompts have {wanted} image tokens, the stored pictures are {given}: they were "
                    "computed for other cameras or another VLM; compute them again: `vita-vla vlm features`"
                )
            self._pending = places, embeddings_BND
        try:
            yield
        finally:
            self._pending = None

    def _write(self, module: nn.Module, args: tuple, embedded: Tensor) -> Tensor | None:
        if self._pending is None or args[0].shape != self._pending[0].shape:
            return None
        places, embeddings_BND = self._pending
        return embedded.masked_scatter(places.unsqueeze(-1), embeddings_BND.to(embedded.dtype))


def embed_pictures(vlm: nn.Module, pixels: dict[str, Tensor], batch_size: int) -> Tensor:
    """Image embeddings (B, N x n, D) as a VLM computes them from its image inputs.

    Args:
        vlm: As of `PictureWriter`.
        pixels: Image inputs, as `prompts.PromptEncoder.pixels` makes them.
        batch_size: B.
    """
    made: Any = vlm.base_model.get_image_features(**pixels)
    made = getattr(made, "pooler_output", made)
    if not isinstance(made, Tensor):
        made = torch.cat(list(made))
    return made.reshape(batch_size, -1, made.shape[-1])
