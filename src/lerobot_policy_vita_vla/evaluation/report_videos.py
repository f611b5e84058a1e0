"""Chooses episode videos for the report page and turns them into data URIs.

What one wants to see is how policies differ: of each task and policy a failure and a success, preferably of
episodes that another policy ended differently, beginning with the tasks on which the rates differ most.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.evaluation.report_data import Evaluation, Run

LANES = 6
"""Policies shown side by side: what fits on a desktop."""

AT_MOST = 72
"""Videos on one page: beyond this browsers take seconds to open it, whatever its size."""


@dataclass(frozen=True)
class Video:
    """One chosen video, ready for a ``<video>`` element.

    Attributes:
        label: The policy.
        episode: The line of episodes.jsonl.
        source: ``data:video/mp4;base64,...``.
        poster: ``data:image/jpeg;base64,...`` of the last frame: how the episode ended.
        width: Pixels.
        height: Pixels.
        seconds: Duration.
    """

    label: str
    episode: dict[str, Any]
    source: str
    poster: str
    width: int
    height: int
    seconds: float

    @property
    def n_bytes(self) -> int:
        """What it adds to the page."""
        return len(self.source) + len(self.poster)


@dataclass
class Gallery:
    """The chosen videos by task, and what was left out and why."""

    by_task: dict[str, list[Video]] = field(default_factory=dict)
    n_left_out: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def n_videos(self) -> int:
        """Videos on the page."""
        return sum(len(videos) for videos in self.by_task.values())

    @property
    def n_bytes(self) -> int:
        """What the gallery adds to the page."""
        return sum(video.n_bytes for videos in self.by_task.values() for video in videos)


def choose_videos(run: Run, budget: int) -> Gallery:
    """Pick videos until `budget` bytes of page are used.

    Args:
        run: The run; videos lie under ``eval/<label>/videos``.
        budget: Upper limit of `Gallery.n_bytes`.
    """
    candidates, n_on_disk = _candidates(run)
    gallery, spent = Gallery(), 0
    chosen: list[Video] = []
    for evaluation, episode in candidates:
        path = evaluation.folder / episode["video"]
        if len(chosen) == AT_MOST or spent + path.stat().st_size * 4 / 3 > budget:
            continue
        try:
            video = read_video(path, evaluation.label, episode)
        except ValueError as error:
            gallery.problems.append(str(error))
            continue
        if spent + video.n_bytes <= budget:
            spent += video.n_bytes
            chosen.append(video)
    gallery.n_left_out = n_on_disk - len(chosen) - len(gallery.problems)
    labels = [e.label for e in run.evaluations]
    for task in _tasks(run):
        videos = [video for video in chosen if video.episode["task"] == task]
        videos.sort(key=lambda v: (labels.index(v.label), not v.episode["success"], v.episode["seed"]))
        if videos:
            gallery.by_task[task] = videos
    return gallery


def read_video(path: Path, label: str, episode: dict[str, Any]) -> Video:
    """Inline one video.

    Raises:
        ValueError: It cannot be decoded, or is in a format that browsers do not play.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            codec, pixels = stream.codec_context.name, stream.codec_context.pix_fmt
            frames = list(container.decode(stream))
            rate = float(stream.average_rate or 25)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path.name} cannot be decoded ({error})") from None
    if codec != "h264" or pixels != "yuv420p" or not frames:
        raise ValueError(f"{path.name} is {codec}/{pixels}; browsers play H.264 in yuv420p everywhere")
    poster = BytesIO()
    frames[-1].to_image().save(poster, format="JPEG", quality=80)
    return Video(
        label=label,
        episode=episode,
        source=_data_uri("video/mp4", path.read_bytes()),
        poster=_data_uri("image/jpeg", poster.getvalue()),
        width=frames[-1].width,
        height=frames[-1].height,
        seconds=len(frames) / rate,
    )


def _candidates(run: Run) -> tuple[list[tuple[Evaluation, dict[str, Any]]], int]:
    """Episodes with a video worth showing, the most telling first, and how many videos there are in all."""
    outcomes: dict[str, set[bool]] = defaultdict(set)
    groups: dict[tuple[int, str, bool], list[tuple[Evaluation, dict[str, Any]]]] = defaultdict(list)
    for position, evaluation in enumerate(run.evaluations):
        for episode in evaluation.episodes:
            if episode.get("video") and (evaluation.folder / episode["video"]).is_file():
                success = bool(episode["success"])
                outcomes[episode["id"]].add(success)
                groups[position, episode["task"], success].append((evaluation, episode))
    tasks = _by_spread(run)
    each = 2 if len(run.evaluations) <= 3 else 1
    ranked = []
    for (position, task, success), members in groups.items():
        members.sort(key=lambda m: (-len(outcomes[m[1]["id"]]), m[1]["seed"]))
        for rank, candidate in enumerate(members[: each if position < LANES else 0]):
            ranked.append(((rank, tasks.index(task), position, success), candidate))
    ranked.sort(key=lambda item: item[0])
    return [candidate for _, candidate in ranked], sum(map(len, groups.values()))


def _by_spread(run: Run) -> list[str]:
    """Tasks, those first on which the policies differ most: these are shown where not all can be."""

    def spread(task: str) -> float:
        rates = [e.tasks[task]["success_rate"] for e in run.evaluations if task in e.tasks]
        return max(rates) - min(rates) if rates else 0.0

    return sorted(_tasks(run), key=spread, reverse=True)


def _tasks(run: Run) -> list[str]:
    return list(dict.fromkeys(episode["task"] for episode in run.manifest["episodes"]))


def _data_uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
