"""Whether recorded pictures are the simulator's, and how they lie if they lie otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from lerobot_policy_vita_vla.conventions import ORIENTATIONS, Conventions, match_cameras
from lerobot_policy_vita_vla.conversion import Conversion, orient, orientation_after
from lerobot_policy_vita_vla.demos.replay_data import RecordedEpisode
from lerobot_policy_vita_vla.demos.replay_play import Played
from lerobot_policy_vita_vla.demos.replay_report import BROKEN, CONFIRMED, UNDECIDED, ReplayReport
from lerobot_policy_vita_vla.demos.simulator import Simulator

ANOTHER_PICTURE = 0.5
"""Our choice: the best of sixteen ways is believed if it differs less than half as much as the second."""


class Match(NamedTuple):
    """The way in which a recorded picture is most like the simulator's.

    Args:
        turn: Orientation of the recorded picture against the one that was expected.
        swapped: Red and blue are swapped.
        difference: Mean absolute difference, grey levels.
        expected: The same for the picture as expected.
        second: The same for the second best way.
    """

    turn: str
    swapped: bool
    difference: float
    expected: float
    second: float

    @property
    def distinct(self) -> bool:
        """Whether no other way comes close."""
        return self.difference < ANOTHER_PICTURE * self.second


def match_picture(recorded: np.ndarray, drawn: np.ndarray) -> Match:
    """Compare a recorded picture with the simulator's in all eight orientations and both colour orders.

    Args:
        recorded: (H, W, 3) uint8.
        drawn: (h, w, 3) uint8, as the dataset should have it; shrunk or enlarged to the recorded size.
    """
    found: dict[tuple[str, bool], float] = {}
    for turn in ORIENTATIONS:
        turned = _resized(orient(drawn, turn), recorded.shape[:2])
        for swapped in (False, True):
            other = turned[..., ::-1] if swapped else turned
            found[turn, swapped] = picture_difference(recorded, other)
    best = min(found, key=found.get)
    second = min(value for way, value in found.items() if way != best)
    return Match(*best, found[best], found["as_drawn", False], second)


def picture_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of two pictures, grey levels of 255."""
    return float(np.abs(a.astype(np.int16) - b).mean())


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BOX))


def judge_pictures(
    report: ReplayReport,
    meaning: Conventions,
    simulator: Simulator,
    episode: RecordedEpisode,
    played: Played,
    fits: bool,
) -> Conventions:
    """Compare an episode's pictures: orientation and colours by the first, timing by those in its middle.

    Args:
        report: Takes ``image_orientation``, ``colour_order``, ``pictures`` and ``picture_timing``.
        meaning: Conventions so far.
        simulator: For its own conventions and tolerances.
        episode: The recording.
        played: Its replay, with pictures.
        fits: Whether states agreed, so that later pictures must, too.

    Returns:
        The conventions, with the orientation that the first picture shows.
    """
    if not played.pictures or not episode.pictures:
        return meaning
    limit, world = simulator.tolerances.picture, simulator.conventions
    names = match_cameras(list(played.pictures[0]), list(episode.pictures[0]), flag="render() keys")
    lie: dict[str, Match] = {}
    for ours, theirs in names.items():
        drawn = Conversion(meaning, world).pictures(played.pictures[0][ours])
        found = match_picture(episode.pictures[0][theirs], drawn)
        if fits and found.expected > limit and 1 in played.pictures:
            later = Conversion(meaning, world).pictures(played.pictures[1][ours])
            if picture_difference(episode.pictures[0][theirs], later) <= limit:
                continue  # the right picture at the wrong time, which is judged below
        if _judge_picture(report, found, f"{theirs} in episode {episode.index}", limit):
            lie[theirs] = found
    if lie:
        meaning = _judge_orientation(report, meaning, lie, episode.index, limit)
    if not fits or {"image_orientation", "pictures", "colour_order", "image_size"} & set(report.broken):
        return meaning
    worst, shifted = 0.0, dict.fromkeys((-1, 0, 1), 0.0)
    for frame, recorded in episode.pictures.items():
        if not {frame - 1, frame, frame + 1} <= set(played.pictures):
            continue
        for ours, theirs in names.items():
            for shift in shifted:
                drawn = Conversion(meaning, world).pictures(played.pictures[frame + shift][ours])
                off = picture_difference(recorded[theirs], drawn)
                shifted[shift] += off
                worst = max(worst, off if shift == 0 else 0.0)
    report.measure("picture", worst)
    nearest = min(shifted, key=shifted.get)
    if nearest != 0 and shifted[nearest] < ANOTHER_PICTURE * shifted[0]:
        report.add(
            "picture_timing",
            BROKEN,
            f"pictures of episode {episode.index} are one frame {'late' if nearest > 0 else 'early'}",
            "take each frame's picture before its action is executed, together with its state",
        )
    elif worst > limit:
        report.add(
            "pictures",
            BROKEN,
            f"a later picture of episode {episode.index} is {worst:.1f} grey levels off, although states and "
            "the first picture agree",
            "check that the pictures belong to these episodes",
        )
    elif shifted[1] > 2 * shifted[0]:
        report.add("picture_timing", CONFIRMED, f"{shifted[1]:.1f} grey levels off if one frame late")
    return meaning


def _judge_picture(report: ReplayReport, found: Match, where: str, limit: float) -> bool:
    # Whether it is the expected picture, however it lies.
    if found.expected <= limit:
        report.measure("picture", found.expected)
        return True
    # Another camera or another render quality looks a little like every orientation, and like none.
    if not found.distinct or found.difference > max(limit, ANOTHER_PICTURE * found.expected):
        report.add(
            "pictures",
            BROKEN,
            f"{where} is {found.expected:.0f} grey levels off, and at best {found.difference:.0f} in any "
            f"orientation (allowed are {limit:g})",
            "check camera, crop, render quality and picture size of the recording",
        )
        return False
    if found.swapped:
        report.add("colour_order", BROKEN, f"{where} has red and blue swapped", "store pictures as RGB")
    return True


def _judge_orientation(
    report: ReplayReport, meaning: Conventions, lie: dict[str, Match], episode: int, limit: float
) -> Conventions:
    declared = meaning.image_orientation
    turned = {
        camera: orientation_after(declared, found.turn)
        for camera, found in lie.items()
        if found.expected > limit and found.turn != "as_drawn"
    }
    fine = [camera for camera, found in lie.items() if found.expected <= limit]
    if not turned:
        if fine:
            told = all(lie[camera].distinct for camera in fine)
            off, second = max(lie[c].expected for c in fine), min(lie[c].second for c in fine)
            text = f"{declared}: {off:.1f} grey levels off, any other way {second:.0f} or more"
            report.add("image_orientation", CONFIRMED if told else UNDECIDED, text)
        return meaning
    said = "; ".join(
        f"{camera} is {true} ({lie[camera].expected:.0f} grey levels off as {declared}, "
        f"{lie[camera].difference:.1f} as {true})"
        for camera, true in turned.items()
    )
    said = f"in episode {episode} {said}, declared is {declared}"
    true = next(iter(turned.values()))
    if not fine and set(turned.values()) == {true}:
        report.add(
            "image_orientation",
            BROKEN,
            said,
            f'set "image_orientation": "{true}" under "conventions" in meta/vita_vla.json; evaluation then '
            "converts",
        )
        return replace(meaning, image_orientation=true)
    # One field for all cameras: what mends one would break another.
    report.add(
        "image_orientation",
        BROKEN,
        said + (f", as {', '.join(fine)} lies" if fine else ""),
        f"lay the pictures of {', '.join(turned)} down as {declared} in the dataset, or let the simulator or "
        "environment draw them as they are: image_orientation holds for all cameras, so leave it",
    )
    return meaning
