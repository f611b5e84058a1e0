"""The golden replay on Meta-World and on an arm that turns its hand: what is broken is named, alone."""

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.append(str(Path(__file__).parents[1] / "runs"))

import replay_cases

from lerobot_policy_vita_vla.conventions import Conventions, RecordingInfo
from lerobot_policy_vita_vla.demos.check import check_dataset
from lerobot_policy_vita_vla.demos.expert import Disturbance
from lerobot_policy_vita_vla.demos.replay import replay
from lerobot_policy_vita_vla.demos.replay_labels import judge_labels
from lerobot_policy_vita_vla.demos.replay_metaworld import MetaworldSimulator, metaworld_conventions
from lerobot_policy_vita_vla.demos.replay_pictures import match_picture
from lerobot_policy_vita_vla.demos.replay_report import ReplayReport
from lerobot_policy_vita_vla.demos.replay_start import blame_start
from lerobot_policy_vita_vla.demos.scenes import METAWORLD
from lerobot_policy_vita_vla.demos.simulator import open_simulator
from replay_helpers import ToyArm, TwoCameras, record_toy

CASES = replay_cases.cases(METAWORLD)
SIZE = 32
BENCH = replay_cases.Bench(METAWORLD, ("pick-place-v3",), seed=300, size=SIZE)


@cache
def sound():
    return BENCH.demonstrations()


@pytest.fixture(scope="module")
def simulator():
    opened = open_simulator(BENCH.info())
    yield opened
    opened.close()


def run(case, folder, simulator=None):
    # What an edited file says of the seeds, an opened simulator would not notice.
    shared = simulator if case.edit is replay_cases.Case.edit else None
    return BENCH.run(case, sound(), folder / "demos", shared)


@pytest.mark.parametrize("name", [name for name in CASES if name != "sound"])
def test_a_broken_convention_is_caught_and_named_alone(name, tmp_path, simulator):
    report = run(CASES[name], tmp_path, simulator)
    assert report.broken == [CASES[name].convention], str(report)
    assert all(v.found and v.fix for v in report.verdicts.values() if v.status == "BROKEN")
    assert not report.ok
    if CASES[name].settings is not None:
        assert report.settings == CASES[name].settings


def test_a_sound_recording_passes_and_every_convention_was_put_to_the_test(tmp_path, simulator):
    report = run(CASES["sound"], tmp_path, simulator)
    assert report.ok, str(report)
    assert str(report).endswith("the recording is what it says it is, as far as 1 of 1 episodes tell")
    told = {v.convention for v in report.verdicts.values() if v.status == "confirmed"}
    assert told >= {
        "image_orientation", "gripper", "action_mode", "control_rate", "settle_steps", "trajectory",
        "initial_state", "statistics", "labels", "position_unit",
    }  # fmt: skip
    assert report.settings == {}
    # The same machine repeats itself to the bit.
    assert report.measured == {"start": 0.0, "path": 0.0, "picture": 0.0}


def test_what_is_reported_to_be_set_makes_the_recording_sound(tmp_path, simulator):
    case = CASES["pictures transposed"]
    broken = run(case, tmp_path, simulator)
    info = RecordingInfo.load(tmp_path / "demos")
    info.conventions = {**metaworld_conventions(SIZE).to_dict(), **broken.settings}
    info.save(tmp_path / "demos")
    assert broken.settings == {"image_orientation": "antitransposed"}
    assert replay(tmp_path / "demos", simulator=simulator).ok


def test_the_verb_prints_the_findings_and_ends_with_their_exit_code(tmp_path, capsys, simulator):
    from vita_vla_cli.cli import main

    run(CASES["gripper sign"], tmp_path, simulator)
    out = tmp_path / "report.json"
    assert main(["demos", "replay", str(tmp_path / "demos"), "--json", str(out)]) == 1
    shown = capsys.readouterr()
    assert "BROKEN    gripper" in shown.out and '"gripper_open": 1.0' in shown.out
    assert "trying whether the gripper opens with 1" in shown.err and "trying" not in shown.out
    # The first one explains it exactly, so that no rate has to be tried.
    assert "actions per second" not in shown.err
    assert json.loads(out.read_text())["settings"] == {"gripper_open": 1.0, "gripper_closed": -1.0}
    assert main(["demos", "replay", str(tmp_path / "demos"), "--json", str(tmp_path)]) == 2
    assert f"--json {tmp_path} is a folder; name a file" in capsys.readouterr().err
    assert main(["demos", "replay", str(tmp_path / "nowhere")]) == 2
    assert main(["demos", "replay", str(tmp_path / "demos"), "--simulator", "nothing:Here"]) == 2
    assert "cannot be imported" in capsys.readouterr().err


def test_a_rate_that_is_not_the_environments_is_an_error_of_the_check_too(tmp_path):
    run(CASES["control rate: label halved"], tmp_path)
    found = check_dataset(tmp_path / "demos")
    assert not found.ok
    assert any("40 frames per second" in f.what and "demos replay" in f.fix for f in found)


def test_starts_follow_the_recorded_seeds_even_where_attempts_failed():
    info = BENCH.info()
    info.tasks = {"Push": "push-v3,push-wall-v3"}
    info.seeds = {"push-v3": [7, 11], "push-wall-v3": [20, 21]}
    info.kept, info.tried = {"push-v3": 3, "push-wall-v3": 2}, {"push-v3": 5, "push-wall-v3": 2}
    simulator = MetaworldSimulator(info)
    assert simulator.starts("Push", 0)[:3] == [("push-v3", 7), ("push-v3", 8), ("push-v3", 9)]
    assert simulator.starts("Push", 4)[0] == ("push-wall-v3", 21)
    assert len(set(simulator.starts("Push", 1))) == 7
    with pytest.raises(ValueError, match="none of the recorded ones"):
        simulator.starts("Pull", 0)
    info.seeds = {"push-v3": [7, 11]}
    with pytest.raises(ValueError, match="names no seeds of push-wall-v3.*demos record"):
        simulator.starts("Push", 0)


def test_a_dataset_without_a_known_simulator_is_refused_with_the_flag():
    with pytest.raises(ValueError, match="--simulator"):
        open_simulator(None)
    with pytest.raises(ValueError, match="suite 'kitchen'"):
        open_simulator(RecordingInfo("kitchen", {}, "x", 32, 20, "front"))
    with pytest.raises(ValueError, match="seeds"):
        open_simulator(None, "lerobot_policy_vita_vla.demos.replay_metaworld:MetaworldSimulator")


def test_what_makes_no_simulator_is_refused():
    for named in ("json:loads", "types:SimpleNamespace"):
        with pytest.raises(ValueError, match=f"--simulator {named} makes no simulator"):
            open_simulator(None, named)


def test_damaged_pictures_and_episodes_are_named(tmp_path):
    record_toy(tmp_path / "toy", LEROBOT, LEROBOT, frames=3)
    (file,) = (tmp_path / "toy" / "data").glob("*/*.parquet")
    info, whole = tmp_path / "toy" / "meta" / "info.json", pq.read_table(file)

    def refused(message, **columns):
        table = whole
        for name, values in columns.items():
            name = name.replace("__", ".")
            place = whole.column_names.index(name)
            table = table.set_column(
                place, whole.schema.field(name), pa.array(values, whole.schema.field(name).type)
            )
        pq.write_table(table, file)
        with pytest.raises(ValueError, match=message):
            replay(tmp_path / "toy", simulator=ToyArm())

    seen = whole["observation.images.front"].to_pylist()
    cut = [{**picture, "bytes": picture["bytes"][:200]} for picture in seen]
    refused("picture of observation.images.front is damaged.*demos check", observation__images__front=cut)
    refused("has no frame of episode 1.*demos check", episode_index=[0, 0, 0, 7, 7, 7])
    written = json.loads(info.read_text())
    written["features"]["observation.images.front"]["shape"] = [48, 48, 3]
    info.write_text(json.dumps(written))
    refused("pictures of observation.images.front are 24 x 24 pixels, meta/info.json says 48 x 48")
    written["features"]["joints"] = written["features"].pop("observation.state")
    info.write_text(json.dumps(written))
    names = [name.replace("observation.state", "joints") for name in whole.column_names]
    whole = whole.rename_columns(names)
    refused(r"has no \['observation.state'\]; it has .*'joints'.*rename")


def test_another_robots_dataset_is_refused(tmp_path):
    record_toy(tmp_path / "toy", LEROBOT, LEROBOT, frames=3)
    info = RecordingInfo.load(tmp_path / "toy")
    info.conventions = metaworld_conventions(SIZE).to_dict()
    info.save(tmp_path / "toy")
    with pytest.raises(ValueError, match="action has 7 numbers, the declared conventions have 4"):
        replay(tmp_path / "toy", simulator=ToyArm())


def test_a_rate_that_is_only_declared_wrong_is_to_be_declared_and_fps_left(tmp_path, simulator):
    declared = run(CASES["control rate: declared as half"], tmp_path / "a", simulator)
    fix = declared.verdicts["control_rate"].fix
    assert '"control_hz": 80' in fix and "fps" not in fix
    labelled = run(CASES["control rate: label halved"], tmp_path / "b", simulator)
    assert '"fps": 80' in labelled.verdicts["control_rate"].fix


# --- labels


def judged_labels(change, *, levels=(0.0, 0.2), miss_chance=0.0, speed=0.3):
    """What is said of as many episodes of slow motion as there are levels, after a change of some labels."""
    rng, rows = np.random.default_rng(0), []
    for number, level in enumerate(levels):
        phase = np.arange(60)[:, None] * speed
        label = np.append(0.6 * np.sin(phase + np.arange(3)), np.sign(np.cos(phase / 4)), axis=1)
        executed = label.copy()
        executed[:, :3] = np.clip(executed[:, :3] + rng.normal(0, 1, (60, 3)) * level, -1, 1)
        if miss_chance:
            executed[10:25, 3] *= -1
        rows.append((number, "go", number, len(levels), change(number, label, executed), executed))
    info = RecordingInfo("toy", {"go": "toy"}, "plain", SIZE, 20, "front", seeds={"toy": [0, 9]})
    info.kept = info.tried = {"toy": len(levels)}
    info.noise = Disturbance(levels=levels, kick_chance=0.0, miss_chance=miss_chance).to_dict()
    report = ReplayReport("somewhere")
    names = ["x", "y", "z", "gripper"]
    judge_labels(report, SimpleNamespace(info=info, labels=lambda: rows, state_names=lambda *_: names), 3)
    return report


def test_labels_are_compared_where_they_were_disturbed_too():
    def halved(number, label, executed):
        return label * [0.5, 0.5, 0.5, 1] if number == 1 else label

    assert judged_labels(lambda number, label, executed: label).verdicts["labels"].status == "confirmed"
    report = judged_labels(halved)
    assert report.broken == ["label_scale"] and "1 of 1 disturbed" in report.verdicts["label_scale"].found
    overwritten = judged_labels(lambda number, label, executed: executed)
    assert overwritten.broken == ["labels"]
    assert "learns the disturbances" in overwritten.verdicts["labels"].found


def test_labels_of_one_episode_only_are_enough_to_be_broken():
    report = judged_labels(lambda n, label, executed: label * [1, 1, 1, -1 if n == 1 else 1])
    assert report.broken == ["label_gripper"] and "1 of 2 episodes" in report.verdicts["label_gripper"].found


def test_labels_hidden_by_noise_alone_are_undecided():
    report = judged_labels(lambda number, label, executed: label, levels=(0.9,), speed=0.001)
    assert report.ok and report.undecided == ["labels"]
    assert "without noise" in report.verdicts["labels"].fix


def test_a_mistake_on_purpose_is_none_of_the_labels():
    assert judged_labels(lambda n, label, executed: label, miss_chance=1.0).ok
    turned = judged_labels(lambda n, label, executed: label * [1, 1, 1, -1], miss_chance=1.0)
    assert turned.broken == ["label_gripper"]


def test_the_report_says_what_it_did_not_see():
    report = ReplayReport("somewhere", episodes=[1], stored=6)
    report.add("gripper", "undecided", "it never moves")
    shown = str(report)
    assert "1 of 6 episodes" in shown and "--episodes" in shown
    assert shown.endswith("nothing is broken, but 1 convention undecided: gripper")
    report.stored = 1
    assert "--episodes" not in str(report) and "record one" in str(report)


# --- rotations, on an arm that has them

LEROBOT = replace(ToyArm.conventions, image_orientation="rotated_180")
"""As LeRobot stores LIBERO: pictures turned, everything else the simulator's."""


def toy(tmp_path, declared=LEROBOT, **truth):
    record_toy(tmp_path / "toy", declared, replace(declared, **truth))
    return replay(tmp_path / "toy", simulator="replay_helpers:ToyArm")


def test_conventions_that_are_declared_and_true_pass(tmp_path):
    report = toy(tmp_path)
    assert report.ok, str(report)
    assert report.verdicts["state_rotation"].status == "confirmed"
    assert report.verdicts["action_rotation"].status == "confirmed"
    assert report.verdicts["settle_steps"].status == "confirmed"
    assert "rotated_180" in report.verdicts["image_orientation"].found


def test_what_is_wrong_with_one_camera_is_not_mended_for_all(tmp_path):
    arm = TwoCameras()
    record_toy(tmp_path / "turned", LEROBOT, LEROBOT, arm=arm, wrist="as_drawn")
    report = replay(tmp_path / "turned", simulator=arm)
    assert report.broken == ["image_orientation"] and report.settings == {}
    found = report.verdicts["image_orientation"]
    assert "images.wrist is as_drawn" in found.found and "as observation.images.front lies" in found.found
    assert '"image_orientation":' not in found.fix and "images.wrist" in found.fix


def test_a_camera_of_another_size_is_noted(tmp_path):
    arm = TwoCameras()
    arm.wrist_size = 16
    record_toy(tmp_path / "small", LEROBOT, LEROBOT, arm=arm)
    report = replay(tmp_path / "small", simulator=arm)
    assert report.ok, str(report)
    assert any("images.wrist has 16 x 16" in note for note in report.notes)


@pytest.mark.parametrize(
    ("convention", "truth"),
    [
        ("action_rotation", {"action_rotation": "euler_xyz"}),
        ("state_rotation", {"state_rotation": "euler_xyz"}),
        ("state_rotation", {"state_rotation": "axis_angle"}),
        ("settle_steps", {"settle_steps": 0}),
        ("settle_steps", {"settle_steps": 5}),
        ("gripper", {"gripper_open": 1.0, "gripper_closed": -1.0}),
        ("image_orientation", {"image_orientation": "as_drawn"}),
        ("control_rate", {"control_hz": 10.0}),
        ("position_unit", {"position_unit": 0.1}),
        ("rotation_unit", {"rotation_unit": 1.0}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_what_a_turning_hand_adds_is_caught(convention, truth, tmp_path):
    report = toy(tmp_path, **truth)
    assert report.broken == [convention], str(report)
    assert report.settings == truth


def test_two_broken_conventions_are_told_apart(tmp_path):
    truth = {"action_rotation": "euler_xyz", "gripper_open": 1.0, "gripper_closed": -1.0}
    report = toy(tmp_path, **truth, image_orientation="mirrored")
    assert sorted(report.broken) == ["action_rotation", "gripper", "image_orientation"]
    assert "rotation" not in report.verdicts["gripper"].fix
    assert report.settings == {**truth, "image_orientation": "mirrored"}


def test_a_start_that_only_looks_right_in_the_robots_own_numbers_is_called_another_start():
    report = ReplayReport("somewhere")
    report.add("initial_state", "confirmed", "start ('libero_goal_0', 7)")
    report.add("trajectory", "BROKEN", "states leave the recorded ones at frame 62", "compare")
    blame_start(report, 7)
    assert report.broken == ["trajectory"], "the pictures do not say that things stand elsewhere"
    report.add("pictures", "BROKEN", "the first picture is 9 grey levels off", "check the camera")
    blame_start(report, 7)
    assert report.broken == ["initial_state"]
    found = report.verdicts["initial_state"]
    assert "frame 62" in found.found and "9 grey levels" in found.found and "check the camera" in found.fix


# --- pictures


def test_a_symmetric_picture_decides_nothing_and_a_foreign_one_matches_nothing():
    rng = np.random.default_rng(0)
    flat = np.full((16, 16, 3), 90, np.uint8)
    assert not match_picture(flat, flat).distinct
    one, other = (rng.integers(0, 255, (16, 16, 3)).astype(np.uint8) for _ in range(2))
    assert match_picture(one, one).distinct and not match_picture(one, other).distinct
    swapped = match_picture(np.rot90(one)[..., ::-1], one)
    assert (swapped.turn, swapped.swapped, swapped.difference) == ("rotated_90", True, 0.0)


def test_conventions_are_checked_as_they_are_written():
    record = metaworld_conventions(96).to_dict()
    assert Conventions.from_dict(json.loads(json.dumps(record))) == metaworld_conventions(96)
    with pytest.raises(ValueError, match="image_orientation is one of"):
        Conventions.from_dict({**record, "image_orientation": "sideways"})
    with pytest.raises(ValueError, match="conventions have no"):
        Conventions.from_dict({**record, "torque": 1})
    with pytest.raises(ValueError, match="incomplete"):
        Conventions.from_dict({})
    with pytest.raises(ValueError, match="must differ"):
        Conventions.from_dict({**record, "gripper_open": 1.0})
