"""LIBERO from the expert to the golden replay, in the real simulator; skipped without it (docs/libero.md)."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "runs"))

from lerobot_policy_vita_vla.conventions import RecordingInfo
from lerobot_policy_vita_vla.demos.replay_libero import LiberoSimulator
from lerobot_policy_vita_vla.demos.scenes import LIBERO
from lerobot_policy_vita_vla.demos.simulator import open_simulator
from libero_helpers import require_libero


def test_a_dataset_without_seeds_and_protocol_cannot_be_replayed():
    with pytest.raises(ValueError, match="vita-vla demos record"):
        LiberoSimulator(None)
    info = RecordingInfo("libero_10", {}, "original", 128, 20, "agentview")
    with pytest.raises(ValueError, match="protocol"):
        LiberoSimulator(info)


@pytest.fixture(scope="module")
def libero():
    require_libero()


# The hand turns about several axes and closes; what comes after that adds nothing but time.
TASK, SEED, SIZE, FRAMES = "libero_goal_0", 1000, 32, 70


@cache
def bench():
    from replay_cases import Bench

    made = Bench(LIBERO, (TASK,), SEED, SIZE, frames=FRAMES, protocol="lerobot")
    return made, made.demonstrations()


@pytest.fixture(scope="module")
def simulator(libero):
    opened = open_simulator(bench()[0].info())
    yield opened
    opened.close()


def run(name, folder, simulator):
    from replay_cases import cases

    made, sound = bench()
    case = cases(LIBERO, "lerobot")[name]
    return case, made.run(case, sound, folder / "demos", simulator)


def test_a_sound_recording_passes_and_every_convention_was_put_to_the_test(simulator, tmp_path):
    _, report = run("sound", tmp_path, simulator)
    assert report.ok and report.settings == {}, str(report)
    told = {v.convention for v in report.verdicts.values() if v.status == "confirmed"}
    assert told >= {
        "image_orientation", "gripper", "action_rotation", "action_mode", "control_rate", "settle_steps",
        "trajectory", "initial_state", "statistics",
    }, str(report)  # fmt: skip
    # The hand's quaternion keeps its sign here, so that two of the representations are the same numbers.
    assert report.verdicts["state_rotation"].status == "undecided"
    # The same machine repeats itself to the bit, through scenes that were built one after the other.
    assert report.measured == {"start": 0.0, "path": 0.0, "picture": 0.0}


# All of them, and other rates and settle steps: runs/replay_caught.py.
@pytest.mark.parametrize(
    "name",
    [
        "gripper sign",
        "action rotation: Euler angles",
        "state rotation: Euler angles",
    ],
)
def test_a_broken_convention_is_caught_and_named_alone(name, simulator, tmp_path):
    case, report = run(name, tmp_path, simulator)
    assert report.broken == [case.convention], str(report)
    if case.settings is not None:
        assert report.settings == case.settings


def test_a_protocol_that_looks_before_it_settles_is_replayed_as_it_looked(libero, tmp_path):
    from replay_cases import Bench, cases

    made = Bench(LIBERO, ("libero_object_3",), SEED, SIZE, frames=30, protocol="vita-paper")
    demos = made.demonstrations()
    report = made.run(cases(LIBERO, "vita-paper")["sound"], demos, tmp_path / "sound")
    assert report.ok and report.settings == {}, str(report)
    assert report.measured == {"start": 0.0, "path": 0.0, "picture": 0.0}
    # The first frame does not tell five steps from six; the next ones do.
    assert report.verdicts["settle_steps"].status == "confirmed"


def test_a_state_that_does_not_tell_its_rotation_is_replayed(libero, tmp_path):
    from replay_cases import Bench, cases

    made = Bench(LIBERO, ("libero_10_5",), SEED, SIZE, frames=30, protocol="seer-training")
    report = made.run(cases(LIBERO, "seer")["sound"], made.demonstrations(), tmp_path / "sound")
    assert report.ok and report.settings == {}, str(report)
    assert report.verdicts["state_rotation"].found.startswith("axis_angle_2pi_as_euler"), str(report)
    assert report.measured["path"] < 1e-5


def test_seeds_of_another_recording_are_called_that_and_nothing_else(libero, tmp_path):
    from replay_cases import cases

    made, sound = bench()
    # Its simulator is opened anew: it is to believe the seeds that the recording names.
    report = made.run(cases(LIBERO, "lerobot")["seeds of another recording"], sound, tmp_path / "demos")
    assert report.broken == ["initial_state"], str(report)


def test_starts_are_told_apart_by_where_things_are(libero, tmp_path):
    """The arm begins alike from every seed, and attempts that failed shift which seed an episode has."""
    from dataclasses import replace

    from lerobot_policy_vita_vla.demos.replay import replay

    made, _ = bench()
    third = replace(made, seed=SEED + 2)
    root = third.write(tmp_path / "demos", third.demonstrations())
    info = RecordingInfo.load(root)
    info.seeds, info.tried = {TASK: [SEED, SEED + 3]}, {TASK: 4}
    info.save(root)
    report = replay(root)
    assert report.ok, str(report)
    assert str((TASK, SEED + 2)) in report.verdicts["initial_state"].found


def test_a_recording_carries_its_conventions(libero, tmp_path):
    from lerobot.datasets import LeRobotDataset

    from lerobot_policy_vita_vla.demos.record import record

    root = tmp_path / "demos"
    record("libero_object_0", 1, root, observation_size=SIZE, workers=1, progress=False)
    info = RecordingInfo.load(root)
    assert info.settings["protocol"] == "lerobot" and info.conventions["settle_steps"] == 10
    dataset = LeRobotDataset("local/demos", root=root)
    assert dataset.fps == info.control_hz == 20
    actions = np.stack([row["action"] for row in dataset.hf_dataset])
    assert np.abs(actions).max() <= 1 and set(np.unique(actions[:, 6])) == {-1.0, 1.0}
    known = np.stack([row["observation.environment_state"] for row in dataset.hf_dataset])
    thing, basket = known[:, :3], known[:, 3:]
    assert np.abs(basket - basket[0]).max() < 0.03, "nobody moves the basket"
    assert np.linalg.norm(thing[0] - basket[0]) > 0.1
    assert thing[:, 2].max() > thing[0, 2] + 0.1, "it is lifted"
    assert np.linalg.norm(thing[-1] - basket[-1]) < 0.1, "and ends up in the basket"
    # The hand is where the thing is while it carries it.
    highest = thing[:, 2].argmax()
    hand = np.stack([row["observation.state"] for row in dataset.hf_dataset])[highest, :3]
    assert np.linalg.norm(hand - thing[highest]) < 0.08


def test_a_missed_grasp_is_made_good_and_other_attempts_stay_as_they_were(libero, tmp_path):
    from lerobot_policy_vita_vla.demos.expert import Attempt, Disturbance, demonstrate
    from lerobot_policy_vita_vla.demos.libero import LiberoScene
    from lerobot_policy_vita_vla.demos.record import record
    from lerobot_policy_vita_vla.demos.replay import replay

    task = "libero_object_0"
    scene = LiberoScene(task, observation_size=16)

    def attempt(chance):
        noise = Disturbance(levels=(0.0,), kick_chance=0.0, miss_chance=chance, aside_chance=chance)
        return demonstrate(scene, Attempt(task, 0, 1000, "light", 16, noise, 280, 5, "", "libero", "lerobot"))

    plain, spared, missed = attempt(0.0), attempt(1e-9), attempt(1.0)
    scene.close()
    np.testing.assert_array_equal(plain.action, spared.action)
    np.testing.assert_array_equal(plain.action, plain.executed_action)
    wrong = missed.executed_action[:, 6] != missed.action[:, 6]
    assert wrong.sum() >= 8 and (missed.action[wrong, 6] == -1).all()
    empty = missed.state[:, 6] - missed.state[:, 7] < 0.01
    lifted = missed.environment_state[:, 2] > missed.environment_state[0, 2] + 0.05
    assert (empty & wrong).any() and not (empty & lifted).any(), "nothing was held while the label says open"
    assert lifted.any() and wrong.nonzero()[0].max() < lifted.nonzero()[0].min(), "then it is picked up"

    root = tmp_path / "demos"
    record(task, 1, root, observation_size=16, workers=1, progress=False, mistakes={"miss_chance": 1.0})
    assert RecordingInfo.load(root).noise["miss_chance"] == 1.0
    assert (report := replay(root)).ok, str(report)


def test_a_bowl_set_down_beside_the_plate_is_taken_up_again(libero):
    from lerobot_policy_vita_vla.demos.expert import Attempt, Disturbance, demonstrate
    from lerobot_policy_vita_vla.demos.libero import LiberoScene

    task = "libero_spatial_0"
    scene = LiberoScene(task, observation_size=16)
    noise = Disturbance(levels=(0.0,), kick_chance=0.0, miss_chance=1.0, aside_chance=1.0)
    shown = demonstrate(scene, Attempt(task, 0, 1001, "light", 16, noise, 220, 5, "", "libero", "lerobot"))
    scene.close()
    bowl, plate = shown.environment_state[:, :3], shown.environment_state[:, 3:]
    beside = np.linalg.norm(bowl[:, :2] - plate[:, :2], axis=1)
    opened = shown.state[:, 6] - shown.state[:, 7] > 0.07
    lying = opened & (np.abs(bowl - np.roll(bowl, 3, axis=0)).max(1) < 1e-3)
    first = np.flatnonzero(lying & (beside < 0.1))[0]
    assert 0.03 < beside[first] < 0.07, "where LIBERO does not call it on the plate"
    assert bowl[first:, 2].max() > bowl[first, 2] + 0.03, "it is taken up again"
    assert beside[-1] < 0.03, "and put where it belongs"
    # The label closes the fingers only around the rim, and never moves a bowl that is in its place.
    wrong = shown.executed_action[:, 6] != shown.action[:, 6]
    assert wrong.any() and not wrong[beside < 0.02].any()


def test_drawn_starts_do_not_depend_on_what_was_drawn_before(libero):
    from lerobot_policy_vita_vla.demos.libero import LiberoScene

    scene = LiberoScene("libero_spatial_7", observation_size=16)
    scene.rendering = False
    scene.reset(seed=1000)
    first = scene.privileged_state().copy()
    scene.reset(seed=1001)
    scene.reset(seed=1000)
    np.testing.assert_array_equal(scene.privileged_state(), first)
    # The bowl of "pick up the black bowl on the stove" is on the stove, wherever that was put.
    env = scene._env.env
    bowl, stove = (
        env.sim.data.body_xpos[env.obj_body_id[name]] for name in ("akita_black_bowl_1", "flat_stove_1")
    )
    assert np.abs(bowl - stove)[:2].max() < 0.2 and bowl[2] > stove[2]
    scene.close()
