"""Counting the arithmetic of what runs, and what formulas say it should be.

Conventions: one multiplication with its addition is 2 FLOP; only matrix products, convolutions and attention
count (a thousandth of a VLM's step is anything else). Letters: P weights that multiply, n tokens (rows), d
attention width (heads x head size), L layers, m tokens of a prefix.

    linear layers             2 P n              backward: 2 P n towards the input, 2 P n towards the weights
    attention, all to all     4 n^2 d L          backward: twice that as two products each, 2.5 times fused
    attention, causal         4 n(n+1)/2 d L     what a fused causal kernel does; a masked one does all to all

A step whose prefix needs no gradient (stage 1) therefore does, for m prefix and s suffix tokens,

    2 P m + attention(m)  +  (2 + 2) P s + (1 + backward) 4 s (m + s) d L

instead of ``(2 + 2) P (m + s) + ...`` for both, which is the speed-up that `vita-vla bench align` measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FUSED_BACKWARD = 2.5
"""Work of a fused attention's backward over its forward: it computes the scores again."""
PLAIN_BACKWARD = 2.0


def count(call: Callable[[], object], inside: str = "") -> int:
    """FLOP of one call, its backward included where it runs one.

    PyTorch's counter knows no formula for the CPU's fused attention: use eager attention there.

    Args:
        call: What to count.
        inside: Count only what happens in modules of this class, or of this name in one, such as
            ``language_model``.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    if not inside:
        return counter.get_total_flops()
    by_module = counter.get_flop_counts()
    found = [name for name in by_module if name == inside or name.endswith(f".{inside}")]
    if not found:
        raise ValueError(f"no module named {inside!r} ran; there were {', '.join(by_module)}")
    return sum(sum(by_module[name].values()) for name in found)


@dataclass(frozen=True)
class Transformer:
    """The shape of a stack of transformer layers, as far as arithmetic goes.

    Args:
        layers: L.
        weights: P, weights of all its linear layers together.
        width: d.
        qkv: Weights of one layer's q, k and v.
    """

    layers: int
    weights: int
    width: int
    qkv: int = 0

    @classmethod
    def decoder(
        cls, *, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int
    ) -> Transformer:
        """A language model's decoder: q, k, v, o and a gated MLP of three products in every layer."""
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        weights = layers * (attention + 3 * hidden * intermediate)
        return cls(layers, weights, heads * head_dim, hidden * head_dim * (heads + 2 * kv_heads))

    @classmethod
    def encoder(cls, *, layers: int, hidden: int, intermediate: int) -> Transformer:
        """An image encoder: q, k, v, o and an MLP of two products in every layer."""
        weights = layers * (4 * hidden**2 + 2 * hidden * intermediate)
        return cls(layers, weights, hidden, 3 * hidden**2)

    def forward(self, queries: int, keys: int | None = None, *, causal: bool = False) -> float:
        """FLOP of one sample's forward.

        Args:
            queries: n, tokens that go through the layers.
            keys: Tokens that each may look at; None: the same ones.
            causal: Whether the kernel skips what a token may not see (then ``keys`` must be None).
        """
        pairs = queries * (queries + 1) / 2 if causal else queries * (keys or queries)
        return 2 * self.weights * queries + 4 * pairs * self.width * self.layers

    def backward(
        self,
        queries: int,
        keys: int | None = None,
        *,
        learns: bool,
        fused: bool = False,
        causal: bool = False,
    ) -> float:
        """FLOP of one sample's backward: towards the inputs, and towards the weights where these learn."""
        linear = 2 * self.weights * queries
        attention = self.forward(queries, keys, causal=causal) - linear
        return (2 if learns else 1) * linear + (FUSED_BACKWARD if fused else PLAIN_BACKWARD) * attention


def naive_step(text: Transformer, prefix: int, suffix: int, *, learns: bool = False) -> float:
    """FLOP of the language model per sample, forward and backward through every token."""
    n = prefix + suffix
    return text.forward(n) + text.backward(n, learns=learns)


def cached_step(text: Transformer, prefix: int, suffix: int, *, leaves_early: bool = True) -> float:
    """FLOP of the language model per sample with a prefix without gradient.

    Args:
        text: Its shape.
        prefix: m.
        suffix: s.
        leaves_early: The prefix pass ends with the last layer's keys and values (`vla.caches`), so of that
            layer only q, k and v are computed.
    """
    before = text.forward(prefix)
    if leaves_early:
        one = Transformer(1, text.weights // text.layers, text.width)
        before -= one.forward(prefix) - 2 * text.qkv * prefix
    n = prefix + suffix
    return before + text.forward(suffix, n) + text.backward(suffix, n, learns=False)


def matmul_peak(device: str = "cuda", *, size: int = 8192, seconds: float = 1.0) -> float:
    """FLOP per second that large bfloat16 products sustain on a device: the machine's measured limit.

    Args:
        device: Where.
        size: Rows, columns and depth of the square products.
        seconds: How long they are repeated.
    """
    import time

    import torch

    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    for _ in range(3):
        a @ b
    wait()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            a @ b
        wait()
        done += 10
    return done * 2 * size**3 / (time.perf_counter() - start)


PEAK_HEADLINE = {
    "peak_tflops": "TFLOP/s that large bfloat16 products sustain here",
    "tflops": "TFLOP/s of the step",
    "share_of_peak": "share of that limit which the step reaches",
}


def share_of_peak(work: float, seconds: float, device: str) -> dict[str, float]:
    """How much of a GPU's measured limit a step reaches; nothing on a CPU.

    Args:
        work: FLOP of the step.
        seconds: How long it took.
        device: Where it ran.

    Returns:
        ``peak_tflops``, what large products sustain there, ``tflops`` and ``share_of_peak``.
    """
    if not device.startswith("cuda"):
        return {}
    peak = matmul_peak(device)
    reached = work / seconds
    return {"peak_tflops": peak / 1e12, "tflops": reached / 1e12, "share_of_peak": reached / peak}


def beside_peak(figures: dict[str, Any], work: float, seconds: float, device: str) -> dict[str, Any]:
    """A benchmark's figures with `share_of_peak` among them and in their headline, on a GPU."""
    found = share_of_peak(work, seconds, device)
    headline = figures["headline"] | {key: PEAK_HEADLINE[key] for key in found}
    return figures | found | {"headline": headline}
