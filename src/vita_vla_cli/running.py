"""One step's process: its log, its record on disk, its end.

The record is written when the process starts and when it ends, so that an interrupted step is known as such.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vita_vla_cli.errors import INTERRUPTED

if TYPE_CHECKING:
    from vita_vla_cli.steps import Step

TAIL_LINES = 25
STATUS_SECONDS = 1.0
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class StepFailedError(Exception):
    """A step's command ended with an error that it has already explained.

    Args:
        step: Name of the step.
        code: Its exit code.
    """

    def __init__(self, step: str, code: int):
        super().__init__(f"step {step!r} failed with exit code {code}")
        self.step, self.code = step, code


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and a kill back until the end of the block.

    A process that is being started while one arrives would be known to nobody, so that nobody would end it.
    The signals are caught, not blocked: a process inherits a block.
    """
    arrived = []
    before = {
        number: signal.signal(number, lambda number, frame: arrived.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


class Running:
    """A step that runs.

    Args:
        run: Run folder.
        step: What to run.
        stamp: Identity of its inputs.
        before: Record of the run that it continues; empty where it starts.
        verbose: Leave its output on the terminal.
        program: What runs its arguments.
    """

    def __init__(
        self,
        run: Path,
        step: Step,
        stamp: str,
        before: Mapping[str, Any],
        verbose: bool,
        program: Sequence[str],
    ):
        self.run, self.step, self.stamp, self.before, self.verbose = run, step, stamp, before, verbose
        self.log = run / "logs" / f"{step.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.began, self._clock = time.time(), time.monotonic()
        self._note(done=False)
        env = os.environ | {name: str(_threads(name, step.threads)) for name in THREADS if step.threads}
        with self.log.open("w") as log:
            output = {} if verbose else {"stdout": log, "stderr": subprocess.STDOUT}
            self.process = subprocess.Popen(
                [*program, *step.argv], stdin=subprocess.DEVNULL, env=env, **output
            )

    def has_ended(self) -> bool:
        """Whether the process has."""
        return self.process.poll() is not None

    def finish(self) -> float:
        """Take note of how it ended.

        Returns:
            Its seconds, those of the run that it continued included.

        Raises:
            KeyboardInterrupt: It was interrupted.
            StepFailedError: It ended with an error, which is shown.
            ValueError: It ended well but left out what it should have made.
        """
        seconds = self._note(done=False, ended=True)
        if self.process.returncode in (INTERRUPTED, -signal.SIGINT):
            raise KeyboardInterrupt
        if code := self.process.returncode:
            clear_status()
            if not self.verbose:
                print("\n".join(f"  | {line}" for line in _reason(self.log)), file=sys.stderr)
                print(f"  whole log: {self.log}", file=sys.stderr)
            raise StepFailedError(self.step.name, code)
        if missing := [str(path) for path in self.step.makes if not path.exists()]:
            raise ValueError(
                f"step {self.step.name!r} ended well but left nothing at {', '.join(missing)}; its log: "
                f"{self.log}"
            )
        self._note(done=True, ended=True)
        return seconds

    def end(self) -> None:
        """Let an interrupted step close its files; a terminal's Ctrl-C has reached it, a kill has not."""
        for ask, seconds in ((lambda: None, 3), (self.process.terminate, 15), (self.process.kill, None)):
            ask()
            try:
                self.process.wait(timeout=seconds)
                break
            except subprocess.TimeoutExpired:
                continue
        self._note(done=False, ended=True)

    def status(self) -> str:
        """Its clock and its newest output."""
        newest = (tail(self.log, 1) or [""])[0]
        return f"{self.step.name} {duration(time.monotonic() - self._clock)}  {newest}"

    def _note(self, *, done: bool, ended: bool = False) -> float:
        seconds = self.before.get("seconds", 0.0) + time.monotonic() - self._clock
        spans = [*self.before.get("ran", []), [round(self.began, 1), round(time.time(), 1)]]
        record = {"stamp": self.stamp, "done": done, "seconds": round(seconds, 1), "ran": spans}
        record["ended"] = ended  # False after a crash: then the end of the last span is not known
        path = _record_path(self.run, self.step.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(record) + "\n")
        new.replace(path)  # never half a record: without one the step's results count as somebody else's
        return seconds


def _threads(name: str, wanted: int) -> int:
    """A step's number of threads; fewer where the user has asked for fewer."""
    users = os.environ.get(name, "")
    return min(wanted, int(users)) if users.isdigit() and int(users) > 0 else wanted


_shown = 0.0


def show_status(running: Sequence[Running]) -> None:
    """On a terminal, keep one line with what runs; at most once a second."""
    global _shown
    if not sys.stdout.isatty() or time.monotonic() - _shown < STATUS_SECONDS:
        return
    _shown = time.monotonic()
    columns = shutil.get_terminal_size().columns
    each = (columns - 3) // len(running) - 2
    line = "  ".join(f"{child.status()[:each]:<{each}}" for child in running)
    print(f"\r  {line}", end="", flush=True)


def clear_status() -> None:
    """Remove that line."""
    if sys.stdout.isatty():
        print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="", flush=True)


def read_record(run: Path, name: str) -> dict[str, Any]:
    """What is known of a step's last run; empty where nothing is."""
    try:
        return json.loads(_record_path(run, name).read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # half a record, after a crash, is no record
        return {}


def _record_path(run: Path, name: str) -> Path:
    return run / "stamps" / f"{name}.json"


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log, of a progress bar its newest state."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 200 * lines - 2000))
        text = file.read().decode(errors="replace")
    # Progress bars overwrite their line with carriage returns: only the newest state counts.
    rows = [row.rstrip().rsplit("\r", 1)[-1].strip() for row in text.split("\n")]
    return [row for row in rows if row][-lines:]


def _reason(log: Path) -> list[str]:
    """The end of a failed step's log; only its own explanation where it ends with one."""
    lines = tail(log, TAIL_LINES)
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    return lines[starts[-1] :] if starts else lines


def duration(seconds: float) -> str:
    """Minutes and seconds for reading."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
