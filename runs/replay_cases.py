"""Small recordings, sound and with one convention broken each, for runs/replay_caught.py and the tests.

Every copy says in its meta/ folder that it is like the sound one; only its pictures, actions or frames
differ, as if another recorder had made it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq
from replay_otherwise import executed_again

from lerobot_policy_vita_vla.conventions import ORIENTATIONS, Conventions, RecordingInfo, statistics_hash
from lerobot_policy_vita_vla.conversion import (
    Conversion,
    orient,
    orientation_after,
    read_rotation,
    write_rotation,
)
from lerobot_policy_vita_vla.demos import scenes as suites
from lerobot_policy_vita_vla.demos.dataset import DatasetWriter
from lerobot_policy_vita_vla.demos.expert import Attempt, Demonstration, Disturbance, demonstrate
from lerobot_policy_vita_vla.demos.plan import TAIL_STEPS
from lerobot_policy_vita_vla.demos.replay import replay
from lerobot_policy_vita_vla.demos.replay_report import ReplayReport
from lerobot_policy_vita_vla.demos.scenes import METAWORLD, Scenes
from lerobot_policy_vita_vla.demos.simulator import Simulator, open_simulator


@dataclass(frozen=True)
class Bench:
    """What is recorded.

    Args:
        scenes: The suite.
        tasks: One episode of each.
        seed: Of every episode.
        size: Height and width of pictures, pixels.
        frames: Frames kept of each episode; None keeps all.
        protocol: LIBERO's; the other suites have none.
    """

    scenes: Scenes
    tasks: tuple[str, ...]
    seed: int
    size: int
    frames: int | None = None
    protocol: str | None = None

    @property
    def disturbance(self) -> Disturbance:
        """The suite's weakest one."""
        return Disturbance(levels=(self.scenes.noise[1],))

    def instruction(self, task: str) -> str:
        """What the robot is told."""
        return suites.instruction(self.scenes.name, task)

    def info(self) -> RecordingInfo:
        """What a sound recording of these says."""
        conventions = suites.conventions(self.scenes.name, self.size, self.protocol)
        return RecordingInfo(
            suite=self.scenes.name,
            tasks={self.instruction(task): task for task in self.tasks},
            quality="light",
            observation_size=self.size,
            control_hz=self.scenes.control_hz,
            camera=self.scenes.camera,
            seeds={task: [self.seed, self.seed] for task in self.tasks},
            kept=dict.fromkeys(self.tasks, 1),
            tried=dict.fromkeys(self.tasks, 1),
            noise=self.disturbance.to_dict(),
            settings={"protocol": self.protocol} if self.protocol else {},
            conventions=conventions.to_dict() if self.protocol else {},
        )

    def demonstrations(self) -> dict[str, Demonstration]:
        """One demonstration per task."""
        found = {}
        for task in self.tasks:
            scene = suites.make_scene(
                self.scenes.name, task, quality="light", observation_size=self.size, protocol=self.protocol
            )
            attempt = Attempt(
                task=task,
                number=0,
                seed=self.seed,
                quality="light",
                observation_size=self.size,
                disturbance=self.disturbance,
                max_steps=280,
                tail_steps=TAIL_STEPS,
                folder="",
                suite=self.scenes.name,
                protocol=self.protocol,
            )
            found[task] = demonstrate(scene, attempt)
            scene.close()
            if found[task] is None:
                raise ValueError(f"the expert of {task} fails from seed {self.seed}; choose another seed")
        return {task: Demonstration(*(c[: self.frames] for c in demo)) for task, demo in found.items()}

    def write(self, root: Path, demos: dict[str, Demonstration]) -> Path:
        """A LeRobotDataset of these demonstrations."""
        writer = DatasetWriter(root, repo_id="local/replay", scenes=self.scenes, observation_size=self.size)
        for task, demo in demos.items():
            writer.append(demo, self.instruction(task))
        info = self.info()
        info.statistics_hash = statistics_hash(writer.finish())
        info.save(root)
        return root

    def run(
        self,
        case: Case,
        sound: dict[str, Demonstration],
        root: Path,
        simulator: Simulator | None = None,
        others: bool = True,
    ) -> ReplayReport:
        """Make the case's dataset at ``root`` and replay it, in a simulator that is open already or anew.

        Args:
            case: What to break.
            sound: `demonstrations`.
            root: Folder of the dataset, which does not exist yet.
            simulator: Where to replay it; None opens one.
            others: Also play what else could be meant where what is declared fits (`replay.replay`).
        """
        demos = executed_again(self, sound, **case.otherwise) if case.otherwise else sound
        self.write(root, {task: case.change(demo) for task, demo in demos.items()})
        case.edit(root)
        opened = simulator or open_simulator(RecordingInfo.load(root))
        try:
            return replay(root, simulator=opened, others=others)
        finally:
            if simulator is None:
                opened.close()


@dataclass
class Case:
    """One way to break a recording.

    Args:
        convention: What the replay must call broken; empty for the sound recording.
        change: Demonstration -> changed demonstration.
        otherwise: Arguments of `executed_again`: the same actions in a simulator that is set otherwise.
        edit: What is done to the finished dataset's folder.
        settings: What the replay must say is to be set; None where that does not mend it.
    """

    convention: str
    change: Callable[[Demonstration], Demonstration] = lambda demo: demo
    otherwise: dict[str, float] | None = None
    edit: Callable[[Path], None] = lambda root: None
    settings: dict[str, Any] | None = None


def pictures(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Demonstration], Demonstration]:
    """A change of the pictures."""
    return lambda demo: demo._replace(pictures=np.ascontiguousarray(change(demo.pictures)))


def said_as(truth: Conventions, world: Conventions) -> Callable[[Demonstration], Demonstration]:
    """What a recorder with other conventions would have written down of the same motion."""
    told, seen = Conversion(world, truth), Conversion(truth, world)
    return lambda demo: demo._replace(
        state=seen.state(demo.state),
        action=told.actions(demo.action),
        executed_action=told.actions(demo.executed_action),
    )


def labels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Demonstration], Demonstration]:
    """A change of the column that training reads, and not of the one that was executed."""
    return lambda demo: demo._replace(action=change(demo.action).astype(np.float32))


def targets(world: Conventions) -> Callable[[Demonstration], Demonstration]:
    """Poses to go to, in metres and radians, instead of displacements."""
    metric = replace(world, position_unit=1.0, rotation_unit=1.0)

    def changed(actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        out = Conversion(world, metric).actions(actions.astype(np.float64))
        out[:, :3] += state[:, :3]
        if world.action_rotation:
            turned = read_rotation(out[:, 3:6], world.action_rotation)
            turned = turned * read_rotation(state[:, 3:6], world.state_rotation)
            out[:, 3:6] = write_rotation(turned, world.action_rotation)
        return out.astype(np.float32)

    return lambda demo: demo._replace(
        action=changed(demo.action, demo.state), executed_action=changed(demo.executed_action, demo.state)
    )


def every_second(demo: Demonstration) -> Demonstration:
    """Half of the frames."""
    return Demonstration(*(column[::2] for column in demo))


def edit_json(name: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    """A change of a file in the dataset's meta folder."""

    def edit(root: Path) -> None:
        content = json.loads((root / name).read_text())
        change(content)
        (root / name).write_text(json.dumps(content, indent=2))

    return edit


def half_fps(root: Path) -> None:
    """A label that is wrong, and timestamps that follow it."""
    edit_json("meta/info.json", lambda info: info.update(fps=info["fps"] // 2))(root)
    for path in (root / "data").glob("*/*.parquet"):
        table = pq.read_table(path)
        late = pa.array(table["timestamp"].to_numpy() * 2, type=table["timestamp"].type)
        index = table.column_names.index("timestamp")
        pq.write_table(table.set_column(index, table.schema.field("timestamp"), late), path)


def declare(scenes: Scenes, protocol: str | None, **fields) -> Callable[[Path], None]:
    """Conventions that say something else than the data."""

    def change(info: dict) -> None:
        there = suites.conventions(scenes.name, info["observation_size"], protocol)
        info["conventions"] = {**there.to_dict(), **fields}

    return edit_json("meta/vita_vla.json", change)


def other_statistics(root: Path) -> None:
    """Statistics that the data do not have, and a hash that fits them."""
    edit_json("meta/stats.json", lambda s: s["action"].update(mean=[m + 0.1 for m in s["action"]["mean"]]))(
        root
    )
    there = statistics_hash(json.loads((root / "meta/stats.json").read_text()))
    edit_json("meta/vita_vla.json", lambda info: info.update(statistics_hash=there))(root)


def shift_seeds(info: dict) -> None:
    """Seeds from which nothing was recorded."""
    info["seeds"] = {task: [first + 1000, last + 1000] for task, (first, last) in info["seeds"].items()}


def cases(scenes: Scenes, protocol: str | None = None) -> dict[str, Case]:
    """Name -> case, the sound recording first."""
    world = suites.conventions(scenes.name, 16, protocol)
    turned = np.append(np.ones(world.action_dim - 1), -1.0)
    small = np.append(np.full(3, 0.5), np.ones(world.action_dim - 3))

    def said(convention: str, **truth) -> Case:
        there = replace(world, **truth)
        settings = {name: value for name, (_, value) in world.differences(there).items()}
        return Case(convention, said_as(there, world), settings=settings)

    found = {"sound": Case("", settings={})}
    for name in ORIENTATIONS[1:]:
        truth = orientation_after(world.image_orientation, name)
        turn = pictures(lambda p, name=name: orient(p, name))
        found[f"pictures {name}"] = Case("image_orientation", turn, settings={"image_orientation": truth})
    found |= {
        "gripper sign": said("gripper", gripper_open=1.0, gripper_closed=-1.0),
        "gripper in 0..1, 1 closes": said("gripper", gripper_open=0.0, gripper_closed=1.0),
        "gripper in 0..1, 1 opens": said("gripper", gripper_open=1.0, gripper_closed=0.0),
        "action mode: targets": Case("action_mode", targets(world)),
        "position unit: half the numbers": said("position_unit", position_unit=2 * world.position_unit),
        "labels only: gripper sign": Case("label_gripper", labels(lambda a: a * turned), settings={}),
        "labels only: halved": Case("label_scale", labels(lambda a: a * 0.5), settings={}),
        "labels only: x, y, z halved": Case("label_scale", labels(lambda a: a * small), settings={}),
        "labels only: one frame late": Case(
            "label_timing", labels(lambda a: np.roll(a, 1, axis=0)), settings={}
        ),
        "control rate: every second frame": Case("control_rate", every_second),
        "control rate: label halved": Case("control_rate", edit=half_fps),
        "settle steps: 5": Case("settle_steps", otherwise={"settle_steps": 5}),
        "colours: red and blue swapped": Case("colour_order", pictures(lambda p: p[..., ::-1])),
        "pictures after the action": Case("picture_timing", pictures(lambda p: np.roll(p, -1, axis=0))),
        "seeds of another recording": Case(
            "initial_state", edit=edit_json("meta/vita_vla.json", shift_seeds)
        ),
        "statistics replaced": Case(
            "statistics",
            edit=edit_json("meta/stats.json", lambda s: s["action"].update(max=[2.0] * world.action_dim)),
        ),
        "statistics of other data": Case("statistics", edit=other_statistics, settings={}),
        "control rate: declared as half": Case(
            "control_rate",
            edit=declare(scenes, protocol, control_hz=world.control_hz / 2),
            settings={"control_hz": world.control_hz},
        ),
    }
    rates, settles = ((40, 100), (1, 10)) if scenes is METAWORLD else ((10, 25), (0, 9))
    for rate in rates:
        found[f"control rate: simulator at {rate} Hz"] = Case("control_rate", otherwise={"control_hz": rate})
    for steps in settles:
        found[f"settle steps: {steps}"] = Case("settle_steps", otherwise={"settle_steps": steps})
    if world.action_rotation:
        found |= {
            "action rotation: Euler angles": said("action_rotation", action_rotation="euler_xyz"),
        }
        if world.state_rotation != "euler_xyz":
            found["state rotation: Euler angles"] = said("state_rotation", state_rotation="euler_xyz")
        # From axis_angle_2pi it differs where the hand's quaternion has a negative real part.
        found["state rotation: shortest axis-angle"] = said("state_rotation", state_rotation="axis_angle")
    return found
