"""Seer's released checkpoints: every key accounted for, the published arithmetic kept, bad files refused."""

from __future__ import annotations

import json
import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors

import seer_reference
from lerobot_policy_vita_vla.conventions import Conventions, RecordingInfo
from lerobot_policy_vita_vla.demos import libero_suite
from lerobot_policy_vita_vla.demos.checkpoint_records import go_on
from lerobot_policy_vita_vla.demos.dataset import DatasetWriter
from lerobot_policy_vita_vla.demos.declared import remembered
from lerobot_policy_vita_vla.demos.expert import Demonstration
from lerobot_policy_vita_vla.demos.plan import recording_settings
from lerobot_policy_vita_vla.demos.record import _describe
from lerobot_policy_vita_vla.demos.scenes import LIBERO, make_scene
from lerobot_policy_vita_vla.evaluation.checks import check_recording, conversion_of
from lerobot_policy_vita_vla.evaluation.manifest import make_manifest
from lerobot_policy_vita_vla.teacher.load import load_teacher
from lerobot_policy_vita_vla.teacher.seer.batches import observations
from lerobot_policy_vita_vla.teacher.seer.dataset_facts import fill_config
from lerobot_policy_vita_vla.teacher.seer.layout import StepLayout
from lerobot_policy_vita_vla.teacher.seer.official import importing, torch_files
from lerobot_policy_vita_vla.teacher.seer.official.checkpoint import open_checkpoint
from lerobot_policy_vita_vla.teacher.seer.official.frozen_encoders import read_clip, read_mae
from lerobot_policy_vita_vla.teacher.seer.official.importing import import_seer
from lerobot_policy_vita_vla.teacher.seer.official.layouts import LAYOUTS, is_unused
from lerobot_policy_vita_vla.teacher.seer.pictures import stack_cameras
from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig
from lerobot_policy_vita_vla.vla.teaching import check_teacher
from libero_helpers import require_libero
from seer_files import (
    HEADS,
    INSTRUCTIONS,
    clip_tensors,
    mae_tensors,
    published_shapes,
    random_tensors,
    save_clip,
    save_mae,
    save_seer,
    tiny_layout,
)
from vita_vla_cli import cli
from vita_vla_cli.verbs import teacher_import

torch.set_num_threads(1)

TINY = {name: tiny_layout(name) for name in ("calvin", "libero")}
B, H = 2, 3


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Folders with both frozen encoders as their authors published them."""
    root = tmp_path_factory.mktemp("encoders")
    return save_mae(root / "mae", mae_tensors()), save_clip(root / "clip", clip_tensors())


@pytest.fixture(scope="module")
def tensors():
    """A small Seer, in its own names; H = 3."""
    return random_tensors(TINY["libero"].shapes(), gain=1.5)


@pytest.fixture(scope="module")
def imported(tmp_path_factory, encoders, tensors):
    """Layout -> imported teacher's folder."""
    root = tmp_path_factory.mktemp("imported")
    found = {}
    for name in TINY:
        source = save_seer(root / f"{name}.pth", tensors)
        import_seer(source, root / name, layout=name, mae=encoders[0], clip=encoders[1], layouts=TINY)
        found[name] = root / name
    return found


def import_tiny(source, target, encoders, **settings):
    paths = {"mae": encoders[0], "clip": encoders[1], "layout": "libero", "layouts": TINY}
    return import_seer(source, target, **{**paths, **settings})


def batch_for(teacher, steps=H, seed=0):
    """Observations with a frame axis; CALVIN's gripper is -1 or 1."""
    generator = torch.Generator().manual_seed(seed)
    batch = {key: torch.rand(B, steps, 3, 224, 224, generator=generator) for key in teacher.cameras}
    state = torch.randn(B, steps, teacher.state_dim, generator=generator)
    if teacher.state_dim == 7:
        state[..., 6] = state[..., 6].sign()
    return {**batch, "observation.state": state, "task": list(INSTRUCTIONS)}


def reference(tensors, batch, teacher, steps=H, **settings):
    pictures = torch.stack([batch[key] for key in teacher.cameras], dim=2)[:, :steps]
    mae, clip = mae_tensors(), clip_tensors()
    arguments = (tensors, mae, clip, pictures, batch["observation.state"][:, :steps])
    options = {"heads": HEADS, "one_hot": teacher.state_dim == 7, **settings}
    with torch.no_grad():
        return seer_reference.seer(*arguments, list(INSTRUCTIONS.values()), **options)


def answers(teacher, batch, steps=H):
    """All steps' arm actions and gripper probabilities."""
    policy = teacher.policy
    with torch.no_grad():
        features = policy.network(*observations(batch, policy.config, steps)).action_BHTE
        raw = policy.network.decode(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    return raw[..., :6], raw[..., 6:].sigmoid()


# --- keys and sizes


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_the_published_ones(name):
    shapes, parameters = published_shapes(name)
    assert LAYOUTS[name].shapes() == shapes
    assert len(shapes) == 400
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters


def test_every_key_of_a_checkpoint_is_used_or_known_to_be_unused(tmp_path, tensors):
    found = open_checkpoint(save_seer(tmp_path / "x.pth", tensors), "libero", layouts=TINY)
    counts = found.counts()
    assert counts["keys"] == len(tensors) and found.epoch == 12
    assert counts["keys"] == counts["keys_used"] + counts["keys_unused_by_seer"]
    ours = importing.our_tensors(found.tensors, H)
    assert len(ours) == counts["keys_used"] and counts["keys_unused_by_seer"] == 14
    assert counts["parameters"] == sum(t.numel() for t in tensors.values())


# --- the published arithmetic


@pytest.mark.parametrize("name", TINY)
def test_it_acts_as_published(imported, tensors, name):
    teacher = load_teacher(imported[name])
    batch = batch_for(teacher)
    arm, gripper = answers(teacher, batch)
    expected_arm, expected_gripper = reference(tensors, batch, teacher)
    assert expected_arm.std() > 0.1 and expected_gripper.std() > 0.05, "the comparison must be able to fail"
    torch.testing.assert_close(arm, expected_arm, atol=1e-5, rtol=0)
    torch.testing.assert_close(gripper, expected_gripper, atol=1e-5, rtol=0)
    chunk = teacher.predict_action_chunk(batch)
    torch.testing.assert_close(chunk[..., :6], expected_arm[:, -1], atol=1e-5, rtol=0)
    assert torch.equal(chunk[..., 6] > 0, expected_gripper[:, -1, :, 0] > 0.5)
    assert set(chunk[..., 6].unique().tolist()) <= {-1.0, 1.0}


def test_the_comparison_notices_every_convention(imported, tensors):
    """What a wrong import would do: each of these must move the actions a hundred times the tolerance."""
    teacher = load_teacher(imported["libero"])
    batch = batch_for(teacher)
    expected, _ = reference(tensors, batch, teacher)
    network = teacher.policy.network

    def moved():
        return (answers(teacher, batch)[0] - expected).abs().max().item()

    def exchange(change):
        kept = {key: value.clone() for key, value in network.state_dict().items()}
        with torch.no_grad():
            change()
        distance = moved()
        network.load_state_dict(kept)
        return distance

    first = network.trunk.h[0]
    wrist, primary = network.image_projectors[1].weight, network.image_projectors[0].weight
    gripper = network.state_encoder.gripper_state_encoder.weight
    assert moved() < 1e-5
    changes = {
        "Conv1D not transposed": lambda: first.attn.c_proj.weight.copy_(first.attn.c_proj.weight.t().clone()),
        "cameras exchanged": lambda: wrist.copy_(primary),
        "fingers exchanged": lambda: gripper.copy_(gripper.flip(1)),
        "state standardised": lambda: network.state_std.fill_(2.0),
        "time reversed": lambda: network.time_embedding.copy_(network.time_embedding.flip(0)),
        "queries reversed": lambda: network.action_queries.copy_(network.action_queries.flip(0)),
    }
    for name, change in changes.items():
        assert exchange(change) > 1e-3, name
    own = network.mask_MM.clone()
    layout = network.layout
    peers = StepLayout(layout.n_cameras, layout.image_tokens, layout.foresight_tokens, layout.action_tokens)
    network.mask_MM.copy_(peers.attention_mask(H))
    assert moved() > 1e-3, "queries that read each other"
    network.mask_MM.copy_(own)
    network.image_encoder.std.fill_(0.5)
    assert moved() > 1e-3, "another image normalisation"


def test_it_foresees_as_published(imported, tensors):
    """Nothing acts on it, but training goes on from it."""
    teacher = load_teacher(imported["libero"])
    batch = batch_for(teacher)
    network = teacher.policy.network
    with torch.no_grad():
        output = network(*observations(batch, teacher.policy.config, H)).foresight_BHNFE
        patches = network.foresight_decoder(output.flatten(0, 2)).unflatten(0, output.shape[:3])
        expected = seer_reference.foresee(tensors, output, side=14)
    assert expected.std() > 0.1
    torch.testing.assert_close(patches, expected, atol=1e-5, rtol=0)


def test_published_mask_by_hand():
    layout = StepLayout(
        n_cameras=1, image_tokens=1, foresight_tokens=1, action_tokens=1, queries_read_peers=False
    )
    now, nothing = [1, 1, 1, 1], [0] * 6
    first = [*([[*now, 0, 0, *nothing]] * 5), [*now, 1, 0, *nothing]]
    second = [*([[*now, 0, 0, *now, 0, 0]] * 5), [*now, 0, 0, *now, 1, 0]]
    assert layout.attention_mask(2).int().tolist() == first + second


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_history_grows_as_in_seers_evaluation(imported, tensors, n):
    """Seer repeats the last frame behind the real ones and reads the last real step."""
    teacher = load_teacher(imported["libero"])
    policy, batch = teacher.policy, batch_for(teacher, steps=4)
    policy.checks_pictures = False  # they have the encoder's size already, so that nothing is resized
    policy.reset()
    for step in range(n):
        now = {k: v[:, step] if torch.is_tensor(v) else v for k, v in batch.items()}
        chunk = policy.predict_action_chunk(now)
    real = {k: v[:, max(0, n - H) : n] if torch.is_tensor(v) else v for k, v in batch.items()}
    repeats = [min(i, len(real["observation.state"][0]) - 1) for i in range(H)]
    padded = {k: v[:, repeats] if torch.is_tensor(v) else v for k, v in real.items()}
    arm, _ = reference(tensors, padded, teacher)
    torch.testing.assert_close(chunk[..., :6], arm[:, min(n, H) - 1], atol=1e-5, rtol=0)


def test_samples_of_one_batch_have_histories_of_their_own(imported, tensors):
    teacher = load_teacher(imported["libero"])
    batch = batch_for(teacher)
    # The first sample's episode has just begun: LeRobot's dataset repeats its first frame in front.
    for key in (*teacher.cameras, "observation.state"):
        batch[key][0, :2] = batch[key][0, 2]
    batch["observation.state_is_pad"] = torch.tensor([[True, True, False], [False] * 3])
    arm, _ = reference(tensors, batch, teacher)
    chunk = teacher.predict_action_chunk(batch)
    torch.testing.assert_close(chunk[0, :, :6], arm[0, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(chunk[1, :, :6], arm[1, 2], atol=1e-5, rtol=0)
    # Every step's features lie where its frame lies.
    with torch.no_grad():
        steps = teacher.decoder(teacher.targets_of_every_step(batch).flatten(0, 1)).unflatten(0, (B, H))
    torch.testing.assert_close(steps[0, 2, :, :6], arm[0, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(steps[1, ..., :6], arm[1], atol=1e-5, rtol=0)


def test_a_longer_time_embedding_is_cut(tmp_path, encoders, tensors, caplog):
    longer = random_tensors({"transformer_backbone_position_embedding": (1, 5, 1, 32)}, seed=9)
    source = save_seer(tmp_path / "x.pth", {**tensors, **longer})
    done = import_tiny(source, tmp_path / "out", encoders)
    assert done["time_steps"] == 5 and "saved before finetuning" in caplog.text
    teacher = load_teacher(tmp_path / "out")
    batch = batch_for(teacher)
    expected, _ = reference({**tensors, **longer}, batch, teacher)
    torch.testing.assert_close(answers(teacher, batch)[0], expected, atol=1e-5, rtol=0)


def test_without_history_it_acts_as_at_an_episodes_start(tmp_path, encoders, tensors):
    source = save_seer(tmp_path / "x.pth", tensors)
    import_tiny(source, tmp_path / "out", encoders, n_obs_steps=1)
    teacher = load_teacher(tmp_path / "out")
    assert teacher.n_obs_steps == 1
    batch = batch_for(teacher, steps=1)
    now = {k: v[:, 0] if torch.is_tensor(v) else v for k, v in batch.items()}
    expected, _ = reference(tensors, batch, teacher, steps=1)
    chunk = teacher.predict_action_chunk(now)
    torch.testing.assert_close(chunk[..., :6], expected[:, 0], atol=1e-5, rtol=0)


def test_encoders_in_hugging_faces_format(tmp_path, encoders, imported, tensors):
    read_mae(encoders[0]).save_pretrained(tmp_path / "mae")
    # As the hub's copy says it; the original's arithmetic has 1e-6.
    config = json.loads((tmp_path / "mae" / "config.json").read_text())
    (tmp_path / "mae" / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-2}))
    for part in read_clip(encoders[1]):
        part.save_pretrained(tmp_path / "clip")
    source = save_seer(tmp_path / "x.pth", tensors)
    import_tiny(source, tmp_path / "out", (tmp_path / "mae", tmp_path / "clip"))
    ours, originals = load_teacher(tmp_path / "out"), load_teacher(imported["libero"])
    batch = batch_for(ours)
    torch.testing.assert_close(ours.predict_action_chunk(batch), originals.predict_action_chunk(batch))


def test_clips_words_are_its_own(encoders):
    _, tokenizer = read_clip(encoders[1])
    for instruction, ids in INSTRUCTIONS.items():
        assert tokenizer(instruction)["input_ids"] == ids


@pytest.mark.parametrize("size", [(84, 84), (128, 128), (200, 200)])
def test_pictures_are_resized_as_clips_preprocessing_does(size):
    from PIL import Image

    picture = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = picture.float().mul(0.25).add(96).byte()  # within the range, so that nothing is clipped
    theirs = Image.fromarray(picture.numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    theirs = torch.frombuffer(bytearray(theirs.tobytes()), dtype=torch.uint8).view(224, 224, 3)
    ours = stack_cameras([picture.permute(2, 0, 1)[None, None].float() / 255], 224)[0, 0, 0]
    # Theirs is rounded to whole grey levels, after rows and after columns.
    assert (ours.permute(1, 2, 0) * 255 - theirs.float()).abs().max() < 1.1


# --- what the imported teacher knows and is good for


def test_it_knows_its_conventions(imported):
    known = {}
    for name, folder in imported.items():
        teacher = load_teacher(folder)
        config = teacher.policy.config
        info = RecordingInfo.from_dict(teacher.recording)
        known[name] = Conventions.from_dict(info.conventions)
        assert info.settings["imported"] == "Seer" and info.settings["layout"] == name
        assert info.settings["keys"] == 136 and len(info.settings["sha256"]) == 64
        assert (teacher.feature_dim, teacher.chunk_size, teacher.n_obs_steps) == (32, 3, 3)
        assert teacher.action_spec.gripper_dims == (6,) and teacher.action_spec.gripper_kind == "binary"
        assert set(teacher.action_spec.scale) == {1.0} and set(teacher.action_spec.offset) == {0.0}
        assert config.image_size == 224 and config.n_action_steps == 1
        assert config.image_features[teacher.cameras[0]].shape[1:] == known[name].image_size
    # The same command opens on one benchmark and closes on the other.
    assert (known["calvin"].gripper_open, known["libero"].gripper_open) == (1.0, -1.0)
    assert (known["calvin"].control_hz, known["libero"].control_hz) == (30, 20)
    assert (known["calvin"].image_size, known["libero"].image_size) == ((200, 200), (128, 128))
    assert known["calvin"].state_rotation == "euler_xyz"
    assert known["calvin"].action_rotation == "euler_xyz_added"
    assert known["libero"].state_rotation == "axis_angle_2pi_as_euler" and known["libero"].refreshed is False
    assert known["libero"].settle_steps == 5 and known["libero"].image_orientation == "as_drawn"
    assert load_teacher(imported["libero"]).policy.config.temporal_ensemble_coeff == 0.01
    assert load_teacher(imported["calvin"]).policy.config.temporal_ensemble_coeff is None


def test_lerobot_loads_it_with_its_processors(imported):
    config = PreTrainedConfig.from_pretrained(imported["calvin"])
    before, after = make_pre_post_processors(config, pretrained_path=str(imported["calvin"]))
    teacher = load_teacher(imported["calvin"])
    batch = batch_for(teacher, steps=1)
    now = {k: v[:1, 0] if torch.is_tensor(v) else v[:1] for k, v in batch.items()}
    for key, feature in config.image_features.items():
        now[key] = now[key][..., : feature.shape[1], : feature.shape[2]]
    teacher.policy.reset()
    assert after(teacher.policy.select_action(before(now))).shape == (1, 7)


def test_a_student_aligns_with_it(tmp_path, encoders, tensors):
    from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy
    from tiny_vlms import save

    import_tiny(save_seer(tmp_path / "x.pth", tensors), tmp_path / "out", encoders, n_obs_steps=1)
    teacher = load_teacher(tmp_path / "out")
    torch.manual_seed(0)
    config = VitaVLAConfig(
        vlm=str(save("smolvlm", tmp_path / "vlm")),
        teacher_path=str(tmp_path / "out"),
        input_features={
            **{key: PolicyFeature(FeatureType.VISUAL, (3, 32, 32)) for key in teacher.cameras},
            "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
        device="cpu",
        dtype="float32",
    )
    ends = {"min": np.full(7, -1.0), "max": np.full(7, 1.0)}
    state = {"mean": np.zeros(8), "std": np.ones(8)}
    student = VitaVLAPolicy(config, dataset_stats={"action": ends, "observation.state": state})
    assert config.chunk_size == 3 and config.decoder["feature_dim"] == 32
    handed_over = dict(student.named_parameters())
    for name, parameter in teacher.decoder.named_parameters():
        twin = next(value for key, value in handed_over.items() if key.endswith(f"decoder.{name}"))
        assert torch.equal(twin, parameter)
    batch = {key: torch.rand(B, 3, 32, 32) for key in teacher.cameras}
    batch |= {"observation.state": torch.randn(B, 8), "task": list(INSTRUCTIONS)}
    batch |= {"action": torch.zeros(B, 3, 7), "action_is_pad": torch.zeros(B, 3, dtype=torch.bool)}
    loss, _ = student.train()(batch)
    loss.backward()
    assert loss.isfinite() and loss > 0


def older(record):
    """As an earlier version of this package wrote it."""
    conventions = {k: v for k, v in record["conventions"].items() if k != "refreshed"}
    settings = {
        k: v for k, v in record["settings"].items() if k not in ("state_rotations", "evaluated_under")
    }
    return {
        **record,
        "suite": "libero_10",
        "quality": "original",
        "conventions": {**conventions, "state_rotation": "axis_angle_2pi"},
        "settings": settings,
    }


@pytest.mark.parametrize("written", [dict, older])
def test_its_protocols_fit_and_others_are_refused(imported, libero_package, written):
    record = written(load_teacher(imported["libero"]).recording)
    for protocol in ("seer", "seer-training", "vita-paper"):
        manifest = make_manifest("libero_10_0", 2, quality="standard", protocol=protocol)
        check_recording(record, manifest)
        conversion = conversion_of(record, manifest)
        # The state as the protocol gives it: true Euler angles in Seer's own evaluation.
        assert conversion.steps == []
        assert (conversion.policy.state_rotation == "euler_xyz") == (protocol != "seer-training")
    other = make_manifest("libero_10_0", 2, quality="standard")
    with pytest.raises(
        ValueError, match="settle_steps(.|\n)*Play --quality standard --size 128 --protocol seer"
    ):
        check_recording(record, other)
    with pytest.raises(ValueError, match="quality: recorded with 'standard', here 'light'"):
        check_recording(record, make_manifest("libero_10_0", 2, quality="light", protocol="seer"))


def test_training_goes_on_under_the_same_conventions_only(imported):
    record = load_teacher(imported["libero"]).recording
    own = {**record, "settings": {"protocol": "seer"}, "seeds": {"libero_10_0": [1000, 1001]}}
    own["conventions"] = {**record["conventions"], "state_rotation": "euler_xyz"}
    kept = go_on(record, own)
    assert kept["conventions"] == own["conventions"] and kept["seeds"] == own["seeds"]
    assert kept["settings"]["continued_from"]["settings"]["imported"] == "Seer"
    assert go_on(kept, kept) == kept and go_on({}, own) == own and go_on(record, {}) == record
    hub = {**own, "observation_size": 256}
    hub["conventions"] = libero_suite.find_protocol("lerobot").conventions(256).to_dict()
    with pytest.raises(ValueError, match="image_size(.|\n)*settle_steps(.|\n)*train a new policy"):
        go_on(record, hub)
    # Data that do not say what they mean take nothing away, and what they say is compared.
    silent = RecordingInfo("", {}, "", 128, 20, "").to_dict()
    assert go_on(record, silent) == record
    with pytest.raises(ValueError, match="control_hz: recorded with 10, here 20"):
        go_on(record, {**silent, "control_hz": 10})


def test_continuing_an_imported_checkpoint_on_other_data_is_refused(tmp_path, imported):
    config = PreTrainedConfig.from_pretrained(imported["libero"])
    info = RecordingInfo.from_dict(config.recording)
    info.conventions = libero_suite.find_protocol("lerobot").conventions(128).to_dict()
    info.save(tmp_path)
    dataset = SimpleNamespace(root=tmp_path, features={})
    with pytest.raises(ValueError, match="image_orientation: recorded with 'rotated_180', here 'as_drawn'"):
        fill_config(config, None, dataset)
    info.conventions = libero_suite.find_protocol("seer").conventions(128).to_dict()
    info.settings = {"protocol": "seer"}
    info.save(tmp_path)
    fill_config(config, None, dataset)
    assert config.recording["settings"]["continued_from"]["settings"]["imported"] == "Seer"


TASK, FRAMES = "libero_10_0", 6


def short_recording(root):
    """Some frames under Seer's protocol, by a hand that hardly tilts; with the recorder's own description."""
    scene = make_scene("libero", TASK, quality="standard", observation_size=128, protocol="seer")
    rng, frames = np.random.default_rng(0), []
    seen, _ = scene.reset(seed=1000)
    for _ in range(FRAMES):
        action = rng.uniform(-1, 1, 7) * [0.5, 0.5, 0.5, 0.01, 0.01, 0.5, 1]
        pictures = np.stack([seen["pixels.image"], seen["pixels.image2"]])
        frames.append((pictures, seen["agent_pos"], scene.known_state(), action, action))
        seen = scene.step(action)[0]
    scene.close()
    columns = [np.stack(column) for column in zip(*frames, strict=True)]
    columns[1:] = [column.astype(np.float32) for column in columns[1:]]
    writer = DatasetWriter(root, repo_id="local/x", scenes=LIBERO, observation_size=128)
    writer.append(Demonstration(*columns), libero_suite.instruction(TASK))
    settings = recording_settings([TASK], 1, "standard", 128, 1000, None, "seer")
    info = _describe(settings, [SimpleNamespace(task=TASK, tried=1, kept=1)], writer.finish())
    info.save(root)
    return root


def test_on_libero_it_evaluates_and_teaches_without_a_flag_that_overrides(tmp_path, encoders, tensors):
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

    require_libero()
    source = save_seer(tmp_path / "x.pth", tensors)
    import_tiny(source, tmp_path / "seer", encoders, n_obs_steps=1)
    line = [
        "eval",
        str(tmp_path / "seer"),
        "--run",
        str(tmp_path / "run"),
        "--suite",
        TASK,
        "--protocol",
        "seer",
    ]
    assert (
        cli.main([*line, "--episodes", "1", "--episode-length", "3", "--workers", "1", "--videos", "0"]) == 0
    )
    result = json.loads((tmp_path / "run" / "eval" / "seer" / "result.json").read_text())
    assert result["overall"]["n_episodes"] == 1
    data = LeRobotDatasetMetadata("local/x", root=short_recording(tmp_path / "demos"))
    low, high = data.stats["action"]["min"], data.stats["action"]["max"]
    assert (high - low)[3:5].max() < 0.1, "a narrow range, which must not be taken for another unit"
    teacher = load_teacher(tmp_path / "seer")
    config = VitaVLAConfig(
        chunk_size=3,
        recording=remembered(data),
        input_features={
            **{key: PolicyFeature(FeatureType.VISUAL, (3, 128, 128)) for key in teacher.cameras},
            "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
    )
    assert check_teacher(teacher, config, data.stats) == {key: key for key in teacher.cameras}
    config.recording["conventions"]["settle_steps"] = 10
    with pytest.raises(ValueError, match="settle_steps: recorded with 10, here 5"):
        check_teacher(teacher, config, data.stats)


# --- bad input


class Bomb:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def spoil(kind, path, tensors, mark):
    """Write a bad checkpoint of a kind to ``path``."""
    some = "transformer_backbone.h.1.attn.c_attn.weight"
    if kind == "code":
        torch.save({"model_state_dict": {"module.x": Bomb(mark)}}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    elif kind == "page":
        path.write_text("<!DOCTYPE html><html>Download anyway?</html>")
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("these are not weights at all")
    elif kind == "cut":
        save_seer(path, tensors)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "mae":
        torch.save({"model": {"pos_embed": torch.zeros(1)}}, path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "new protocol":
        path.write_bytes(pickle.dumps(Bomb(mark), protocol=4))
    elif kind == "new protocol in a zip":
        torch.save({"model_state_dict": {"module.x": Bomb(mark)}}, path, pickle_protocol=4)
    elif kind == "new protocol, tensors only":
        torch.save({"model_state_dict": {"module.x": torch.zeros(1)}}, path, pickle_protocol=4)
    elif kind == "sparse":
        save_seer(path, {**tensors, some: tensors[some].to_sparse()})
    elif kind == "meta":
        save_seer(path, {**tensors, some: tensors[some].to("meta")})
    elif kind == "script":
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    elif kind == "missing":
        save_seer(path, {k: v for k, v in tensors.items() if k not in (some, "mask_token")})
    elif kind == "unknown":
        save_seer(path, {**tensors, "attention_mask": torch.zeros(2, 2), "depth_head.weight": torch.zeros(1)})
    elif kind == "shape":
        save_seer(path, {**tensors, some: tensors[some].t().contiguous()})
    elif kind == "nan":
        save_seer(path, {**tensors, some: tensors[some] * float("nan")})
    elif kind == "integers":
        save_seer(path, {**tensors, some: tensors[some].int()})
    elif kind == "not tensors":
        save_seer(path, {**tensors, some: "hello"})
    elif kind == "prefix":
        save_seer(path, tensors)
        saved = torch.load(path)
        state = saved["model_state_dict"]
        state["mask_token"] = state.pop("module.mask_token")
        torch.save(saved, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("code", r"carries code: loading it would call (io|builtins|_io)\.open.*Nothing of it was run"),
        ("pickle", "carries code"),
        ("new protocol", r"carries code: loading it would call \w+\.open"),
        ("new protocol in a zip", r"carries code: loading it would call \w+\.open"),
        ("new protocol, tensors only", "pickle protocol that cannot be read.*save it again"),
        ("sparse", r"1 sparse or without values \(module.transformer_backbone.h.1"),
        ("meta", r"1 sparse or without values \(module.transformer_backbone.h.1"),
        ("page", "is a web page"),
        ("pointer", "Git LFS pointer"),
        ("empty", "is empty"),
        ("text", "is no PyTorch file"),
        ("cut", "cut short"),
        ("mae", r"has model\..*looks like the MAE image encoder: pass it as --mae"),
        ("tensor", "is a Tensor"),
        ("script", "TorchScript program.*was not run"),
        ("missing", r"2 missing \(module.mask_token, module.transformer_backbone.h.1.attn.c_attn.weight\)"),
        ("unknown", r"2 unknown \(module.attention_mask, module.depth_head.weight\)"),
        ("shape", r"1 of another shape \(module\.\S+c_attn.weight \(96, 32\), expected \(32, 96\)\)"),
        ("nan", r"1 NaN or infinite \(module.transformer_backbone.h.1.attn.c_attn.weight\)"),
        ("integers", r"not numbers of floating point \(module.transformer_backbone.h.1"),
        ("not tensors", "something else than tensors under transformer_backbone.h.1"),
        ("prefix", "all begin with 'module.', but not mask_token"),
    ],
)
def test_bad_checkpoints_are_refused_and_nothing_is_written(tmp_path, encoders, tensors, kind, message):
    source, mark = tmp_path / "bad.pth", tmp_path / "mark"
    spoil(kind, source, tensors, mark)
    with pytest.raises(ValueError, match=message):
        import_tiny(source, tmp_path / "new" / "out", encoders)
    assert not mark.exists() and sorted(tmp_path.iterdir()) == [source]


def test_a_folder_in_place_of_a_file_and_a_target_that_cannot_be(tmp_path, encoders, tensors):
    source = save_seer(tmp_path / "x.pth", tensors)
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder.*files in it: x.pth"):
        import_tiny(tmp_path, tmp_path / "out", encoders)
    # Before anything is read.
    with pytest.raises(ValueError, match=f"DST .*nothing can be written.*{source} is a file"):
        import_tiny(tmp_path / "gone.pth", source / "out", encoders)
    with pytest.raises(ValueError) as error:
        torch_files.read_checkpoint(_pickled(tmp_path / "text.pth", b"\x80\x02K\x01K"))
    assert "weights_only" not in str(error.value) and "Re-running" not in str(error.value)


def _pickled(path, data):
    path.write_bytes(data)
    return path


def test_layouts_that_cannot_be_told(tmp_path, encoders, tensors):
    source = save_seer(tmp_path / "x.pth", tensors)
    with pytest.raises(
        ValueError, match=r"width 32 and a time embedding of 3 steps.*say which with --layout"
    ):
        import_tiny(source, tmp_path / "out", encoders, layout=None, layouts=LAYOUTS)
    with pytest.raises(ValueError, match="is not of layout calvin: its width is 32"):
        import_tiny(source, tmp_path / "out", encoders, layout="calvin", layouts=LAYOUTS)
    with pytest.raises(ValueError, match="no layout 'droid'; choose one of calvin, libero"):
        import_tiny(source, tmp_path / "out", encoders, layout="droid")
    with pytest.raises(ValueError, match=r"n_obs_steps must lie in 1..3 \(layout libero\), got 4"):
        import_tiny(source, tmp_path / "out", encoders, n_obs_steps=4)
    # LIBERO's sizes are the real robot's too, whose gripper means something else.
    with torch.device("meta"):
        sizes = {name: torch.zeros(shape) for name, shape in LAYOUTS["libero"].shapes().items()}
    from lerobot_policy_vita_vla.teacher.seer.official.checkpoint import _layout

    with pytest.raises(ValueError, match="so have Seer's real-robot checkpoints.*--layout libero"):
        _layout(sizes, None, LAYOUTS, source)
    assert _layout(sizes, "libero", LAYOUTS, source).name == "libero"
    sizes["transformer_backbone_position_embedding"] = torch.zeros(1, 14, 1, 384, device="meta")
    assert _layout(sizes, None, LAYOUTS, source).name == "calvin"
    assert all(
        is_unused(name) == (name.split("_")[0] in ("recon",) or "action_p" in name)
        for name in ("recon_state_decoder.0.bias", "action_pose_encoder.weight", "action_decoder.0.weight")
    )


@pytest.mark.parametrize("which", ["mae", "clip"])
def test_missing_encoders_name_the_files_and_the_command(tmp_path, encoders, tensors, which):
    source = save_seer(tmp_path / "x.pth", tensors)
    folder, repo = tmp_path / "gone", {"mae": "facebook/vit-mae-base", "clip": "openai/clip-vit-base-patch32"}
    for state, message in (("gone", "does not exist"), ("half", "lacks model.safetensors")):
        if state == "half":
            folder.mkdir()
            (folder / "config.json").write_text("{}")
        with pytest.raises(ValueError) as error:
            import_tiny(source, tmp_path / "out", encoders, **{which: folder})
        text = str(error.value)
        assert message in text and "config.json" in text and f"--{which} {folder}" in text
        assert f"hf download {repo[which]} --local-dir {folder}" in text
        assert {"mae": "mae_pretrain_vit_base.pth", "clip": "bpe_simple_vocab"}[which] in text
    # Without a folder it is the hub's cached copy, which offline is not there.
    with pytest.raises(ValueError, match=f"{repo[which]} is not in this machine's cache(.|\n)*hf download"):
        import_tiny(source, tmp_path / "out", encoders, **{which: None})
    assert not (tmp_path / "out").exists()


def test_unsafe_or_wrong_encoders(tmp_path, encoders, tensors):
    source, mark = save_seer(tmp_path / "x.pth", tensors), tmp_path / "mark"

    def refused(message, **paths):
        with pytest.raises(ValueError, match=message):
            import_tiny(source, tmp_path / "out", encoders, **paths)
        assert not mark.exists() and not (tmp_path / "out").exists()

    bomb = tmp_path / "bomb"
    bomb.mkdir()
    torch.save({"model": Bomb(mark)}, bomb / "mae_pretrain_vit_base.pth")
    refused("carries code", mae=bomb)
    # Hugging Face's format, with a pickle for weights.
    hub = tmp_path / "hub"
    read_mae(encoders[0]).save_pretrained(hub)
    (hub / "model.safetensors").unlink()
    torch.save({"embeddings.cls_token": Bomb(mark)}, hub / "pytorch_model.bin")
    refused("image encoder(.|\n)*cannot be read(.|\n)*hf download", mae=hub)
    # A ViT trained on labels has the same names and shapes.
    other = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps({**other, "model_type": "vit"}))
    refused(r"holds a model of type 'vit', not the frozen image encoder(.|\n)*\(vit_mae\)", mae=hub)
    (hub / "config.json").write_text("{")
    refused("config.json is damaged", mae=hub)
    # A program that carries a call beside its tensors.
    clip = tmp_path / "clip"
    shutil.copytree(encoders[1], clip)
    rewrite_script(clip / "ViT-B-32.pt", pickle.dumps(Bomb(mark)))
    refused("carries code: reading it would call", clip=clip)
    (clip / "bpe_simple_vocab_16e6.txt.gz").unlink()
    refused("has no vocabulary: put bpe_simple_vocab_16e6.txt.gz", clip=clip)
    refused(
        "is another model: it lacks cls_token", mae=source_with(tmp_path / "other", {"weight": torch.ones(1)})
    )
    wide = save_mae(tmp_path / "wide", mae_tensors(width=128))
    refused(r"image encoder(.|\n)*hidden_size 128 \(not 64\)", mae=wide)
    small = save_mae(tmp_path / "small", mae_tensors(side=7))
    refused(r"image_size 112 \(not 224\)", mae=small)
    short = save_mae(tmp_path / "short", mae_tensors(layers=1))
    refused(r"image encoder(.|\n)*has num_hidden_layers 1 \(not 2\)\.", mae=short)
    short = save_clip(tmp_path / "short", clip_tensors(layers=1))
    refused(r"text encoder(.|\n)*has num_hidden_layers 1 \(not 2\)\.", clip=short)


def test_encoders_of_the_same_shapes_but_another_model(tmp_path, encoders, tensors):
    source = save_seer(tmp_path / "x.pth", tensors)

    def refused(message, **paths):
        with pytest.raises(ValueError, match=message):
            import_tiny(source, tmp_path / "out", encoders, **paths)

    def configured(part, name, **changes):
        part.save_pretrained(tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return tmp_path / name

    # More heads have the same weights.
    refused(
        r"image encoder(.|\n)*has num_attention_heads 8 \(not 1\)\.",
        mae=configured(read_mae(encoders[0]), "mae", num_attention_heads=8),
    )
    text, tokenizer = read_clip(encoders[1])
    tokenizer.save_pretrained(tmp_path / "clip")
    heads = configured(text, "clip", num_attention_heads=8)
    refused(r"text encoder(.|\n)*has num_attention_heads 8 \(not 1\)\.", clip=heads)
    # CLIP ViT-B/16 has a text tower of ViT-B/32's shapes.
    refused(
        r"patches of 16 px(.|\n)*ViT-B/32(.|\n)*hf download",
        clip=configured(text, "clip", vision_config={"patch_size": 16}),
    )
    refused("patches of 16 px", clip=save_clip(tmp_path / "original", clip_tensors(), patch=16))
    import_tiny(
        source,
        tmp_path / "out",
        (encoders[0], configured(text, "clip", vision_config={"patch_size": 32})),
    )


def test_nothing_is_downloaded_over_another_model(tmp_path, encoders, tensors):
    source = save_seer(tmp_path / "x.pth", tensors)
    mae, clip = tmp_path / "mae", tmp_path / "clip"
    read_mae(encoders[0]).save_pretrained(mae)
    for part in read_clip(encoders[1]):
        part.save_pretrained(clip)
    other = tmp_path / "vit-mae-base"
    shutil.copytree(clip, other)
    for given in (clip, encoders[1], other):
        with pytest.raises(ValueError, match="were --mae and --clip swapped") as error:
            import_tiny(source, tmp_path / "out", (given, mae))
        assert f"--local-dir {given}\n" not in str(error.value)
    assert f"--local-dir {other}-new\n" in str(error.value)
    for given in (mae, encoders[0]):
        with pytest.raises(ValueError, match="were --mae and --clip swapped") as error:
            import_tiny(source, tmp_path / "out", (mae, given))
        assert f"--local-dir {given}\n" not in str(error.value)
    with pytest.raises(ValueError, match=f"pass the folder, --mae {mae}$"):
        import_tiny(source, tmp_path / "out", (mae / "model.safetensors", clip))


def test_damaged_and_halved_encoders_are_refused(tmp_path, encoders, tensors):
    source = save_seer(tmp_path / "x.pth", tensors)

    def refused(message, mae=encoders[0], clip=encoders[1]):
        with pytest.raises(ValueError, match=message):
            import_tiny(source, tmp_path / "out", (mae, clip))

    poisoned = {**mae_tensors(), "norm.weight": torch.full((64,), float("nan"))}
    refused(
        "1 tensors with NaN or infinite numbers, such as layernorm.weight", save_mae(tmp_path / "a", poisoned)
    )
    refused(
        r"it has num_hidden_layers 1 \(not 2\)",
        save_mae(tmp_path / "b", mae_tensors(layers=1)),
    )
    mae, clip = tmp_path / "mae", tmp_path / "clip"
    read_mae(encoders[0]).save_pretrained(mae)
    model, tokenizer = read_clip(encoders[1])
    tokenizer.save_pretrained(clip)
    torch.nn.init.constant_(model.text_projection.weight, float("inf"))
    model.save_pretrained(clip)
    refused("NaN or infinite numbers, such as text_projection.weight", clip=clip)
    for folder, which in ((mae, {"mae": mae}), (clip, {"clip": clip})):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
        refused(r"weights that its config.json does not describe \(1 layers\)", **which)


def source_with(folder, model):
    folder.mkdir()
    torch.save({"model": model}, folder / "mae_pretrain_vit_base.pth")
    return folder


def rewrite_script(path, data):
    """Replace the pickle inside a TorchScript archive."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, data if name.endswith("/data.pkl") else content)


def test_a_full_disk_leaves_nothing(tmp_path, encoders, tensors, monkeypatch):
    source = save_seer(tmp_path / "x.pth", tensors)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importing, "make_seer_pre_post_processors", full)
    with pytest.raises(OSError, match="No space left"):
        import_tiny(source, tmp_path / "new" / "out", encoders)
    assert sorted(tmp_path.iterdir()) == [source]


def test_existing_work_is_not_overwritten(tmp_path, encoders, tensors):
    source = save_seer(tmp_path / "x.pth", tensors)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(ValueError, match="exists already; choose another folder"):
        import_tiny(source, tmp_path / "out", encoders)
    assert (tmp_path / "out" / "precious").read_text() == "x"


# --- the command line


def test_import_beside_training(tmp_path, encoders, tensors, capsys, monkeypatch):
    assert tuple(LAYOUTS) == teacher_import.LAYOUTS
    for name, layout in TINY.items():
        monkeypatch.setitem(LAYOUTS, name, layout)
    source = save_seer(tmp_path / "33.pth", tensors)
    flags = ["--mae", str(encoders[0]), "--clip", str(encoders[1])]
    line = ["teacher", "import", "seer", str(source), str(tmp_path / "out"), *flags]
    assert cli.main(line) == 2
    assert "--layout" in capsys.readouterr().err
    assert cli.main([*line, "--layout", "libero"]) == 0
    shown = capsys.readouterr().out
    assert (
        "136 keys" in shown and "none unknown, none missing" in shown and f"imported: {tmp_path}/out" in shown
    )
    assert load_teacher(tmp_path / "out").chunk_size == 3
    # Training is the verb without a part, and still wants demonstrations.
    with pytest.raises(SystemExit):
        cli.main(["teacher", "--preset", "tiny"])
    assert "required: --demos" in capsys.readouterr().err
    assert cli.main(["teacher", "--demos", "x", "--dry-run"]) == 0
    assert "--policy.type=seer" in capsys.readouterr().out
