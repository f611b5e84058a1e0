"""What LIBERO consists of: suites, tasks, instructions, and the protocols under which scores are published.

Pure data, read without starting a simulator. Task names come from the installed `hf-libero`, parsed and not
imported, because importing it asks questions on the terminal. A task is called ``<suite>_<number>``.
"""

from __future__ import annotations

import ast
import difflib
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lerobot_policy_vita_vla.conventions import OF_STATES, Conventions
from lerobot_policy_vita_vla.demos.gl import NotReadyError

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
CONTROL_HZ = 20
CAMERAS = {"image": "agentview", "image2": "robot0_eye_in_hand"}
"""LeRobot's name of a camera (``observation.images.<name>``) -> robosuite's."""

STATE_NAMES = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right")
ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
ACTION_MEANING = {
    "x, y, z": "hand displacement in [-1, 1], 1 = 5 cm, world axes",
    "roll, pitch, yaw": "axis-angle vector in the world's frame, 1 = 0.5 rad",
    "gripper": "-1 opens, +1 closes",
}
INIT_STATES = 50
"""Official initial states of a task: seeds 0..49 mean these."""

SAMPLED_FROM = 1000
"""Seeds from here on mean a start drawn by the task's own samplers, which demonstrations use."""

INSTALL = "uv pip install -c requirements.lock -e '.[libero]', in the checkout"
REINSTALL = "uv pip install --reinstall --no-deps hf-libero"


@dataclass(frozen=True)
class LiberoQuality:
    """How pictures are drawn.

    Args:
        keep_faces: Fraction of the visual meshes' faces that is drawn.
        samples: Anti-aliasing samples per pixel.
    """

    keep_faces: float = 1.0
    samples: int = 4


LIBERO_QUALITIES = {
    # LeRobot's own picture, bit by bit; for the hub's demonstrations and for results that are compared.
    "standard": LiberoQuality(),
    # Four to five times faster in software. Policies trained on one do not transfer to the other.
    "light": LiberoQuality(keep_faces=0.12, samples=0),
}


def check_libero_quality(quality: str) -> str:
    """Return ``quality`` or raise ValueError naming the known ones."""
    if quality not in LIBERO_QUALITIES:
        raise ValueError(f"unknown render quality {quality!r}; choose one of {sorted(LIBERO_QUALITIES)}")
    return quality


_LONGER = dict(zip(SUITES, (280, 280, 300, 520, 400), strict=True))


@dataclass(frozen=True)
class Protocol:
    """How a published evaluation poses LIBERO; sources: the projects' own evaluation scripts.

    Args:
        name: Key of `PROTOCOLS`.
        image_size: Height and width that the simulator draws, pixels.
        image_orientation: Against what robosuite returns, which is upside down (`conventions.ORIENTATIONS`).
        settle_steps: Idle steps between the reset and the first observation.
        settle_gripper: Gripper command of an idle step.
        refresh: The first observation is made after the idle steps, not before them.
        state_rotation: How the state holds the hand's orientation (`conventions.ROTATIONS`).
        max_steps: Suite -> step limit; a suite that is missing was never evaluated this way.
        episodes_per_task: Episodes that published scores rest on.
        n_action_steps: Actions executed per prediction; None is the policy's own setting.
        ensemble_coeff: Temporal ensembling instead of that.
        binary_gripper: The gripper command is replaced by its sign.
        env_seed: Seed of NumPy's generator before each reset; it moves fixtures by millimetres.
    """

    name: str
    image_size: int
    image_orientation: str
    settle_steps: int
    settle_gripper: float
    refresh: bool
    state_rotation: str
    max_steps: dict[str, int]
    episodes_per_task: int
    n_action_steps: int | None
    ensemble_coeff: float | None
    binary_gripper: bool
    env_seed: int

    def steps(self, suite: str) -> int:
        """Step limit of a suite.

        Raises:
            ValueError: If nobody evaluated the suite under this protocol.
        """
        if suite not in self.max_steps:
            raise ValueError(
                f"protocol {self.name!r} has no step limit for {suite}: its authors evaluated only "
                f"{', '.join(self.max_steps)}. Choose another protocol, such as --protocol lerobot"
            )
        return self.max_steps[suite]

    def conventions(self, image_size: int | None = None) -> Conventions:
        """What pictures, states and actions mean under this protocol."""
        size = image_size or self.image_size
        return Conventions(
            image_size=(size, size),
            control_hz=CONTROL_HZ,
            image_orientation=self.image_orientation,
            settle_steps=self.settle_steps,
            refreshed=self.refresh,
            action_mode="delta",
            position_unit=0.05,
            action_rotation="axis_angle",
            rotation_unit=0.5,
            state_rotation=self.state_rotation,
        )


_SHORTER = {**_LONGER, "libero_spatial": 220}
# Seer: raw pictures, the zero action while settling, the observation from before it, Euler angles.
_SEER = Protocol(
    "seer", 128, "as_drawn", 5, 0.0, False, "euler_xyz", {"libero_10": 600}, 20, 1, 0.01, True, 42
)
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # LeRobot 0.6: lerobot-eval draws 360 px unless told otherwise; its dataset, and so its policies, 256.
        Protocol(
            "lerobot", 256, "rotated_180", 10, -1.0, True, "axis_angle_2pi", _LONGER, 50, None, None, False, 0
        ),
        # OpenVLA-OFT (VLA-Adapter alike): 8 of 8 actions open loop, the gripper by its sign.
        Protocol(
            "openvla", 256, "rotated_180", 10, -1.0, True, "axis_angle_2pi", _SHORTER, 50, 8, None, True, 0
        ),
        _SEER,
        # The same, with the state that Seer's weights were trained on. Nobody has published under it.
        replace(_SEER, name="seer-training", state_rotation=OF_STATES),
        # VITA-VLA's eval_utils_libero_vita.py: Seer's conventions, 600 steps for every suite, 50 episodes.
        replace(_SEER, name="vita-paper", max_steps=dict.fromkeys(SUITES, 600), episodes_per_task=50),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ValueError: For an unknown one, with the nearest.
    """
    if name not in PROTOCOLS:
        raise ValueError(
            f"unknown LIBERO protocol {name!r}{_near(name, PROTOCOLS)}. Known: {list(PROTOCOLS)}"
        )
    return PROTOCOLS[name]


def package_folder() -> Path:
    """Where `hf-libero` is installed, found without importing it.

    Raises:
        NotReadyError: If it is not; says how to install it.
    """
    spec = find_spec("libero")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / "libero").is_dir():
            return path
    raise NotReadyError(
        f"LIBERO is not installed (package hf-libero). Linux only: {INSTALL}   (docs/libero.md)"
    )


@cache
def task_names() -> dict[str, tuple[str, ...]]:
    """Suite -> LIBERO's own task names, in LIBERO's order."""
    path = package_folder() / "benchmark" / "libero_suite_task_map.py"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "libero_task_map":
            found = ast.literal_eval(node.value)
            return {suite: tuple(found[suite]) for suite in SUITES}
    raise ValueError(f"{path} holds no libero_task_map: this version of hf-libero is not known; {INSTALL}")


def is_libero(task_or_suite: str) -> bool:
    """Whether a task's or a suite's name is one of LIBERO's."""
    return task_or_suite.startswith("libero")


def locate(task: str) -> tuple[str, int]:
    """Suite and number of a task such as ``libero_object_3``.

    Raises:
        ValueError: If it does not exist.
    """
    suite, _, number = task.rpartition("_")
    known = task_names()
    if suite in known and number.isdigit() and int(number) < len(known[suite]):
        return suite, int(number)
    if suite in known:
        raise ValueError(f"{suite} has tasks 0 to {len(known[suite]) - 1}, got {number!r}")
    raise ValueError(f"unknown LIBERO task {task!r}{_near(task, _words())}. Suites: {', '.join(SUITES)}")


def libero_name(task: str) -> str:
    """LIBERO's own name of a task such as ``libero_object_3``."""
    suite, number = locate(task)
    return task_names()[suite][number]


def instruction(task: str) -> str:
    """What the robot is told, in LIBERO's words."""
    return re.sub(r"^.*SCENE\d+_", "", libero_name(task)).replace("_", " ")


def resolve_libero_tasks(spec: str) -> list[str]:
    """Turn what a user typed into task names ``<suite>_<number>``, in the order given, without repeats.

    Args:
        spec: Comma-separated suites, tasks (``libero_object_3``) and LIBERO's own task names.

    Raises:
        ValueError: For an unknown name, with the nearest known ones; for an empty list.
    """
    words, tasks = [word.strip() for word in spec.split(",") if word.strip()], []
    for word in words:
        if word in SUITES:
            tasks += [f"{word}_{number}" for number in range(len(task_names()[word]))]
        elif word in (own := _own_names()):
            tasks.append(own[word])
        else:
            locate(word)
            tasks.append(word)
    if not tasks:
        raise ValueError(f"no task in {spec!r}; name at least one, for example libero_object")
    return list(dict.fromkeys(tasks))


def suite_option(spec: str) -> str:
    """What a command's ``--suite`` means, as comma-separated task names.

    Args:
        spec: Comma-separated suites and tasks in any case, with or without ``libero_``.

    Raises:
        ValueError: For a name that is not LIBERO's, with the nearest that are; for an empty list.
    """
    known, found = {name.lower(): name for name in _words()}, []
    for word in (part.strip().lower() for part in spec.split(",")):
        if not word:
            continue
        name = word if word in known or is_libero(word) else f"libero_{word}"
        if name not in known and name.rpartition("_")[0] not in SUITES:
            shorter = [name.removeprefix("libero_") for name in known]
            raise ValueError(
                f"--suite is for LIBERO, which has no {word!r}"
                f"{_near(word.removeprefix('libero_'), shorter) or '.'} Suites: {', '.join(SUITES)}, with or "
                "without libero_. Meta-World's tasks: --tasks"
            )
        found.append(known.get(name, name))
    return ",".join(resolve_libero_tasks(",".join(found)))


@cache
def _own_names() -> dict[str, str]:
    return {name: f"{suite}_{i}" for suite, names in task_names().items() for i, name in enumerate(names)}


def _words() -> list[str]:
    return [*SUITES, *_own_names(), *_own_names().values()]


def _near(word: str, known) -> str:
    nearest = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(nearest)}?" if nearest else ""
