"""What measurements of LIBERO with and without a saving share: ratios, and the file they are written into.

Not to be run by itself: runs/libero_drawing.py, runs/libero_physics.py.
"""

import argparse
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from lerobot_policy_vita_vla.evaluation.results import write_json


def ratios(without: Sequence[float], with_it: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest ratio of times that were measured side by side, pair by pair."""
    found = np.array(without) / np.array(with_it)
    return {
        "ratio": round(float(np.median(found)), 2),
        "ratio_lowest": round(float(found.min()), 2),
        "ratio_highest": round(float(found.max()), 2),
    }


def measure_all(
    description: str,
    command: str,
    out: Path,
    measure: Callable[..., dict[str, Any]],
    cases: Sequence[tuple],
) -> None:
    """Call ``measure`` with each of ``cases`` and write what it finds.

    Args:
        description: The script's docstring, for ``--help``.
        command: That runs it, for the file.
        out: The file, unless ``--out`` names another.
        measure: Measures one case.
        cases: Its arguments.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=out)
    args = parser.parse_args()
    measured = []
    for case in cases:
        measured.append(measure(*case))
        print(measured[-1], flush=True)
    facts = {
        "command": command,
        "date": date.today().isoformat(),
        "mujoco": mujoco.__version__,
        "measured": measured,
    }
    write_json(args.out, facts)
