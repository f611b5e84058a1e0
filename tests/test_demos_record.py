import json
import subprocess
import sys

import numpy as np
import pytest
from lerobot.datasets import LeRobotDataset

from demos_helpers import ARGUMENTS, TASKS, tiny_recording
from lerobot_policy_vita_vla.conventions import RecordingInfo, statistics_hash
from lerobot_policy_vita_vla.demos.expert import Attempt, Disturbance, demonstrate
from lerobot_policy_vita_vla.demos.metaworld import GRIPPER_CLOSED, GRIPPER_OPEN, SceneEnv
from lerobot_policy_vita_vla.demos.plan import TaskPlan, recording_settings
from lerobot_policy_vita_vla.demos.record import _explain, _open_scratch, record
from lerobot_policy_vita_vla.demos.suite import task_descriptions


def numbers(root):
    dataset = LeRobotDataset("local/demos", root=root)
    table = dataset.hf_dataset.with_format("numpy")
    return {name: np.asarray(table[name]) for name in ("action", "observation.state", "episode_index")}


def test_two_workers_record_what_was_asked_for():
    root, info = tiny_recording()
    dataset = LeRobotDataset("local/demos", root=root)
    assert dataset.num_episodes == 4 and dataset.fps == 80
    assert info.kept == {"reach-v3": 2, "pick-place-v3": 2}
    assert all(info.tried[task] >= info.kept[task] for task in info.kept)
    assert info.seeds["reach-v3"] == [100, 100 + info.tried["reach-v3"] - 1]
    assert info.statistics_hash == statistics_hash(dataset.meta.stats)
    assert RecordingInfo.load(root) == info
    frame = dataset[0]
    assert frame["observation.image"].shape == (3, 32, 32)
    assert frame["task"] == task_descriptions()["reach-v3"]
    assert dataset[dataset.num_frames - 1]["task"] == task_descriptions()["pick-place-v3"]
    assert np.isin(numbers(root)["action"][:, 3], np.float32([GRIPPER_OPEN, GRIPPER_CLOSED])).all()
    # Nothing is left of the way there.
    assert not root.with_name("demos.recording").exists() and not (root / "images").exists()


def test_the_stored_picture_is_the_one_the_environment_shows():
    root, _ = tiny_recording()
    env = SceneEnv("reach", observation_size=32)
    shown, _ = env.reset(seed=100)
    env.close()
    stored = LeRobotDataset("local/demos", root=root)[0]
    picture = (stored["observation.image"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(picture, shown["pixels"])
    np.testing.assert_allclose(stored["observation.state"], shown["agent_pos"], atol=1e-6)


def test_a_stopped_recording_goes_on_and_ends_as_if_it_had_not_been_stopped(tmp_path):
    def stop(attempts, written):
        assert written == attempts - 1  # a lone worker writes an episode before it starts the one after next
        if attempts == 2:
            raise KeyboardInterrupt

    root, scratch = tmp_path / "demos", tmp_path / "demos.recording"
    with pytest.raises(KeyboardInterrupt):
        record(TASKS, 2, root, workers=1, on_attempt=stop, **ARGUMENTS)
    assert not root.exists()
    finished = len(list((scratch / "attempts").rglob("*.*")))
    assert 2 <= finished < sum(tiny_recording()[1].tried.values())
    with pytest.raises(ValueError, match="observation_size: there 32, asked for 48"):
        record(TASKS, 2, root, workers=1, **{**ARGUMENTS, "observation_size": 48})

    calls = []
    info = record(TASKS, 2, root, workers=1, on_attempt=lambda *c: calls.append(c), **ARGUMENTS)
    # What was there did not run again, and one process made what two made before.
    assert len(calls) == sum(info.tried.values()) - finished
    assert info == tiny_recording()[1]
    here, there = numbers(root), numbers(tiny_recording()[0])
    for name in here:
        np.testing.assert_array_equal(here[name], there[name])


def test_a_finished_recording_is_recognised_and_another_refused(tmp_path):
    root, info = tiny_recording()
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert record(TASKS, 2, root, workers=1, **ARGUMENTS) == info
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    with pytest.raises(ValueError, match="episodes_per_task: there 2, asked for 3"):
        record(TASKS, 3, root, workers=1, **ARGUMENTS)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with pytest.raises(ValueError, match="not a recording of this package"):
        record(TASKS, 2, foreign, workers=1, **ARGUMENTS)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"observation_size": 5}, "observation_size must lie in 16..480 pixels, got 5: change --size"),
        ({"observation_size": 0}, "16..480 pixels, got 0"),
        ({"seed": -1}, "seed must lie in .* got -1: change --seed"),
        ({"workers": 0}, "workers must be at least 1, got 0: change --workers"),
    ],
)
def test_numbers_that_make_no_recording_are_refused_before_anything_is_written(tmp_path, wrong, said):
    with pytest.raises(ValueError, match=said):
        record("reach", 1, tmp_path / "demos", **{**ARGUMENTS, "workers": 1, **wrong})
    assert not list(tmp_path.iterdir())


def test_settings_of_a_recording_that_never_began_bind_nobody(tmp_path):
    scratch, asked = tmp_path / "demos.recording", recording_settings(["reach-v3"], 1, "light", 32, 0, None)
    _open_scratch(scratch, {**asked, "observation_size": 5})
    (scratch / "attempts" / "reach-v3").mkdir(parents=True)
    (scratch / "attempts" / "reach-v3" / "00000.part").touch()
    _open_scratch(scratch, asked)
    (scratch / "attempts" / "reach-v3" / "00000.failed").touch()
    with pytest.raises(ValueError, match="observation_size: there 32, asked for 48"):
        _open_scratch(scratch, {**asked, "observation_size": 48})


def test_what_workers_finished_after_the_interruption_is_counted(tmp_path, caplog):
    settings = recording_settings(["reach-v3"], 3, "light", 16, 0, None)
    plan = TaskPlan("reach-v3", settings, str(tmp_path / "attempts"))
    for name in ("00000.npz", "00001.failed", "00002.part", "00003.npz"):
        plan.attempt(0).path.with_name(name).parent.mkdir(parents=True, exist_ok=True)
        plan.attempt(0).path.with_name(name).touch()
    _explain(tmp_path, [plan], "interrupted")
    assert f"interrupted. 2 of 3 episodes are in {tmp_path};" in caplog.text


def test_a_full_disk_is_named_and_costs_nothing_that_was_finished(tmp_path, monkeypatch):
    from lerobot_policy_vita_vla.demos import expert

    savez, calls = np.savez_compressed, []

    def full(file, **arrays):
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        savez(file, **arrays)

    monkeypatch.setattr(expert.np, "savez_compressed", full)
    root = tmp_path / "demos"
    with pytest.raises(OSError, match="disk that holds .* is full"):
        record("reach", 2, root, workers=1, **ARGUMENTS)
    left = sorted(p.name for p in (tmp_path / "demos.recording/attempts").rglob("*.*"))
    assert left == ["00000.npz"]
    assert record("reach", 2, root, workers=1, **ARGUMENTS).kept == {"reach-v3": 2}


def attempt(number, **changes):
    fields = {
        "task": "reach-v3",
        "number": number,
        "seed": 3,
        "quality": "light",
        "observation_size": 16,
        "disturbance": Disturbance(),
        "max_steps": 200,
        "tail_steps": 5,
        "folder": "",
    }
    return Attempt(**{**fields, **changes})


@pytest.mark.parametrize(("left", "outcome"), [("00004.npz", True), ("00004.failed", False)])
def test_an_attempt_that_finished_before_the_recording_stopped_is_not_repeated(
    tmp_path, monkeypatch, left, outcome
):
    """Also one behind another that had not finished: several workers do not finish in order."""
    from lerobot_policy_vita_vla.demos import expert

    def play(env, attempt):
        raise AssertionError("played again")

    monkeypatch.setattr(expert, "demonstrate", play)
    (tmp_path / "reach-v3").mkdir()
    (tmp_path / "reach-v3" / left).touch()
    assert expert.run_attempt(attempt(4, folder=str(tmp_path))) is outcome
    with pytest.raises(AssertionError, match="played again"):
        expert.run_attempt(attempt(3, folder=str(tmp_path)))
    expert.forget_scenes()


def test_labels_are_the_experts_even_where_the_arm_was_disturbed():
    env = SceneEnv("reach", observation_size=16)
    clean, noisy = demonstrate(env, attempt(0)), demonstrate(env, attempt(2))
    again = demonstrate(env, attempt(2))
    np.testing.assert_array_equal(clean.action, clean.executed_action)
    assert np.abs(noisy.action - noisy.executed_action)[:, :3].max() > 0.3
    np.testing.assert_array_equal(noisy.action[:, 3], noisy.executed_action[:, 3])
    np.testing.assert_array_equal(noisy.executed_action, again.executed_action)
    # A label is a function of the privileged state alone: the expert asked again says the same.
    env.reset(seed=3)
    for label, executed in zip(noisy.action[:20], noisy.executed_action[:20], strict=True):
        np.testing.assert_array_equal(env.expert_action(), label)
        env.step(executed)
    env.close()


def test_an_episode_ends_five_frames_after_success_and_failure_gives_none():
    env = SceneEnv("reach", observation_size=16)
    frames = len(demonstrate(env, attempt(0)).action)
    env.reset(seed=3)
    successes = [env.step(env.expert_action())[2] for _ in range(frames)]
    assert successes.index(True) == frames - 1 - 5
    assert demonstrate(env, attempt(0, max_steps=successes.index(True))) is None
    env.close()


def test_the_attempts_tried_do_not_depend_on_the_order_in_which_they_finish(tmp_path):
    fails = {1, 2, 5}
    settings = recording_settings(["reach-v3"], 4, "light", 16, 0, None)
    for newest_first in (False, True):
        plan, running = TaskPlan("reach-v3", settings, str(tmp_path)), []
        while True:
            while (new := plan.next_attempt()) is not None:
                running.append(new.number)
            if not running:
                break
            number = running.pop(-1 if newest_first else 0)
            plan.finished(number, number not in fails)
        assert sorted(plan.outcomes) == list(range(7)) and plan.kept == 4


def test_an_expert_that_hardly_succeeds_stops_the_recording(tmp_path):
    settings = recording_settings(["reach-v3"], 100, "light", 16, 0, None)
    plan = TaskPlan("reach-v3", settings, str(tmp_path))
    for _ in range(20):
        plan.finished(plan.next_attempt().number, False)
    with pytest.raises(ValueError, match="0 of 20 attempts"):
        plan.next_attempt()


def test_settings_are_plain_json():
    settings = recording_settings(["reach-v3"], 4, "light", 16, 0, None)
    assert json.loads(json.dumps(settings)) == settings


def test_recording_in_one_process_ends_without_a_word_of_simulator_or_video_decoder(tmp_path):
    """Simulators that live to the interpreter's end outlive their display; FFmpeg may be missing."""
    script = (
        "from lerobot_policy_vita_vla.demos.record import record\n"
        f"record('reach', 1, {str(tmp_path / 'demos')!r}, observation_size=16, workers=1, progress=False)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("MUJOCO_GL=")]
    assert said == []
