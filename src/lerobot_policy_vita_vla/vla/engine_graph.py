"""One CUDA graph: a function of tensors of fixed shapes, recorded once and replayed without its host code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before recording (PyTorch's own advice), in which kernels are chosen and compiled."""


class CudaGraph:
    """Records ``run(*inputs)`` and replays it.

    Inputs are copied into buffers of the graph's own, which later calls use again, and only where another
    tensor is given than before. Nothing here waits for the device.

    Args:
        run: A function of tensors; it must not ask for a value (that would wait for the device).
        inputs: Examples, of the shapes that will be given; None where there is nothing.
        pool: Memory pool that the engine's graphs share, since they never run at the same time.
    """

    def __init__(
        self,
        run: Callable[..., tuple[Tensor, ...]],
        inputs: Sequence[Tensor | None],
        pool: tuple[int, int] | None = None,
    ):
        self._buffers = [None if x is None else x.clone() for x in inputs]
        self._given: list[Tensor | None] = [None] * len(inputs)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                run(*self._buffers)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._outputs = run(*self._buffers)

    def __call__(self, *inputs: Tensor | None, constant: int = 0) -> tuple[Tensor, ...]:
        """Replay on these inputs; the last ``constant`` never change while they are the same tensors."""
        changing = len(inputs) - constant
        for index, (buffer, value) in enumerate(zip(self._buffers, inputs, strict=True)):
            if buffer is not None and (index < changing or self._given[index] is not value):
                buffer.copy_(value, non_blocking=True)
                self._given[index] = value
        self._graph.replay()
        # The next replay overwrites them.
        return tuple(output.clone() for output in self._outputs)
