"""Run a list of commands once each: skip what is done, continue what can continue, remove what is stale.

stamps/<step>.json   identity of a step's inputs, whether it finished, its seconds
logs/<step>.log      its own output
timing.json          seconds of every step, in order
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

TAIL_LINES = 25
STATUS_SECONDS = 1.0
PROGRAM = (sys.executable, "-m", "vita_vla_cli")


@dataclass(frozen=True)
class Step:
    """One command of the flow.

    Args:
        name: Of the step, its stamp and its log.
        argv: Arguments of `vita-vla`.
        needs: Steps whose results it reads.
        makes: Files or folders it writes; removed before the step runs on other inputs.
        leftovers: What an interrupted run of it leaves; removed with `makes`.
        resumes: An interrupted run of the same command continues where it stopped.
    """

    name: str
    argv: tuple[str, ...]
    needs: tuple[str, ...] = ()
    makes: tuple[Path, ...] = ()
    leftovers: tuple[Path, ...] = ()
    resumes: bool = False


@dataclass
class Progress:
    """What happened so far."""

    seconds: dict[str, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


class StepFailedError(Exception):
    """A step's command ended with an error that it has already explained.

    Args:
        step: Name of the step.
        code: Its exit code.
    """

    def __init__(self, step: str, code: int):
        super().__init__(f"step {step!r} failed with exit code {code}")
        self.step, self.code = step, code


def execute(
    run: Path, steps: Sequence[Step], *, verbose: bool = False, program: Sequence[str] = PROGRAM
) -> Progress:
    """Run what is not done yet, in order.

    Args:
        run: Run folder.
        steps: In an order in which every step comes after those it needs.
        verbose: Show the steps' own output instead of one line each.
        program: What runs a step's arguments.

    Raises:
        StepFailedError: A step failed; what is done stays done.
    """
    progress = Progress()
    stamps: dict[str, str] = {}
    for number, step in enumerate(steps, 1):
        stamps[step.name] = _stamp(step, stamps)
        record = _read(run / "stamps" / f"{step.name}.json")
        same = record.get("stamp") == stamps[step.name]
        title = f"[{number}/{len(steps)}] {step.name}"
        if same and record.get("done") and all(path.exists() for path in step.makes):
            progress.seconds[step.name] = record["seconds"]
            progress.skipped.append(step.name)
            print(f"{title}: done before ({_duration(record['seconds'])})")
        else:
            before = record.get("seconds", 0.0) if same and step.resumes else 0.0
            if not (same and step.resumes):
                _remove(run, (*step.makes, *step.leftovers))
            print(f"{title}\n  $ {shlex.join(['vita-vla', *step.argv])}")
            progress.seconds[step.name] = _run(run, step, stamps[step.name], before, verbose, program)
            print(f"  done in {_duration(progress.seconds[step.name])}")
        _write_timing(run, progress)
    return progress


def _stamp(step: Step, stamps: dict[str, str]) -> str:
    """Identity of a step's inputs: its command, this package's version, and the stamps of what it reads."""
    inputs = [list(step.argv), _version(), [stamps[name] for name in step.needs]]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def _run(run: Path, step: Step, stamp: str, before: float, verbose: bool, program: Sequence[str]) -> float:
    log = run / "logs" / f"{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    record = run / "stamps" / f"{step.name}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()

    def note(done: bool) -> float:
        seconds = before + time.monotonic() - start
        record.write_text(json.dumps({"stamp": stamp, "done": done, "seconds": round(seconds, 1)}) + "\n")
        return seconds

    note(done=False)
    command = [*program, *step.argv]
    try:
        if verbose:
            code = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
        else:
            with log.open("w") as file:
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
                )
                code = _watch(child, log, start)
    finally:
        seconds = note(done=False)
    if code != 0:
        if not verbose:
            print("\n".join(f"  | {line}" for line in _reason(log)), file=sys.stderr)
            print(f"  whole log: {log}", file=sys.stderr)
        raise StepFailedError(step.name, code)
    if missing := [str(path) for path in step.makes if not path.exists()]:
        raise ValueError(
            f"step {step.name!r} ended well but left nothing at {', '.join(missing)}; its log: {log}"
        )
    note(done=True)
    return seconds


def _watch(child: subprocess.Popen, log: Path, start: float) -> int:
    """Wait for a step; on a terminal keep one line with its clock and its newest output."""
    live = sys.stdout.isatty()
    columns = shutil.get_terminal_size().columns
    try:
        while True:
            try:
                return child.wait(timeout=STATUS_SECONDS)
            except subprocess.TimeoutExpired:
                if live:
                    newest = (_tail(log, 1) or [""])[0]
                    line = f"  {_duration(time.monotonic() - start)}  {newest}"[: columns - 1]
                    print(f"\r{line:<{columns - 1}}", end="", flush=True)
    except KeyboardInterrupt:
        _end(child)
        raise
    finally:
        if live:
            print("\r" + " " * (columns - 1) + "\r", end="", flush=True)


def _end(child: subprocess.Popen) -> None:
    """Let an interrupted step close its files; a terminal's Ctrl-C has reached it already, a kill has not."""
    for ask, seconds in ((lambda: None, 3), (child.terminate, 15), (child.kill, None)):
        ask()
        try:
            child.wait(timeout=seconds)
            return
        except subprocess.TimeoutExpired:
            continue


def _tail(path: Path, lines: int) -> list[str]:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 200 * lines - 2000))
        text = file.read().decode(errors="replace")
    # Progress bars overwrite their line with carriage returns: only the newest state counts.
    rows = [row.rstrip().rsplit("\r", 1)[-1].strip() for row in text.split("\n")]
    return [row for row in rows if row][-lines:]


def _reason(log: Path) -> list[str]:
    """The end of a failed step's log; only its own explanation where it ends with one."""
    lines = _tail(log, TAIL_LINES)
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    return lines[starts[-1] :] if starts else lines


def _remove(run: Path, paths: Sequence[Path]) -> None:
    for path in paths:
        if run.absolute() not in path.absolute().parents:
            raise AssertionError(f"{path} lies outside the run folder {run}")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write_timing(run: Path, progress: Progress) -> None:
    timing = {
        "steps": [{"name": name, "seconds": round(s, 1)} for name, s in progress.seconds.items()],
        "total_seconds": round(sum(progress.seconds.values()), 1),
        "cpu_cores": os.cpu_count(),
    }
    (run / "timing.json").write_text(json.dumps(timing, indent=1) + "\n")


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # half a stamp, after a crash, is no stamp
        return {}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _version() -> str:
    try:
        return metadata.version("lerobot_policy_vita_vla")
    except metadata.PackageNotFoundError:
        return "0"
