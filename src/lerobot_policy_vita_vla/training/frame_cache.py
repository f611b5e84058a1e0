"""A LeRobotDataset held in memory, and the hook that gives it to `lerobot-train`.

Why it exists: LeRobot's reader costs about 6 ms of CPU per sample whatever the picture's size (it slices the
Arrow table once per column and frame), so a batch of 64 costs 0.4 s, several times a small network's step. A
laptop-sized dataset fits in memory; then a batch is a handful of index operations.

Why here: `lerobot-train` accepts an `Accelerator` from its caller and hands it the data loader
(``accelerator.prepare``). `FrameCacheAccelerator` answers with a loader over the same sampler, in the same
order, that yields the same batches. Nothing is patched, and plain `lerobot-train` works as before.
"""

from __future__ import annotations

import io
import logging
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from accelerate import Accelerator
from lerobot.datasets import LeRobotDataset
from lerobot.datasets.video_utils import decode_video_frames
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

logger = logging.getLogger(__name__)


class CachedDataset(Dataset):
    """The samples of a LeRobotDataset, whole batches at a time, from memory.

    ``self.__getitems__(indices)`` equals ``default_collate([dataset[i] for i in indices])`` except that
    pictures stay uint8, which `lerobot-train` turns into float32 / 255 itself.

    Args:
        dataset: A map-style dataset without image transforms.
        pictures: False leaves the cameras out of every batch, for training that has their features.
    """

    def __init__(self, dataset: LeRobotDataset, *, pictures: bool = True):
        self.meta, self.reader = dataset.meta, dataset.reader
        self.length = len(dataset)
        started = time.perf_counter()
        self.columns: dict[str, torch.Tensor] = {}
        self.strings: dict[str, list[str]] = {}
        for key, feature in self.meta.features.items():
            if key in self.meta.camera_keys and not pictures:
                continue
            if key in self.meta.video_keys:
                self.columns[key] = self._decode_videos(key, feature["shape"])
            elif key in self.meta.image_keys:
                self.columns[key] = self._decode_images(key)
            elif feature["dtype"] == "string":
                self.strings[key] = self._raw(key)
            else:
                self.columns[key] = self._numbers(key)
        starts = torch.as_tensor(list(self.meta.episodes["dataset_from_index"]))
        ends = torch.as_tensor(list(self.meta.episodes["dataset_to_index"]))
        episodes = self.columns["episode_index"].long()
        # Row numbers of this (possibly filtered) table, not the dataset's global indices.
        shift = torch.arange(self.length) - self.columns["index"].long()
        self.first_row, self.last_row = starts[episodes] + shift, ends[episodes] + shift - 1
        self.task_names = list(self.meta.tasks.index)
        logger.info(
            "frame cache: %d frames, %.2f GiB in memory, read in %.1f s",
            self.length,
            sum(t.numel() * t.element_size() for t in self.columns.values()) / 2**30,
            time.perf_counter() - started,
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict:
        """A collated batch; PyTorch's loader calls this in place of ``__getitem__`` where it exists."""
        rows = torch.as_tensor(indices)
        batch = {key: column[rows] for key, column in self.columns.items()}
        batch |= {key: [values[i] for i in indices] for key, values in self.strings.items()}
        for key, deltas in (self.reader.delta_indices or {}).items():
            if key not in self.columns:
                continue
            wanted = rows[:, None] + torch.as_tensor(deltas)
            first, last = self.first_row[rows, None], self.last_row[rows, None]
            batch[f"{key}_is_pad"] = (wanted < first) | (wanted > last)
            batch[key] = self.columns[key][wanted.clamp(first, last)]
        batch["task"] = [self.task_names[i] for i in batch["task_index"].tolist()]
        return batch

    def _raw(self, key: str) -> list:
        return self.reader.hf_dataset.with_format(None, columns=[key])[:][key]

    def _numbers(self, key: str) -> torch.Tensor:
        values = self.reader.hf_dataset.with_format("numpy", columns=[key])[:][key]
        column = torch.from_numpy(np.ascontiguousarray(values))
        # LeRobot's reader goes through Python floats, hence always float32.
        return column.float() if column.is_floating_point() else column

    def _decode_images(self, key: str) -> torch.Tensor:
        # The table's own storage: encoded bytes, so that decoding can be spread over threads. Each picture
        # goes to its place at once: a list of them, stacked and turned, would need three times the memory.
        cells, indices = self.reader.hf_dataset.data.column(key), self.reader.hf_dataset._indices
        rows = range(self.length) if indices is None else indices.column(0).to_pylist()

        def decode(row: int) -> np.ndarray:
            cell = cells[row].as_py()
            source = io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]
            return np.asarray(Image.open(source).convert("RGB")).transpose(2, 0, 1)

        first = decode(rows[0])
        frames = np.empty((self.length, *first.shape), np.uint8)

        def place(number: int) -> None:
            frames[number] = decode(rows[number])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            # Iterated over, or an error would be lost.
            for _ in pool.map(place, range(self.length)):
                pass
        return torch.from_numpy(frames)

    def _decode_videos(self, key: str, shape: tuple) -> torch.Tensor:
        """Every episode once, front to back: the decoder's cheap direction."""
        height, width, channels = shape if shape[-1] in (1, 3) else (shape[1], shape[2], shape[0])
        frames = torch.empty(self.length, channels, height, width, dtype=torch.uint8)
        episode_of_row = np.asarray(self._raw("episode_index"))
        timestamps = np.asarray(self._raw("timestamp"))
        for episode in np.unique(episode_of_row):
            rows = np.flatnonzero(episode_of_row == episode)
            offset = self.meta.episodes[int(episode)][f"videos/{key}/from_timestamp"]
            path = self.reader.root / self.meta.get_video_file_path(int(episode), key)
            frames[rows] = decode_video_frames(
                path,
                (offset + timestamps[rows]).tolist(),
                self.reader._tolerance_s,
                self.reader._video_backend,
                return_uint8=True,
            )
        return frames


def every_frame(dataset: LeRobotDataset, batch_size: int, limit_gib: float) -> Iterator[dict]:
    """Batches of all frames in the order of the dataset, from memory where it fits."""
    fits = cache_refusal(dataset, limit_gib) is None
    source = CachedDataset(dataset) if fits else dataset
    yield from DataLoader(source, batch_size, collate_fn=already_collated)


def cache_refusal(dataset: Dataset, limit_gib: float) -> str | None:
    """Why this dataset cannot be cached, or None where it can."""
    if not isinstance(dataset, LeRobotDataset):
        return f"{type(dataset).__name__} is not a map-style LeRobotDataset"
    if dataset.image_transforms is not None:
        return "image transforms are drawn anew for each sample (--dataset.image_transforms.enable=true)"
    meta = dataset.meta
    if meta.depth_keys:
        return f"depth cameras {meta.depth_keys} are decoded by LeRobot's reader only"
    if meta.has_language_columns:
        return "language columns need LeRobot's own collate function"
    gib = sum(np.prod(meta.features[k]["shape"]) for k in meta.camera_keys) * len(dataset) / 2**30
    if gib > limit_gib:
        return f"its pictures take {gib:.1f} GiB, more than half of what is free ({limit_gib:.1f} GiB)"
    return None


class FrameCacheAccelerator(Accelerator):
    """An accelerate `Accelerator` that answers a LeRobotDataset loader with one over a `CachedDataset`.

    Args:
        limit_gib: Largest size of the decoded pictures. Larger datasets keep LeRobot's own loader, which is
            said in one line.
        pictures: See `CachedDataset`.
        **kwargs: As `Accelerator`.
    """

    def __init__(self, *, limit_gib: float, pictures: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.limit_gib, self.pictures = limit_gib, pictures

    def prepare_data_loader(self, data_loader: DataLoader, *args, **kwargs):
        """Swap the loader's dataset, keep its sampler and batch size."""
        refusal = cache_refusal(data_loader.dataset, self.limit_gib if self.pictures else math.inf)
        if refusal is None:
            data_loader = DataLoader(
                CachedDataset(data_loader.dataset, pictures=self.pictures),
                batch_size=data_loader.batch_size,
                sampler=data_loader.sampler,
                drop_last=data_loader.drop_last,
                pin_memory=data_loader.pin_memory,
                collate_fn=already_collated,
            )
        else:
            logger.info(
                "frame cache off: %s. LeRobot's loader takes over; give it processes: --num_workers=4",
                refusal,
            )
        return super().prepare_data_loader(data_loader, *args, **kwargs)


def already_collated(batch: dict | list) -> dict:
    """The collate function of a loader over a `CachedDataset`, whose batches come whole."""
    # accelerate may fetch single samples when it shards an uneven last batch.
    return batch if isinstance(batch, dict) else default_collate(batch)
