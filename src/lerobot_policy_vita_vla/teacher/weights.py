"""Strict loading of weights: LeRobot only warns about missing ones, and then acts with random weights."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file into memory of the CPU.

    Raises:
        ValueError: It is missing, or cut short by an interrupted copy or a full disk.
    """
    if not Path(path).is_file():
        raise ValueError(f"no weights at {path}; the checkpoint is incomplete: copy or train it again")
    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again, or train again") from error


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Load ``state`` into ``module``.

    Raises:
        ValueError: A tensor is missing, unknown or of another shape; names the first few of each.
    """
    own = module.state_dict()
    shared = own.keys() & state.keys()
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(
            f"{key} {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
            for key in shared
            if state[key].shape != own[key].shape
        ),
    }
    found = [f"{len(keys)} {what} ({_first(keys)})" for what, keys in problems.items() if keys]
    if found:
        raise ValueError(
            f"the weights in {source} do not fit {type(module).__name__}: {'; '.join(found)}. The file is "
            "incomplete or belongs to other settings; load it with the config.json saved beside it"
        )
    module.load_state_dict(state)


def _first(keys: list[str], n: int = 4) -> str:
    return ", ".join(keys[:n]) + (", ..." if len(keys) > n else "")
