"""What recording and evaluation need to know of a suite of tasks: the only place that knows more than one.

A scene has ``task``, ``task_description``, ``rendering``, ``reset(seed)``, ``step``, ``render``,
``privileged_state``, ``known_state`` and ``expert_action``: `metaworld.SceneEnv` and `libero.LiberoScene`,
whose expert can be made to err (``let_expert_miss``, ``let_expert_set_aside``, ``executed_action``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature

from lerobot_policy_vita_vla.conventions import Conventions
from lerobot_policy_vita_vla.demos import libero_install, libero_suite, suite
from lerobot_policy_vita_vla.demos.replay_metaworld import metaworld_conventions

STATE = "agent_pos"
"""Key of the state among a simulator's observations."""


@dataclass(frozen=True)
class Scenes:
    """One suite.

    Args:
        name: As manifests and recordings call it.
        cameras: Key of a picture among the simulator's observations -> key that policies know.
        state_dim: S.
        action_dim: A.
        control_hz: Actions per second.
        module: What a simulator process imports first.
        seed: First evaluation seed; what seeds mean, the suite's scene says.
        demo_seed: First seed of demonstrations.
        robot: LeRobot's robot type.
        camera: The simulator's own names of its cameras.
        state_names: Name of each number of the state.
        action_names: Name of each number of an action.
        action_meaning: Their meaning and range in words.
        privileged_dim: Numbers of a scene's ``known_state``, which recordings keep.
        noise: Levels of the disturbance while recording (`expert.Disturbance`).
        kick_chance: Chance per step of a kick.
        mistakes: Share of recorded attempts with each of the expert's mistakes, by field of
            `expert.Disturbance`; empty where experts make none.
        packages: Whose versions a recording notes.
    """

    name: str
    cameras: dict[str, str]
    state_dim: int
    action_dim: int
    control_hz: int
    module: str
    seed: int
    demo_seed: int
    robot: str
    camera: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_meaning: dict[str, str]
    privileged_dim: int
    noise: tuple[float, ...]
    kick_chance: float
    mistakes: dict[str, float]
    packages: tuple[str, ...]

    def observation_features(self, size: int) -> dict[str, PolicyFeature]:
        """LeRobot's feature table, under policies' keys, with pictures of ``size`` pixels."""
        picture = PolicyFeature(type=FeatureType.VISUAL, shape=(size, size, 3))
        return {
            "action": PolicyFeature(type=FeatureType.ACTION, shape=(self.action_dim,)),
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(self.state_dim,)),
            **dict.fromkeys(self.cameras.values(), picture),
        }


METAWORLD = Scenes(
    name=suite.SUITE,
    cameras={"pixels": "observation.image"},
    state_dim=4,
    action_dim=4,
    control_hz=suite.CONTROL_HZ,
    module="lerobot_policy_vita_vla.demos.metaworld",
    # Far from the seeds of recorded demonstrations.
    seed=50_000,
    demo_seed=0,
    robot="sawyer",
    camera=suite.CAMERA,
    state_names=("hand_x", "hand_y", "hand_z", "gripper_opening"),
    action_names=("x", "y", "z", "gripper"),
    action_meaning={
        "x, y, z": "hand displacement in [-1, 1], 1 = 1 cm per step, world axes",
        "gripper": "-1 opens, +1 closes",
    },
    privileged_dim=39,
    noise=(0.0, 0.2, 0.4, 0.6),
    kick_chance=0.04,
    # Its experts answer every disturbance from the state alone, but none has an empty closed hand to answer.
    mistakes={},
    packages=("lerobot", "metaworld", "mujoco", "numpy"),
)

LIBERO = Scenes(
    name="libero",
    cameras={f"pixels.{name}": f"observation.images.{name}" for name in libero_suite.CAMERAS},
    state_dim=8,
    action_dim=7,
    control_hz=libero_suite.CONTROL_HZ,
    module="lerobot_policy_vita_vla.demos.libero",
    # The official initial states.
    seed=0,
    demo_seed=libero_suite.SAMPLED_FROM,
    robot="panda",
    camera=",".join(libero_suite.CAMERAS.values()),
    state_names=libero_suite.STATE_NAMES,
    action_names=libero_suite.ACTION_NAMES,
    action_meaning=libero_suite.ACTION_MEANING,
    privileged_dim=6,
    # Our choice: an action is up to 5 cm here, five times Meta-World's, and a kick would throw a held thing.
    noise=(0.0, 0.05, 0.1),
    kick_chance=0.0,
    # Our choice: what policies failed by (docs/benchmarks.md has a suite with and without each of them).
    mistakes={"miss_chance": 0.35, "aside_chance": 0.35},
    packages=("lerobot", "hf-libero", "robosuite", "mujoco", "numpy"),
)


def scenes_of(name: str) -> Scenes:
    """The suite of that name.

    Raises:
        ValueError: For an unknown one.
    """
    known = {scenes.name: scenes for scenes in (METAWORLD, LIBERO)}
    if name not in known:
        raise ValueError(f"unknown suite {name!r}; known are {list(known)}")
    return known[name]


def suite_of_tasks(spec: str) -> str:
    """Which suite a task list belongs to, by its names.

    Raises:
        ValueError: If it mixes suites.
    """
    words = [word.strip() for word in spec.split(",") if word.strip()]
    libero = [word for word in words if libero_suite.is_libero(word)]
    if libero and len(libero) < len(words):
        rest = [word for word in words if word not in libero]
        raise ValueError(f"{libero[0]} is LIBERO's and {rest[0]} is not: evaluate them one after the other")
    return LIBERO.name if libero else METAWORLD.name


def resolve(name: str, spec: str) -> list[str]:
    """Task names of a suite; see `demos.suite.resolve_tasks`, `demos.libero_suite.resolve_libero_tasks`."""
    return (libero_suite.resolve_libero_tasks if name == LIBERO.name else suite.resolve_tasks)(spec)


def instruction(name: str, task: str) -> str:
    """What the robot is told in a task."""
    return libero_suite.instruction(task) if name == LIBERO.name else suite.task_descriptions()[task]


def check_look(name: str, quality: str, protocol: str | None) -> None:
    """Refuse a render quality or a protocol that the suite does not have."""
    if name == LIBERO.name:
        libero_suite.check_libero_quality(quality)
        libero_suite.find_protocol(protocol or "")
        return
    suite.check_quality(quality)
    if protocol is not None:
        raise ValueError(f"{name} has no protocols, got {protocol!r}: leave --protocol out")


def picture_size(name: str, protocol: str | None, asked: int | None) -> int:
    """Height and width of pictures, pixels: what is asked for, else the protocol's or the suite's.

    Raises:
        ValueError: Nothing can draw that size, or nobody knows that protocol.
    """
    if asked is not None:
        return suite.check_size(asked)
    if name == LIBERO.name:
        return libero_suite.find_protocol(protocol or "").image_size
    return suite.OBSERVATION_SIZE


def check_seeds(name: str, first: int, count: int) -> None:
    """Refuse seeds that mean nothing in a suite."""
    if not 0 <= first < 2**32 - count:
        raise ValueError(
            f"seed must lie in 0..2**32 - episodes_per_task (NumPy's seeds), got {first}: change --seed"
        )
    last = first + count - 1
    if name == LIBERO.name and first < libero_suite.SAMPLED_FROM and last >= libero_suite.INIT_STATES:
        raise ValueError(
            f"LIBERO has {libero_suite.INIT_STATES} official initial states per task (seeds 0.."
            f"{libero_suite.INIT_STATES - 1}), asked for {first}..{last}. Fewer --episodes, or a --seed from "
            f"{libero_suite.SAMPLED_FROM} on: these starts are drawn"
        )


def check_ready(name: str) -> None:
    """Refuse to start simulators that cannot run, in this process and not in a worker."""
    if name == LIBERO.name:
        libero_install.check_ready()


def default_length(name: str, tasks: list[str], protocol: str | None) -> int:
    """Step limit where none is asked for: the largest of the tasks' suites."""
    if name != LIBERO.name:
        return suite.EPISODE_LENGTH
    rules = libero_suite.find_protocol(protocol or "")
    return max(rules.steps(libero_suite.locate(task)[0]) for task in tasks)


def longest(name: str) -> int:
    """Steps beyond which no episode may go."""
    return 2000 if name == LIBERO.name else suite.MAX_EPISODE_LENGTH


def conventions(name: str, observation_size: int, protocol: str | None) -> Conventions:
    """What the simulator's pictures, states and actions mean."""
    if name == LIBERO.name:
        return libero_suite.find_protocol(protocol or "").conventions(observation_size)
    return metaworld_conventions(observation_size)


def make_scene(
    name: str,
    task: str,
    *,
    quality: str,
    observation_size: int,
    episode_length: int | None = None,
    protocol: str | None = None,
) -> Any:
    """The simulator of one task; imports what it needs."""
    look: dict[str, Any] = {"quality": quality, "observation_size": observation_size}
    if name == LIBERO.name:
        from lerobot_policy_vita_vla.demos.libero import LiberoScene

        limit = libero_suite.find_protocol(protocol or "").steps(libero_suite.locate(task)[0])
        # A manifest over several suites has one limit, the largest; each task keeps its own.
        steps = min(limit, episode_length or limit)
        return LiberoScene(task, protocol=protocol, episode_length=steps, **look)
    from lerobot_policy_vita_vla.demos.metaworld import SceneEnv

    if episode_length is not None:
        look["episode_length"] = episode_length
    return SceneEnv(task, **look)
