"""Whether the labels that policies are trained on are the expert's answers to what was executed.

A recording with disturbances holds two columns: `executed_action`, which the replay executes, and `action`,
which training reads. Executing says nothing about the second, so the two are compared, over all episodes:

    undisturbed attempts      every number equal
    disturbed attempts        rotation and gripper equal; x, y, z within the declared noise
    attempts with a mistake   equal in most frames: while the arm errs, labels are the way back on purpose
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from lerobot_policy_vita_vla.conventions import RecordingInfo
from lerobot_policy_vita_vla.demos.expert import Disturbance, drawn_mistakes
from lerobot_policy_vita_vla.demos.replay_data import ACTION, Recording
from lerobot_policy_vita_vla.demos.replay_report import BROKEN, CONFIRMED, UNDECIDED, ReplayReport

EQUAL = 1e-5
"""A label that went through a file or another library's arithmetic is still the same."""

MOST = 0.5
"""Our choice: a mistake takes less than half of an episode's frames."""

SHIFTS = (1, -1, 2, -2, 3, -3)
"""Frames by which labels may have been moved."""

GRIPPER_MAPS = ((0.0, -1.0), (-1.0, 2.0), (1.0, -2.0), (0.5, 0.5), (0.5, -0.5))
"""(a, b) of executed = a + b * label: turned round, and between -1..1 and 0..1."""

SCALES = (2.0, 0.5, -1.0)
"""Factors that are tried on labels which differ from what was executed by noise."""

SURE = 20.0
"""Our choice: an explanation e**20 times as likely as another is the better one."""

EDGE = max(SHIFTS)
"""Frames at an episode's ends that have no neighbour to be moved to."""

WIDER = 3.0
"""Our choice: if noise three times as strong explains the numbers better, they differ by more than noise."""

KICKED = 0.25
"""Share of disturbed frames in which anything may be executed; with the usual kicks it is a fifth."""

AGAIN = (
    "write the expert's answers into the column again (demos record does), compute meta/stats.json anew, and "
    "train again what was trained on it"
)


class Pair(NamedTuple):
    """One episode's two columns.

    Args:
        index: Episode index.
        label: (T, A), what training reads.
        executed: (T, A), what the arm did.
        level: Noise on x, y and z: 0 is none, None is not known.
        mistaken: Whether the arm may have been led through a mistake.
    """

    index: int
    label: np.ndarray
    executed: np.ndarray
    level: float | None
    mistaken: bool

    @property
    def first(self) -> int:
        """The first number that must be equal."""
        return 0 if self.level == 0 else 3

    def agrees(self, change: Callable[[np.ndarray], np.ndarray] | None = None, shift: int = 0) -> bool:
        """Whether labels, changed and moved by ``shift`` frames, are what was executed where they must be."""
        label, executed = _moved(self, shift)
        off = np.abs((change(label) if change else label) - executed)[:, self.first :]
        equal = (off <= EQUAL).all(axis=1)
        return bool(equal.mean() >= MOST if self.mistaken else equal.all()) if len(equal) else True


def judge_labels(report: ReplayReport, recording: Recording, gripper: int | None) -> None:
    """Compare what training reads with what was executed, in every episode.

    Args:
        report: Takes ``label_gripper``, ``label_scale`` and ``label_timing`` if they are broken, else
            ``labels``.
        recording: The dataset; without a column `executed_action` the labels are what is replayed.
        gripper: Index of the gripper command.
    """
    pairs = [
        _pair(recording.info, stored, instruction, number, index, label, executed)
        for index, instruction, number, stored, label, executed in recording.labels()
    ]
    if not pairs:
        return
    names = recording.state_names(ACTION, pairs[0].label.shape[1])
    wrong = [pair for pair in pairs if not pair.agrees()]
    if wrong:
        declared = bool(recording.info and recording.info.noise)
        _name(report, wrong, len(pairs), names, gripper, declared)
        return
    noisy = [pair for pair in pairs if pair.level != 0]
    # Rotation and gripper, which are not disturbed, tell times apart exactly.
    times = [shift for shift in SHIFTS if all(pair.agrees(shift=shift) for pair in pairs)]
    told = not noisy or _judge_noise(report, noisy, times)
    if any(name.startswith("label") for name in report.broken):
        return
    clean = len(pairs) - len(noisy)
    found = f"action is executed_action in {clean} undisturbed of {len(pairs)} episodes"
    found += ", in the others but for the noise" if noisy else ""
    if clean or told:
        report.add("labels", CONFIRMED, found)
        return
    report.add(
        "labels",
        UNDECIDED,
        "no episode is undisturbed, and the disturbances hide whether x, y, z of action are scaled or moved "
        "in time against executed_action (gripper and rotation, if there is one, are equal)",
        "record some episodes without noise: a level of 0 among the disturbance's",
    )


def _pair(
    info: RecordingInfo | None,
    stored: int,
    instruction: str,
    number: int,
    index: int,
    label: np.ndarray,
    executed: np.ndarray,
) -> Pair:
    equal = bool((np.abs(label - executed) <= EQUAL).all())
    noise = Disturbance(**info.noise) if info and info.noise else None
    tasks = info.tasks.get(instruction, "").split(",") if info else []
    kept = {task: info.kept.get(task, 0) for task in tasks} if info else {}
    if noise is None or sum(kept.values()) != stored or not kept.keys() <= info.seeds.keys():
        # Which attempt it was is not known, so only the numbers tell.
        chances = noise is not None and noise.miss_chance + noise.aside_chance > 0
        return Pair(index, label, executed, 0.0 if equal else None, chances)
    for task in tasks:
        if number < kept[task]:
            break
        number -= kept[task]
    # One of these, since attempts that failed are not there.
    attempts = range(number, number + info.tried[task] - kept[task] + 1)
    levels = {noise.levels[attempt % len(noise.levels)] for attempt in attempts}
    first = info.seeds[task][0]
    mistaken = any(drawn_mistakes(task, first + attempt, noise) for attempt in attempts)
    return Pair(index, label, executed, 0.0 if equal and 0 in levels else max(levels), mistaken)


def _moved(pair: Pair, shift: int) -> tuple[np.ndarray, np.ndarray]:
    count = len(pair.label) - abs(shift)
    if count <= 0:
        return pair.label[:0], pair.executed[:0]
    return pair.label[max(shift, 0) :][:count], pair.executed[max(-shift, 0) :][:count]


def _name(
    report: ReplayReport,
    wrong: list[Pair],
    episodes: int,
    names: list[str],
    gripper: int | None,
    declared: bool,
) -> None:
    # What has to be done to the labels until they are what was executed.
    where = f"in {len(wrong)} of {episodes} episodes (the first is {wrong[0].index}) the column action"
    for shift in SHIFTS:
        if all(pair.agrees(shift=shift) for pair in wrong):
            _late(report, where, shift, "are exactly what was executed")
            return
    scales: dict[str, float] = {}
    for i in range(min(pair.first for pair in wrong), len(names)):
        there = [pair for pair in wrong if pair.first <= i]
        label = np.concatenate([pair.label[:, i] for pair in there])
        executed = np.concatenate([pair.executed[:, i] for pair in there])
        need = MOST if any(pair.mistaken for pair in there) else 1.0
        if np.mean(np.abs(label - executed) <= EQUAL) >= need:
            continue
        fit = _fit(label, executed, need, i == gripper)
        if fit is None:
            worst = np.abs(label - executed)
            report.add(
                "labels",
                BROKEN if declared else UNDECIDED,
                f"{where} differs from executed_action by up to {worst.max():.2g} in {names[i]}, and is "
                "neither scaled nor moved in time; "
                + ("declared is no disturbance of it" if declared else "no disturbance is declared"),
                AGAIN if declared else 'write what the recorder did under "noise" in meta/vita_vla.json',
            )
        elif i == gripper and (fit[0] != 0 or fit[1] < 0):
            said = f"{fit[0]:g} + {fit[1]:g} * action" if fit[0] else f"{fit[1]:g} * action"
            report.add(
                "label_gripper",
                BROKEN,
                f"{where} has another gripper sign or range than executed_action, which is {said}: a policy "
                "learns to open where it is to close, or the other way round",
                AGAIN,
            )
        else:
            scales[names[i]] = 1 / fit[1]
    if scales:
        said = ", ".join(f"{name} {scale:.3g}" for name, scale in scales.items())
        report.add("label_scale", BROKEN, f"{where} is executed_action times: {said}", AGAIN)


def _fit(label: np.ndarray, executed: np.ndarray, need: float, gripper: bool) -> tuple[float, float] | None:
    moving = np.abs(label) > 1e-6
    tried = [(0.0, float(np.median(executed[moving] / label[moving])))] if moving.any() else []
    # To six digits, as float32 has them: an exact factor is to be found, and said, as it is.
    tried = [(a, float(f"{b:.6g}")) for a, b in tried if b != 0]
    for a, b in [*tried, *(GRIPPER_MAPS if gripper else ())]:
        if np.mean(np.abs(a + b * label - executed) <= EQUAL * max(1.0, abs(b))) >= need:
            return a, b
    return None


def _late(report: ReplayReport, where: str, shift: int, then: str) -> None:
    late = f"{abs(shift)} frame{'s' if abs(shift) > 1 else ''} {'late' if shift > 0 else 'early'}"
    report.add("label_timing", BROKEN, f"{where} is {late}: moved back, its numbers {then}", AGAIN)


def _judge_noise(report: ReplayReport, noisy: list[Pair], times: list[int]) -> bool:
    """Compare x, y, z where they were disturbed; whether other scales, and these times, are ruled out."""
    ways = [("scale", scale) for scale in SCALES] + [("shift", shift) for shift in SHIFTS]
    ways.append(("spread", WIDER))
    total, broken = np.zeros(len(ways)), {}
    for pair in (pair for pair in noisy if len(pair.label) > 2 * EDGE):
        if pair.level and np.array_equal(pair.label, pair.executed):
            broken.setdefault(("noise", 0.0), []).append(pair.index)
            continue
        gains = np.array([_likelihood(pair, **{kind: value}) for kind, value in ways]) - _likelihood(pair)
        total += gains
        if gains.max() > SURE:
            broken.setdefault(ways[int(gains.argmax())], []).append(pair.index)
    for (kind, value), episodes in broken.items():
        where = (
            f"in {len(episodes)} of {len(noisy)} disturbed episodes (the first is {episodes[0]}) the column"
        )
        if kind == "shift":
            _late(report, f"{where} action", int(value), "differ from what was executed by the noise")
        elif kind == "scale":
            said = (
                f"{where} action's x, y, z are {1 / value:g} times what executed_action's noise is added to"
            )
            report.add("label_scale", BROKEN, said, AGAIN)
        else:
            said = "is executed_action, though noise was declared: a policy learns the disturbances"
            if kind == "spread":
                said = "differs from executed_action in x, y, z by more than the declared noise"
            report.add("labels", BROKEN, f"{where} action {said}", AGAIN)
    open_ways = [
        gain for (kind, value), gain in zip(ways, total, strict=True) if value in times or kind == "scale"
    ]
    return max(open_ways) < -SURE


def _likelihood(pair: Pair, scale: float = 1.0, shift: int = 0, spread: float = 1.0) -> float:
    # Of what was executed (its logarithm), if labels were to be scaled and moved like this. Noise is clipped
    # to [-1, 1]; in a share of the frames anything may be executed: kicks, and mistakes.
    inner = slice(EDGE, len(pair.label) - EDGE)
    executed = pair.executed[inner, :3].astype(np.float64)
    label = scale * np.roll(pair.label, -shift, axis=0)[inner, :3].astype(np.float64)
    off = executed - label
    level = pair.level or max(float(np.median(np.abs(off))), 1e-3)
    level *= spread
    clipped = norm.sf(np.sign(executed) * off / level)
    density = np.where(np.abs(executed) < 1 - EQUAL, norm.pdf(off / level) / level, clipped)
    share = MOST if pair.mistaken else KICKED
    return float(np.log((1 - share) * density.prod(axis=1) + share / 2**3).sum())
