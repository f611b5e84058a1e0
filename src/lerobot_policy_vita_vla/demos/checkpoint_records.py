"""Records of demonstrations that checkpoints carry: read in today's words, and kept when training goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lerobot_policy_vita_vla.conventions import OF_ACTIONS, OF_STATES, Conventions, RecordingInfo

logger = logging.getLogger(__name__)

STATE_ROTATIONS, EVALUATED_UNDER = "state_rotations", "evaluated_under"
"""Keys of `RecordingInfo.settings` of an imported teacher: the representations of the hand's orientation that
it was given, in training first; and the protocol under which its authors evaluate it."""

CONTINUED_FROM = "continued_from"
"""Key of `RecordingInfo.settings`: what the checkpoint was trained on before."""

_NOTHING = RecordingInfo("", {}, "", 0, 0, "").to_dict()
UNITS = ("action_mode", "position_unit", "action_rotation", "rotation_unit", "gripper_open", "gripper_closed")
LOOKS = ("suite", "quality", "camera")


def read_record(record: Mapping[str, Any], state_rotation: str | None = None) -> RecordingInfo:
    """A checkpoint's record in today's words.

    Args:
        record: `RecordingInfo` as plain JSON types, also one that an earlier version imported.
        state_rotation: How the other side's state holds the hand's orientation. A teacher that was given
            several representations takes it as it is.
    """
    info = RecordingInfo.from_dict(_NOTHING | dict(record))
    suite = "libero" if info.suite.startswith("libero") else info.suite
    quality = "standard" if info.quality == "original" else info.quality
    settings, conventions = dict(info.settings), dict(info.conventions)
    if settings.get("imported") == "Seer":
        if conventions.get("state_rotation") == "axis_angle_2pi":
            conventions |= {"state_rotation": OF_STATES, "refreshed": False}
            settings |= {STATE_ROTATIONS: [OF_STATES, "euler_xyz"], EVALUATED_UNDER: "seer"}
        if conventions.get("action_rotation") == "euler_xyz":
            conventions["action_rotation"] = OF_ACTIONS
    if state_rotation in settings.get(STATE_ROTATIONS, ()):
        conventions["state_rotation"] = state_rotation
    return replace(info, suite=suite, quality=quality, settings=settings, conventions=conventions)


def read_pair(
    mine: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None
) -> tuple[RecordingInfo, RecordingInfo] | None:
    """Data's record and a checkpoint's, as the checkpoint reads the data; None where one says nothing.

    Args:
        mine: Of the data.
        theirs: Of the checkpoint.
    """
    if not mine or not theirs:
        return None
    here = read_record(mine)
    return here, read_record(theirs, here.conventions.get("state_rotation"))


def same_units(mine: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> bool:
    """Whether two records declare that a number of an action means the same."""
    if (pair := read_pair(mine, theirs)) is None or not all(info.conventions for info in pair):
        return False
    one, other = (Conventions.from_dict(info.conventions) for info in pair)
    return not set(one.differences(other)) & {*UNITS, "action_dim", "gripper_dim"}


def go_on(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps when training goes on, perhaps on other data.

    Args:
        before: The checkpoint's record; empty or None for a new policy.
        now: The record of the data at hand; empty where there is none.

    Returns:
        The data's record, with the checkpoint's seeds and settings under `CONTINUED_FROM` if it is another.
        Data that do not say what they mean leave the checkpoint's record as it is.

    Raises:
        ValueError: If conventions differ; names each, both values and the ways out.
    """
    before, now = dict(before or {}), dict(now)
    if not before or not now or before == now:
        return now or before
    here, there = read_pair(now, before)
    differing = here.picture_differences(there.to_dict()) if there.suite else []
    looks = [line for line in differing if line.startswith(tuple(f"{name}:" for name in LOOKS))]
    if problems := [line for line in differing if line not in looks]:
        raise ValueError(
            "the dataset means something else than what the checkpoint was trained on ('recorded with' is "
            "the dataset, 'here' the checkpoint):\n  " + "\n  ".join(problems) + "\nRecord demonstrations "
            "as the checkpoint's were (vita-vla demos record with its --size and --protocol), declare what "
            "they mean if they do not say it (vita-vla demos declare), or train a new policy on this dataset"
        )
    if looks:
        logger.warning("training goes on with pictures of another look: %s", "; ".join(looks))
    if there.suite and not here.suite:
        return before
    if (kept := now.get("settings", {})) == before.get("settings"):
        return now
    past = {key: before[key] for key in ("suite", "seeds", "settings") if before.get(key)}
    return {**now, "settings": {**kept, CONTINUED_FROM: past}}
