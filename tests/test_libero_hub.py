"""LIBERO data that others recorded, in the layout of the hub's `lerobot/libero`: the same path as our own."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lerobot_policy_vita_vla.conventions import RECORDING_FILE, RecordingInfo
from lerobot_policy_vita_vla.demos.check import check_dataset
from lerobot_policy_vita_vla.demos.declared import declare, looks_like, remembered
from lerobot_policy_vita_vla.demos.libero_suite import find_protocol
from lerobot_policy_vita_vla.demos.replay_libero import LiberoSimulator
from lerobot_policy_vita_vla.evaluation.checks import check_recording
from lerobot_policy_vita_vla.evaluation.manifest import make_manifest
from lerobot_policy_vita_vla.evaluation.predictor import recording_defaults
from libero_helpers import OBJECT
from vita_vla_cli import cli

torch.set_num_threads(1)
SIZE, FRAMES, NAME = 256, 12, "lerobot/libero"
ARM = ["x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3"]


@pytest.fixture(autouse=True)
def quiet_logging():
    """LeRobot's trainer leaves a handler behind, on a stream that ends with the test."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """Two episodes of noise with the hub's columns: 256 pixels, 10 frames per second, nothing declared."""
    from lerobot.datasets import LeRobotDataset

    root = tmp_path_factory.mktemp("hub") / "libero"
    picture = {"dtype": "image", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channel"]}
    features = {
        "observation.images.image": picture,
        "observation.images.image2": picture,
        "observation.state": {
            "dtype": "float32",
            "shape": (8,),
            "names": {"motors": [*ARM, "gripper", "gripper"]},
        },
        "action": {"dtype": "float32", "shape": (7,), "names": {"motors": [*ARM, "gripper"]}},
    }
    dataset = LeRobotDataset.create(NAME, 10, features, root=root, robot_type="panda", use_videos=False)
    generator = np.random.default_rng(0)
    for _ in range(2):
        for frame in range(FRAMES):
            # Blocks instead of single pixels: PNG writes them forty times faster.
            blocks = generator.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
            moves = generator.uniform(-0.9, 0.9, 6)
            pictures = blocks.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2)
            dataset.add_frame(
                {
                    "observation.images.image": pictures[0],
                    "observation.images.image2": pictures[1],
                    "observation.state": generator.normal(size=8).astype(np.float32),
                    "action": np.concatenate(
                        # The hand hardly turns, as in many LIBERO tasks.
                        [moves[:3], 0.02 * moves[3:], [frame % 2 * 2 - 1]],
                        dtype=np.float32,
                    ),
                    "task": OBJECT.replace("_", " "),
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture
def hub(downloaded, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(downloaded, tmp_path / "libero"))


def edit(root: Path, name: str, change) -> None:
    content = json.loads((root / name).read_text())
    change(content)
    (root / name).write_text(json.dumps(content))


def test_the_check_passes_and_says_how_to_declare_what_nobody_wrote_down(downloaded):
    found = check_dataset(downloaded)
    assert found.ok
    notes = [f for f in found if "not recorded by this package" in f.what]
    assert len(notes) == 1 and notes[0].fix.endswith(f"vita-vla demos declare {downloaded} --as {NAME}")
    # Nothing is declared unasked.
    assert RecordingInfo.load(downloaded) is None


def test_declared_conventions_are_those_of_lerobots_environment(hub, libero_package, capsys):
    assert cli.main(["demos", "declare", str(hub), "--as", NAME]) == 0
    assert "image_orientation: rotated_180" in capsys.readouterr().out
    info = RecordingInfo.load(hub)
    assert info.conventions == find_protocol("lerobot").conventions(256).to_dict()
    assert info.control_hz == 20 and info.tasks == {OBJECT.replace("_", " "): "libero_object_3"}
    found = check_dataset(hub)
    assert found.ok and any("20 per second" in f.what for f in found), str(found)
    # Saying it twice changes nothing.
    assert declare(hub, NAME).to_dict() == info.to_dict()
    # Its starts are not known, so that it cannot be replayed, and that is said instead of tried.
    with pytest.raises(ValueError, match="human demonstrations begin"):
        LiberoSimulator(info)


def no_wrist(info):
    del info["features"]["observation.images.image2"]


def set_range(low, high):
    def change(stats):
        stats["action"]["min"][-1], stats["action"]["max"][-1] = low, high

    return change


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("meta/info.json", lambda info: info.update(fps=30), "30 frames per second, neither 20.*10"),
        ("meta/info.json", no_wrist, "its cameras are"),
        ("meta/stats.json", set_range(0.0, 1.0), "gripper command goes from 0 to 1"),
        ("meta/stats.json", set_range(-1.0, 0.0), "gripper command goes from -1 to 0"),
        (
            "meta/info.json",
            lambda info: info["features"]["observation.state"].update(shape=[9]),
            r"observation.state has shape \[9\], not \[8\]",
        ),
    ],
)
def test_what_is_visibly_something_else_is_refused(file, change, problem, hub, libero_package):
    edit(hub, file, change)
    with pytest.raises(ValueError, match=problem):
        declare(hub, NAME)
    assert not (hub / RECORDING_FILE).exists()


def test_foreign_instructions_unknown_names_and_own_recordings_are_refused(hub, libero_package):
    with pytest.raises(ValueError, match=f"did you mean {NAME}"):
        declare(hub, "lerobot/liber")
    import pandas

    tasks = pandas.read_parquet(hub / "meta/tasks.parquet")
    tasks.index = ["pick up the silk and place it in the basket"]
    tasks.to_parquet(hub / "meta/tasks.parquet")
    with pytest.raises(ValueError, match="nearest: 'pick up the milk"):
        declare(hub, NAME)
    RecordingInfo("libero", {}, "light", 256, 20, "agentview").save(hub)
    with pytest.raises(ValueError, match="was recorded by this package"):
        declare(hub, NAME)


def test_another_dataset_is_not_taken_for_the_hubs(downloaded):
    info = json.loads((downloaded / "meta/info.json").read_text())
    assert looks_like(info) == NAME
    info["features"]["action"]["shape"] = [6]
    assert looks_like(info) is None


def test_a_frame_rate_that_is_not_the_environments_is_refused_with_the_fix(hub, libero_package, caplog):
    manifest = make_manifest("libero_object_3", 2, quality="standard")
    undeclared = remembered(SimpleNamespace(root=hub))
    assert f"--as {NAME}" in caplog.text
    assert (undeclared["suite"], undeclared["control_hz"], undeclared["observation_size"]) == ("", 10, 256)
    with pytest.raises(ValueError, match=r"control_hz: recorded with 10, here 20(.|\n)*demos declare"):
        check_recording(undeclared, manifest)
    check_recording(undeclared, manifest, allow=True)
    declare(hub, NAME)
    declared = remembered(SimpleNamespace(root=hub))
    check_recording(declared, manifest)
    with pytest.raises(ValueError, match="trained under|made under 'lerobot'"):
        check_recording(declared, make_manifest("libero_object_3", 2, quality="standard", protocol="openvla"))
    # A student on undeclared data of another rate than its teacher's is told so.
    assert RecordingInfo.from_dict(undeclared).picture_differences(declared) == [
        "control_hz: recorded with 10, here 20"
    ]


@pytest.mark.parametrize("declared", [True, False])
def test_teacher_alignment_and_finetuning_take_it(declared, hub, libero_package):
    if declared:
        declare(hub, NAME)
    run, small = hub.parent, ["--steps=1", "--batch-size=2", "--device=cpu", "--num_workers=0"]

    def train(verb, *more):
        assert cli.main([verb, "--demos", str(hub), *more, *small]) == 0

    train(
        "teacher",
        "--out",
        str(run / "teacher"),
        "--policy.width=32",
        "--policy.n_layers=1",
        "--policy.auxiliary_weight=0",
    )
    train("align", "--out", str(run / "align"), "--teacher", str(run / "teacher"))
    train("finetune", "--out", str(run / "finetune"), "--from", str(run / "align"))
    checkpoint = run / "finetune" / "checkpoints" / "last" / "pretrained_model"
    config = json.loads((checkpoint / "config.json").read_text())
    if not declared:
        assert (config["recording"]["suite"], config["recording"]["control_hz"]) == ("", 10)
        return
    assert config["recording"] == json.loads((hub / RECORDING_FILE).read_text())
    assert config["decoder"]["spec"]["gripper_dims"] == [6]
    assert set(config["teacher_cameras"]) == {"observation.images.image", "observation.images.image2"}
    # Evaluation shows it what it was trained on.
    seen = recording_defaults(checkpoint)
    assert seen == {"quality": "standard", "observation_size": 256, "protocol": "lerobot"}
    check_recording(config["recording"], make_manifest("libero_object_3", 1, **seen))


def test_calm_numbers_are_other_units_only_where_another_dataset_was_learned_from(hub):
    # What the scale check says of the very data that a model was trained on, and of data nobody knows.
    from lerobot_policy_vita_vla.contracts import ActionSpec
    from lerobot_policy_vita_vla.vla.teaching import check_decoder_scale

    stats = json.loads((hub / "meta/stats.json").read_text())
    spec = ActionSpec.from_stats([*ARM, "gripper"], stats["action"])
    config = SimpleNamespace(decoder={"spec": spec.to_dict(), "kind": "seer"}, recording={})
    recording = remembered(SimpleNamespace(root=hub))
    check_decoder_scale(config, stats, recording)
    with pytest.raises(ValueError, match="axis_angle1"):
        check_decoder_scale(config, stats, {**recording, "statistics_hash": "0"})
