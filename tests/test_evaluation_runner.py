"""Whole evaluations in the real simulator, with short episodes."""

import json
import multiprocessing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation_helpers import InterruptedPredictor, LookingPredictor, comparable, short_manifest
from lerobot_policy_vita_vla.conversion import Conversion
from lerobot_policy_vita_vla.demos.replay_metaworld import metaworld_conventions
from lerobot_policy_vita_vla.demos.scenes import scenes_of
from lerobot_policy_vita_vla.evaluation import record, worker
from lerobot_policy_vita_vla.evaluation.checks import check_recording, conversion_of
from lerobot_policy_vita_vla.evaluation.manifest import make_manifest
from lerobot_policy_vita_vla.evaluation.predictor import PolicyPredictor
from lerobot_policy_vita_vla.evaluation.results import read_episodes, read_result
from lerobot_policy_vita_vla.evaluation.runner import EXPERT, evaluate
from vita_vla_cli import simulators

MANIFEST = short_manifest()
TRIALS = 18
"""Calls by which `settle_batch` finds that this policy's rows do not depend on each other."""

SMALL = {"label": "looking", "device": "cpu", "videos_per_task": (0, 0), "progress": False}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The outcome with one worker that plays one episode at a time, one row per call."""
    folder = tmp_path_factory.mktemp("reference")
    predictor = LookingPredictor()
    result = evaluate(predictor, MANIFEST, folder, **SMALL, workers=1, envs_per_worker=1)
    return folder, result


def test_outcomes_do_not_depend_on_who_else_plays(reference, tmp_path):
    crowded = LookingPredictor()
    evaluate(crowded, MANIFEST, tmp_path, **SMALL, workers=2, envs_per_worker=2)
    episodes = read_episodes(tmp_path)
    assert comparable(episodes) == comparable(read_episodes(reference[0]))
    assert len({e["state_hash"] for e in episodes}) == 4, "different episodes end in different states"
    # 12 steps in chunks of 3, two episodes at a time: no row was predicted for nobody.
    assert sum(crowded.calls[TRIALS:]) == 4 * 4


def test_outcomes_do_not_depend_on_the_order_nor_on_what_a_simulator_played_before(reference, tmp_path):
    backwards = replace(MANIFEST, episodes=MANIFEST.episodes[::-1])
    evaluate(LookingPredictor(), backwards, tmp_path, **SMALL, workers=2, fresh_simulators=True)
    assert comparable(read_episodes(tmp_path)) == comparable(read_episodes(reference[0]))


def test_the_command_line_imports_the_simulators_that_are_needed_later():
    for suite, module in simulators.SCENES.items():
        assert scenes_of(suite).module == module
    assert worker.__name__ == simulators.WORKER


class RoundsByRows(LookingPredictor):
    """A policy whose kernels round by the number of rows, as real ones do."""

    def predict(self, observations):
        return super().predict(observations) + np.float32(1e-6) * (len(observations) < 3)


def test_where_the_number_of_rows_matters_calls_are_filled_up(tmp_path):
    sides = {"alone": {"workers": 1, "envs_per_worker": 1}, "crowded": {"workers": 2, "envs_per_worker": 2}}
    for name, settings in sides.items():
        predictor = RoundsByRows()
        manifest = short_manifest(4, steps=6)
        evaluate(predictor, manifest, tmp_path / name, **SMALL, **settings, inference_batch=4)
        # Eight episodes of two predictions: how many rows share a call depends on who is there first.
        played = predictor.calls[-16:] if name == "alone" else predictor.calls[-5:]
        assert set(played) == {4}
    alone, crowded = (comparable(read_episodes(tmp_path / name)) for name in sides)
    assert alone == crowded


def test_the_result_says_what_was_measured_and_how(reference):
    folder, result = reference
    assert result == read_result(folder)
    assert (result["complete"], result["episodes"], result["overall"]["n_episodes"]) == (True, 4, 4)
    assert set(result["tasks"]) == {"door-open-v3", "drawer-open-v3"}
    assert result["manifest_hash"] == MANIFEST.hash
    assert result["execution"]["chunk_size"] == result["execution"]["n_action_steps"] == 3
    assert result["renderer"]["name"]
    assert {"mujoco", "torch", "lerobot"} <= set(result["versions"])
    for episode in read_episodes(folder):
        assert (episode["success"], episode["steps"], episode["video"]) == (False, 12, None)
        assert episode["id"] == f"{episode['task']}/{episode['seed']}"


def test_a_finished_evaluation_returns_at_once(reference):
    folder, result = reference
    unused = LookingPredictor()
    assert evaluate(unused, MANIFEST, folder, **SMALL) == result
    assert not unused.calls


def test_results_of_something_else_are_not_continued(reference):
    folder, _ = reference
    with pytest.raises(ValueError, match=r"another manifest .*resume=False"):
        evaluate(LookingPredictor(), short_manifest(3), folder, **SMALL)
    with pytest.raises(ValueError, match="another policy"):
        evaluate(LookingPredictor(fingerprint="looking-2"), MANIFEST, folder, **SMALL)
    with pytest.raises(ValueError, match="another n_action_steps"):
        evaluate(LookingPredictor(), MANIFEST, folder, **SMALL, n_action_steps=1)


def _press_ctrl_c():
    raise KeyboardInterrupt


def test_an_interrupted_evaluation_continues(reference, tmp_path):
    settings = {**SMALL, "workers": 1, "envs_per_worker": 1}
    with pytest.raises(KeyboardInterrupt):
        evaluate(InterruptedPredictor(TRIALS + 6, _press_ctrl_c), MANIFEST, tmp_path, **settings)
    assert not multiprocessing.active_children()
    partial = read_result(tmp_path)
    assert (partial["complete"], partial["episodes"]) == (False, 1)
    with open(tmp_path / "episodes.jsonl", "a") as file:
        file.write('{"id": "door-open-v3/8", "succ')

    result = evaluate(LookingPredictor(), MANIFEST, tmp_path, **settings)
    assert (result["complete"], result["episodes"]) == (True, 4)
    assert result["seconds"] > partial["seconds"]
    assert comparable(read_episodes(tmp_path)) == comparable(read_episodes(reference[0]))


def test_the_death_of_a_worker_is_told_and_nothing_hangs(tmp_path):
    def kill_a_worker():
        multiprocessing.active_children()[0].kill()

    predictor = InterruptedPredictor(TRIALS + 2, kill_a_worker)
    with pytest.raises(RuntimeError, match=r"ended unexpectedly \(exit code -9"):
        evaluate(predictor, short_manifest(4), tmp_path, **SMALL, workers=1)
    assert not multiprocessing.active_children()


def test_what_a_worker_refuses_is_said_as_it_is_and_a_bug_arrives_with_its_traceback(tmp_path):
    manifest = make_manifest("door-open", 1, observation_size=32)
    with pytest.raises(ValueError, match=r"^observation_size must lie in 16..480") as told:
        evaluate(EXPERT, replace(manifest, observation_size=1000), tmp_path, **SMALL, workers=1)
    assert "Traceback" in str(told.value.__cause__), "for --debug"
    bug = replace(manifest, episodes=(replace(manifest.episodes[0], seed="seven"),))
    with pytest.raises(RuntimeError, match=r"(?s)failed:\nTraceback.*gymnasium.error"):
        evaluate(EXPERT, bug, tmp_path / "bug", **SMALL, workers=1)
    assert not list(tmp_path.rglob("result.json"))


def test_the_scripted_expert_succeeds_and_is_filmed(tmp_path, caplog, monkeypatch):
    import av

    monkeypatch.setattr(record, "_warned_of_software_gl", False)
    manifest = make_manifest("handle-press,coffee-button", 2, observation_size=48)
    result = evaluate(
        EXPERT, manifest, tmp_path, **{**SMALL, "label": "expert", "videos_per_task": (1, 1)}, command="x y"
    )
    assert result["overall"]["success_rate"] == 1.0
    assert (result["policy_type"], result["command"]) == ("expert", "x y")
    assert caplog.text.count("drawn in software") == result["renderer"]["software"]
    episodes = read_episodes(tmp_path)
    filmed = [e for e in episodes if e["video"]]
    assert sorted(e["task"] for e in filmed) == ["coffee-button-v3", "handle-press-v3"]
    for episode in filmed:
        with av.open(str(tmp_path / episode["video"])) as container:
            frames = sum(1 for _ in container.decode(video=0))
        assert frames == episode["steps"] // 3 + 1


def test_starting_over_deletes_what_was_there(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "old.mp4").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("keep")
    (tmp_path / "episodes.jsonl").write_text('{"id": "x/1"}\n')
    manifest = make_manifest("handle-press", 1, observation_size=32, episode_length=2)
    evaluate(EXPERT, manifest, tmp_path, **{**SMALL, "workers": 1}, resume=False)
    assert [e["id"] for e in read_episodes(tmp_path)] == ["handle-press-v3/50000"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "episodes.jsonl",
        "notes.txt",
        "result.json",
        "run.json",
    ]


def test_an_action_that_is_not_finite_names_the_episode(tmp_path):
    class Broken(LookingPredictor):
        def answer(self, row):
            return super().answer(row) * (float("nan") if row["agent_pos"][1] > 0.3 else 1.0)

    with pytest.raises(ValueError, match=r"not finite in episode door-open-v3/7"):
        evaluate(Broken(), short_manifest(), tmp_path, **SMALL, workers=1, envs_per_worker=1)


RECORDING = {
    "suite": "metaworld",
    "tasks": {"open it": "door-open-v3"},
    "quality": "light",
    "observation_size": 32,
    "control_hz": 80,
    "camera": "corner2",
    "seeds": {"door-open-v3": [100, 160]},
}


def test_pictures_and_episodes_that_differ_from_training_are_refused(caplog):
    check_recording(RECORDING, MANIFEST)
    with pytest.raises(
        ValueError, match=r"(?s)'light', here 'standard'.*--tasks door-open-v3 --quality light --size 32,"
    ):
        check_recording(RECORDING, make_manifest("door-open", 1, quality="standard", observation_size=32))
    seen = make_manifest("door-open", 5, seed=159, observation_size=32)
    with pytest.raises(ValueError, match=r"100\.\.160, the manifest repeats 2"):
        check_recording(RECORDING, seen)
    check_recording(RECORDING, seen, allow=True)
    assert "repeats 2" in caplog.text
    caplog.clear()
    check_recording({}, MANIFEST)
    assert "does not say" in caplog.text
    check_recording(RECORDING, make_manifest("reach", 1, observation_size=32))
    assert "none of these tasks was demonstrated to the policy, which knows door-open-v3" in caplog.text


def test_conventions_that_can_be_converted_are_and_others_refused():
    ours = metaworld_conventions(32)
    for change in ({"image_orientation": "as_drawn"}, {"gripper_open": 1.0, "gripper_closed": 0.0}):
        recording = {**RECORDING, "conventions": replace(ours, **change).to_dict()}
        check_recording(recording, MANIFEST)
    raw = np.random.default_rng(0).integers(0, 255, (2, 4, 4, 3))
    conversion = conversion_of({**RECORDING, "conventions": recording["conventions"]}, MANIFEST)
    np.testing.assert_allclose(conversion.actions(np.ones((1, 4)))[0], [1, 1, 1, -1])
    np.testing.assert_array_equal(conversion.pictures(raw), raw)
    for change, fix in (({"control_hz": 40}, "at 40 Hz"), ({"action_mode": "absolute"}, "absolute actions")):
        recording = {**RECORDING, "conventions": replace(ours, **change).to_dict()}
        with pytest.raises(ValueError, match=fix):
            check_recording(recording, MANIFEST)
    with pytest.raises(ValueError, match="control_hz: recorded with 20, here 80"):
        check_recording({**RECORDING, "control_hz": 20}, MANIFEST)


def test_a_policy_of_other_conventions_sees_and_moves_what_it_was_trained_on():
    class Echo(torch.nn.Module):
        """Answers with what it saw: the first pixel and the state."""

        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(
                type="echo", image_features={"observation.image": None}, n_obs_steps=1, device="cpu"
            )

        def reset(self):
            pass

        def predict_action_chunk(self, batch):
            self.seen = batch
            return torch.tensor([[[0.1, 0.2, 0.3, 1.0]]])

    policy = Echo()
    world = metaworld_conventions(32)
    there = replace(world, image_orientation="as_drawn", gripper_open=1.0, gripper_closed=-1.0)
    predictor = PolicyPredictor(
        policy, lambda x: x, lambda x: x, fingerprint="", conversion=Conversion(there, world)
    )
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    (chunk,) = predictor.predict([{"pixels": picture, "agent_pos": np.zeros(4), "task": "open"}])
    np.testing.assert_allclose(chunk[0], [0.1, 0.2, 0.3, -1.0], atol=1e-6)
    seen = (policy.seen["observation.image"][0].permute(1, 2, 0).numpy() * 255).round()
    np.testing.assert_array_equal(seen, picture[::-1, ::-1])


def test_the_refusal_comes_from_the_checkpoint_itself(tmp_path):
    (tmp_path / "checkpoints" / "last" / "pretrained_model").mkdir(parents=True)
    (tmp_path / "checkpoints" / "last" / "pretrained_model" / "config.json").write_text(
        json.dumps({"type": "seer", "recording": {**RECORDING, "quality": "standard"}})
    )
    with pytest.raises(ValueError, match="recorded with 'standard', here 'light'"):
        evaluate(tmp_path, MANIFEST, tmp_path / "eval", **SMALL)
    with pytest.raises(ValueError, match="neither a LeRobot checkpoint"):
        evaluate(tmp_path / "checkpoints" / "nothing" / "here", MANIFEST, tmp_path / "eval", **SMALL)
