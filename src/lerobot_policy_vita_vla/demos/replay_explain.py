"""Which assumption about recorded actions makes the recorded states appear, and which would go unnoticed."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from itertools import pairwise

import numpy as np

from lerobot_policy_vita_vla.demos.replay_data import RecordedEpisode, Recording
from lerobot_policy_vita_vla.demos.replay_play import Assumption, Played, assumptions, play
from lerobot_policy_vita_vla.demos.replay_report import BROKEN, CONFIRMED, UNDECIDED, ReplayReport
from lerobot_policy_vita_vla.demos.simulator import Simulator

EXPLAINS = 0.5
"""Our choice: assumptions that halve the mean difference of states are the likeliest explanation, if none
removes it."""

NEARER = 0.9
"""Our choice: where several conventions are broken, mending one of them takes at least a tenth away."""

MOST_EXPLANATIONS = 3
"""Conventions that may be wrong at once: gripper, rotation, rate."""

LASTS, OUTLASTS = 20, 4
"""Our choice: an assumption under which the path holds for so many frames, and four times as long as under
any other, is true."""

AFTERWARDS = 20
"""Our choice: frames after the first difference over which explanations that fail are compared; what comes
later follows from these."""

UNITS = ("position_unit", "rotation_unit")
"""A smaller motion brings states nearer to nearly everything, so a unit must explain a path exactly."""


class Explainer:
    """Plays episodes under other assumptions than the declared ones.

    Args:
        recording: The dataset, for names.
        simulator: Where.
        report: Takes verdicts on gripper, rotation, action mode, units, control rate and trajectory.
        say: Called with a line for each assumption that is tried.
    """

    def __init__(
        self, recording: Recording, simulator: Simulator, report: ReplayReport, say: Callable[[str], None]
    ):
        self.recording, self.sim, self.report, self._say = recording, simulator, report, say

    def confirm(self, start: Hashable, episode: RecordedEpisode, base: Assumption) -> None:
        """Where the states fit: every other assumption must fail, or this episode does not tell."""
        verdicts = self.report.verdicts
        told = {name for name, v in verdicts.items() if v.status != UNDECIDED}
        limit = self.sim.tolerances.path
        worst: dict[str, tuple[float, str]] = {}
        # Whether the state's rotation is told apart is `judge_state_rotation`'s to say.
        for other in assumptions(base, episode.actions, self.sim, {*told, "state_rotation"}):
            if worst.get(other.convention, (np.inf, ""))[0] <= limit:
                continue  # one that fits is enough to leave it undecided
            separation = self._played(start, episode, other, stop_above=2 * limit).worst
            if separation < worst.get(other.convention, (np.inf, ""))[0]:
                worst[other.convention] = (separation, other.meaning)
        for convention, (separation, meaning) in worst.items():
            told_apart = separation > limit
            self.report.add(
                convention,
                CONFIRMED if told_apart else UNDECIDED,
                f"if {meaning}, states would differ by {'more than ' if told_apart else ''}"
                f"{min(separation, 2 * limit):.1e}; allowed are {limit:.1e}",
            )

    def explain(
        self, start: Hashable, episode: RecordedEpisode, base: Assumption, played: Played
    ) -> tuple[Assumption, Played]:
        """Where they do not: one assumption after the other, as long as each brings the states nearer.

        Returns:
            What is believed of the actions, and its replay.
        """
        limit, found, steps = self.sim.tolerances.path, played, [(base, played)]
        while found.worst > limit and len(steps) <= MOST_EXPLANATIONS:
            others = assumptions(steps[-1][0], episode.actions, self.sim, {a.convention for a, _ in steps})
            best = self._nearest(start, episode, others, found, later=len(steps) > 1)
            if best is None:
                break
            steps.append(best)
            found = best[1]
        explained = found.worst <= limit
        if not explained and found.off.mean() > EXPLAINS * played.off.mean():
            steps, found = steps[:1], played
        for (before, _), (assumption, _) in pairwise(steps):
            self.report.add(
                assumption.convention,
                BROKEN,
                f"{assumption.meaning}: {'then' if explained else 'then best, though not exactly,'} the "
                f"recorded states appear (episode {episode.index}; as declared they differ by "
                f"{played.worst:.2g} from frame {_first(played, limit)} on)",
                self._fix(before, assumption),
            )
        # With frames missing, which was said for an earlier episode, states can only come near.
        if len(steps) == 1 and base.repeat == 1:
            frame = _first(played, limit)
            self.report.add(
                "trajectory",
                BROKEN,
                f"states leave the recorded ones at frame {frame} of episode {episode.index} "
                f"({self._where(episode, played, frame)}), and no assumption about gripper, rotation, units, "
                "action mode or control rate explains it",
                "compare controller, robot and physics version with the recording's; check that the dataset "
                "holds the actions that were executed",
            )
        return steps[-1][0], found

    def _played(self, start, episode: RecordedEpisode, assumption: Assumption, **how) -> Played:
        self._say(f"episode {episode.index}: trying whether {assumption.meaning}")
        return play(self.sim, start, episode, assumption, **how)

    def _nearest(self, start, episode: RecordedEpisode, others: list[Assumption], found: Played, later: bool):
        # What is true holds to the end, and what is not mostly fails within a few frames, which is cheap.
        limit, exact, lasted = self.sim.tolerances.path, {}, {}
        for other in others:
            # Two grippers may fit to within the tolerance; another convention need not be tried any more.
            if exact and all(other.convention != there.convention for there in exact):
                break
            tried = self._played(start, episode, other, stop_above=limit)
            lasted[other] = len(tried.off)
            if tried.worst <= limit:
                exact[other] = tried.off.mean()
        if exact:
            return self._drawn(start, episode, min(exact, key=exact.get))
        held, rough = _first(found, limit), [a for a in others if a.convention not in UNITS]
        best = max(rough, key=lasted.get, default=None)
        if best is None:
            return None
        rest = max([held, *(n for a, n in lasted.items() if a.convention != best.convention)])
        if lasted[best] >= max(LASTS, OUTLASTS * rest):
            return self._drawn(start, episode, best)  # true, until a contact amplified rounding
        if later and held >= LASTS:
            return None
        frames = min(len(found.off), held + AFTERWARDS)
        off = {a: play(self.sim, start, episode, a, frames=frames).off.mean() for a in rough}
        best = min(off, key=off.get)
        return self._drawn(start, episode, best) if off[best] < NEARER * found.off[:frames].mean() else None

    def _drawn(self, start, episode: RecordedEpisode, assumption: Assumption) -> tuple[Assumption, Played]:
        return assumption, play(self.sim, start, episode, assumption, draw=True)

    def _fix(self, before: Assumption, assumption: Assumption) -> str:
        if assumption.convention == "control_rate":
            rate = assumption.conventions.control_hz / assumption.repeat
            return (
                f"the frames are {rate:g} per second: record again at {self.sim.conventions.control_hz:g} "
                "Hz, or train and run everything at that rate"
            )
        if assumption.convention == "settle_steps":
            steps = assumption.conventions.settle_steps
            return (
                f'set "settle_steps": {steps} under "conventions" in meta/vita_vla.json and let the '
                f"environment do {steps} idle steps after its reset"
            )
        theirs = assumption.conventions.action_mode
        if assumption.convention == "action_mode" and theirs != self.sim.conventions.action_mode:
            return "record actions in the environment's mode, or use a controller that takes these"
        settings = before.conventions.differences(assumption.conventions)
        text = ", ".join(f'"{name}": {json.dumps(there)}' for name, (_, there) in settings.items())
        return f'set {text} under "conventions" in meta/vita_vla.json; evaluation then converts'

    def _where(self, episode: RecordedEpisode, played: Played, frame: int) -> str:
        for key, simulated in played.states.items():
            if key in episode.states and episode.states[key].shape[1] == simulated.shape[1]:
                off = np.abs(simulated[frame] - episode.states[key][frame])
                names = self.recording.state_names(key, len(off))
                return f"{key} {names[int(off.argmax())]}: {off.max():.2g} off"
        return "the hand's orientation"


def _first(played: Played, limit: float) -> int:
    return int(np.argmax(played.deviation > limit))
