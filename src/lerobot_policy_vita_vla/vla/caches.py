"""Keys and values that a VLM has computed and that later tokens read."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from transformers import DynamicCache


class Past(NamedTuple):
    """What a VLM has computed of a running episode.

    Attributes:
        keys_values: Of every column so far, extended in place.
        input_ids: (B, L), the columns.
    """

    keys_values: DynamicCache
    input_ids: Tensor


class PrefixDone(Exception):  # noqa: N818
    """Raised where the prefix pass has stored all that the suffix will read."""


class PrefixCache(DynamicCache):
    """Keys and values of the prefix; ends the prefix pass as soon as the last layer's are stored.

    What the last layer does after that (attention, MLP, the final norm) nobody reads; in a model of eight
    layers it is an eighth of the work. The pass is left by an exception, so the post-forward hooks of the
    modules around the last attention do not run.
    """

    leaves_early = True

    def update(  # noqa: D102
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ):
        stored = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self.leaves_early and layer_idx == len(self.layers) - 1:
            raise PrefixDone
        return stored
