"""LIBERO from the expert to the golden replay, in the real simulator; skipped without it (docs/libero.md)."""

import json
import shutil

import numpy as np
import pytest

from lerobot_policy_vita_vla.conventions import RECORDING_FILE, RecordingInfo
from lerobot_policy_vita_vla.demos import libero_install
from lerobot_policy_vita_vla.demos.replay_libero import LiberoSimulator


def test_a_dataset_without_seeds_and_protocol_cannot_be_replayed():
    with pytest.raises(ValueError, match="vita-vla demos record"):
        LiberoSimulator(None)
    info = RecordingInfo("libero_10", {}, "original", 128, 20, "agentview")
    with pytest.raises(ValueError, match="protocol"):
        LiberoSimulator(info)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    pytest.importorskip("libero", reason="the extra `libero` is not installed: docs/libero.md")
    try:
        libero_install.find_assets()
    except ValueError as error:
        pytest.skip(str(error))
    from lerobot_policy_vita_vla.demos.record import record

    root = tmp_path_factory.mktemp("libero") / "demos"
    record("libero_object_0", 1, root, observation_size=32, workers=1, progress=False)
    return root


def test_the_recording_carries_its_conventions(recording):
    from lerobot.datasets import LeRobotDataset

    info = RecordingInfo.load(recording)
    assert info.settings["protocol"] == "lerobot" and info.conventions["settle_steps"] == 10
    dataset = LeRobotDataset("local/demos", root=recording)
    assert dataset.fps == info.control_hz == 20
    actions = np.stack([row["action"] for row in dataset.hf_dataset])
    assert np.abs(actions).max() <= 1 and set(np.unique(actions[:, 6])) == {-1.0, 1.0}
    assert actions[-1, 6] == -1.0, "the thing is let go of at the end"


def test_the_replay_confirms_it_and_finds_a_wrong_declaration(recording, tmp_path):
    from lerobot_policy_vita_vla.demos.replay import replay

    report = replay(recording)
    assert report.ok, str(report)
    assert report.verdicts["trajectory"].status == "confirmed"
    wrong = tmp_path / "demos"
    shutil.copytree(recording, wrong)
    info = json.loads((wrong / RECORDING_FILE).read_text())
    info["conventions"]["image_orientation"] = "as_drawn"
    (wrong / RECORDING_FILE).write_text(json.dumps(info))
    report = replay(wrong)
    assert report.verdicts["image_orientation"].status == "BROKEN"
    assert report.settings == {"image_orientation": "rotated_180"}
