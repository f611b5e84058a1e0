"""Which attempts a recording consists of, so that the result does not depend on how it was run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.demos.expert import MISTAKES, Attempt, Disturbance
from lerobot_policy_vita_vla.demos.scenes import METAWORLD, default_length, scenes_of, suite_of_tasks

MAX_STEPS = 260
"""Our choice: an expert that needs longer is lost, not recovering; nine of ten attempts at ten tasks end
before."""

TAIL_STEPS = 5
"""Our choice: frames after the first success, so that action chunks which begin shortly before it have
labels."""

MIN_YIELD = 0.2
"""A task whose expert succeeds less often than this stops the recording."""


def recording_settings(
    tasks: list[str],
    episodes_per_task: int,
    quality: str,
    observation_size: int,
    seed: int,
    disturbance: Disturbance | None,
    protocol: str | None = None,
    mistakes: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Everything that decides what ends up in the dataset, as JSON.

    Raises:
        ValueError: If mistakes are asked for that the suite's expert does not make.
    """
    scenes = scenes_of(suite_of_tasks(",".join(tasks)))
    noise = disturbance or Disturbance(scenes.noise, scenes.kick_chance, **scenes.mistakes)
    noise = replace(noise, **(mistakes or {}))
    for name, flaw in MISTAKES.items():
        if (share := getattr(noise, name)) and name not in scenes.mistakes:
            raise ValueError(
                f"a share of {flaw.words}, {share:g}, was asked for, but the experts of {scenes.name} make "
                "no mistakes on purpose. Leave out --misses and --asides"
            )
    limit = MAX_STEPS if scenes.name == METAWORLD.name else default_length(scenes.name, tasks, protocol)
    return {
        "suite": scenes.name,
        "tasks": tasks,
        "episodes_per_task": episodes_per_task,
        "quality": quality,
        "observation_size": observation_size,
        "seed": seed,
        "noise": noise.to_dict(),
        "max_steps": limit,
        "tail_steps": TAIL_STEPS,
        **({"protocol": protocol} if protocol else {}),
    }


@dataclass
class TaskPlan:
    """Which attempts of one task are known, running and still needed.

    Args:
        task: Task name.
        settings: See `recording_settings`.
        folder: Scratch folder; attempts that finished there in an earlier run count.
    """

    task: str
    settings: dict[str, Any]
    folder: str
    outcomes: dict[int, bool] = field(default_factory=dict)
    running: int = 0
    submitted: int = 0

    def __post_init__(self):
        while (known := self.attempt(self.submitted).outcome()) is not None and self.kept < self.wanted:
            self.outcomes[self.submitted] = known
            self.submitted += 1

    @property
    def wanted(self) -> int:
        """Episodes to keep."""
        return self.settings["episodes_per_task"]

    @property
    def kept(self) -> int:
        """Episodes that succeeded so far."""
        return sum(self.outcomes.values())

    @property
    def tried(self) -> int:
        """Attempts that finished so far."""
        return len(self.outcomes)

    def attempt(self, number: int) -> Attempt:
        """Attempt ``number`` of this task."""
        s = self.settings
        return Attempt(
            task=self.task,
            number=number,
            seed=s["seed"] + number,
            quality=s["quality"],
            observation_size=s["observation_size"],
            disturbance=Disturbance(**s["noise"]),
            max_steps=s["max_steps"],
            tail_steps=s["tail_steps"],
            folder=self.folder,
            suite=s["suite"],
            protocol=s.get("protocol"),
        )

    def next_attempt(self) -> Attempt | None:
        """The next attempt to start, or None while enough are done or running.

        Raises:
            ValueError: If the expert hardly ever succeeds.
        """
        # Only what is needed even if everything that runs succeeds: so the attempts tried, and with them the
        # dataset, are the same for any number of workers.
        if self.kept + self.running >= self.wanted:
            return None
        if self.tried >= 20 and self.kept < MIN_YIELD * self.tried:
            raise ValueError(
                f"the scripted expert of {self.task} succeeded in {self.kept} of {self.tried} attempts with "
                f"noise levels {self.settings['noise']['levels']}; lower them or leave the task out"
            )
        self.submitted += 1
        self.running += 1
        return self.attempt(self.submitted - 1)

    def finished(self, number: int, succeeded: bool) -> None:
        """Note the outcome of an attempt that was started."""
        self.running -= 1
        self.outcomes[number] = succeeded


def refuse_differences(folder: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise ValueError naming each setting in which a folder's recording differs from what was asked for."""
    differences = [
        f"{key}: there {there.get(key)!r}, asked for {asked.get(key)!r}"
        for key in sorted(set(there) | set(asked))
        if there.get(key) != asked.get(key)
    ]
    if differences:
        raise ValueError(
            f"{folder} was recorded with other settings ({'; '.join(differences)}). Choose another folder, "
            f"ask for the same settings, or delete it: rm -r {folder}"
        )
