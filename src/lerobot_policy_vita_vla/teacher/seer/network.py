"""Seer's network: observations of H steps -> action features of H steps.

``layout.py`` draws the token sequence and says who reads whom. Shape letters as in ``contracts.py``, and

    H history steps   K tokens per step   M = H K tokens in all   Q image tokens per camera
    F foresight tokens per camera   X pictures, any batch of them   h, w pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lerobot_policy_vita_vla.contracts import check_shape
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder
from lerobot_policy_vita_vla.teacher.seer.layout import StepLayout


class SeerOutput(NamedTuple):
    """What the network computes for every step of the history.

    Attributes:
        action_BHTE: Action features: the trunk's output at the action queries, what the decoder reads.
        foresight_BHNFE: The trunk's output at the foresight queries.
        seen_BHG: The text and image tokens before the trunk, side by side: what the auxiliary head reads.
    """

    action_BHTE: Tensor
    foresight_BHNFE: Tensor
    seen_BHG: Tensor


class SeerNetwork(nn.Module):
    """Encoders, trunk and heads, all built outside and passed in.

    Args:
        layout: Token counts of one step.
        n_obs_steps: H.
        width: E.
        state_dim: S.
        instruction_encoder: Strings -> (B, F).
        state_encoder: (B, H, S) -> (B, H, E).
        image_encoder: Pictures and instruction vectors -> ``(tokens_XQC, summary_XC)``.
        trunk: (B, M, E) and mask -> (B, M, E).
        decoder: Action features -> action chunk.
        foresight_decoder: Foresight tokens -> future picture, or None.
        n_auxiliary: Privileged numbers to predict from what was seen, 0 for no such head.
        use_images: False shows black pictures.
        use_state: False shows the mean state.
        use_instruction: False shows the empty instruction.
    """

    def __init__(
        self,
        *,
        layout: StepLayout,
        n_obs_steps: int,
        width: int,
        state_dim: int,
        instruction_encoder: nn.Module,
        state_encoder: nn.Module,
        image_encoder: nn.Module,
        trunk: nn.Module,
        decoder: ActionDecoder,
        foresight_decoder: nn.Module | None = None,
        n_auxiliary: int = 0,
        use_images: bool = True,
        use_state: bool = True,
        use_instruction: bool = True,
    ):
        super().__init__()
        self.layout, self.n_obs_steps, self.state_dim = layout, n_obs_steps, state_dim
        self.use_images, self.use_state, self.use_instruction = use_images, use_state, use_instruction
        self.instruction_encoder = instruction_encoder
        self.text_projector = nn.Linear(instruction_encoder.dim, width)
        self.state_encoder = state_encoder
        self.image_encoder = image_encoder
        self.image_projectors = nn.ModuleList(
            nn.Linear(image_encoder.token_dim, width) for _ in range(layout.n_cameras)
        )
        self.cls_projectors = nn.ModuleList(
            nn.Linear(image_encoder.summary_dim, width) for _ in range(layout.n_cameras)
        )
        self.foresight_queries = nn.Parameter(0.02 * torch.randn(layout.foresight, width))
        self.action_queries = nn.Parameter(0.02 * torch.randn(layout.action_tokens, width))
        self.time_embedding = nn.Parameter(0.02 * torch.randn(n_obs_steps, 1, width))
        self.embedding_layer_norm = nn.LayerNorm(width)
        self.trunk = trunk
        self.decoder = decoder
        self.foresight_decoder = foresight_decoder
        self.auxiliary_head = None
        if n_auxiliary:
            # It reads the instruction too: which object counts, and where such objects are, depends on it.
            seen = width * (1 + layout.n_cameras * (layout.image_tokens + 1))
            self.auxiliary_head = nn.Sequential(nn.Linear(seen, 128), nn.GELU(), nn.Linear(128, n_auxiliary))
        self.register_buffer("state_mean", torch.zeros(state_dim))
        self.register_buffer("state_std", torch.ones(state_dim))
        self.register_buffer("auxiliary_mean", torch.zeros(n_auxiliary))
        self.register_buffer("mask_MM", layout.attention_mask(n_obs_steps), persistent=False)

    @property
    def frozen(self) -> list[nn.Module]:
        """The pretrained encoders, which stay in eval mode."""
        found = (getattr(self.image_encoder, "vit", None), getattr(self.instruction_encoder, "model", None))
        return [module for module in found if module is not None]

    def forward(self, pictures_BHN3hw: Tensor, state_BHS: Tensor, instructions: Sequence[str]) -> SeerOutput:
        """Run encoders and trunk.

        Args:
            pictures_BHN3hw: In [0, 1], all of the encoder's size.
            state_BHS: Physical units.
            instructions: One per sample, the same for all of its steps.
        """
        tokens_BHKE = self.embed(pictures_BHN3hw, state_BHS, instructions)
        text_BH1E, images_BHNE = tokens_BHKE[:, :, :1], tokens_BHKE[:, :, 2 : self.layout.observed]
        hidden_BHKE = self.transform(tokens_BHKE)
        foresight = hidden_BHKE[:, :, self.layout.foresight_slice]
        return SeerOutput(
            action_BHTE=hidden_BHKE[:, :, self.layout.action_slice],
            foresight_BHNFE=foresight.unflatten(2, (self.layout.n_cameras, -1)),
            seen_BHG=torch.cat([text_BH1E, images_BHNE], dim=2).flatten(2),
        )

    def embed(self, pictures_BHN3hw: Tensor, state_BHS: Tensor, instructions: Sequence[str]) -> Tensor:
        """Observations -> tokens (B, H, K, E), before time embedding and norm."""
        b, n = len(state_BHS), self.layout.n_cameras
        check_shape("pictures", pictures_BHN3hw, b, self.n_obs_steps, n, 3, None, None)
        check_shape("state", state_BHS, b, self.n_obs_steps, self.state_dim)
        h = self.n_obs_steps
        instructions = instructions if self.use_instruction else [""] * b
        text_BF = self.instruction_encoder(instructions)
        text_BE = self.text_projector(text_BF)
        state_BHS = (state_BHS.float() - self.state_mean) / self.state_std
        state_BHE = self.state_encoder(state_BHS if self.use_state else torch.zeros_like(state_BHS))
        if self.use_images:
            text_XF = text_BF.repeat_interleave(h * n, dim=0)
            tokens_XQC, summary_XC = self.image_encoder(pictures_BHN3hw.flatten(0, 2), text_XF)
        else:
            tokens_XQC, summary_XC = self._black(pictures_BHN3hw, text_BF, instructions)
        tokens_BHNQC = tokens_XQC.unflatten(0, (b, h, n))
        summary_BHNC = summary_XC.unflatten(0, (b, h, n))
        images = [project(tokens_BHNQC[:, :, i]) for i, project in enumerate(self.image_projectors)]
        summaries = [project(summary_BHNC[:, :, i, None]) for i, project in enumerate(self.cls_projectors)]
        queries = torch.cat([self.foresight_queries, self.action_queries]).expand(b, h, -1, -1)
        parts = [
            text_BE[:, None, None].expand(b, h, 1, -1),
            state_BHE[:, :, None],
            *images,
            *summaries,
            queries,
        ]
        # Autocast leaves some of them in bfloat16; the residual stream starts in float32.
        return torch.cat([part.float() for part in parts], dim=2)

    def _black(
        self, pictures_BHN3hw: Tensor, text_BF: Tensor, instructions: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """What the image encoder makes of black pictures, which differ by the instruction alone: one each."""
        distinct = list(dict.fromkeys(instructions))
        text_DF = text_BF[[instructions.index(text) for text in distinct]]
        black_D3hw = torch.zeros_like(pictures_BHN3hw[: len(distinct), 0, 0])
        tokens_DQC, summary_DC = self.image_encoder(black_D3hw, text_DF)
        copies = self.n_obs_steps * self.layout.n_cameras
        rows = [distinct.index(text) for text in instructions for _ in range(copies)]
        return tokens_DQC[rows], summary_DC[rows]

    def transform(self, tokens_BHKE: Tensor) -> Tensor:
        """Tokens -> the trunk's output, (B, H, K, E)."""
        tokens_BME = self.embedding_layer_norm((tokens_BHKE + self.time_embedding).flatten(1, 2))
        return self.trunk(tokens_BME, self.mask_MM).view(tokens_BHKE.shape)

    def decode(self, features_BTE: Tensor) -> Tensor:
        """Action features -> raw decoder output (B, T, A), in float32 whatever the autocast."""
        with torch.autocast(features_BTE.device.type, enabled=False):
            return self.decoder(features_BTE.float())
