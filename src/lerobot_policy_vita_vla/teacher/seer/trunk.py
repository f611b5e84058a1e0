"""The trunk: a GPT-2 style transformer without position embeddings, under an explicit attention mask."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention; ``c_attn`` holds query, key and value in this order, as in GPT-2."""

    def __init__(self, *, width: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x_BME: Tensor, mask_MM: Tensor) -> Tensor:
        """(B, M, E) -> (B, M, E); ``mask_MM`` is True for every pair that may attend."""
        b, m, e = x_BME.shape
        q, k, v = self.c_attn(x_BME).view(b, m, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_MM, dropout_p=dropout)
        return self.c_proj(out.transpose(1, 2).reshape(b, m, e))


class MLP(nn.Module):
    """Four times the width, GELU in GPT-2's tanh form."""

    def __init__(self, *, width: int):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x_BME: Tensor) -> Tensor:
        """(B, M, E) -> (B, M, E)."""
        return self.c_proj(F.gelu(self.c_fc(x_BME), approximate="tanh"))


class TrunkBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual; parameters are named as GPT-2's."""

    def __init__(self, *, width: int, n_heads: int, dropout: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width=width, n_heads=n_heads, dropout=dropout)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width=width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BME: Tensor, mask_MM: Tensor) -> Tensor:
        """(B, M, E) -> (B, M, E)."""
        x_BME = x_BME + self.dropout(self.attn(self.ln_1(x_BME), mask_MM))
        return x_BME + self.dropout(self.mlp(self.ln_2(x_BME)))


class Trunk(nn.Module):
    """Blocks and the final norm ``ln_f``, after which the action features are read.

    Args:
        width: E.
        n_layers: Blocks.
        n_heads: Heads per block.
        dropout: On attention weights and residuals (GPT-2: 0.1).
    """

    def __init__(self, *, width: int, n_layers: int, n_heads: int, dropout: float):
        super().__init__()
        self.h = nn.ModuleList(
            TrunkBlock(width=width, n_heads=n_heads, dropout=dropout) for _ in range(n_layers)
        )
        self.ln_f = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for block in self.h:
            # GPT-2 scales the projections back into the residual stream by the number of residuals.
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                nn.init.normal_(projection.weight, std=0.02 / (2 * n_layers) ** 0.5)

    def forward(self, x_BME: Tensor, mask_MM: Tensor) -> Tensor:
        """Transform tokens (B, M, E) where ``mask_MM`` is True for every pair that may attend."""
        for block in self.h:
            x_BME = block(x_BME, mask_MM)
        return self.ln_f(x_BME)
