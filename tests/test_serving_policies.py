"""Every kind of policy answers through the server as it does in process."""

import numpy as np
import pytest
import torch

import student_helpers
import teacher_helpers
from lerobot_policy_vita_vla.serving.limits import demonstrated_limits
from lerobot_policy_vita_vla.serving.main import running
from lerobot_policy_vita_vla.serving.responder import Responder
from lerobot_policy_vita_vla.serving.served import BadObservationError, ServedPolicy
from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy
from serving_helpers import in_process, look, save_policy
from tiny_vlms import save
from vita_vla_client import PolicyClient, ServerError

ACTION_STATS = {
    "min": torch.full((4,), -1.0),
    "max": torch.ones(4),
    "mean": torch.zeros(4),
    "std": torch.ones(4),
}


def seer(folder, monkeypatch, **settings):
    return save_policy(teacher_helpers.make_policy(**settings), folder / "seer", teacher_helpers.statistics())


def student(folder, monkeypatch, **settings):
    student_helpers.install_loader(monkeypatch)
    teacher, vlm = student_helpers.save_teacher(folder / "teacher"), save("smolvlm", folder / "vlm")
    torch.manual_seed(0)
    policy = VitaVLAPolicy(
        student_helpers.make_config(teacher, vlm, **settings), dataset_stats=student_helpers.STATS
    )
    stats = {"action": {key: np.asarray(value) for key, value in ACTION_STATS.items()}}
    return save_policy(policy, folder / "student", stats)


def act(folder, monkeypatch):
    from test_evaluation_policies import _act, _act_statistics

    return save_policy(_act(), folder / "act", _act_statistics() | {"action": ACTION_STATS})


POLICIES = {
    "seer": seer,
    "seer with a history": lambda *a: seer(*a, n_obs_steps=3),
    "student": student,
    "student with a history": lambda *a: student(*a, n_obs_steps=3),
    "act": act,
}


@pytest.mark.parametrize("name", POLICIES)
def test_the_server_answers_as_the_policy_itself(name, tmp_path, monkeypatch):
    served = ServedPolicy.load(POLICIES[name](tmp_path, monkeypatch), "cpu")
    seen = [look(served, seed) for seed in range(5)]
    wanted = in_process(served, seen)
    assert not np.allclose(wanted[0], wanted[1], atol=1e-5), "the policy must look at what it is shown"
    responder = Responder(served)
    responder.warm_up()
    with running(responder) as server, PolicyClient(server.url) as robot, PolicyClient(server.url) as other:
        for index, observation in enumerate(seen):
            chunk = robot.infer(observation)["actions"]
            np.testing.assert_allclose(chunk, wanted[index], atol=1e-5)
            # Another robot in between leaves nothing behind.
            other.infer(look(served, 100 + index))
        robot.reset()
        np.testing.assert_allclose(robot.infer(seen[0])["actions"], wanted[0], atol=1e-5)
        assert server.metadata["chunk_size"] == len(wanted[0]) == robot.metadata["chunk_size"]


@pytest.mark.parametrize("name", ["seer with a history", "student with a history"])
def test_steps_that_are_only_remembered_belong_to_the_history(name, tmp_path, monkeypatch):
    served = ServedPolicy.load(POLICIES[name](tmp_path, monkeypatch), "cpu")
    seen = [look(served, seed) for seed in range(4)]
    wanted = in_process(served, seen)
    with running(Responder(served)) as server, PolicyClient(server.url) as robot:
        for observation in seen[:-1]:
            assert robot.infer(observation, act=False)["remembered"] is True
        np.testing.assert_allclose(robot.infer(seen[-1])["actions"], wanted[-1], atol=1e-5)
        robot.reset()
        assert not np.allclose(robot.infer(seen[-1])["actions"], wanted[-1], atol=1e-5)


def test_pictures_may_come_as_jpeg_and_the_instruction_as_prompt(tmp_path, monkeypatch):
    served = ServedPolicy.load(seer(tmp_path, monkeypatch), "cpu")
    # Smooth, as cameras see: noise is what JPEG keeps worst.
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(100)), -1).copy()
    seen = look(served) | {"observation.image": picture}
    with (
        running(Responder(served)) as server,
        PolicyClient(server.url) as plain,
        PolicyClient(server.url, jpeg_quality=95) as small,
    ):
        wanted = plain.infer(seen)["actions"]
        found = small.infer(seen)["actions"]
        assert 0 < np.abs(found - wanted).max() < 0.05
        prompt = {key: value for key, value in seen.items() if key != "task"} | {"prompt": seen["task"]}
        np.testing.assert_array_equal(plain.infer(prompt)["actions"], wanted)
        other = plain.infer(seen | {"task": "close the drawer"})["actions"]
        assert not np.allclose(other, wanted, atol=1e-6)


BAD = {
    "no picture": (lambda o: o.pop("observation.image"), "lacks observation.image; the policy reads"),
    "a misspelt name": (
        lambda o: o.update({"observation.images": o.pop("observation.image")}),
        "no 'observation.images'; did you mean 'observation.image'",
    ),
    "no instruction": (lambda o: o.pop("task"), '"task" is the instruction.*got NoneType'),
    "a number as instruction": (lambda o: o.update(task=3), '"task" is the instruction.*got int'),
    "a book as instruction": (lambda o: o.update(task="x" * 2001), "got 2001 characters"),
    "colours first": (
        lambda o: o.update({"observation.image": np.zeros((3, 32, 32), np.uint8)}),
        r"got \(3, 32, 32\): colours come last",
    ),
    "another size": (
        lambda o: o.update({"observation.image": np.zeros((30, 30, 3), np.uint8)}),
        r"\(32, 32, 3\).*got \(30, 30, 3\): set the camera",
    ),
    "a picture from 0 to 1": (
        lambda o: o.update({"observation.image": np.zeros((32, 32, 3), np.float32)}),
        "uint8 from 0 to 255, got float32",
    ),
    "a picture as text": (lambda o: o.update({"observation.image": "x"}), "is an array .*got str"),
    "a longer state": (lambda o: o.update({"observation.state": np.zeros(5)}), r"is \(4,\).*got \(5,\)"),
    "a state of NaN": (
        lambda o: o.update({"observation.state": np.full(4, np.nan)}),
        "holds NaN or infinity",
    ),
    "a state of words": (lambda o: o.update({"observation.state": ["a"] * 4}), "is a list of numbers"),
    "a deadline of zero": (lambda o: o.update(deadline_ms=0), "deadline_ms is a positive number"),
    "act as text": (lambda o: o.update(act="no"), "act is true or false"),
}


def test_a_wrong_observation_is_explained_and_the_robot_can_go_on(tmp_path, monkeypatch):
    served = ServedPolicy.load(seer(tmp_path, monkeypatch), "cpu")
    with running(Responder(served)) as server, PolicyClient(server.url) as robot:
        for name, (spoil, words) in BAD.items():
            observation = look(served)
            spoil(observation)
            with pytest.raises(ServerError, match=words):
                robot._ask(observation)
            assert robot.infer(look(served))["source"] == "policy", name


def test_a_jpeg_that_claims_to_be_huge_is_not_unpacked(tmp_path, monkeypatch):
    import io

    from PIL import Image

    from vita_vla_client.wire import Jpeg

    served = ServedPolicy.load(seer(tmp_path, monkeypatch), "cpu")
    stream = io.BytesIO()
    Image.new("RGB", (32, 31)).save(stream, "JPEG")
    for data, words in (
        (stream.getvalue(), "got a JPEG of 31x32"),
        (b"\xff\xd8no", "not a JPEG"),
        (b"GIF89a", "not a JPEG"),
    ):
        with pytest.raises(BadObservationError, match=words):
            served.check(look(served) | {"observation.image": Jpeg(data)})


def test_limits_come_from_the_checkpoint(tmp_path, monkeypatch):
    limits = demonstrated_limits(student(tmp_path, monkeypatch))
    np.testing.assert_array_equal(limits.low_A, -np.ones(4))
    np.testing.assert_array_equal(limits.high_A, np.ones(4))


def test_a_policy_that_keeps_one_robots_history_inside_is_not_served(tmp_path, monkeypatch):
    served = ServedPolicy.load(act(tmp_path, monkeypatch), "cpu")
    served.config.n_obs_steps = 2
    with pytest.raises(ValueError, match="'act' with n_obs_steps=2.*lerobot-rollout"):
        ServedPolicy(served.policy, served.preprocessor, served.postprocessor)
