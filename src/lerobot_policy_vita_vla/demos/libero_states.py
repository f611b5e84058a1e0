"""The files of LIBERO's official initial states, checked before LeRobot reads them.

LeRobot unpickles them with whatever code they hold (``torch.load(weights_only=False)``). So they are read
here first, as arrays of numbers and nothing else, and a file that is anything else is named with what mends
it.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray

from lerobot_policy_vita_vla.demos.libero_install import config_file
from lerobot_policy_vita_vla.demos.libero_suite import REINSTALL, package_folder

ALLOWED = [
    # NumPy 2 has its pickles' function in another place than NumPy 1, which wrote LIBERO's files.
    (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    (multiarray._reconstruct, "numpy._core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
]
"""What may be unpickled: arrays of floating-point numbers."""


def states_file(task: Any) -> Path:
    """Where LeRobot reads a task's initial states.

    Args:
        task: LIBERO's own description of it (an entry of a benchmark's ``tasks``).
    """
    from libero.libero import get_libero_path

    return Path(get_libero_path("init_states")) / task.problem_folder / Path(task.init_states_file).name


def check_states(file: Path) -> None:
    """Refuse a file that is not a table of finite numbers, one row per state; runs no code that it may hold.

    Raises:
        ValueError: Names the file, what is wrong and the command.
    """
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other programs, which are refused
            states = torch.load(file, weights_only=True)
    except FileNotFoundError:
        raise ValueError(_refusal(file, "is not there")) from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        found = f"names {named[1]}" if named else "holds something else than an array"
        raise ValueError(_refusal(file, f"{found}: it could run code, so it was not loaded")) from error
    except Exception as error:  # of a damaged archive anything can come
        raise ValueError(_refusal(file, f"is damaged ({type(error).__name__})")) from error
    if not isinstance(states, np.ndarray) or states.dtype.kind != "f":
        raise ValueError(_refusal(file, f"holds no array of numbers but {type(states).__name__}"))
    if states.ndim != 2 or not states.size:
        raise ValueError(_refusal(file, f"holds an array of shape {states.shape} instead of rows of states"))
    if wrong := (~np.isfinite(states).all(axis=1)).nonzero()[0].tolist():
        raise ValueError(_refusal(file, f"holds numbers that are not finite, first in state {wrong[0]}"))


def check_length(file: Path, numbers: int, wanted: int) -> None:
    """Refuse states that belong to another scene than the one that was built.

    Args:
        file: Where they came from.
        numbers: Length of its states.
        wanted: Length that the scene has.
    """
    if numbers != wanted:
        raise ValueError(
            _refusal(file, f"has states of {numbers} numbers, the scene {wanted}: another version of LIBERO")
        )


def _refusal(file: Path, problem: str) -> str:
    if file.resolve().is_relative_to(package_folder().resolve()):
        mend = f"Install hf-libero's files again: {REINSTALL}"
    else:
        mend = f"{config_file()} points there; to use hf-libero's own files: rm {config_file()}"
    return f"LIBERO's initial states cannot be used: {file} {problem}. {mend}"
