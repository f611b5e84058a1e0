"""The student's network, put together from parts that are built elsewhere.

    images, instruction ----------------------------------.
    state (B, S) ---- StateEncoder --> (B, 1, D) --.       |
                      ActionQueries -> (B, K, D) ---+--> VLMBackbone --> hidden (B, K, D)
                                                                            |
                                     action features (B, T, E) <-- ActionMapper
                                               |
                                       ActionDecoder --> raw (B, T, A) --> to_action --> environment units

The token sequence is drawn in prompts.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lerobot_policy_vita_vla.contracts import check_shape


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
        self, images: Sequence[Tensor], instructions: Sequence[str], state_BS: Tensor | None
    ) -> Tensor:
        """Action features (B, T, E).

        Args:
            images: One (B, 3, H, W) per camera, RGB in [0, 1].
            instructions: B texts.
            state_BS: Proprioceptive state in physical units; unused without a state encoder.
        """
        for image in images:
            check_shape("a camera's images", image, len(instructions), 3, None, None)
        suffix_BSD = self.queries(len(instructions))
        if self.state_encoder is not None:
            state_B1D = self.state_encoder(state_BS)
            suffix_BSD = torch.cat([state_B1D, suffix_BSD.to(state_B1D.dtype)], dim=1)
        hidden_BSD = self.backbone(images, instructions, suffix_BSD)
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
