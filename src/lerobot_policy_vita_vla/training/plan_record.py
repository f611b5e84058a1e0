"""What a training step does, written down without doing it: operations, arithmetic, and bytes alive.

The step runs on fake tensors (PyTorch's `FakeTensorMode`), which have shapes and no numbers, so that a model
of seven billion weights takes seconds and no memory. A `Recorder` sees every operation below autograd,
backward included, exactly as it will be issued.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

PROBE_SECONDS = 0.02
"""How long one operation is repeated at least while it is timed (our choice: well above a clock's grain)."""

UNCACHED_BYTES = 2**27
MOST_COPIES = 32
"""Of inputs and results held while an operation is timed (our choice: more than a CPU's caches hold)."""


class Shape(NamedTuple):
    """A tensor without its numbers."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes that it takes, gaps and repetitions left out."""
        used = [n for n, step in zip(self.size, self.stride, strict=True) if step]
        return torch.Size(used).numel() * self.dtype.itemsize


class Operation(NamedTuple):
    """A call as it can be repeated: tensors replaced by their shapes."""

    function: Callable[..., Any]
    args: tuple
    kwargs: tuple[tuple[str, Any], ...]


class Cost(NamedTuple):
    """What one call costs.

    Attributes:
        flops: Floating point operations, of matrix products and attention.
        bytes: Read and written.
    """

    flops: int
    bytes: int


class Recorder(TorchDispatchMode):
    """Collects the operations of what runs inside, and how many bytes are alive at most.

    Args:
        known: Tensors that exist before, such as weights: not counted as alive.

    Attributes:
        calls: Operation -> how often.
        costs: Operation -> cost of one call.
        peak: Most bytes alive at once, beside the known ones.
        alive: Bytes alive now.
    """

    running: ClassVar[list[Recorder]] = []

    def __init__(self, known: list[Tensor] = ()):
        super().__init__()
        self.calls: Counter[Operation] = Counter()
        self.costs: dict[Operation, Cost] = {}
        self.alive = self.peak = 0
        self._seen = weakref.WeakSet()
        for tensor in known:
            self._seen.add(tensor.untyped_storage())

    def __enter__(self):
        """Start; what has no operation of its own finds the recorder in ``running``."""
        Recorder.running.append(self)
        return super().__enter__()

    def __exit__(self, *exception):
        """Stop."""
        Recorder.running.remove(self)
        return super().__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Let the call happen, then note it."""
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        fresh = [t for t in tensors if t.untyped_storage() not in self._seen]
        for tensor in fresh:
            self._count(tensor)
        mutable = func._schema.is_mutable
        if (fresh or mutable) and not func.is_view:
            self._note(func, args, kwargs or {}, out, tensors)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.alive -= size

    def _note(self, func, args, kwargs, out, tensors) -> None:
        operation = Operation(func, _frozen(args), tuple(sorted((k, _frozen(v)) for k, v in kwargs.items())))
        if operation in self.costs:
            self.calls[operation] += 1
            return
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **kwargs, out_val=out) if count else 0
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moved = sum(shape_of(t).bytes for t in (*inputs, *tensors))
        self.note(operation, Cost(int(flops), moved))

    def note(self, operation: Operation, cost: Cost) -> None:
        """Write one call down."""
        self.calls[operation] += 1
        self.costs[operation] = cost


def shape_of(tensor: Tensor) -> Shape:
    """A tensor's shape, strides and type."""
    return Shape(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)


def _frozen(value: Any) -> Any:
    """Arguments as something hashable that says everything."""
    if isinstance(value, Tensor):
        return shape_of(value)
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    return value


def measure(operation: Operation, device: str) -> float:
    """Seconds that one call takes on a device: the median of three runs, in CPU time on a CPU.

    CPU time, because a busy machine makes the wall clock meaningless; with one thread they agree otherwise.
    The median, because the fastest of many short runs finds moments in which a shared core was all its own,
    which no whole step does. Calls take turns on several copies of their inputs, and results are kept for a
    while: a repeated call would else read and write blocks that lie in the cache, and a step's activations do
    not.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter

    def make(value: Any) -> Any:
        if not isinstance(value, Shape):
            return torch.device(device) if isinstance(value, torch.device) else value
        # Expanded tensors repeat elements, so that the storage is filled and not the tensor.
        steps = zip(value.size, value.stride, strict=True)
        elements = 1 + sum((n - 1) * step for n, step in steps) if all(value.size) else 0
        made = torch.zeros(elements, dtype=value.dtype, device=device)
        filled = made.normal_() if value.dtype.is_floating_point else made
        return filled.as_strided(value.size, value.stride)

    def is_shape(value: Any) -> bool:
        return isinstance(value, Shape)

    def call() -> tuple[tuple, dict[str, Any]]:
        args = tree_map(make, operation.args, is_leaf=is_shape)
        return args, {name: tree_map(make, value, is_leaf=is_shape) for name, value in operation.kwargs}

    calls = [call()]
    held = sum(leaf.nbytes for leaf in tree_leaves(calls) if isinstance(leaf, Tensor))
    calls += [call() for _ in range(min(MOST_COPIES, UNCACHED_BYTES // max(held, 1)) - 1)]
    results: deque[Any] = deque(maxlen=1)

    def run(times: int) -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        results.clear()
        start = clock()
        for i in range(times):
            args, kwargs = calls[i % len(calls)]
            results.append(operation.function(*args, **kwargs))
        if device != "cpu":
            torch.cuda.synchronize()
        return clock() - start

    with torch.no_grad():
        run(1)
        made = sum(leaf.nbytes for leaf in tree_leaves(list(results)) if isinstance(leaf, Tensor))
        results = deque(maxlen=max(1, min(MOST_COPIES, UNCACHED_BYTES // max(made, 1))))
        times = max(1, min(1000, int(PROBE_SECONDS / max(run(1), 1e-6))))
        return statistics.median(run(times) / times for _ in range(3))
