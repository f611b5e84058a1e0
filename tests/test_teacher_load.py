"""`load_teacher`, the ACT adapter, frozen encoders, and LeRobot's factory."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

from lerobot_policy_vita_vla.contracts import PRIVILEGED_STATE, Teacher
from lerobot_policy_vita_vla.conventions import RecordingInfo
from lerobot_policy_vita_vla.teacher.load import load_teacher
from lerobot_policy_vita_vla.teacher.seer.configuration_seer import SeerConfig
from lerobot_policy_vita_vla.teacher.seer.modeling_seer import SeerPolicy
from teacher_helpers import SIZE, features, make_policy, meta, observation, statistics

torch.set_num_threads(1)


def save_with_processors(policy, folder, stats):
    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(policy.config, dataset_stats=stats):
        pipeline.save_pretrained(folder)


@pytest.fixture(scope="module")
def seer_run(tmp_path_factory):
    """A training run's output folder: checkpoints/last/pretrained_model."""
    policy = make_policy(chunk_size=5)
    policy.eval()
    run = tmp_path_factory.mktemp("run")
    save_with_processors(policy, run / "checkpoints" / "000002" / "pretrained_model", statistics())
    (run / "checkpoints" / "last").symlink_to("000002")
    return run, policy


@pytest.mark.parametrize("inside", ["", "checkpoints/last", "checkpoints/000002/pretrained_model"])
def test_seer_as_a_teacher(seer_run, inside):
    run, policy = seer_run
    teacher = load_teacher(run / inside)
    assert isinstance(teacher, Teacher)
    assert (teacher.feature_dim, teacher.chunk_size, teacher.state_dim) == (32, 5, 4)
    assert teacher.cameras == ("observation.image",) and teacher.action_spec.gripper_dims == (3,)
    batch = observation(policy.config)
    chunk = teacher.predict_action_chunk(batch)
    torch.testing.assert_close(chunk, policy.predict_action_chunk(batch))
    features_BTE = teacher.targets(batch).features_BTE
    assert features_BTE.shape == (2, 5, 32) and not features_BTE.requires_grad
    torch.testing.assert_close(teacher.decoder.to_action(teacher.decoder(features_BTE)), chunk)
    assert not any(p.requires_grad for p in teacher.policy.parameters())
    # Of a longer history than its own it takes the end.
    longer = {k: torch.stack([v.flip(0), v], 1) if torch.is_tensor(v) else v for k, v in batch.items()}
    torch.testing.assert_close(teacher.targets(longer).features_BTE, features_BTE)


def test_what_is_no_teacher(seer_run, tmp_path):
    run, _ = seer_run
    with pytest.raises(ValueError, match="no teacher at .*nowhere"):
        load_teacher(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no config.json in .*checkpoints/last/pretrained_model"):
        load_teacher(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"type": "pi0"}))
    with pytest.raises(ValueError, match=r"type 'pi0'.*supported: \['act', 'seer'\]"):
        load_teacher(tmp_path)
    saved = run / "checkpoints" / "last" / "pretrained_model" / "config.json"
    (tmp_path / "config.json").write_text(saved.read_text())
    with pytest.raises(ValueError, match="no model.safetensors"):
        load_teacher(tmp_path)


def make_act(folder, mode, stats, privileged=False):
    torch.manual_seed(0)
    inputs = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)),
        "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
    }
    if privileged:
        inputs[PRIVILEGED_STATE] = PolicyFeature(FeatureType.ENV, (39,))
    config = ACTConfig(
        device="cpu",
        chunk_size=6,
        n_action_steps=6,
        dim_model=32,
        n_heads=4,
        dim_feedforward=64,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        pretrained_backbone_weights=None,
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
        normalization_mapping={
            "VISUAL": NormalizationMode.MEAN_STD,
            "STATE": NormalizationMode.MEAN_STD,
            "ENV": NormalizationMode.MEAN_STD,
            "ACTION": mode,
        },
        push_to_hub=False,
    )
    policy = ACTPolicy(config).eval()
    # A head whose outputs differ, so that scale and offset are put to the test.
    torch.nn.init.normal_(policy.model.action_head.weight)
    save_with_processors(policy, folder, stats)
    return policy


@pytest.fixture(scope="module")
def act_statistics():
    numbers = {
        "mean": torch.tensor([0.1, -2.0, 3.0, 0.0]),
        "std": torch.tensor([0.5, 1.5, 10.0, 1.0]),
        "min": torch.tensor([-1.0, -5.0, -20.0, -1.0]),
        "max": torch.tensor([1.0, 0.0, 40.0, 1.0]),
    }
    picture = {"mean": torch.full((3, 1, 1), 0.4), "std": torch.full((3, 1, 1), 0.2)}
    privileged = {"mean": torch.zeros(39), "std": torch.ones(39)}
    return {
        "action": numbers,
        "observation.state": numbers,
        "observation.image": picture,
        PRIVILEGED_STATE: privileged,
    }


@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX", "IDENTITY"])
def test_act_as_a_teacher(tmp_path, act_statistics, mode):
    policy = make_act(tmp_path, NormalizationMode[mode], act_statistics)
    teacher = load_teacher(tmp_path)
    assert isinstance(teacher, Teacher)
    assert (teacher.feature_dim, teacher.chunk_size, teacher.state_dim) == (32, 6, 4)
    batch = observation(make_policy().config)
    features_BTE = teacher.targets(batch).features_BTE
    assert features_BTE.shape == (2, 6, 32)
    decoded = teacher.decoder.to_action(teacher.decoder(features_BTE))
    # ACT's own way: its preprocessor, its chunk, its postprocessor.
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(tmp_path))
    own = after(policy.predict_action_chunk(before(batch)))
    torch.testing.assert_close(decoded, own, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(teacher.predict_action_chunk(batch), own, atol=1e-4, rtol=1e-5)
    assert not policy.model.action_head._forward_pre_hooks
    assert not teacher.policy.model.action_head._forward_pre_hooks


def test_act_says_how_its_demonstrations_were_recorded_where_that_can_be_found(
    tmp_path, act_statistics, caplog
):
    make_act(tmp_path / "act", NormalizationMode.MEAN_STD, act_statistics)
    for _ in range(2):
        assert load_teacher(tmp_path / "act").recording == {}
    assert caplog.text.count("its conventions are not compared") == 1
    info = RecordingInfo("metaworld", {}, "light", SIZE, 80, "corner2", statistics_hash="of another day")
    info.save(tmp_path / "demos")
    shutil.copytree(tmp_path / "act", tmp_path / "trained")
    named = {"dataset": {"root": str(tmp_path / "demos")}}
    (tmp_path / "trained" / "train_config.json").write_text(json.dumps(named))
    info.statistics_hash = ""
    assert load_teacher(tmp_path / "trained").recording == info.to_dict()


def test_act_that_cannot_teach(tmp_path, act_statistics):
    quantiles = {"q01": torch.zeros(4), "q99": torch.ones(4)}
    stats = {**act_statistics, "action": {**act_statistics["action"], **quantiles}}
    make_act(tmp_path / "quantiles", NormalizationMode.QUANTILES, stats)
    with pytest.raises(ValueError, match="normalises actions by QUANTILES"):
        load_teacher(tmp_path / "quantiles")
    make_act(tmp_path / "privileged", NormalizationMode.MEAN_STD, act_statistics, privileged=True)
    with pytest.raises(ValueError, match="reads observation.environment_state"):
        load_teacher(tmp_path / "privileged")


@pytest.fixture(scope="module")
def frozen_encoders(tmp_path_factory):
    """Folders with a random tiny MAE ViT and a random tiny CLIP text model with its tokenizer."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        ViTMAEConfig,
        ViTMAEModel,
    )

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoders")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTMAEModel(ViTMAEConfig(image_size=SIZE, patch_size=16, **small)).save_pretrained(folder / "mae")
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", *letters, *(f"{c}</w>" for c in letters), "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    text = CLIPTextConfig(
        vocab_size=len(tokens), projection_dim=24, bos_token_id=0, eos_token_id=len(tokens) - 1, **small
    )
    CLIPTextModelWithProjection(text).save_pretrained(folder / "clip")
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder / "clip")
    return folder


def published(folder, **settings):
    torch.manual_seed(0)
    small = {"width": 32, "n_layers": 1, "n_heads": 4, "image_size": SIZE, "foresight_tokens": 4}
    config = SeerConfig(
        preset="base",
        device="cpu",
        vision_encoder=str(folder / "mae"),
        text_encoder=str(folder / "clip"),
        **{**small, **settings},
        **features(size=24),
    )
    return SeerPolicy(config, dataset_stats=statistics(), dataset_meta=meta())


def test_frozen_encoders_are_loaded_frozen_and_saved(frozen_encoders, tmp_path):
    from transformers import ViTMAEModel

    policy = published(frozen_encoders)
    assert policy.config.gripper_state_dims == [3]
    loaded = ViTMAEModel.from_pretrained(frozen_encoders / "mae").state_dict()
    vit = policy.network.image_encoder.vit
    assert all(torch.equal(v, loaded[k]) for k, v in vit.state_dict().items())
    policy.train()
    assert not vit.training and not policy.network.instruction_encoder.model.training
    assert not any(p.requires_grad for p in vit.parameters()) and policy.network.trunk.training
    # The encoder sees whole pictures in order: the same picture gives the same patches, twice.
    picture, text = torch.rand(2, 3, SIZE, SIZE), torch.zeros(2, 24)
    first, second = (policy.network.image_encoder(picture, text)[0] for _ in range(2))
    assert torch.equal(first, second)
    policy.eval()
    batch = observation(policy.config)
    chunk = policy.predict_action_chunk(batch)
    other = policy.predict_action_chunk({**batch, "task": ["close the drawer"] * 2})
    assert not torch.allclose(chunk[0], other[0], atol=1e-6)
    # A checkpoint is complete: it loads where the encoders' folders no longer exist.
    policy.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text().replace(str(frozen_encoders), "/gone")
    (tmp_path / "config.json").write_text(text)
    torch.testing.assert_close(SeerPolicy.from_pretrained(tmp_path).predict_action_chunk(batch), chunk)


def test_frozen_encoders_train_with_foresight(frozen_encoders):
    from teacher_helpers import training_batch

    policy = published(frozen_encoders, n_obs_steps=2).train()
    loss, parts = policy(training_batch(policy.config))
    loss.backward()
    assert parts["loss_foresight"] == pytest.approx(1.0, abs=0.5)
    still = [
        n for n, p in policy.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert still == []


def test_lerobot_finds_and_builds_seer(tmp_path):
    import lerobot_policy_vita_vla  # noqa: F401 - what LeRobot's plugin loader imports

    assert "seer" in PreTrainedConfig.get_known_choices()
    assert get_policy_class("seer") is SeerPolicy and SeerPolicy.name == "seer"
    assert isinstance(make_policy_config("seer", device="cpu"), SeerConfig)


def test_lerobot_builds_it_from_a_dataset(tmp_path):
    import numpy as np
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.factory import make_policy as lerobot_make_policy

    columns = {
        "observation.image": {
            "dtype": "image",
            "shape": (16, 16, 3),
            "names": ["height", "width", "channels"],
        },
        "observation.state": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper_opening"]},
        PRIVILEGED_STATE: {"dtype": "float32", "shape": (39,), "names": None},
        "action": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
    }
    dataset = LeRobotDataset.create(
        "local/tiny", fps=10, features=columns, root=tmp_path / "data", use_videos=False
    )
    rng = np.random.default_rng(0)
    for i in range(6):
        dataset.add_frame(
            {
                "observation.image": rng.integers(0, 255, (16, 16, 3), dtype=np.uint8),
                "observation.state": rng.normal(size=4).astype(np.float32),
                PRIVILEGED_STATE: rng.normal(size=39).astype(np.float32),
                "action": np.r_[rng.uniform(-1, 1, 3), 1 - 2 * (i % 2)].astype(np.float32),
                "task": "open the door",
            }
        )
    dataset.save_episode()
    dataset.finalize()
    config = SeerConfig(device="cpu", width=32, n_heads=4)
    policy = lerobot_make_policy(config, ds_meta=dataset.meta)
    assert config.image_size == 16 and config.action_spec["gripper_dims"] == [3]
    before, _ = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    deltas = {"action": [i / 10 for i in config.action_delta_indices]}
    loaded = LeRobotDataset("local/tiny", root=tmp_path / "data", delta_timestamps=deltas)
    batch = before(torch.utils.data.default_collate([loaded[0], loaded[5]]))
    loss, _ = policy.train()(batch)
    assert torch.isfinite(loss)
    mean = torch.as_tensor(dataset.meta.stats["observation.state"]["mean"]).float()
    torch.testing.assert_close(policy.network.state_mean, mean)
