"""What the golden replay reads of a dataset: numbers of whole episodes, pictures of a few frames."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyarrow import parquet

from lerobot_policy_vita_vla.contracts import EXECUTED_ACTION, PRIVILEGED_STATE
from lerobot_policy_vita_vla.conventions import RecordingInfo
from lerobot_policy_vita_vla.demos.check_files import PICTURES, read_layout
from lerobot_policy_vita_vla.demos.check_values import check_episodes, read_columns
from lerobot_policy_vita_vla.demos.dataset import VIDEO_BACKEND
from lerobot_policy_vita_vla.demos.findings import Findings

ACTION, STATE = "action", "observation.state"


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode of a dataset.

    Args:
        index: Episode index in the dataset.
        instruction: Its task string.
        number: Counts the episodes with this instruction from 0.
        actions: (T, A), as executed.
        states: Column -> (T, n).
        pictures: Frame -> camera key -> (H, W, 3) uint8.
    """

    index: int
    instruction: str
    number: int
    actions: np.ndarray
    states: dict[str, np.ndarray]
    pictures: dict[int, dict[str, np.ndarray]]


class Recording:
    """A LeRobotDataset on disk.

    Args:
        root: Its folder.

    Raises:
        ValueError: If it cannot be read; lists what `demos check` finds.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().resolve()
        layout, found = read_layout(self.root, f"local/{self.root.name}")
        if layout is not None:
            columns, more = read_columns(layout)
            found += more
            if columns and not more:
                found += check_episodes(layout, columns, 1)
        if layout is None or not Findings(found).ok:
            raise ValueError(f"{self.root} cannot be replayed:\n{Findings(found)}")
        self.layout, self._columns = layout, columns
        if missing := [name for name in (ACTION, STATE) if name not in columns]:
            raise ValueError(
                f"{self.root} cannot be replayed: it has no {missing}; it has {sorted(columns)}. If the "
                "robot's numbers have other names, rename those features to action and observation.state"
            )
        self.info = RecordingInfo.load(self.root)
        self.fps: float = layout.info["fps"]
        self.cameras = layout.keys(*PICTURES)
        self.executed = EXECUTED_ACTION if EXECUTED_ACTION in columns else ACTION
        """Column that is replayed."""

    @property
    def action_dim(self) -> int:
        """How many numbers an action has."""
        return int(np.prod(self._columns[self.executed].shape[1:]))

    @property
    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Camera key -> height and width as the dataset declares them."""
        shapes = {key: self.layout.features[key]["shape"] for key in self.cameras}
        return {k: tuple(s[:2]) if s[-1] == 3 else tuple(s[1:]) for k, s in shapes.items()}

    def state_names(self, column: str, size: int) -> list[str]:
        """Names of a state's numbers, for messages."""
        names: Any = self.layout.features[column].get("names")
        if isinstance(names, dict):
            names = next(iter(names.values()), None)
        return [str(n) for n in names] if names and len(names) == size else [str(i) for i in range(size)]

    def choose(self, per_instruction: int) -> list[tuple[int, str, int]]:
        """(episode index, instruction, number), ``per_instruction`` of each, spread over its episodes."""
        groups: dict[str, list[int]] = {}
        for row in self.layout.episodes:
            groups.setdefault(self._instruction(row), []).append(int(row["episode_index"]))
        chosen = []
        for instruction, episodes in groups.items():
            count = min(per_instruction, len(episodes))
            numbers = ((np.arange(count) + 0.5) * len(episodes) / count).astype(int)
            chosen += [(episodes[n], instruction, int(n)) for n in numbers]
        return chosen

    def episode(self, index: int, instruction: str, number: int, n_pictures: int) -> RecordedEpisode:
        """Read one episode with pictures of its first and ``n_pictures - 1`` later frames."""
        rows = np.flatnonzero(self._columns["episode_index"] == index)
        if not len(rows):
            raise ValueError(
                f"{self.root} has no frame of episode {index}, which meta/episodes names: "
                f"vita-vla demos check {self.root}"
            )
        columns = [key for key in (STATE, PRIVILEGED_STATE) if key in self._columns]
        frames = np.unique(np.linspace(0, len(rows) - 1, n_pictures).astype(int)) if self.cameras else []
        return RecordedEpisode(
            index,
            instruction,
            number,
            self._columns[self.executed][rows].reshape(len(rows), -1),
            {key: self._columns[key][rows].reshape(len(rows), -1) for key in columns},
            {int(frame): self._pictures(int(rows[frame])) for frame in frames},
        )

    def column(self, name: str) -> np.ndarray:
        """(frames, numbers) of a numeric column, all episodes."""
        values = self._columns[name]
        return values.reshape(len(values), -1)

    def labels(self) -> Iterator[tuple[int, str, int, int, np.ndarray, np.ndarray]]:
        """(episode index, instruction, number, of how many, labels, executed actions) of every episode.

        Nothing where there is no column of executed actions: then the labels are what was executed.
        """
        if self.executed == ACTION:
            return
        chosen = self.choose(len(self.layout.episodes))
        stored = Counter(instruction for _, instruction, _ in chosen)
        for index, instruction, number in chosen:
            rows = np.flatnonzero(self._columns["episode_index"] == index)
            label, executed = (self._columns[name][rows] for name in (ACTION, self.executed))
            two = label.reshape(len(rows), -1), executed.reshape(len(rows), -1)
            yield index, instruction, number, stored[instruction], *two

    def _instruction(self, episode: dict[str, Any]) -> str:
        first = int(episode["dataset_from_index"])
        return self.layout.tasks[int(self._columns["task_index"][first])]

    def _pictures(self, row: int) -> dict[str, np.ndarray]:
        if self.layout.keys("video"):
            frame = self._dataset[row]
            numbers = {key: frame[key].permute(1, 2, 0).numpy() * 255 for key in self.cameras}
            return {key: picture.round().astype(np.uint8) for key, picture in numbers.items()}
        # Files inside parquet are at hand at once, where opening the whole dataset takes a second.
        for path in self.layout.data_files:
            file = parquet.ParquetFile(path)
            for group in range(file.num_row_groups):
                if row < (count := file.metadata.row_group(group).num_rows):
                    stored = file.read_row_group(group, columns=self.cameras).slice(row, 1).to_pylist()[0]
                    return {key: self._decoded(key, stored[key]["bytes"]) for key in self.cameras}
                row -= count
        raise ValueError(
            f"{self.root} has no frame {row} behind its last one: vita-vla demos check {self.root}"
        )

    def _decoded(self, key: str, file: bytes) -> np.ndarray:
        try:
            picture = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(
                f"{self.root}: a picture of {key} is damaged ({error}); copy or record the dataset again. "
                f"How much of it is: vita-vla demos check {self.root}"
            ) from None
        if picture.shape[:2] != (size := self.image_sizes[key]):
            raise ValueError(
                f"{self.root}: pictures of {key} are {picture.shape[0]} x {picture.shape[1]} pixels, "
                f"meta/info.json says {size[0]} x {size[1]}; correct it there, or record again"
            )
        return picture

    @cached_property
    def _dataset(self):
        from lerobot.datasets import LeRobotDataset

        return LeRobotDataset(f"local/{self.root.name}", root=self.root, video_backend=VIDEO_BACKEND)
