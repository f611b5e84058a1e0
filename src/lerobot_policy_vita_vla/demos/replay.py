"""The golden replay: recorded actions are executed again, and what is seen must be what was recorded.

    declared conventions -> play from the recorded start -> states equal?  pictures equal?
                                 |  no                        |  no           |  no
                                 |                   play under every         compare in eight
                        other settle steps,          other assumption:        orientations,
                        rates, starts                gripper, rotation, ...   two colour orders

The assumption under which everything fits names the broken convention and what to set. Where the declared
conventions fit, the others are played too, until they fail: what would not have been noticed is reported as
undecided instead of confirmed.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import numpy as np

from lerobot_policy_vita_vla.conventions import Conventions, statistics_hash
from lerobot_policy_vita_vla.demos.replay_data import RecordedEpisode, Recording
from lerobot_policy_vita_vla.demos.replay_pictures import judge_pictures
from lerobot_policy_vita_vla.demos.replay_play import Assumption, Played, assumptions, play
from lerobot_policy_vita_vla.demos.replay_report import BROKEN, CONFIRMED, UNDECIDED, ReplayReport
from lerobot_policy_vita_vla.demos.replay_start import (
    blame_start,
    find_starts,
    judge_start,
    judge_state_rotation,
)
from lerobot_policy_vita_vla.demos.simulator import Simulator, open_simulator

DECLARED = "declared"

PICTURES_PER_EPISODE = 5
"""Our choice: states tell more than pictures, and pictures cost most."""

EXPLAINS = 0.5
"""Our choice: assumptions that halve the mean difference of states are the likeliest explanation, if none
removes it."""

NEARER = 0.9
"""Our choice: where several conventions are broken, mending one of them takes at least a tenth away."""

MOST_EXPLANATIONS = 3
"""Conventions that may be wrong at once: gripper, rotation, rate."""


def replay(
    root: str | Path,
    *,
    episodes: int = 1,
    simulator: Simulator | str | None = None,
    pictures: int = PICTURES_PER_EPISODE,
) -> ReplayReport:
    """Check a dataset's conventions by executing its actions.

    Args:
        root: Folder of the dataset.
        episodes: Episodes of each instruction to replay, spread over the dataset.
        simulator: A simulator, ``"module:callable"``, or None for the one of the recording's suite.
        pictures: Pictures to compare in each episode.

    Raises:
        ValueError: If the dataset cannot be read, or no simulator is known for it.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    began = time.monotonic()
    recording = Recording(root)
    given = simulator if simulator is not None and not isinstance(simulator, str) else None
    sim = given or open_simulator(recording.info, simulator)
    try:
        judge = _Judge(recording, sim)
        for chosen in recording.choose(episodes):
            judge.episode(recording.episode(*chosen, pictures))
    finally:
        if given is None:
            sim.close()
    return judge.finish(time.monotonic() - began)


class _Judge:
    """Goes from episode to episode; `meaning` is what the data has turned out to mean so far."""

    def __init__(self, recording: Recording, simulator: Simulator):
        self.recording, self.sim = recording, simulator
        declared = recording.info.conventions if recording.info else {}
        self.declared = Conventions.from_dict(declared) if declared else simulator.conventions
        self.meaning = self.declared
        self.report = ReplayReport(str(recording.root))
        self._repeat = 1
        self._check_labels()

    def episode(self, episode: RecordedEpisode) -> None:
        """Replay one episode and note what it shows."""
        self.report.episodes.append(episode.index)
        declared, guesses = find_starts(self.sim, episode, self.meaning)
        tried = []
        for guess in guesses:
            base = Assumption(DECLARED, "as declared", guess.meaning, self._repeat)
            tried.append((guess, base, play(self.sim, guess.start, episode, base, draw=True)))
            if tried[-1][2].worst <= self.sim.tolerances.path:
                break
        else:
            tried = tried[:1]
        guess, base, played = tried[-1]
        judge_start(self.report, self.sim, episode, declared, guess)
        start, start_fits = guess.start, guess.off <= self.sim.tolerances.start
        if (count := len(played.deviation)) < len(episode.actions):
            self.report.notes.append(
                f"of the {len(episode.actions)} frames of episode {episode.index} the first {count} were "
                f"played: the simulator stops after {self.sim.max_steps} steps"
            )
        worst = played.worst
        if start_fits and worst <= self.sim.tolerances.path:
            self.report.measure("path", worst)
            self._confirm(start, episode, base)
        elif start_fits:
            base, played = self._explain(start, episode, base, played)
        # A start that was only guessed tells nothing about other episodes.
        if start_fits:
            self.meaning, self._repeat = base.conventions, base.repeat
        fits = start_fits and played.worst <= self.sim.tolerances.path
        if fits and not self.report.verdicts.get("trajectory"):
            self.report.add(
                "trajectory", CONFIRMED, f"states stay within {played.worst:.1e} of the recorded ones"
            )
        told = "pictures" in self.report.verdicts
        for judge in (judge_state_rotation, judge_pictures):
            self.meaning = judge(self.report, self.meaning, self.sim, episode, played, fits)
        if not (start_fits or told):
            # From another start things stand elsewhere: that the pictures differ then tells nothing more.
            self.report.verdicts.pop("pictures", None)
        blame_start(self.report, start)

    def finish(self, seconds: float) -> ReplayReport:
        """The report, with what would have to be declared."""
        found = self.declared.differences(self.meaning)
        self.report.settings = {name: there for name, (_, there) in found.items()}
        self.report.seconds = seconds
        info = self.recording.info
        for package, recorded in (info.versions if info else {}).items():
            try:
                here = version(package)
            except PackageNotFoundError:
                here = "not installed"
            if here != recorded:
                self.report.notes.append(f"recorded with {package} {recorded}, here it is {here}")
        if not self.report.ok and self.recording.executed != "executed_action":
            self.report.notes.append(
                f"the dataset has no executed_action, so {self.recording.executed!r} was replayed: if the "
                "arm was disturbed while recording, states cannot agree"
            )
        return self.report

    def _check_labels(self) -> None:
        # What meta/ says must fit before anything is executed.
        recording, report, meaning = self.recording, self.report, self.meaning
        if (numbers := recording.action_dim) != meaning.action_dim:
            raise ValueError(
                f"{recording.executed} has {numbers} numbers, the declared conventions have "
                f"{meaning.action_dim}: this is another robot's dataset, or --simulator is another robot"
            )
        if recording.fps != meaning.control_hz:
            report.add(
                "control_rate",
                BROKEN,
                f"meta/info.json says {recording.fps:g} frames per second, the declared control rate is "
                f"{meaning.control_hz:g} Hz",
                f'write "fps": {meaning.control_hz:g} into meta/info.json if states agree below; otherwise '
                "record again at that rate",
            )
        for key, size in recording.image_sizes.items():
            if size != meaning.image_size:
                report.add(
                    "image_size",
                    BROKEN,
                    f"{key} has {size[0]} x {size[1]} pixels, declared are {meaning.image_size[0]} x "
                    f"{meaning.image_size[1]}",
                    f'set "image_size": {list(size)} and evaluate with pictures of this size',
                )
                self.meaning = replace(self.meaning, image_size=size)
        info = recording.info
        if info and info.statistics_hash and info.statistics_hash != statistics_hash(recording.layout.stats):
            report.add(
                "statistics",
                BROKEN,
                "meta/stats.json is not the one that was recorded: what was trained before has another scale",
                "restore meta/stats.json, or train teacher and student again on this dataset",
            )
        elif info and info.statistics_hash:
            report.add("statistics", CONFIRMED, f"hash {info.statistics_hash}")

    def _confirm(self, start, episode: RecordedEpisode, base: Assumption) -> None:
        # Every other assumption must fail, or this episode does not tell.
        verdicts = self.report.verdicts
        told = {name for name, v in verdicts.items() if v.status != UNDECIDED}
        limit = self.sim.tolerances.path
        worst: dict[str, tuple[float, str]] = {}
        # Whether the state's rotation is told apart is `judge_state_rotation`'s to say.
        for other in assumptions(base, episode.actions, self.sim, {*told, "state_rotation"}):
            played = play(self.sim, start, episode, other, stop_above=2 * limit)
            separation = played.worst
            if separation < worst.get(other.convention, (np.inf, ""))[0]:
                worst[other.convention] = (separation, other.meaning)
        for convention, (separation, meaning) in worst.items():
            told_apart = separation > limit
            self.report.add(
                convention,
                CONFIRMED if told_apart else UNDECIDED,
                f"if {meaning}, states would differ by {'more than ' if told_apart else ''}"
                f"{min(separation, 2 * limit):.1e}; allowed are {limit:.1e}",
                "" if told_apart else "replay more episodes: --episodes 5",
            )

    def _explain(self, start, episode: RecordedEpisode, base: Assumption, played):
        # One assumption after the other, as long as each brings the states nearer; what remains in the end
        # decides whether the chain is believed.
        limit, found, steps = self.sim.tolerances.path, played, [(base, played)]
        while found.worst > limit and len(steps) <= MOST_EXPLANATIONS:
            others = assumptions(steps[-1][0], episode.actions, self.sim, {a.convention for a, _ in steps})
            if not others:
                break
            best = self._nearest(start, episode, others)
            if best[1].off.mean() >= NEARER * found.off.mean():
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
                f"({self._where(episode, played, frame)}), and no assumption about gripper, rotation, action "
                "mode or control rate explains it",
                "compare controller, robot and physics version with the recording's; check that the dataset "
                "holds the actions that were executed",
            )
        return steps[-1][0], found

    def _nearest(self, start, episode: RecordedEpisode, others: list[Assumption]):
        # What is true holds to the end, and what is not mostly fails within a few frames, which is cheap.
        limit = self.sim.tolerances.path
        true = [a for a in others if play(self.sim, start, episode, a, stop_above=limit).worst <= limit]
        tried = [(a, play(self.sim, start, episode, a, draw=True)) for a in true or others]
        return min(tried, key=lambda pair: pair[1].off.mean())

    def _fix(self, before: Assumption, assumption: Assumption) -> str:
        if assumption.convention == "control_rate":
            rate = assumption.conventions.control_hz / assumption.repeat
            return (
                f"the frames are {rate:g} per second: record again at {self.sim.conventions.control_hz:g} "
                "Hz, or train and run everything at that rate"
            )
        if assumption.convention == "action_mode":
            return "record actions in the environment's mode, or use a controller that takes these"
        settings = before.conventions.differences(assumption.conventions)
        text = ", ".join(f'"{name}": {json.dumps(there)}' for name, (_, there) in settings.items())
        return f'set {text} under "conventions" in meta/vita_vla.json; evaluation then converts'

    def _where(self, episode: RecordedEpisode, played, frame: int) -> str:
        for key, simulated in played.states.items():
            if key in episode.states and episode.states[key].shape[1] == simulated.shape[1]:
                off = np.abs(simulated[frame] - episode.states[key][frame])
                names = self.recording.state_names(key, len(off))
                return f"{key} {names[int(off.argmax())]}: {off.max():.2g} off"
        return "the hand's orientation"


def _first(played: Played, limit: float) -> int:
    return int(np.argmax(played.deviation > limit))
