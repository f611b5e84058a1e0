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

import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lerobot_policy_vita_vla.conventions import Conventions
from lerobot_policy_vita_vla.demos.replay_data import RecordedEpisode, Recording
from lerobot_policy_vita_vla.demos.replay_explain import Explainer
from lerobot_policy_vita_vla.demos.replay_labels import judge_labels
from lerobot_policy_vita_vla.demos.replay_meta import judge_rate, judge_sizes, judge_statistics
from lerobot_policy_vita_vla.demos.replay_pictures import judge_pictures
from lerobot_policy_vita_vla.demos.replay_play import Assumption, play
from lerobot_policy_vita_vla.demos.replay_report import CONFIRMED, ReplayReport
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


def replay(
    root: str | Path,
    *,
    episodes: int = 1,
    simulator: Simulator | str | None = None,
    pictures: int = PICTURES_PER_EPISODE,
    others: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> ReplayReport:
    """Check a dataset's conventions by executing its actions.

    Args:
        root: Folder of the dataset.
        episodes: Episodes of each instruction to replay, spread over the dataset.
        simulator: A simulator, ``"module:callable"``, or None for the one of the recording's suite.
        pictures: Pictures to compare in each episode.
        others: Where the declared conventions fit, play the others too: without that nothing is confirmed
            that shows along the path.
        say: Called with a line for each assumption that is tried.

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
        judge = _Judge(recording, sim, others, say)
        for chosen in recording.choose(episodes):
            judge.episode(recording.episode(*chosen, pictures))
    finally:
        if given is None:
            sim.close()
    return judge.finish(time.monotonic() - began)


class _Judge:
    """Goes from episode to episode; `meaning` is what the data has turned out to mean so far."""

    def __init__(self, recording: Recording, simulator: Simulator, others: bool, say: Callable[[str], None]):
        self.recording, self.sim, self._others = recording, simulator, others
        declared = recording.info.conventions if recording.info else {}
        self.declared = Conventions.from_dict(declared) if declared else simulator.conventions
        self.report = ReplayReport(str(recording.root), stored=len(recording.layout.episodes))
        self._repeat, self._rate = 1, None
        if (numbers := recording.action_dim) != self.declared.action_dim:
            raise ValueError(
                f"{recording.executed} has {numbers} numbers, the declared conventions have "
                f"{self.declared.action_dim}: this is another robot's dataset, or --simulator is another "
                "robot"
            )
        self.meaning = judge_sizes(self.report, recording, self.declared)
        judge_statistics(self.report, recording)
        judge_labels(self.report, recording, self.declared.gripper_dim)
        self._explainer = Explainer(recording, simulator, self.report, say)

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
            if self._others:
                self._explainer.confirm(start, episode, base)
        elif start_fits:
            base, played = self._explainer.explain(start, episode, base, played)
        # A start that was only guessed tells nothing about other episodes.
        if start_fits:
            self.meaning, self._repeat = base.conventions, base.repeat
        fits = start_fits and played.worst <= self.sim.tolerances.path
        if fits:
            self._rate = base.conventions.control_hz / base.repeat
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
        declared, world = self.declared.control_hz, self.sim.conventions.control_hz
        judge_rate(self.report, self.recording.fps, declared, self._rate, world)
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
