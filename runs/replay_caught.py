"""What the golden replay catches: small recordings, and copies with one convention broken each.

    python runs/replay_caught.py                     # Meta-World, LIBERO twice, into results/replay/
    python runs/replay_caught.py --suites metaworld  # one of them; the other's results stay

Writes results/replay/<suite>.json with what was reported for every copy and with the margins behind the
tolerances, and results/replay/replay_caught.json with the count over both. A case counts as caught if the
replay calls exactly the broken convention broken, and as undecided if it says that it cannot tell (exit code
0); the sound recording passes if nothing is broken. Recordings are as long as `demos record` makes them.

Hardware: one CPU core, software rendering; a few minutes of it for Meta-World, half an hour for LIBERO, which
needs the extra `libero` and the assets (docs/libero.md).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from replay_cases import Bench, Case, cases

from lerobot_policy_vita_vla.contracts import PRIVILEGED_STATE
from lerobot_policy_vita_vla.demos.expert import Demonstration
from lerobot_policy_vita_vla.demos.replay_data import STATE, RecordedEpisode
from lerobot_policy_vita_vla.demos.replay_pictures import match_picture
from lerobot_policy_vita_vla.demos.replay_play import Assumption, play
from lerobot_policy_vita_vla.demos.scenes import LIBERO, METAWORLD, check_ready
from lerobot_policy_vita_vla.demos.simulator import open_simulator
from lerobot_policy_vita_vla.evaluation.results import write_json

OUT = Path(__file__).resolve().parents[1] / "results" / "replay"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "conventions.md"
BEGIN = "<!-- replay: written by runs/replay_caught.py from results/replay -->"
END = "<!-- end of replay -->"
NAMES = {"metaworld": "Meta-World", "libero": "LIBERO", "libero_seer": "LIBERO as Seer evaluates it"}
BENCHES = {
    "metaworld": Bench(METAWORLD, ("pick-place-v3", "window-open-v3"), 300, 96),
    # Opening a drawer turns the hand about several axes; a thing that is carried is let go of.
    "libero": Bench(LIBERO, ("libero_goal_0", "libero_object_1"), 1000, 64, protocol="lerobot"),
    # The first observation is from before the settle steps, and the gripper's command counts by its sign.
    "libero_seer": Bench(LIBERO, ("libero_object_3",), 1000, 64, protocol="vita-paper"),
}
MARGIN_TASKS = {
    "metaworld": (
        *BENCHES["metaworld"].tasks, "plate-slide-v3", "button-press-topdown-v3", "door-unlock-v3",
        "drawer-open-v3",
    ),
    "libero": (*BENCHES["libero"].tasks, "libero_spatial_1"),
    "libero_seer": BENCHES["libero_seer"].tasks,
}  # fmt: skip
FEWER = {
    "libero_seer": (
        "sound", "pictures rotated_180", "gripper sign", "action mode: targets", "settle steps: 0",
        "position unit: half the numbers", "state rotation: shortest axis-angle", "labels only: gripper sign",
        "pictures after the action", "control rate: simulator at 10 Hz",
    ),
}  # fmt: skip
"""Cases of a bench that repeats another suite."""
OTHER_RATE = {"metaworld": 100.0, "libero": 25.0}
"""The nearest one that the simulator can run at."""


def margins(bench: Bench) -> dict[str, float]:
    """What the tolerances lie between: differences that are none, and the smallest that are one."""
    demos, simulator = bench.demonstrations(), open_simulator(bench.info())
    world, found = simulator.conventions, {}
    same, rate = Assumption("", "", world), OTHER_RATE[bench.scenes.name]
    absolute = {"action_mode": "absolute", "position_unit": 1.0, "rotation_unit": 1.0}
    others = {
        "path, gripper turned round": {"gripper_open": 1.0, "gripper_closed": -1.0},
        f"path, {rate:g} Hz": {"control_hz": rate},
        "path, targets": absolute,
    }

    def note(name: str, value: float, pick=min) -> None:
        found[name] = pick(float(value), found.get(name, float(value)))

    for task, demo in demos.items():
        states = {STATE: demo.state, PRIVILEGED_STATE: demo.environment_state}
        episode = RecordedEpisode(0, "", 0, demo.executed_action, states, {0: {}})
        last_bit = np.nextafter(demo.executed_action, np.float32(2))
        moved = RecordedEpisode(0, "", 0, last_bit, states, {})
        start = (task, bench.seed)
        again = play(simulator, start, episode, same, draw=True)
        note("path, same machine (largest)", again.worst, max)
        rounded = play(simulator, start, moved, same)
        note("path, actions changed in their last bit (largest)", rounded.worst, max)
        for name, fields in others.items():
            wrong = play(simulator, start, episode, same._replace(conventions=replace(world, **fields)))
            note(f"{name} (smallest)", wrong.worst)
        halved = play(simulator, start, episode, same._replace(repeat=2))
        note("path, every second frame (smallest)", halved.worst)
        later = replace(world, settle_steps=world.settle_steps + 1)
        settled = play(simulator, start, episode, same._replace(conventions=later), frames=1)
        note("start, one settle step too many (smallest)", settled.deviation[0])
        drawn = list(again.pictures[0].values())[0]
        recorded = demo.pictures[0] if demo.pictures.ndim == 4 else demo.pictures[0, 0]
        picture = match_picture(recorded, drawn)
        note("picture, same machine (largest)", picture.difference, max)
        note("picture, second best orientation (smallest)", picture.second)
    simulator.close()
    return found


def judged(name: str, case: Case, bench: Bench, sound: dict[str, Demonstration]) -> dict[str, Any]:
    """One row: what the replay said of a case."""
    began = time.monotonic()
    wanted = [case.convention] if case.convention else []
    with tempfile.TemporaryDirectory() as folder:
        # What else the data could mean is played last, and calls nothing broken: only where nothing else is.
        report = bench.run(case, sound, Path(folder) / "demos", others=not wanted)
        if wanted and report.ok:
            report = bench.run(case, sound, Path(folder) / "again")
    return {
        "case": name,
        "broken": case.convention or None,
        "tasks": list(bench.tasks),
        "caught": report.broken == wanted,
        "undecided": bool(wanted) and report.ok and wanted[0] in report.undecided,
        "reported_broken": report.broken,
        "reported": [
            {"convention": v.convention, "status": v.status, "found": v.found, "fix": v.fix}
            for v in report.verdicts.values()
            if v.status == "BROKEN" or report.ok
        ],
        "settings": report.settings,
        "measured": report.measured,
        "seconds": round(time.monotonic() - began, 1),
    }


def run_suite(name: str, out: Path) -> None:
    """Every case of one suite, continued where it was stopped, and its margins."""
    bench = BENCHES[name]
    sound, part = bench.demonstrations(), out / f"{name}.part"
    rows = json.loads(part.read_text()) if part.is_file() else []
    known = cases(bench.scenes, bench.protocol)
    for case_name in FEWER.get(name, known):
        case = known[case_name]
        if any(row["case"] == case_name for row in rows):
            continue
        rows.append(judged(case_name, case, bench, sound))
        write_json(part, rows)
        said = "caught" if rows[-1]["caught"] else "undecided" if rows[-1]["undecided"] else "MISSED"
        print(said, case_name, rows[-1]["reported_broken"], rows[-1]["seconds"], flush=True)
    for row in rows:
        wanted = known[row["case"]].settings
        row["settings_right"] = None if wanted is None else row["settings"] == wanted
    broken = [row for row in rows if row["broken"]]
    simulator = open_simulator(bench.info())
    write_json(
        out / f"{name}.json",
        {
            "caught": sum(row["caught"] for row in broken),
            "undecided": sum(row["undecided"] for row in broken),
            "of": len(broken),
            "sound_passes": all(row["caught"] for row in rows if not row["broken"]),
            "suite": name,
            "tasks": list(bench.tasks),
            "protocol": bench.protocol,
            "observation_size": bench.size,
            "tolerances": vars(simulator.tolerances),
            "margins": margins(replace(bench, tasks=MARGIN_TASKS[name])),
            "margin_tasks": list(MARGIN_TASKS[name]),
            "command": f"python runs/replay_caught.py --suites {name}",
            "date": date.today().isoformat(),
            "cases": rows,
        },
    )
    part.unlink()


def page(done: dict[str, dict[str, Any]]) -> str:
    """What docs/conventions.md says of these results."""
    passes = all(r["sound_passes"] for r in done.values())
    sound = "pass" if passes else "do not all pass"
    lines = [f"Broken recordings that were caught and named alone, while the sound ones {sound}:", ""]
    for name, result in done.items():
        tasks = ", ".join(result["tasks"])
        lines.append(f"- {result['caught']} of {result['of']} on {NAMES[name]} ({tasks})")
        for row in result["cases"]:
            if row["broken"] and not row["caught"]:
                said = "undecided" if row.get("undecided") else f"not named alone: {row['reported_broken']}"
                lines.append(f'  - "{row["case"]}" was {said}')
    lines += [
        "",
        "| difference | suite | none (largest seen) | allowed | smallest that is one |",
        "|---|---|---|---|---|",
    ]
    kinds = {"start": "first state", "path": "states along the path", "picture": "pictures, grey levels"}
    for kind, words in kinds.items():
        for name, result in done.items():
            found = {k.split(", ", 1)[1]: v for k, v in result["margins"].items() if k.startswith(kind)}
            none = [f"{v:.2g}, {k[:-10]}" for k, v in found.items() if k.endswith(" (largest)")]
            some = sorted((v, k[:-11]) for k, v in found.items() if k.endswith(" (smallest)"))
            wrong = "; ".join(f"{v:.2g}, {k}" for v, k in some)
            limit = result["tolerances"][kind]
            lines.append(f"| {words} | {NAMES[name]} | {'; '.join(none) or '-'} | {limit:g} | {wrong} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Run every case and write what was reported."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suites", help="default: metaworld, and libero where it is installed")
    parser.add_argument("--out", type=Path, default=OUT, help="folder (default: results/replay)")
    args = parser.parse_args()
    asked = args.suites.split(",") if args.suites else list(BENCHES)
    if unknown := [name for name in asked if name not in BENCHES]:
        parser.error(f"unknown suites {unknown}; known are {list(BENCHES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in asked:
        try:
            check_ready(BENCHES[name].scenes.name)
        except ValueError as error:
            if args.suites:
                raise
            print(f"{NAMES[name]} is left as it was measured before: {error}")
            continue
        run_suite(name, args.out)
    done = {name: args.out / f"{name}.json" for name in BENCHES}
    done = {name: json.loads(path.read_text()) for name, path in done.items() if path.is_file()}
    total = {
        "caught": sum(result["caught"] for result in done.values()),
        "undecided": sum(result.get("undecided", 0) for result in done.values()),
        "of": sum(result["of"] for result in done.values()),
        "sound_passes": all(result["sound_passes"] for result in done.values()),
        "suites": {
            name: {key: r.get(key) for key in ("caught", "undecided", "of", "date")}
            for name, r in done.items()
        },
        "command": "python runs/replay_caught.py",
        "date": date.today().isoformat(),
    }
    write_json(args.out / "replay_caught.json", total)
    if args.out == OUT:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{page(done)}{END}{rest.split(END)[1]}")
    print("{caught} of {of} caught, {undecided} undecided; sound passes: {sound_passes}".format(**total))


if __name__ == "__main__":
    main()
