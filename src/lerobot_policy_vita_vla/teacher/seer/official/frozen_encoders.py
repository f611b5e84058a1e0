"""The frozen encoders that Seer's checkpoints leave out, from local folders: MAE ViT-B/16 and CLIP ViT-B/32.

Each may lie there in Hugging Face's format (``config.json`` and weights, for CLIP its tokenizer) or as its
authors published it (``mae_pretrain_vit_base.pth``; ``ViT-B-32.pt`` beside ``bpe_simple_vocab_16e6.txt.gz``).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from lerobot_policy_vita_vla.teacher.seer.image_encoders import load_mae
from lerobot_policy_vita_vla.teacher.seer.instruction import load_clip
from lerobot_policy_vita_vla.teacher.seer.official.original_encoders import (
    MAE_EPS,
    VOCABULARY,
    check_patch,
    original_clip,
    original_mae,
)
from lerobot_policy_vita_vla.teacher.seer.official.torch_files import first_line

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Source:
    """Where an encoder comes from, and how to get it.

    Args:
        what: In words.
        flag: Of the command line.
        original: File name under which its authors published it.
        repo: Its copy on Hugging Face's hub.
        types: What Hugging Face's ``config.json`` calls such a model. Others share its names and shapes: a
            ViT trained on labels is not an MAE.
        further: Groups of files that Hugging Face's format needs besides; one group suffices.
    """

    what: str
    flag: str
    original: str
    repo: str
    types: tuple[str, ...]
    further: tuple[tuple[str, ...], ...] = ((),)

    @property
    def needs(self) -> str:
        """The files, in words."""
        extra = " or ".join(" and ".join(group) for group in self.further if group)
        ours = f"config.json, {' or '.join(WEIGHTS)}" + (f", and {extra}" if extra else "")
        theirs = self.original + (f" beside {VOCABULARY}" if self.further != ((),) else "")
        return f"{ours} (Hugging Face's format), or {theirs} (the original)"

    def fix_beside(self, path: Path | str) -> str:
        """What fetches it, where ``path`` holds something else that must stay as it is."""
        folder = Path(path)
        folder = folder.parent if folder.is_file() else folder
        new = folder.with_name(self.repo.rpartition("/")[2])
        while new.exists():
            new = new.with_name(f"{new.name}-new")
        return self.fix(new)

    def fix(self, folder: Path | str) -> str:
        """What fetches it."""
        return f"Get it with\n  hf download {self.repo} --local-dir {folder}\nand pass {self.flag} {folder}"


MAE = Source(
    "the frozen image encoder, MAE ViT-B/16",
    "--mae",
    "mae_pretrain_vit_base.pth",
    "facebook/vit-mae-base",
    ("vit_mae",),
)
CLIP = Source(
    "the frozen text encoder, CLIP ViT-B/32",
    "--clip",
    "ViT-B-32.pt",
    "openai/clip-vit-base-patch32",
    ("clip", "clip_text_model"),
    (("tokenizer.json",), ("vocab.json", "merges.txt")),
)


def read_mae(path: str | Path) -> nn.Module:
    """The MAE ViT in Hugging Face's class, hiding no patches, with the layer norms of the original.

    Raises:
        ValueError: Files are missing, damaged, unsafe, or of another model; names them and the command.
    """
    folder, original = _locate(path, MAE)
    if original is not None:
        vit = original_mae(original, MAE.fix_beside(folder))
        _check_finite(vit, original, MAE)
        return vit
    vit = _hugging_face(load_mae, folder, MAE)
    _check_finite(vit, folder, MAE)
    vit.config.layer_norm_eps = MAE_EPS
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = MAE_EPS
    return vit


def read_clip(path: str | Path) -> tuple[nn.Module, Any]:
    """CLIP's text model with its projection, and its tokenizer; raises as `read_mae`."""
    folder, original = _locate(path, CLIP)
    if original is not None:
        model, tokenizer = original_clip(original, CLIP.fix_beside(folder))
    else:
        check_patch(_picture_patch(folder / "config.json"), folder, CLIP.fix_beside(folder))
        model, tokenizer = _hugging_face(load_clip, folder, CLIP)
    _check_finite(model, original or folder, CLIP)
    return model, tokenizer


def from_hub(source: Source) -> Path:
    """The encoder's folder in the hub's cache, downloaded where that is allowed.

    Raises:
        ValueError: It is not in the cache, and downloads are off or fail.
    """
    from huggingface_hub import snapshot_download

    wanted = ["config.json", *WEIGHTS, *(name for group in source.further for name in group)]
    try:
        return Path(snapshot_download(source.repo, allow_patterns=wanted))
    except OSError as error:
        folder = source.flag.removeprefix("--")
        raise ValueError(
            f"Seer's checkpoints do not hold {source.what}, and {source.repo} is not in this machine's "
            f"cache. Needed are {source.needs}. {source.fix(folder)}"
        ) from error


def _locate(path: str | Path, source: Source) -> tuple[Path, Path | None]:
    """The folder, and the original file if it is that."""
    path = Path(path).expanduser()
    if path.is_file():
        if path.suffix == ".safetensors" or path.name in ("config.json", *WEIGHTS):
            raise ValueError(
                f"{path} is one file of {source.what} in Hugging Face's format: pass the folder, "
                f"{source.flag} {path.parent}"
            )
        return path.parent, path
    if (path / source.original).is_file():
        return path, path / source.original
    missing = [] if (path / "config.json").is_file() else ["config.json"]
    if not any((path / name).is_file() for name in WEIGHTS):
        missing.append(" or ".join(WEIGHTS))
    if not any(all((path / name).is_file() for name in group) for group in source.further):
        missing.append(" or ".join(" and ".join(group) for group in source.further))
    if missing:
        there = f"lacks {', '.join(missing)}" if path.is_dir() else "does not exist"
        raise ValueError(
            f"Seer's checkpoints do not hold {source.what}, and {path} {there}. Needed are {source.needs}. "
            f"{_fix(path, source)}"
        )
    kind = _model_type(path / "config.json")
    if kind not in source.types:
        raise ValueError(
            f"{path} holds a model of type {kind!r}, not {source.what} ({' or '.join(source.types)}). "
            f"{_fix(path, source)}"
        )
    return path, None


def _fix(path: Path, source: Source) -> str:
    """What to do about a folder without the encoder: nothing is ever downloaded over another model."""
    if not path.is_dir() or not any(path.iterdir()):
        return source.fix(path)
    kind = _model_type(path / "config.json") if (path / "config.json").is_file() else None
    other = CLIP if source is MAE else MAE
    if kind in other.types or (kind not in source.types and (path / other.original).is_file()):
        return f"It is {other.what}: were --mae and --clip swapped? Otherwise: {source.fix_beside(path)}"
    begun = kind in source.types or {file.name for file in path.iterdir()} <= {"config.json", ".cache"}
    return source.fix(path) if begun else source.fix_beside(path)


def _check_finite(model: nn.Module, path: Path, source: Source) -> None:
    state = model.state_dict()
    if bad := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"{source.what} at {path} has {len(bad)} tensors with NaN or infinite numbers, such as {bad[0]}: "
            f"it is damaged. {source.fix_beside(path)}"
        )


def _model_type(path: Path) -> str | None:
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again") from None
    return config.get("model_type") if isinstance(config, dict) else None


def _picture_patch(path: Path) -> int | None:
    """What a configuration of the whole CLIP says of its image tower; None for the text model alone."""
    config = json.loads(path.read_text())
    tower = config.get("vision_config", config.get("vision_config_dict"))
    return tower.get("patch_size") if isinstance(tower, dict) else None


def _hugging_face(load: Callable[[Path], Any], folder: Path, source: Source) -> Any:
    try:
        return load(folder)
    except (
        OSError,
        RuntimeError,
        pickle.UnpicklingError,
        SafetensorError,
        json.JSONDecodeError,
        KeyError,
    ) as e:
        reason = first_line(e)
        raise ValueError(f"{source.what} at {folder} cannot be read ({reason}). {source.fix(folder)}") from e
