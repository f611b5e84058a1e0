"""The student's network, put together from parts that are built elsewhere.

    images, instruction ----------------------------------.
    state (B, S) ---- StateEncoder --> (B, 1, D) --.       |
                      ActionQueries -> (B, K, D) ---+--> VLMBackbone --> hidden (B, K, D)
                                                                            |
                                     action features (B, T, E) <-- ActionMapper
                                               |
                                       ActionDecoder --> raw (B, T, A) --> to_action --> environment units

The token sequence is drawn in prompts.py. With a history of H steps (turns.py) every step has its own state,
queries and action features: rows are then the n steps that exist, of all samples one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lerobot_policy_vita_vla.contracts import check_shape
from lerobot_policy_vita_vla.vla.pictures import StoredPictures


class VitaVLANetwork(nn.Module):
    """Backbone, state encoder, queries, mapper and decoder.

    Args:
        backbone: A `VLMBackbone`.
        state_encoder: A `StateEncoder`, or None for a student that does not read its state.
        queries: An `ActionQueries`.
        mapper: An `ActionMapper`.
        decoder: An `ActionDecoder`.
        chunk_size: T.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        state_encoder: nn.Module | None,
        queries: nn.Module,
        mapper: nn.Module,
        decoder: nn.Module,
        chunk_size: int,
    ):
        super().__init__()
        self.backbone, self.state_encoder, self.queries = backbone, state_encoder, queries
        self.mapper, self.decoder, self.chunk_size = mapper, decoder, chunk_size

    def features(
        self,
        images: Sequence[Tensor] | StoredPictures,
        instructions: Sequence[str],
        state_BS: Tensor | None,
    ) -> Tensor:
        """Action features (B, T, E).

        Args:
            images: One (B, 3, H, W) per camera, RGB in [0, 1]; or their embeddings, computed before.
            instructions: B texts.
            state_BS: Proprioceptive state in physical units; unused without a state encoder.
        """
        if not isinstance(images, StoredPictures):
            for image in images:
                check_shape("a camera's images", image, len(instructions), 3, None, None)
        return self.mapped(self.backbone(images, instructions, self.suffix(len(instructions), state_BS)))

    def step_features(
        self,
        images: Sequence[Tensor],
        instructions: Sequence[str],
        state_BHS: Tensor | None,
        valid_BH: Tensor,
    ) -> Tensor:
        """Action features (n, T, E) of every step of a history.

        Args:
            images: One (B, H, 3, h, w) per camera, RGB in [0, 1].
            instructions: B texts.
            state_BHS: Proprioceptive state in physical units; unused without a state encoder.
            valid_BH: True for the n steps that exist, the last ones of a row.
        """
        slots_nSD = self._slots(images, instructions, state_BHS, valid_BH)
        return self.mapped(self.backbone.turns_pass(images, instructions, slots_nSD, valid_BH))

    def act_on_history(
        self,
        images: Sequence[Tensor],
        instructions: Sequence[str],
        state_BHS: Tensor | None,
        valid_BH: Tensor,
        past: Any = None,
    ) -> tuple[Tensor, Any]:
        """Action chunk (B, T, A) of the newest step, in environment units, and the past for the next one.

        Arguments as of `step_features`; ``past`` as of `VLMBackbone.turn_step`.
        """
        slots_nSD = self._slots(images, instructions, state_BHS, valid_BH)
        hidden_BSD, past = self.backbone.turn_step(images, instructions, slots_nSD, valid_BH, past)
        return self.decoder.to_action(self.decoder(self.mapped(hidden_BSD))), past

    def _slots(
        self,
        images: Sequence[Tensor],
        instructions: Sequence[str],
        state_BHS: Tensor | None,
        valid_BH: Tensor,
    ) -> Tensor:
        for image in images:
            check_shape("a camera's images", image, len(instructions), valid_BH.shape[1], 3, None, None)
        if self.state_encoder is None:
            return self.suffix(int(valid_BH.sum()), None)
        check_shape("observation.state", state_BHS, *valid_BH.shape, None)
        return self.suffix(int(valid_BH.sum()), state_BHS[valid_BH])

    def suffix(self, rows: int, state_BS: Tensor | None) -> Tensor:
        """Embeddings of state and queries (rows, S', D)."""
        suffix_BSD = self.queries(rows)
        if self.state_encoder is None:
            return suffix_BSD
        state_B1D = self.state_encoder(state_BS)
        return torch.cat([state_B1D, suffix_BSD.to(state_B1D.dtype)], dim=1)

    def mapped(self, hidden_BSD: Tensor) -> Tensor:
        """Action features (B, T, E) from the hidden states of the suffix, or of the queries alone."""
        features_BTE = self.mapper(hidden_BSD[:, -self.queries.num_queries :])
        check_shape(
            "the mapper's action features", features_BTE, None, self.chunk_size, self.decoder.feature_dim
        )
        return features_BTE

    def act(self, images: Sequence[Tensor], instructions: Sequence[str], state_BS: Tensor | None) -> Tensor:
        """Action chunk (B, T, A) in environment units."""
        return self.decoder.to_action(self.decoder(self.features(images, instructions, state_BS)))

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """Every parameter once, by part (see stages.py) and name."""
        parts = {
            part: {f"backbone.{name}": parameter for name, parameter in parameters.items()}
            for part, parameters in self.backbone.parts().items()
        }
        for part in ("state_encoder", "queries", "mapper", "decoder"):
            module = getattr(self, part)
            named = module.named_parameters() if module is not None else ()
            parts[part] = {f"{part}.{name}": parameter for name, parameter in named}
        return parts
