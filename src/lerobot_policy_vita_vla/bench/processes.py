"""Timing fresh interpreters: what a process costs before it does anything."""

from __future__ import annotations

import os
import subprocess
import sys
import time


def run(*command: str) -> str:
    """Run a Python command line in a process of its own, with cached bytecode, and give back what it printed.

    Args:
        *command: Arguments of the interpreter.

    Raises:
        ValueError: It ended with an error; the message holds its last line.
    """
    # Some containers set it; it makes every start compile everything anew.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"`python {' '.join(command)}` failed: {last}")
    return done.stdout


def seconds(*command: str) -> float:
    """Wall seconds of a process, from its start to its end."""
    start = time.perf_counter()
    run(*command)
    return time.perf_counter() - start


def reported(code: str) -> float:
    """The last number that a piece of code prints in a fresh interpreter."""
    return float(run("-c", code).split()[-1])
