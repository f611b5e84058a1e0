"""Evaluating on LIBERO, as far as that needs no simulator: lists of episodes, protocols, two cameras."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lerobot_policy_vita_vla.conventions import RecordingInfo
from lerobot_policy_vita_vla.demos.libero_suite import find_protocol
from lerobot_policy_vita_vla.demos.scenes import LIBERO
from lerobot_policy_vita_vla.evaluation.checks import check_recording, conversion_of
from lerobot_policy_vita_vla.evaluation.manifest import load_manifest, make_manifest
from lerobot_policy_vita_vla.evaluation.predictor import PolicyPredictor

pytestmark = pytest.mark.usefixtures("libero_package")


def recording(protocol="lerobot", size=256, **changes) -> dict:
    info = RecordingInfo(
        suite="libero",
        tasks={"pick up the milk and place it in the basket": "libero_object_3"},
        quality="standard",
        observation_size=size,
        control_hz=20,
        camera="agentview,robot0_eye_in_hand",
        seeds={"libero_object_3": [1000, 1029]},
        settings={"protocol": protocol},
        conventions=find_protocol(protocol).conventions(size).to_dict(),
    )
    return {**info.to_dict(), **changes}


def test_a_suite_becomes_episodes_on_the_official_initial_states(tmp_path):
    manifest = make_manifest("libero_object", 2, quality="standard")
    assert [episode.id for episode in manifest.episodes][:3] == [
        "libero_object_0/0",
        "libero_object_0/1",
        "libero_object_1/0",
    ]
    assert len(manifest.episodes) == 20
    assert (manifest.suite, manifest.protocol, manifest.observation_size, manifest.episode_length) == (
        "libero",
        "lerobot",
        256,
        280,
    )
    there = load_manifest(manifest.save(tmp_path / "manifest.json"))
    assert there == manifest and there.hash == manifest.hash
    other = make_manifest("libero_object", 2, quality="standard", protocol="openvla")
    assert other.hash != manifest.hash
    with pytest.raises(ValueError, match="protocol openvla"):
        other.save(tmp_path / "manifest.json")


def test_older_manifests_keep_their_hash():
    stored = Path(__file__).parents[1] / "results" / "five_tasks" / "manifest.json"
    assert load_manifest(stored).hash == json.loads(stored.read_text())["hash"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"tasks": "libero_objet"}, "did you mean libero_object"),
        ({"tasks": "libero_object,door-open"}, "one after the other"),
        ({"episodes_per_task": 51}, "50 official initial states"),
        ({"seed": 990, "episodes_per_task": 20}, "50 official initial states"),
        ({"protocol": "lerobt"}, "did you mean lerobot"),
        ({"protocol": "seer"}, "evaluated only libero_10"),
        ({"tasks": "door-open", "protocol": "seer"}, "no protocols"),
        ({"quality": "original"}, "light"),
        ({"episode_length": 3000}, "2000"),
        ({"observation_size": 5}, "16..480 pixels, got 5: change --size"),
    ],
)
def test_lists_that_cannot_be_played(arguments, said):
    with pytest.raises(ValueError, match=said):
        make_manifest(**{"tasks": "libero_object_3", "episodes_per_task": 2, **arguments})


def test_demonstrated_starts_and_official_ones_never_meet():
    check_recording(recording(), make_manifest("libero_object_3", 50, quality="standard"))
    drawn = make_manifest("libero_object_3", 2, seed=1020, quality="standard")
    with pytest.raises(ValueError, match=r"demonstrations used 1000\.\.1029"):
        check_recording(recording(), drawn)


def test_another_protocol_is_refused_unless_it_is_the_point(caplog):
    manifest = make_manifest("libero_object_3", 2, quality="standard", protocol="openvla")
    with pytest.raises(ValueError, match=r"'lerobot'.*'openvla'.*\n.*--allow-differences"):
        check_recording(recording(), manifest)
    check_recording(recording(), manifest, allow=True)
    assert "protocol" in caplog.text
    # And where nobody named a protocol, the conventions speak: other settle steps, another rotation.
    unnamed = recording(settings={})
    paper = make_manifest("libero_10_9", 2, quality="standard", protocol="vita-paper", observation_size=256)
    with pytest.raises(ValueError, match="idle steps"):
        check_recording(unnamed, paper)


def test_lerobots_pictures_are_turned_for_a_policy_that_knows_raw_ones():
    manifest = make_manifest("libero_object_3", 1, quality="standard", observation_size=128)
    conversion = conversion_of(recording("vita-paper", 128), manifest)
    picture = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(conversion.pictures(picture), picture[::-1, ::-1])


class Policy:
    """Answers with what it sees of both cameras and the state."""

    def __init__(self, cameras):
        self.config = SimpleNamespace(
            type="fake", image_features=dict.fromkeys(cameras), n_action_steps=2, device="cpu"
        )

    def eval(self):
        return self

    def parameters(self):
        return iter(())

    def reset(self):
        pass

    def predict_action_chunk(self, batch):
        self.batch = batch
        seen = [batch[key].mean((1, 2, 3)) for key in self.config.image_features]
        return torch.stack([*seen, *batch["observation.state"].T[: 7 - len(seen)]], 1)[:, None].repeat(
            1, 2, 1
        )


@pytest.mark.parametrize(
    "cameras",
    [
        ["observation.images.image", "observation.images.image2"],
        ["observation.images.image2"],
        ["observation.images.primary", "observation.images.wrist"],
    ],
)
def test_each_camera_reaches_the_policy_under_its_own_name(cameras):
    policy = Policy(cameras)
    if "wrist" in cameras[-1]:
        with pytest.raises(ValueError, match="cannot tell which camera"):
            PolicyPredictor(policy, dict, lambda x: x, fingerprint="x", scenes=LIBERO)
        return
    predictor = PolicyPredictor(policy, dict, lambda x: x, fingerprint="x", scenes=LIBERO)
    row = {
        "pixels.image": np.full((16, 16, 3), 51, np.uint8),
        "pixels.image2": np.full((16, 16, 3), 204, np.uint8),
        "agent_pos": np.arange(8.0),
        "task": "pick up the milk",
    }
    chunk = predictor.predict([row, row])
    assert chunk.shape == (2, 2, 7)
    expected = {"observation.images.image": 0.2, "observation.images.image2": 0.8}
    np.testing.assert_allclose(chunk[0, 0, : len(cameras)], [expected[key] for key in cameras], atol=1e-6)
    np.testing.assert_allclose(chunk[0, 0, len(cameras) :], np.arange(7 - len(cameras)), atol=1e-6)
