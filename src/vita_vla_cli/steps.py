"""Run a list of commands once each: skip what is done, continue what can continue, keep what others made.

Only what an interrupted or failed step left behind is removed by itself. What was made by hand, or finished
under other settings, is in the way: that is said before anything runs.

stamps/<step>.json   identity of a step's inputs, whether it finished, its seconds, when it ran
logs/<step>.log      its own output
timing.json          command and seconds of every step, in order, and the seconds of the whole, in which steps
                     that ran side by side count once
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from vita_vla_cli.running import (
    Running,
    StepFailedError,
    clear_status,
    duration,
    read_record,
    show_status,
    uninterrupted,
)

__all__ = ["Progress", "Step", "StepFailedError", "execute"]

PROGRAM = (sys.executable, "-m", "vita_vla_cli")
POLL_SECONDS = 0.1
MOST_BESIDE = 2
"""Steps at a time, our choice: each of ours keeps a core busy, and more would need more memory."""


SETTLE_SECONDS = 5.0
"""Our choice: what a step's own processes may still write after it has ended."""


@dataclass(frozen=True)
class Step:
    """One command of the flow.

    Args:
        name: Of the step, its stamp and its log.
        argv: Arguments of `vita-vla`.
        needs: Steps whose results it reads.
        makes: Files or folders it writes; removed where an interrupted run of it left them.
        leftovers: What else an interrupted run of it leaves; removed with `makes`.
        resumes: An interrupted run of the same command continues where it stopped.
        replaces: Its command itself writes anew what `makes` names, which is only a view of the rest.
        beside: May run while another such step does.
        threads: Of its process's libraries; None leaves them alone.
    """

    name: str
    argv: tuple[str, ...]
    needs: tuple[str, ...] = ()
    makes: tuple[Path, ...] = ()
    leftovers: tuple[Path, ...] = ()
    resumes: bool = False
    replaces: bool = False
    beside: bool = False
    threads: int | None = None


@dataclass
class Progress:
    """What happened so far.

    Attributes:
        seconds: Of each step.
        total: Of the whole, steps that ran side by side counted once.
        skipped: Steps that were done before.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    total: float = 0.0
    skipped: list[str] = field(default_factory=list)


def execute(
    run: Path, steps: Sequence[Step], *, verbose: bool = False, program: Sequence[str] = PROGRAM
) -> Progress:
    """Run what is not done yet, in order; steps that allow it run beside each other.

    Args:
        run: Run folder.
        steps: In an order in which every step comes after those it needs.
        verbose: Show the steps' own output instead of one line each.
        program: What runs a step's arguments.

    Raises:
        ValueError: Something lies where a step writes and is not that step's to remove; nothing has run.
        StepFailedError: A step failed; what is done stays done, what runs beside it is ended.
        KeyboardInterrupt: So was a step; as above.
    """
    progress, stamps = Progress(), {}
    for step in steps:
        stamps[step.name] = _stamp(step, stamps)
    _check_room(run, steps, stamps)
    waiting, running = list(enumerate(steps, 1)), []
    try:
        while waiting or running:
            for number, step in list(waiting):
                if any(need not in progress.seconds for need in step.needs):
                    continue
                title = f"[{number}/{len(steps)}] {step.name}"
                record = read_record(run, step.name)
                same = record.get("stamp") == stamps[step.name]
                if same and record.get("done") and all(path.exists() for path in step.makes):
                    progress.seconds[step.name] = record["seconds"]
                    progress.skipped.append(step.name)
                    print(f"{title}: done before ({duration(record['seconds'])})")
                elif _may_start(step, running):
                    continues = same and step.resumes
                    if not continues and not step.replaces:
                        _remove(run, (*step.makes, *step.leftovers))
                    print(f"{title}\n  $ {shlex.join(['vita-vla', *step.argv])}")
                    before = record if continues else {}
                    with uninterrupted():
                        running.append(Running(run, step, stamps[step.name], before, verbose, program))
                else:
                    break  # it waits its turn, and so does what comes after it
                waiting.remove((number, step))
            for child in [child for child in running if child.has_ended()]:
                running.remove(child)
                progress.seconds[child.step.name] = child.finish()
                clear_status()
                which = f"{child.step.name} " if child.step.beside else ""
                print(f"  {which}done in {duration(progress.seconds[child.step.name])}")
                _write_timing(run, steps, progress)
            if running:
                show_status(running)
                time.sleep(POLL_SECONDS)
    finally:
        clear_status()
        for child in running:
            child.end()
    _write_timing(run, steps, progress)
    return progress


def _may_start(step: Step, running: Sequence[Running]) -> bool:
    if not running:
        return True
    most = min(MOST_BESIDE, os.cpu_count() or 1)
    return step.beside and len(running) < most and all(child.step.beside for child in running)


def _stamp(step: Step, stamps: dict[str, str]) -> str:
    """Identity of a step's inputs: its command, this package's version, and the stamps of what it reads."""
    inputs = [list(step.argv), _version(), [stamps[name] for name in step.needs]]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def _check_room(run: Path, steps: Sequence[Step], stamps: dict[str, str]) -> None:
    """Raise ValueError where a step would have to remove what its own interrupted run did not leave."""
    by_hand, otherwise = [], []
    for step in steps:
        there = [path for path in (*step.makes, *step.leftovers) if path.exists()]
        if not there or step.replaces:
            continue
        record = read_record(run, step.name)
        same, done = record.get("stamp") == stamps[step.name], record.get("done")
        if same and (step.resumes or (done and all(path.exists() for path in step.makes))):
            continue
        if done and not same:
            otherwise += there
        elif not record or done or _changed_since(record, there):
            by_hand += there
    if not by_hand and not otherwise:
        return
    message = [f"{run} holds work that quickstart would have to replace, which it never does by itself"]
    for reason, paths in (
        ("not made by quickstart", by_hand),
        ("finished with other settings or by another version", otherwise),
    ):
        if paths:
            message.append(f"{reason}: {', '.join(str(path.relative_to(run)) for path in paths)}")
    remove = shlex.join(["rm", "-r", *map(str, [*by_hand, *otherwise])])
    message.append(f"Give another folder with --run, or, if none of this is needed any more:\n  {remove}")
    raise ValueError("\n".join(message))


def _changed_since(record: dict[str, Any], paths: Sequence[Path]) -> bool:
    """Whether somebody wrote there after the step's own run had ended, as far as its end is known."""
    if not record.get("ended"):
        return False
    files = [file for path in paths for file in (path, *path.rglob("*"))]
    return max(file.lstat().st_ctime for file in files) > record["ran"][-1][1] + SETTLE_SECONDS


def _remove(run: Path, paths: Sequence[Path]) -> None:
    for path in paths:
        if run.absolute() not in path.absolute().parents:
            raise AssertionError(f"{path} lies outside the run folder {run}")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write_timing(run: Path, steps: Sequence[Step], progress: Progress) -> None:
    """Seconds in the steps' order, also of steps that ended in another one."""
    done = [step.name for step in steps if step.name in progress.seconds]
    records = [read_record(run, name) for name in done]
    # Records of before have no times of day: those steps ran one after the other.
    apart = sum(record.get("seconds", 0.0) for record in records if "ran" not in record)
    spans = [span for record in records for span in record.get("ran", [])]
    progress.total = apart + _covered(spans)
    commands = {step.name: shlex.join(["vita-vla", *step.argv]) for step in steps}
    listed = [
        {"name": name, "command": commands[name], "seconds": round(progress.seconds[name], 1)}
        for name in done
    ]
    if not apart:
        for entry, record in zip(listed, records, strict=True):
            began = record["ran"][0][0]
            # Pauses between two runs of the same command are left out.
            entry["start"] = round(_covered([(a, min(b, began)) for a, b in spans if a < began]), 1)
    timing = {
        "steps": listed,
        "total_seconds": round(progress.total, 1),
        "cpu_cores": os.cpu_count(),
    }
    (run / "timing.json").write_text(json.dumps(timing, indent=1) + "\n")


def _covered(spans: Sequence[Sequence[float]]) -> float:
    """Length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _version() -> str:
    try:
        return metadata.version("lerobot_policy_vita_vla")
    except metadata.PackageNotFoundError:
        return "0"
