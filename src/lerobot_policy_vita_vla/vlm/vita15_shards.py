"""Weights on disk, shard by shard: what a folder holds without reading it, and one tensor at a time.

Both formats of the hub are read through memory maps, so a tensor takes memory only once it is touched.
Pickled files are opened by torch's restricted loader, which builds tensors and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SINGLE = ("model.safetensors", "pytorch_model.bin")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
AGAIN = "download it again"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read.

    Args:
        file: Shard that holds it.
        name: Its name there.
        shape: Its shape.
        dtype: Its type of number.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by name, from the headers of its shards.

    Args:
        folder: Holds `model.safetensors` or `pytorch_model.bin`, or shards of either with their index.

    Raises:
        ValueError: There are no weights, a shard is missing or cut short, or the index says otherwise.
    """
    files, index = _files(folder)
    found: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _header(file):
            if tensor.name in found:
                raise ValueError(
                    f"{tensor.name} is in both {found[tensor.name].file.name} and {file.name} of {folder}, "
                    f"where shards of two downloads seem mixed; {AGAIN} into an empty folder"
                )
            found[tensor.name] = tensor
    if index is not None:
        actual = {name: tensor.file.name for name, tensor in found.items()}
        wrong = sorted(name for name in actual.keys() | index.keys() if actual.get(name) != index.get(name))
        if wrong:
            name = wrong[0]
            raise ValueError(
                f"the shards of {folder} do not hold what their index says: {len(wrong)} tensors differ, "
                f"first {name} (index: {index.get(name, 'nowhere')}, found: {actual.get(name, 'nowhere')}); "
                f"{AGAIN}"
            )
    return found


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Callable[[str], Tensor]]:
    """A shard as a function from names to tensors, which are views of the mapped file."""
    with contextlib.ExitStack() as stack:
        if file.suffix == ".safetensors":
            yield stack.enter_context(_open_safetensors(file)).get_tensor
        else:
            yield _load_pickled(file).__getitem__


def _files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Files of a folder's weights, and the index (name -> file name) where there is one."""
    for single in SINGLE:
        index_file = folder / f"{single}.index.json"
        if index_file.is_file():
            try:
                index = dict(json.loads(index_file.read_text())["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{index_file} is damaged ({error!r}); {AGAIN}") from error
            names = sorted(set(index.values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise ValueError(f"{folder} lacks {', '.join(missing)}, which its index names; {AGAIN}")
            return [folder / name for name in names], index
        if (folder / single).is_file():
            return [folder / single], None
    raise ValueError(
        f"{folder} holds no weights: expected {' or '.join(SINGLE)}, or shards with an index.json of that "
        "name"
    )


def _header(file: Path) -> list[StoredTensor]:
    if file.suffix != ".safetensors":
        state = _load_pickled(file)
        return [_described(file, name, value.shape, value.dtype) for name, value in state.items()]
    with _open_safetensors(file) as shard:
        slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118 (no mapping)
        return [
            _described(file, name, part.get_shape(), DTYPES.get(part.get_dtype(), part.get_dtype()))
            for name, part in slices.items()
        ]


def _described(file: Path, name: str, shape: list[int], dtype: torch.dtype | str) -> StoredTensor:
    if dtype not in DTYPES.values():
        raise ValueError(
            f"{name} in {file} is stored as {dtype}; quantised weights cannot be converted, use the original "
            "checkpoint in float16, bfloat16 or float32"
        )
    return StoredTensor(file, name, tuple(shape), dtype)


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(file, "pt", device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut short ({error}); {AGAIN}") from error


def _load_pickled(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} holds more than weights, which may be code, or is damaged; {AGAIN} from the publisher, "
            "as safetensors if there is a choice"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} is damaged or cut short ({reason}); {AGAIN}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} is not a shard of weights: expected names and tensors; {AGAIN}")
    return state
