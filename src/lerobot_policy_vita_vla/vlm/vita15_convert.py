"""Converting VITA-1.5 into a folder that transformers loads: `vita-vla vlm convert vita-1.5 SRC DST`.

Everything is checked before anything is written: every name, every shape, the tokenizer, the free disk. Then
tensors pass through one output shard at a time::

    source shards (memory maps) --> at most 2 GiB of tensors: rename, cut, halve, cast --> output shard
                                    '------------------- then the next ------------------'

so that memory does not depend on the size of the source's shards. The folder gets its name when it is
complete.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.initialization import no_init_weights

from lerobot_policy_vita_vla.vlm import vita15_names as names
from lerobot_policy_vita_vla.vlm.vita15_config import IMAGE_SIZE, build_processor, read_config
from lerobot_policy_vita_vla.vlm.vita15_model import VitaVLConfig, VitaVLForConditionalGeneration
from lerobot_policy_vita_vla.vlm.vita15_shards import StoredTensor, opened, stored_tensors

MAX_SHARD_BYTES = 2 << 30
"""Our choice: small beside any machine that can hold the model, large beside the largest tensor (1.0 GiB)."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Move:
    """One tensor on its way.

    Args:
        target: Our name.
        shape: Our shape.
        stored: Where it comes from.
        origin: What is done to it.
    """

    target: str
    shape: tuple[int, ...]
    stored: StoredTensor
    origin: names.Origin


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    vision: str | Path | None = None,
    image_size: int = IMAGE_SIZE,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Convert a checkpoint.

    Args:
        source: Folder of VITA-1.5 as downloaded (safetensors or .bin shards).
        destination: Folder to make; must not exist.
        vision: Folder of InternViT-300M-448px, whose weights are taken if the checkpoint holds none.
        image_size: Pixels along each side of an image; 200 gives 49 tokens (the paper), 448 gives 256 (VITA).
        dtype: "float16", "bfloat16" or "float32"; None keeps the checkpoint's, if all weights agree.
        max_shard_bytes: Size of the output's shards, and of what is held in memory.

    Returns:
        The destination.

    Raises:
        ValueError: Naming what is damaged, missing, unexpected or of a wrong shape. Nothing is written then.
    """
    source, destination = Path(source), Path(destination)
    vision = Path(vision) if vision is not None else None
    if destination.exists():
        raise ValueError(f"{destination} exists; choose another folder, or remove it first")
    for folder in (source, *([vision] if vision else [])):
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; download the checkpoint first and pass its folder")
    config = read_config(source, vision)
    processor = build_processor(source, config, image_size)
    moves = plan_moves(config, source, vision)
    config.dtype = _common_dtype(moves, dtype)
    with _folder(destination, sum(_size(move, config.dtype) for move in moves)) as unfinished:
        processor.save_pretrained(unfinished)
        config.save_pretrained(unfinished)
        _write_weights(unfinished, moves, config.dtype, max_shard_bytes)
    return destination


def plan_moves(config: VitaVLConfig, source: Path, vision: Path | None) -> list[Move]:
    """Where every tensor of the model comes from, in the order of the source's shards.

    Raises:
        ValueError: The checkpoint's names and shapes are not exactly those of the configuration.
    """
    shapes = model_shapes(config)
    others, encoder = names.expected_shapes(shapes)
    stored = stored_tensors(source)
    dropped = {name for name in stored if names.is_dropped(name)}
    inside = any(name.startswith(names.VITA_VISION) for name in stored)
    expected = dict(others)
    if inside:
        expected |= {names.VITA_VISION + name: shape for name, shape in encoder.items()}
    _check(source, expected, {k: v for k, v in stored.items() if k not in dropped})
    prefix, encoder_stored = names.VITA_VISION, stored
    if not inside:
        prefix, encoder_stored = _read_vision(vision, source, encoder)
    logger.info(
        "%s: %d tensors, %d of them left out (audio encoder)%s",
        source,
        len(stored),
        len(dropped),
        f"; image encoder from {source if inside else vision}",
    )
    moves = []
    for target, shape in shapes.items():
        origin = names.origin(target)
        tensor = encoder_stored[prefix + origin.name] if origin.vision else stored[origin.name]
        moves.append(Move(target, shape, tensor, origin))
    # By shard, then by tensor: the three thirds of one tensor, and what lies side by side, are read together.
    return sorted(moves, key=lambda move: (move.stored.file, move.stored.name, move.origin.third or 0))


def model_shapes(config: VitaVLConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every stored tensor of the model, without allocating it."""
    with torch.device("meta"), no_init_weights():
        model = VitaVLForConditionalGeneration(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _read_vision(
    vision: Path | None, source: Path, expected: dict[str, tuple[int, ...]]
) -> tuple[str, dict[str, StoredTensor]]:
    """Prefix and tensors of InternViT in a folder of its own."""
    if vision is None:
        raise ValueError(
            f"{source} holds no weights of the image encoder (VITA leaves them out where they were not "
            "trained); download OpenGVLab/InternViT-300M-448px and add --vision FOLDER"
        )
    stored = stored_tensors(vision)
    prefix = names.vision_prefix(stored)
    if prefix is None:
        raise ValueError(
            f"{vision} holds no InternViT: none of its {len(stored)} tensors is called "
            "embeddings.class_embedding; pass the folder of OpenGVLab/InternViT-300M-448px as --vision"
        )
    # Under a prefix, what else the folder holds is another part of an InternVL.
    own = {name: tensor for name, tensor in stored.items() if name.startswith(prefix)}
    _check(vision, {prefix + name: shape for name, shape in expected.items()}, own)
    return prefix, own


def _check(folder: Path, expected: dict[str, tuple[int, ...]], stored: dict[str, StoredTensor]) -> None:
    problems = {
        "missing": sorted(expected.keys() - stored.keys()),
        "unknown": sorted(stored.keys() - expected.keys()),
        "of another shape": [
            f"{name} {stored[name].shape}, expected {expected[name]}"
            for name in sorted(expected.keys() & stored.keys())
            if stored[name].shape != expected[name]
        ],
    }
    found = [f"{len(items)} {what} ({_first(items)})" for what, items in problems.items() if items]
    if found:
        raise ValueError(
            f"the tensors in {folder} are not those that its config.json describes: {'; '.join(found)}. "
            "Download all of its files again; if that changes nothing, it holds another model"
        )


def _first(items: list[str], n: int = 4) -> str:
    return ", ".join(items[:n]) + (", ..." if len(items) > n else "")


def _common_dtype(moves: list[Move], wanted: str | None) -> torch.dtype:
    if wanted is not None:
        return getattr(torch, wanted)
    counts = Counter(move.stored.dtype for move in moves)
    if len(counts) > 1:
        found = ", ".join(f"{n} tensors in {str(dtype)[6:]}" for dtype, n in counts.most_common())
        raise ValueError(
            f"the weights are of several types ({found}), and a model has one; choose it with --dtype "
            "bfloat16 (what the paper trains in), float16 or float32"
        )
    return next(iter(counts))


def _size(move: Move, dtype: torch.dtype) -> int:
    return torch.Size(move.shape).numel() * dtype.itemsize


@contextlib.contextmanager
def _folder(destination: Path, weight_bytes: int) -> Iterator[Path]:
    """A folder that gets its name when the block ends, and is removed when it fails."""
    unfinished = destination.with_name(f".{destination.name}.unfinished")
    if unfinished.exists():
        raise ValueError(
            f"{unfinished} is there: another conversion is running, or one was killed; in that case remove "
            f"it: rm -r {unfinished}"
        )
    disk = next(folder for folder in destination.absolute().parents if folder.exists())
    free = shutil.disk_usage(disk).free
    if free < weight_bytes:
        raise ValueError(
            f"the disk that holds {disk} has {free / 2**30:.1f} GiB free, the converted "
            f"weights need {weight_bytes / 2**30:.1f} GiB; free some space or choose a folder on another disk"
        )
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(destination)
    except BaseException:  # an interruption must not leave gigabytes behind either
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write_weights(folder: Path, moves: list[Move], dtype: torch.dtype, max_bytes: int) -> None:
    groups = list(_groups(moves, dtype, max_bytes))
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        if len(groups) == 1:
            file = "model.safetensors"
        with contextlib.ExitStack() as open_shards:
            shards = {
                shard: open_shards.enter_context(opened(shard)) for shard in {m.stored.file for m in group}
            }
            tensors = {
                move.target: _moved(move, shards[move.stored.file](move.stored.name), dtype) for move in group
            }
            save_file(tensors, folder / file, metadata={"format": "pt"})
            # safetensors keeps its files to the owner; these are as readable as the rest of the folder.
            (folder / file).chmod((folder / "config.json").stat().st_mode)
            weight_map |= dict.fromkeys(tensors, file)
            # Their pages are given back when nothing refers to the maps any more.
            del tensors, shards
        logger.info("written %d of %d: %s", number, len(groups), file)
    if len(groups) > 1:
        total = sum(_size(move, dtype) for move in moves)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _groups(moves: Iterable[Move], dtype: torch.dtype, max_bytes: int) -> Iterator[list[Move]]:
    group: list[Move] = []
    held = 0
    for move in moves:
        if group and held + _size(move, dtype) > max_bytes:
            yield group
            group, held = [], 0
        group.append(move)
        held += _size(move, dtype)
    yield group


def _moved(move: Move, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as ours; ValueError if it holds NaN or infinity, before or after the cast."""
    if move.origin.third is not None:
        tensor = tensor.chunk(3)[move.origin.third].clone()
    if move.origin.scale != 1.0:
        tensor = tensor * move.origin.scale
    tensor = tensor.to(dtype).contiguous()
    low, high = torch.aminmax(tensor)  # without the mask that isfinite() would allocate
    if not (low.isfinite() and high.isfinite()):
        raise ValueError(
            f"{move.stored.name} in {move.stored.file} holds NaN or infinity (as {str(dtype)[6:]}); download "
            "the file again, or choose another --dtype"
        )
    assert tensor.shape == move.shape, (move.target, tensor.shape, move.shape)
    return tensor
