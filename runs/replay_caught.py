"""What the golden replay catches: a small Meta-World recording, and copies with one convention broken each.

    python runs/replay_caught.py            # results/replay/replay_caught.json

Every copy says in its meta/ folder that it is like the sound one; only its pictures, actions or frames
differ, as if another recorder had made it. A case counts as caught if the replay calls exactly the broken
convention broken; the sound recording passes if nothing is. Rotation representations are missing here because
Meta-World's actions do not rotate: tests/test_replay.py breaks them on an arm that does.

Hardware: one CPU core, software rendering; about two minutes of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np

from lerobot_policy_vita_vla.contracts import PRIVILEGED_STATE
from lerobot_policy_vita_vla.conventions import ORIENTATIONS, RecordingInfo, statistics_hash
from lerobot_policy_vita_vla.conversion import orient
from lerobot_policy_vita_vla.demos.dataset import DatasetWriter
from lerobot_policy_vita_vla.demos.expert import Attempt, Demonstration, Disturbance, demonstrate
from lerobot_policy_vita_vla.demos.metaworld import SceneEnv
from lerobot_policy_vita_vla.demos.replay import replay
from lerobot_policy_vita_vla.demos.replay_data import STATE, RecordedEpisode
from lerobot_policy_vita_vla.demos.replay_metaworld import MetaworldSimulator
from lerobot_policy_vita_vla.demos.replay_pictures import match_picture
from lerobot_policy_vita_vla.demos.replay_play import Assumption, play
from lerobot_policy_vita_vla.demos.replay_report import ReplayReport
from lerobot_policy_vita_vla.demos.suite import CAMERA, CONTROL_HZ, SUITE, task_descriptions

OUT = Path(__file__).resolve().parents[1] / "results" / "replay" / "replay_caught.json"
TASKS = ("pick-place-v3", "window-open-v3")
MARGIN_TASKS = (*TASKS, "plate-slide-v3", "button-press-topdown-v3", "door-unlock-v3", "drawer-open-v3")
SEED = 300


class OtherwiseEnv(SceneEnv):
    """Meta-World as another recorder might run it."""

    def __init__(self, task: str, *, settle_steps: int = 0, substeps: int = 5, **kwargs):
        super().__init__(task, **kwargs)
        self.settle_steps, self.substeps = settle_steps, substeps

    def _ensure_env(self) -> None:
        super()._ensure_env()
        self._env.frame_skip = self.substeps

    def reset(self, seed=None, **kwargs):
        answer = super().reset(seed=seed, **kwargs)
        for _ in range(self.settle_steps):
            self.step(np.array([0.0, 0.0, 0.0, -1.0], dtype=np.float32))
        return (self.observation(), answer[1]) if self.settle_steps else answer


def demonstrations(
    tasks: tuple[str, ...], size: int, seed: int, noise: tuple[float, ...] = (0.2,), **otherwise
) -> dict[str, Demonstration]:
    """One demonstration per task, in the order of ``tasks``."""
    found = {}
    for task in tasks:
        env = OtherwiseEnv(task, observation_size=size, **otherwise)
        attempt = Attempt(task, 0, seed, "light", size, Disturbance(levels=noise), 250, 5, "")
        found[task] = demonstrate(env, attempt)
        env.close()
        if found[task] is None:
            raise ValueError(f"the expert of {task} fails from seed {seed}; choose another seed")
    return found


def recording_info(tasks: tuple[str, ...], size: int, seed: int) -> RecordingInfo:
    """What a sound recording of these says."""
    return RecordingInfo(
        suite=SUITE,
        tasks={task_descriptions()[task]: task for task in tasks},
        quality="light",
        observation_size=size,
        control_hz=CONTROL_HZ,
        camera=CAMERA,
        seeds={task: [seed, seed] for task in tasks},
        kept=dict.fromkeys(tasks, 1),
        tried=dict.fromkeys(tasks, 1),
    )


def write(root: Path, demos: dict[str, Demonstration], info: RecordingInfo) -> Path:
    """A LeRobotDataset of these demonstrations."""
    writer = DatasetWriter(root, repo_id="local/replay", observation_size=info.observation_size)
    for task, demo in demos.items():
        writer.append(demo, task_descriptions()[task])
    info.statistics_hash = statistics_hash(writer.finish())
    info.save(root)
    return root


@dataclass
class Case:
    """One way to break a recording.

    Args:
        convention: What the replay must call broken; empty for the sound recording.
        change: Demonstration -> changed demonstration.
        otherwise: Arguments of `OtherwiseEnv`: the recording is made anew.
        edit: What is done to the finished dataset's folder.
    """

    convention: str
    change: Callable[[Demonstration], Demonstration] = lambda demo: demo
    otherwise: dict[str, int] | None = None
    edit: Callable[[Path], None] = lambda root: None


def pictures(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Demonstration], Demonstration]:
    """A change of the pictures."""
    return lambda demo: demo._replace(pictures=np.ascontiguousarray(change(demo.pictures)))


def gripper(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Demonstration], Demonstration]:
    """A change of the gripper's command."""

    def changed(actions: np.ndarray) -> np.ndarray:
        return np.concatenate([actions[:, :3], change(actions[:, 3:])], axis=1)

    return lambda demo: demo._replace(
        action=changed(demo.action), executed_action=changed(demo.executed_action)
    )


def targets(demo: Demonstration) -> Demonstration:
    """Positions to go to instead of displacements."""

    def changed(actions: np.ndarray) -> np.ndarray:
        return np.concatenate([demo.state[:, :3] + 0.01 * actions[:, :3], actions[:, 3:]], axis=1)

    return demo._replace(action=changed(demo.action), executed_action=changed(demo.executed_action))


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
    import pyarrow as pa
    import pyarrow.parquet as pq

    edit_json("meta/info.json", lambda info: info.update(fps=CONTROL_HZ // 2))(root)
    for path in (root / "data").glob("*/*.parquet"):
        table = pq.read_table(path)
        late = pa.array(table["timestamp"].to_numpy() * 2, type=table["timestamp"].type)
        index = table.column_names.index("timestamp")
        pq.write_table(table.set_column(index, table.schema.field("timestamp"), late), path)


def shift_seeds(info: dict) -> None:
    """Seeds from which nothing was recorded."""
    info["seeds"] = {task: [first + 1000, last + 1000] for task, (first, last) in info["seeds"].items()}


def cases() -> dict[str, Case]:
    """Name -> case, the sound recording first."""
    turned = {
        f"pictures {name}": Case("image_orientation", pictures(lambda p, name=name: orient(p, name)))
        for name in ORIENTATIONS
        if name != "as_drawn"
    }
    return {
        "sound": Case(""),
        **turned,
        "gripper sign": Case("gripper", gripper(lambda g: -g)),
        "gripper in 0..1, 1 closes": Case("gripper", gripper(lambda g: (g + 1) / 2)),
        "gripper in 0..1, 1 opens": Case("gripper", gripper(lambda g: (1 - g) / 2)),
        "action mode: targets": Case("action_mode", targets),
        "control rate: simulator at 40 Hz": Case("control_rate", otherwise={"substeps": 10}),
        "control rate: simulator at 100 Hz": Case("control_rate", otherwise={"substeps": 4}),
        "control rate: every second frame": Case("control_rate", every_second),
        "control rate: label 40": Case("control_rate", edit=half_fps),
        "settle steps: 1": Case("settle_steps", otherwise={"settle_steps": 1}),
        "settle steps: 5": Case("settle_steps", otherwise={"settle_steps": 5}),
        "settle steps: 10": Case("settle_steps", otherwise={"settle_steps": 10}),
        "colours: red and blue swapped": Case("colour_order", pictures(lambda p: p[..., ::-1])),
        "pictures after the action": Case("picture_timing", pictures(lambda p: np.roll(p, -1, axis=0))),
        "seeds of another recording": Case(
            "initial_state", edit=edit_json("meta/vita_vla.json", shift_seeds)
        ),
        "statistics replaced": Case(
            "statistics",
            edit=edit_json("meta/stats.json", lambda stats: stats["action"].update(max=[2.0] * 4)),
        ),
    }


def run_case(case: Case, sound: dict[str, Demonstration], info: RecordingInfo, root: Path) -> ReplayReport:
    """Make the case's dataset below ``root`` and replay it."""
    seed = info.seeds[next(iter(sound))][0]
    demos = (
        demonstrations(tuple(sound), info.observation_size, seed, **case.otherwise)
        if case.otherwise
        else sound
    )
    write(root, {task: case.change(demo) for task, demo in demos.items()}, info)
    case.edit(root)
    simulator = MetaworldSimulator(RecordingInfo.load(root))
    try:
        return replay(root, simulator=simulator)
    finally:
        simulator.close()


def margins(tasks: tuple[str, ...], size: int) -> dict[str, float]:
    """What the tolerances lie between: differences that are none, and the smallest that are one."""
    demos, info = demonstrations(tasks, size, SEED), recording_info(tasks, size, SEED)
    simulator = MetaworldSimulator(info)
    world, found = simulator.conventions, {}
    same = Assumption("", "", world)
    others = {
        "path, gripper turned round": same._replace(
            conventions=replace(world, gripper_open=1.0, gripper_closed=-1.0)
        ),
        "path, 100 Hz": same._replace(conventions=replace(world, control_hz=100.0)),
        "path, every second frame": same._replace(repeat=2),
        "path, targets": same._replace(conventions=replace(world, action_mode="absolute", position_unit=1.0)),
    }

    def note(name: str, value: float, pick: Callable[[float, float], float]) -> None:
        found[name] = pick(float(value), found.get(name, float(value)))

    for task, demo in demos.items():
        states = {STATE: demo.state, PRIVILEGED_STATE: demo.environment_state}
        episode = RecordedEpisode(0, "", 0, demo.executed_action, states, {0: {}})
        last_bit = np.nextafter(demo.executed_action, np.float32(2))
        moved = RecordedEpisode(0, "", 0, last_bit, states, {})
        start = (task, SEED)
        again = play(simulator, start, episode, same, draw=True)
        note("path, same machine (largest)", again.deviation.max(), max)
        rounded = play(simulator, start, moved, same)
        note("path, actions changed in their last bit (largest)", rounded.deviation.max(), max)
        for name, other in others.items():
            wrong = play(simulator, start, episode, other)
            note(f"{name} (smallest)", wrong.deviation.max(), min)
        settled = play(simulator, start, episode, same._replace(conventions=replace(world, settle_steps=1)))
        note("start, one settle step too many (smallest)", settled.deviation[0], min)
        picture = match_picture(demo.pictures[0], again.pictures[0]["observation.image"])
        note("picture, same machine (largest)", picture.difference, max)
        note("picture, second best orientation (smallest)", picture.second, min)
    simulator.close()
    return found


def main() -> None:
    """Run every case and write what was reported."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=96, help="pixels (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="default: results/replay/replay_caught.json")
    args = parser.parse_args()
    sound = demonstrations(TASKS, args.size, SEED)
    rows = []
    for name, case in cases().items():
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            report = run_case(case, sound, recording_info(TASKS, args.size, SEED), Path(folder) / "demos")
        wanted = [case.convention] if case.convention else []
        rows.append(
            {
                "case": name,
                "broken": case.convention or None,
                "caught": report.broken == wanted,
                "reported_broken": report.broken,
                "reported": [
                    {"convention": v.convention, "status": v.status, "found": v.found, "fix": v.fix}
                    for v in report.verdicts.values()
                    if v.status == "BROKEN" or not wanted
                ],
                "settings": report.settings,
                "measured": report.measured,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        print("caught" if rows[-1]["caught"] else "MISSED", name, "->", report.broken, flush=True)
    broken = [row for row in rows if row["broken"]]
    result = {
        "caught": sum(row["caught"] for row in broken),
        "of": len(broken),
        "sound_passes": all(row["caught"] for row in rows if not row["broken"]),
        "suite": SUITE,
        "tasks": list(TASKS),
        "observation_size": args.size,
        "tolerances": vars(MetaworldSimulator.tolerances),
        "margins": margins(MARGIN_TASKS, args.size),
        "margin_tasks": list(MARGIN_TASKS),
        "command": "python runs/replay_caught.py",
        "date": date.today().isoformat(),
        "cases": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2, default=str) + "\n")
    print(
        f"{result['caught']} of {result['of']} caught; the sound recording passes: {result['sound_passes']}"
    )


if __name__ == "__main__":
    main()
