"""Opening one of Seer's released checkpoints: every tensor is accounted for before anything is made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lerobot_policy_vita_vla.teacher.seer.official.layouts import (
    LAYOUTS,
    PREFIX,
    TIME,
    SeerLayout,
    is_unused,
)
from lerobot_policy_vita_vla.teacher.seer.official.torch_files import read_checkpoint

STATE_DICT = "model_state_dict"
SHOWN = 8
"""Names per kind of complaint in a message."""


@dataclass(frozen=True)
class SeerCheckpoint:
    """A released checkpoint whose tensors are exactly those of its layout.

    Args:
        path: The file.
        layout: Its layout.
        tensors: Name without `layouts.PREFIX` -> tensor, mapped from disk.
        epoch: Epoch of its training, None where it does not say.
    """

    path: Path
    layout: SeerLayout
    tensors: dict[str, Tensor]
    epoch: int | None

    @property
    def time_steps(self) -> int:
        """Length of its time embedding, at least the layout's ``n_obs_steps``."""
        return self.tensors[TIME].shape[1]

    def counts(self) -> dict[str, int]:
        """Keys and parameters: all of them, and those that no forward pass reads."""
        unused = [name for name in self.tensors if is_unused(name)]
        return {
            "keys": len(self.tensors),
            "keys_used": len(self.tensors) - len(unused),
            "keys_unused_by_seer": len(unused),
            "parameters": sum(t.numel() for t in self.tensors.values()),
            "parameters_unused_by_seer": sum(self.tensors[name].numel() for name in unused),
        }

    def sha256(self) -> str:
        """Of the file."""
        with open(self.path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def open_checkpoint(
    path: str | Path, layout: str | None = None, *, layouts: Mapping[str, SeerLayout] = LAYOUTS
) -> SeerCheckpoint:
    """Read a released ``.pth`` and check it.

    Args:
        path: The file.
        layout: Name of its layout; None tells it from the sizes, where they tell.
        layouts: Layouts to choose from.

    Raises:
        ValueError: The file is unsafe, damaged or something else; its layout cannot be told; tensors are
            missing, unknown, of another shape or not finite, each named.
    """
    path = Path(path).expanduser()
    saved = read_checkpoint(path)
    tensors = _tensors(saved, path)
    chosen = _layout(tensors, layout, layouts, path)
    _check(tensors, chosen, path)
    epoch = saved.get("epoch")
    return SeerCheckpoint(path, chosen, tensors, epoch if isinstance(epoch, int) else None)


def _tensors(saved: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(saved, dict) or not isinstance(saved.get(STATE_DICT), dict):
        found = (
            f"has {_some(sorted(map(str, saved)))}"
            if isinstance(saved, dict)
            else f"is a {type(saved).__name__}"
        )
        hint = " This looks like the MAE image encoder: pass it as --mae." if _is_mae(saved) else ""
        raise ValueError(
            f"{path} is no checkpoint of Seer: expected a dict with {STATE_DICT!r}, this one {found}.{hint}"
        )
    state = saved[STATE_DICT]
    bare = sorted(str(name) for name in state if not str(name).startswith(PREFIX))
    if bare and len(bare) < len(state):
        raise ValueError(f"{path} has unknown keys: all begin with {PREFIX!r}, but not {_some(bare)}")
    tensors = {str(name).removeprefix(PREFIX): value for name, value in state.items()}
    if strange := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path} holds something else than tensors under {_some(strange)}")
    return tensors


def _is_mae(saved: Any) -> bool:
    return isinstance(saved, dict) and isinstance(saved.get("model"), dict) and "pos_embed" in saved["model"]


def _layout(
    tensors: dict[str, Tensor], asked: str | None, layouts: Mapping[str, SeerLayout], path: Path
) -> SeerLayout:
    if asked is not None and asked not in layouts:
        raise ValueError(f"there is no layout {asked!r}; choose one of {', '.join(sorted(layouts))}")
    time = tensors.get(TIME)
    if time is None or time.ndim != 4:
        got = "missing" if time is None else f"of shape {tuple(time.shape)}"
        raise ValueError(
            f"{path} is no checkpoint of Seer: its {PREFIX}{TIME} is {got}, expected (1, H, 1, E)"
        )
    steps, width = time.shape[1], time.shape[3]
    known = "; ".join(
        f"{name}: width {entry.width}, {entry.n_obs_steps} steps (before finetuning {entry.pretrain_steps})"
        for name, entry in layouts.items()
    )
    if asked is not None:
        chosen = layouts[asked]
        if chosen.width != width or steps < chosen.n_obs_steps:
            raise ValueError(
                f"{path} is not of layout {asked}: its width is {width} and its time embedding has {steps} "
                f"steps. Layouts are {known}"
            )
        return chosen
    fitting = [e for e in layouts.values() if e.width == width and steps in (e.n_obs_steps, e.pretrain_steps)]
    if len(fitting) != 1:
        raise ValueError(
            f"{path} has width {width} and a time embedding of {steps} steps, which no layout has alone. "
            f"Layouts are {known}. If it is one of these, say which with --layout"
        )
    if fitting[0].shared_with:
        raise ValueError(
            f"{path} has the sizes of layout {fitting[0].name}, but so have {fitting[0].shared_with}. If it "
            f"is {fitting[0].name}'s, say so with --layout {fitting[0].name}"
        )
    return fitting[0]


def _check(tensors: dict[str, Tensor], layout: SeerLayout, path: Path) -> None:
    expected = layout.shapes(tensors[TIME].shape[1])
    shared = sorted(expected.keys() & tensors.keys())
    problems = {
        "missing": [PREFIX + name for name in sorted(expected.keys() - tensors.keys())],
        "unknown": [PREFIX + name for name in sorted(tensors.keys() - expected.keys())],
        "of another shape": [
            f"{PREFIX}{name} {tuple(tensors[name].shape)}, expected {expected[name]}"
            for name in shared
            if tuple(tensors[name].shape) != expected[name]
        ],
        "sparse or without values": [
            PREFIX + n for n in shared if tensors[n].layout != torch.strided or tensors[n].is_meta
        ],
        "not numbers of floating point": [PREFIX + n for n in shared if not tensors[n].is_floating_point()],
    }
    if not any(problems.values()):
        problems["NaN or infinite"] = [PREFIX + name for name in shared if not tensors[name].isfinite().all()]
    found = [f"{len(names)} {what} ({_some(names)})" for what, names in problems.items() if names]
    if found:
        raise ValueError(
            f"{path} is not exactly a checkpoint of layout {layout.name}: {'; '.join(found)}. Nothing was "
            "imported; get the released file again, or choose the right --layout"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
