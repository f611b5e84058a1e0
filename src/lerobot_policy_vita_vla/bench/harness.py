"""Measuring sides against each other in one run: warmed up, interleaved, medians with their spread.

A benchmark is a module of this package with two functions, found by its name (`vita-vla bench NAME`):

    add_arguments(parser)     its own flags, beside the common ones
    run(args) -> figures      what it found; ``args`` has its flags and ``rounds``, ``threads``, ``toy``

``args.toy`` asks for a size that takes seconds, for tests. The figures are written to
``results/bench/<name>.json``. These of their keys have a meaning for the documentation's tables:

    dtype          type of the arithmetic, such as "float32"
    setting        what ran, one sentence
    comparisons    title -> what `side_by_side` returned
    headline       key -> what it is; the number stands at the top level under that key, the ends of its 95 %
                   interval, where it has one, under ``<key>_low`` and ``<key>_high``
    notes          sentences: what was found besides, such as what the rest of the time goes into

Why ratios: a machine's speed changes with its temperature and with what else runs on it; the ratio of two
sides in the same second changes far less. Why medians: one interruption spoils a mean.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_policy_vita_vla.evaluation.results import write_json

RESAMPLES = 2000
"""Of the bootstrap (our choice: the ends of a 95 % interval are then good to about a hundredth of it)."""


def side_by_side(sides: dict[str, Callable[[], object]], *, rounds: int, warmup: int = 1) -> dict[str, Any]:
    """Time several ways to do the same.

    Every round calls every side once, beginning with another one each time, so that none always follows the
    same one. On a GPU a call has ended when the device has finished, not when it was told.

    Args:
        sides: Name -> what to time.
        rounds: Timed calls of each side, at least 1.
        warmup: Calls of each side before, not timed.

    Returns:
        ``sides``: name -> ``median_s``, ``low_s`` and ``high_s`` (the quartiles), ``all_s``, in seconds of
        wall time, and ``cpu_s``, the median of this process's CPU seconds. ``ratios``: ``"A/B"``, for every
        pair in both orders -> ``median`` of the rounds' ratios, ``low`` and ``high``, its 95 % interval (the
        percentile bootstrap over rounds; one round has none, then both are the median).

    Raises:
        ValueError: For fewer than one round, or no side.
    """
    if rounds < 1 or not sides:
        raise ValueError(f"a benchmark needs at least one side and one round, got {len(sides)} and {rounds}")
    names = list(sides)
    for _ in range(warmup):
        for name in names:
            sides[name]()
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            seconds, busy = timed(sides[name])
            wall[name].append(seconds)
            cpu[name].append(busy)
    return {
        "sides": {name: summary(wall[name]) | {"cpu_s": statistics.median(cpu[name])} for name in names},
        "ratios": {
            f"{a}/{b}": ratio([x / y for x, y in zip(wall[a], wall[b], strict=True)])
            for a in names
            for b in names
            if a != b
        },
    }


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of one call, with what it started on a GPU."""
    synchronise()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    synchronise()
    return time.perf_counter() - wall, time.process_time() - cpu


def synchronise() -> None:
    """Wait for the GPU, where there is one in use."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def summary(seconds: list[float]) -> dict[str, Any]:
    """Median and quartiles of some times."""
    ordered = sorted(seconds)
    return {
        "median_s": statistics.median(ordered),
        "low_s": percentile(ordered, 25),
        "high_s": percentile(ordered, 75),
        "all_s": seconds,
    }


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` percent of them lie, between neighbours in proportion."""
    return float(np.percentile(values, share))


def with_interval(key: str, measured: dict[str, float]) -> dict[str, float]:
    """What `ratio` returned, under the keys of a headline figure."""
    return {key: measured["median"], f"{key}_low": measured["low"], f"{key}_high": measured["high"]}


def ratio(values: list[float]) -> dict[str, float]:
    """Median of paired ratios and its 95 % interval."""
    draw = random.Random(0)  # the same numbers give the same interval
    medians = [statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES)]
    return {
        "median": statistics.median(values),
        "low": percentile(medians, 2.5),
        "high": percentile(medians, 97.5),
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on: processor, threads, GPU, versions, and how busy it was."""
    import torch

    gpu = None
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        gpu = {"name": device.name, "memory_gib": round(device.total_memory / 2**30, 1)}
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "transformers", "lerobot")},
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def write(name: str, figures: dict[str, Any], out: str | Path) -> Path:
    """Write ``<out>/<name>.json``: the figures, the machine and the day. Whole or not at all.

    Args:
        name: Of the benchmark.
        figures: What it found.
        out: Folder, made where it does not exist.

    Returns:
        The file.
    """
    record = {"benchmark": name} | figures | {"machine": machine(), "date": date.today().isoformat()}
    # A figure that is not a number is a mistake of the benchmark.
    return write_json(Path(out) / f"{name}.json", record, indent=1, allow_nan=False)
