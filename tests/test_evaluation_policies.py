"""Saved LeRobot policies, in the simulator and against their teacher."""

import json
import shutil

import numpy as np
import pytest
import torch

from evaluation_helpers import comparable
from lerobot_policy_vita_vla.contracts import ActionSpec
from lerobot_policy_vita_vla.evaluation.agreement import Answers, agreement, compare_answers
from lerobot_policy_vita_vla.evaluation.manifest import make_manifest
from lerobot_policy_vita_vla.evaluation.predictor import (
    PICTURE,
    STATE,
    PolicyPredictor,
    load_predictor,
    recording_defaults,
    state_fingerprint,
)
from lerobot_policy_vita_vla.evaluation.results import read_episodes
from lerobot_policy_vita_vla.evaluation.runner import evaluate
from teacher_helpers import make_policy, statistics

MANIFEST = make_manifest("door-open,drawer-open", 1, observation_size=32, episode_length=6)
SMALL = {"device": "cpu", "videos_per_task": (0, 0), "progress": False, "workers": 1}


def _save(policy, folder, stats=None):
    from lerobot.policies.factory import make_pre_post_processors

    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(policy.config, dataset_stats=stats or statistics()):
        pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seer(tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher")
    policy = make_policy()
    policy.config.recording = {"quality": "light", "observation_size": 32}
    _save(policy, run / "checkpoints" / "last" / "pretrained_model")
    return run, policy


def _act():
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    torch.manual_seed(0)
    config = ACTConfig(
        device="cpu",
        chunk_size=5,
        n_action_steps=2,
        dim_model=16,
        n_heads=2,
        dim_feedforward=16,
        n_encoder_layers=1,
        use_vae=False,
        pretrained_backbone_weights=None,
        input_features={
            "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
            "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
    )
    return ACTPolicy(config).eval()


def _act_statistics():
    shape = {"observation.images.top": (3, 1, 1), "observation.state": (4,), "action": (4,)}
    return {key: {"mean": torch.full(s, 0.5), "std": torch.full(s, 2.0)} for key, s in shape.items()}


def _rows(n, history=None, seed=0):
    generator = np.random.default_rng(seed)
    lead = () if history is None else (history,)
    return [
        {
            PICTURE: generator.integers(0, 256, (*lead, 32, 32, 3), dtype=np.uint8),
            STATE: generator.uniform(-0.2, 0.6, (*lead, 4)),
            "task": ["open the door", "close the drawer"][i % 2],
        }
        for i in range(n)
    ]


def test_a_training_run_is_played_with_its_last_checkpoint(seer, tmp_path):
    run, policy = seer
    assert recording_defaults(run) == {"quality": "light", "observation_size": 32}
    predictor = load_predictor(run, MANIFEST, device="cpu")
    in_memory = PolicyPredictor(policy, lambda b: b, lambda a: a, fingerprint="x")
    np.testing.assert_array_equal(predictor.predict(_rows(3)), in_memory.predict(_rows(3)))
    assert predictor.fingerprint == load_predictor(run, MANIFEST, device="cpu").fingerprint
    result = evaluate(in_memory, MANIFEST, tmp_path / "in_memory", label="a", **SMALL)
    assert result["execution"]["n_action_steps"] == 3
    assert result["policy_type"] == "seer"


def test_a_checkpoint_that_was_not_copied_whole_is_named(seer, tmp_path):
    whole = seer[0] / "checkpoints" / "last" / "pretrained_model"
    copied = shutil.copytree(whole, tmp_path / "copied")
    (copied / "policy_preprocessor.json").unlink()
    with pytest.raises(ValueError, match="lacks policy_preprocessor.json.*whole pretrained_model folder"):
        load_predictor(copied, MANIFEST, device="cpu")
    (copied / "config.json").write_text("{")
    with pytest.raises(ValueError, match=f"{copied / 'config.json'} is damaged"):
        evaluate(copied, MANIFEST, tmp_path / "out", label="x", **SMALL)


def test_a_device_that_is_not_there_is_refused_with_those_that_are(seer, tmp_path):
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"--device {device}: .*it has cpu"):
            evaluate(seer[0], MANIFEST, tmp_path, label="x", **{**SMALL, "device": device})


def test_every_way_of_execution_can_be_asked_for(seer):
    run, _ = seer

    def settings(**given):
        predictor = load_predictor(run, MANIFEST, device="cpu", **given)
        return predictor.n_action_steps, predictor.ensemble_coeff

    assert settings() == (3, None)
    assert settings(n_action_steps=2) == (2, None)
    assert settings(temporal_ensemble_coeff=0.01) == (1, 0.01)


def test_evaluation_starts_at_the_action_that_the_policy_starts_at():
    policy = make_policy()
    policy.config.execute_from, policy.config.n_action_steps = 1, 1

    def made(**given):
        return PolicyPredictor(policy, lambda b: b, lambda a: a, fingerprint="x", **given)

    assert (made().execute_from, made().n_action_steps) == (1, 1)
    # Who says how chunks are executed says all of it.
    assert made(n_action_steps=2).execute_from == 0 == made(temporal_ensemble_coeff=0.01).execute_from


def test_a_history_reaches_the_policy_as_the_episode_saw_it():
    policy = make_policy(n_obs_steps=3)
    predictor = PolicyPredictor(policy, lambda b: b, lambda a: a, fingerprint="x")
    rows = _rows(2, history=3)
    chunk = predictor.predict(rows)
    policy.reset()
    for step in range(3):
        flat = [{**row, PICTURE: row[PICTURE][step], STATE: row[STATE][step]} for row in rows]
        images = torch.from_numpy(np.stack([row[PICTURE] for row in flat])).permute(0, 3, 1, 2).float() / 255
        batch = {
            "observation.image": images,
            "observation.state": torch.from_numpy(np.stack([row[STATE] for row in flat])).float(),
            "task": [row["task"] for row in rows],
        }
        one_by_one = policy.predict_action_chunk(batch)
    np.testing.assert_allclose(chunk, one_by_one.numpy(), atol=1e-6)


def test_a_policy_that_looks_away_is_not_drawn_for():
    assert PolicyPredictor(make_policy(), None, None, fingerprint="x").uses_images
    assert not PolicyPredictor(make_policy(use_images=False), None, None, fingerprint="x").uses_images


def test_lerobots_own_policy_plays_with_its_processors(tmp_path):
    folder = _save(_act(), tmp_path / "act", _act_statistics())
    predictor = load_predictor(folder, MANIFEST, device="cpu")
    rows = _rows(2)
    images = torch.from_numpy(np.stack([row[PICTURE] for row in rows])).permute(0, 3, 1, 2).float() / 255
    states = torch.from_numpy(np.stack([row[STATE] for row in rows])).float()
    # By hand: standardised inputs under its own camera's name, actions back to environment units.
    batch = {"observation.images.top": (images - 0.5) / 2, "observation.state": (states - 0.5) / 2}
    expected = predictor.policy.predict_action_chunk(batch) * 2 + 0.5
    np.testing.assert_allclose(predictor.predict(rows), expected.detach().numpy(), atol=1e-5)

    results = [
        evaluate(folder, MANIFEST, tmp_path / name, label=name, **{**SMALL, **settings})
        for name, settings in {"one": {"workers": 1, "envs_per_worker": 1}, "two": {"workers": 2}}.items()
    ]
    assert (results[0]["execution"]["chunk_size"], results[0]["execution"]["n_action_steps"]) == (5, 2)
    one, two = (comparable(read_episodes(tmp_path / name)) for name in ("one", "two"))
    assert one == two


def test_fingerprints_tell_weights_apart():
    policy = make_policy()
    before = state_fingerprint(policy)
    assert state_fingerprint(make_policy()) == before
    with torch.no_grad():
        next(policy.parameters()).view(-1)[0] += 1e-6
    assert state_fingerprint(policy) != before


SPEC = ActionSpec(("x", "gripper"), (1.0, 0.0), (2.0, 1.0), (1,), "binary")


def _answers(student, teacher=None, demo=None, is_pad=None, features=(None, None)):
    teacher = np.array([[[-1.0, -1.0]], [[3.0, 1.0]], [[1.0, 1.0]]]) if teacher is None else teacher
    return Answers(
        teacher=teacher,
        student=np.asarray(student, dtype=float),
        demonstrated=teacher if demo is None else demo,
        is_pad=np.zeros(teacher.shape[:2], bool) if is_pad is None else is_pad,
        teacher_features=features[0],
        student_features=features[1],
    )


def test_agreement_is_measured_in_scaled_units():
    # In units of scale 2 the teacher says -1, 1, 0 and the student 0, 1, 0: off by 1 in one of three.
    report = compare_answers(_answers([[[1.0, -1.0]], [[3.0, -1.0]], [[1.0, 1.0]]]), SPEC)
    assert report["mae"][0][0] == pytest.approx(1 / 3)
    assert report["r2"] == [[pytest.approx(1 - 1 / 2), None]]
    # Deviations (-1, 1, 0) and (-1/3, 2/3, -1/3): 1 / sqrt(2 * 2/3).
    assert report["correlation"] == [[pytest.approx(np.sqrt(3) / 2), None]]
    assert report["gripper_agreement"] == [pytest.approx(2 / 3)]
    assert report["overall"]["gripper_agreement"] == pytest.approx(2 / 3)
    json.dumps(report, allow_nan=False)


def test_padding_does_not_count_against_the_demonstration():
    teacher = np.zeros((2, 2, 2))
    demo = np.stack([np.zeros((2, 2)), np.full((2, 2), 100.0)])
    is_pad = np.array([[False, False], [True, True]])
    report = compare_answers(_answers(teacher + 2.0, teacher, demo, is_pad), SPEC)
    assert report["teacher_mae"] == [0.0, 0.0]
    assert report["student_mae"] == [1.0, 2.0]
    assert report["overall"]["r2"] is None, "a teacher that never moves cannot be followed"


def test_features_are_compared_where_both_have_them():
    generator = np.random.default_rng(0)
    teacher = generator.normal(size=(200, 2, 8))
    noisy = teacher + generator.normal(size=teacher.shape) * 0.5
    chunk = np.zeros((200, 2, 2))
    report = compare_answers(_answers(chunk, chunk, features=(teacher, noisy)), SPEC)
    assert report["features"]["overall"] == pytest.approx(0.75, abs=0.03)
    assert compare_answers(_answers(chunk, chunk, features=(teacher, None)), SPEC)["features"] is None


def test_a_teacher_agrees_with_itself_on_a_recording(seer, monkeypatch):
    from demos_helpers import tiny_recording

    # An untrained teacher says nearly the same to everything, which would count as constant.
    monkeypatch.setattr("lerobot_policy_vita_vla.evaluation.agreement.SMALLEST_SPREAD", 0.0)

    run, _ = seer
    root, _ = tiny_recording()
    report = agreement(run, run, root, samples=20, batch_size=8)
    assert report["n"] == 20
    # Two copies of the same weights: some processors round differently where memory is aligned differently.
    wanted = {"mae": 0, "r2": 1, "correlation": 1, "gripper_agreement": 1}
    assert report["overall"] == pytest.approx(wanted, abs=1e-6)
    assert report["features"]["overall"] == pytest.approx(1)
    assert report["teacher_mae"] == pytest.approx(report["student_mae"], abs=1e-6)
    assert np.shape(report["mae"]) == (3, 4)


def test_a_constant_answer_with_noise_has_no_share_of_variance():
    from lerobot_policy_vita_vla.evaluation.agreement import _r2

    rng = np.random.default_rng(0)
    moving, still = rng.normal(size=(50, 1)), 0.99 + 1e-3 * rng.normal(size=(50, 1))
    found = _r2(np.hstack([moving, still]), np.hstack([moving, np.ones((50, 1))]))
    assert found[0] == 1 and np.isnan(found[1])


def test_a_refused_evaluation_leaves_nothing_in_the_way_of_the_next(tmp_path, capsys):
    from vita_vla_cli import cli

    policy = make_policy()
    policy.config.recording = {"quality": "light", "observation_size": 32, "suite": "metaworld"}
    policy.config.recording |= {"tasks": {"open": "door-open-v3"}, "control_hz": 80, "camera": "corner2"}
    _save(policy, tmp_path / "teacher" / "checkpoints" / "last" / "pretrained_model")
    run = ["eval", str(tmp_path / "teacher"), "--workers", "1", "--videos", "0", "--episode-length", "6"]
    short = [*run, "--tasks", "door-open", "--episodes", "1"]
    assert cli.main([*short, "--size", "48"]) == 2
    assert "--quality light --size 32" in capsys.readouterr().err
    assert cli.main(short) == 0
    # What was played under a list of episodes keeps it.
    assert cli.main([*run, "--tasks", "door-open", "--episodes", "2"]) == 2
    assert "already holds another manifest" in capsys.readouterr().err


WRONG = {
    "a path that is not there": (["/nowhere/finetune", "--tasks", "reach"], "/nowhere/finetune"),
    "no folder for results": (["expert", "--tasks", "reach"], "where do the results go? add --run"),
    "no workers": (["expert", "--run", "r", "--workers", "0"], "--workers must be at least 1, got 0"),
    "no steps": (
        ["expert", "--run", "r", "--episode-length", "0"],
        "--episode-length must be at least 1, got 0",
    ),
    "no pixels": (["expert", "--run", "r", "--size", "0"], "--size must be at least 1, got 0"),
    "fewer than no videos": (
        ["expert", "--run", "r", "--videos", "-1"],
        "--videos must be at least 0, got -1",
    ),
    "no dataset": (
        ["expert", "--run", "r", "--agreement", "t", "--demos", "nowhere"],
        "--demos nowhere: no LeRobot",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_of_the_verb_is_explained(name, capsys, tmp_path, monkeypatch):
    from vita_vla_cli import cli

    monkeypatch.chdir(tmp_path)
    arguments, words = WRONG[name]
    assert cli.main(["eval", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_policies_refuse_pictures_of_another_size_than_the_demonstrations():
    seen = {
        "observation.image": torch.zeros(1, 3, 48, 64),
        "observation.state": torch.zeros(1, 4),
        "task": ["x"],
    }
    policy = make_policy()
    assert policy.predict_action_chunk(seen).shape == (1, 3, 4), "nothing is known of its demonstrations"
    policy.config.recording = {"observation_size": 32}
    with pytest.raises(ValueError, match="is 64x48 pixels .*trained on 32x32.*--env.observation_size=32"):
        policy.predict_action_chunk(seen)
    with pytest.raises(ValueError, match="is 64x48 pixels"):
        policy.select_action(seen)
    policy.config.allow_other_size = True
    assert policy.predict_action_chunk(seen).shape == (1, 3, 4)
    policy.config.allow_other_size = False
    PolicyPredictor(policy, lambda b: b, lambda a: a, fingerprint="x")
    assert policy.predict_action_chunk(seen).shape == (1, 3, 4), "an evaluation compares by itself"


def test_a_protocol_executes_no_more_actions_than_the_policy_predicts(seer, capsys):
    from types import SimpleNamespace

    from vita_vla_cli.verbs.evaluation import _execution

    run, policy = seer
    assert policy.config.chunk_size == 3
    wanted = _execution(SimpleNamespace(protocol="openvla"), str(run))
    assert wanted == {"n_action_steps": 3, "temporal_ensemble_coeff": None}
    assert "executes 8 actions per prediction" in capsys.readouterr().out
    assert _execution(SimpleNamespace(protocol="seer"), str(run))["n_action_steps"] == 1
    assert _execution(SimpleNamespace(protocol=None), str(run)) == {}
