"""The student as LeRobot sees it: losses, checkpoints, actions."""

import json
import types

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import make_policy
from safetensors.torch import load_file, save_file

import teacher_helpers
from lerobot_policy_vita_vla.conventions import RecordingInfo
from lerobot_policy_vita_vla.vla import checkpoint
from lerobot_policy_vita_vla.vla.augmentation import random_shift
from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig
from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy
from lerobot_policy_vita_vla.vla.processor_vita_vla import make_vita_vla_pre_post_processors
from student_helpers import (
    CAMERA,
    PX,
    STATS,
    TEACHER_CAMERA,
    A,
    FakeTeacher,
    S,
    T,
    install_loader,
    make_batch,
    make_config,
    same_actions,
    save_teacher,
)
from tiny_vlms import save


@pytest.fixture
def paths(tmp_path, monkeypatch):
    install_loader(monkeypatch)
    return save_teacher(tmp_path / "teacher"), save("smolvlm", tmp_path / "vlm"), tmp_path / "checkpoint"


def student(paths, **settings):
    torch.manual_seed(0)
    return VitaVLAPolicy(make_config(*paths[:2], **settings), dataset_stats=STATS)


def reload(paths, policy, *overrides):
    policy.save_pretrained(paths[2])
    config = PreTrainedConfig.from_pretrained(paths[2], cli_overrides=list(overrides))
    return VitaVLAPolicy.from_pretrained(paths[2], config=config)


def steps(policy, n):
    optimizer = torch.optim.AdamW(policy.get_optim_params())
    losses = []
    for _ in range(n):
        policy.train()
        loss, metrics = policy(make_batch())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
        losses.append((loss.item(), metrics))
    return losses


def test_align_learns_the_teachers_features(paths):
    losses = steps(student(paths, lr=5e-3), 60)
    assert losses[-1][0] < 0.5 * losses[0][0]
    assert losses[-1][1]["feature_r2"] > losses[0][1]["feature_r2"]


PINNED = {"align": 0.84275, "finetune": 0.40106, "only_finetune": 0.40106, "freeze_vlm": 0.40106}


@pytest.mark.parametrize("stage", PINNED)
def test_first_loss_of_each_stage(paths, stage):
    policy = student(paths, stage="align" if stage == "finetune" else stage)
    if stage == "finetune":
        policy = reload(paths, policy, "--stage=finetune")
    with torch.no_grad():
        loss, metrics = policy(make_batch())
    assert loss.item() == pytest.approx(PINNED[stage], rel=1e-3)
    assert all(isinstance(value, float) for value in metrics.values())
    per_sample, _ = policy(make_batch(), reduction="none")
    assert per_sample.shape == (4,)


def test_align_term_can_be_kept_at_finetune(paths):
    policy = reload(paths, student(paths), "--stage=finetune", "--align_weight=0.5")
    loss, metrics = policy(make_batch())
    imitation = metrics["loss_arm"] + 0.01 * metrics["loss_gripper"]
    assert loss.item() == pytest.approx(imitation + 0.5 * metrics["loss_align"], rel=0.05)


def test_decoder_starts_from_the_teacher_or_from_scratch(paths):
    teacher = FakeTeacher().decoder.trunk[0].weight
    assert torch.equal(student(paths).network.decoder.trunk[0].weight, teacher)
    scratch = student(paths, stage="only_finetune", decoder_init="scratch")
    assert not torch.equal(scratch.network.decoder.trunk[0].weight, teacher)
    with pytest.raises(ValueError, match="decoder_init must be"):
        student(paths, decoder_init="scratch")
    with pytest.raises(ValueError, match="decoder_init=scratch differs from the checkpoint's teacher"):
        reload(paths, student(paths), "--stage=finetune", "--decoder_init=scratch")


def test_perfect_features_act_like_the_teacher(paths):
    policy, teacher, batch = student(paths), FakeTeacher(), make_batch()
    theirs = batch | {TEACHER_CAMERA: batch[CAMERA]}
    with torch.no_grad():
        features = teacher.targets(theirs).features_BTE
    decoder = policy.network.decoder
    assert torch.equal(decoder.to_action(decoder(features)), teacher.predict_action_chunk(theirs))


def test_damaged_checkpoint_is_refused_by_name(paths):
    policy = student(paths)
    policy.save_pretrained(paths[2])
    weights = load_file(paths[2] / "model.safetensors")
    weights["network.mapper.layers.9.weight"] = weights.pop("network.mapper.layers.0.weight")
    save_file(weights, paths[2] / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing network\.mapper\.layers\.0.*not expected .*layers\.9"):
        VitaVLAPolicy.from_pretrained(paths[2])
    with pytest.raises(ValueError, match="no checkpoint at"):
        VitaVLAPolicy.from_pretrained(paths[2] / "nothing")


def test_checkpoints_from_before_a_setting_existed_go_on_as_they_were_made(paths):
    policy = student(paths).eval()
    policy.save_pretrained(paths[2])
    file = paths[2] / "config.json"
    saved = json.loads(file.read_text())
    older = {k: v for k, v in saved.items() if k not in checkpoint.BEFORE and k != "execute_from"}
    file.write_text(json.dumps(older))
    batch = make_batch()
    loaded = VitaVLAPolicy.from_pretrained(paths[2]).eval()
    assert (loaded.config.preset, loaded.config.one_hot_gripper, loaded.config.execute_from) == (
        "ours",
        False,
        0,
    )
    assert same_actions(loaded.predict_action_chunk(batch), policy.predict_action_chunk(batch))
    config = PreTrainedConfig.from_pretrained(paths[2], cli_overrides=["--one_hot_gripper=true"])
    with pytest.raises(ValueError, match="one_hot_gripper=True differs from the checkpoint's False"):
        VitaVLAPolicy.from_pretrained(paths[2], config=config)
    file.write_text(json.dumps({k: v for k, v in older.items() if k != "decoder_init"}))
    with pytest.raises(ValueError, match="config.json lacks 'decoder_init'"):
        VitaVLAPolicy.from_pretrained(paths[2])


def test_settings_that_shape_the_network_cannot_change(paths):
    for override in ("--num_queries=1", "--shared_queries=false", "--vlm=mini"):
        with pytest.raises(ValueError, match="fixed when"):
            reload(paths, student(paths), override)


def test_reference_checkpoint_leaves_the_frozen_vlm_out(paths):
    policy = student(paths, save_vlm="reference")
    chunk = policy.predict_action_chunk(make_batch())
    loaded = reload(paths, policy)
    assert not any("backbone.vlm" in name for name in load_file(paths[2] / "model.safetensors"))
    assert same_actions(loaded.predict_action_chunk(make_batch()), chunk)
    with pytest.raises(ValueError, match="save_vlm=reference would leave out"):
        make_config(*paths[:2], stage="finetune", save_vlm="reference")
    full = reload(paths, policy, "--stage=finetune", "--save_vlm=full")
    steps(full, 1)
    chunk = full.predict_action_chunk(make_batch())
    assert same_actions(reload(paths, full).predict_action_chunk(make_batch()), chunk)


def test_reference_checkpoint_keeps_adapters(paths):
    policy = reload(paths, student(paths, save_vlm="reference"), "--stage=finetune", "--lora_rank=2")
    steps(policy, 2)
    chunk = policy.predict_action_chunk(make_batch())
    loaded = reload(paths, policy)
    names = load_file(paths[2] / "model.safetensors")
    assert all(".lora_" in name for name in names if "backbone.vlm" in name)
    assert same_actions(loaded.predict_action_chunk(make_batch()), chunk)


def test_average_acts_resumes_exactly_and_starts_the_next_stage(paths):
    policy = student(paths, ema_decay=0.9)
    steps(policy, 3)
    raw = policy.network.queries.vectors.detach().clone()
    batch = make_batch(1)
    chunk = policy.predict_action_chunk(batch)
    averaged = policy.network.queries.vectors.detach().clone()
    assert not torch.equal(raw, averaged)
    # Saved while acting: raw weights and average must not change places.
    resumed = reload(paths, policy)
    assert same_actions(resumed.predict_action_chunk(batch), chunk)
    assert torch.equal(resumed.train().network.queries.vectors, raw)
    assert torch.equal(resumed.ema.updates, policy.ema.updates)
    tuned = reload(paths, policy, "--stage=finetune")
    assert torch.equal(tuned.train().network.queries.vectors, averaged)
    assert tuned.ema.updates == 0 and same_actions(tuned.predict_action_chunk(batch), chunk)
    without = reload(paths, policy, "--stage=finetune", "--ema_decay=0")
    assert without.ema is None and same_actions(without.predict_action_chunk(batch), chunk)


def test_queue_and_ensembling(paths):
    policy = student(paths).eval()
    batches = [make_batch(seed) for seed in range(4)]
    chunks = [policy.predict_action_chunk(batch) for batch in batches]
    got = [policy.select_action(batch) for batch in batches]
    expected = [chunks[0][:, 0], chunks[0][:, 1], chunks[0][:, 2], chunks[3][:, 0]]
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    policy.reset()
    assert torch.equal(policy.select_action(batches[1]), chunks[1][:, 0])
    assert len(policy._action_queue) == T - 1

    config = make_config(*paths[:2], temporal_ensemble_coeff=0.5)
    assert config.n_action_steps == 1
    policy.config = config
    policy.reset()
    policy.select_action(batches[0])
    second = policy.select_action(batches[1])
    weights = torch.tensor([1.0, torch.e**-0.5])
    mean = (weights[0] * chunks[0][:, 1] + weights[1] * chunks[1][:, 0]) / weights.sum()
    torch.testing.assert_close(second, mean)


def test_execution_may_start_at_a_later_action(paths):
    """The paper's code on CALVIN executes the second action of every chunk."""
    policy, batches = student(paths, n_action_steps=1, execute_from=1).eval(), [make_batch(0), make_batch(1)]
    chunks = [policy.predict_action_chunk(batch) for batch in batches]
    got = [policy.select_action(batch) for batch in batches]
    assert all(torch.equal(action, chunk[:, 1]) for action, chunk in zip(got, chunks, strict=True))


def test_padded_steps_do_not_change_the_finetune_loss(paths):
    policy, batch = student(paths, stage="only_finetune"), make_batch()
    loss = policy(batch)[0]
    changed = batch | {"action": batch["action"].clone()}
    changed["action"][-1, -1] = 0.3
    assert torch.equal(policy(changed)[0], loss)
    changed["action"][-1, 0] = 0.3
    assert not torch.equal(policy(changed)[0], loss)


def test_without_state_encoder_the_state_is_not_read(paths):
    policy, batch = student(paths, use_state_encoder=False), make_batch()
    chunk = policy.predict_action_chunk(batch)
    other = {key: value for key, value in batch.items() if key != "observation.state"}
    assert torch.equal(policy.predict_action_chunk(other), chunk)
    assert policy.network.state_encoder is None and "state_encoder" not in policy.trainable


def test_one_query_for_the_whole_chunk(paths):
    policy = student(paths, num_queries=1)
    assert policy.predict_action_chunk(make_batch()).shape == (4, T, A)
    steps(policy, 1)
    with pytest.raises(ValueError, match="multiple of num_queries"):
        student(paths, num_queries=2)


def test_state_statistics_come_from_the_dataset_and_stay_with_the_checkpoint(paths):
    policy = student(paths)
    assert policy.network.state_encoder.state_mean.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert policy.network.state_encoder.state_std.tolist() == [2.0] * S
    policy.save_pretrained(paths[2])
    other = STATS | {"observation.state": {"mean": STATS["observation.state"]["mean"] + 5, "std": 1}}
    loaded = VitaVLAPolicy.from_pretrained(paths[2], dataset_stats=other)
    assert loaded.network.state_encoder.state_mean.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_training_images_are_shifted_alike_for_student_and_teacher(paths, monkeypatch):
    policy, batch = student(paths, image_shift_px=3), make_batch()
    seen = {}
    monkeypatch.setattr(
        policy.network,
        "features",
        lambda images, *rest: seen.setdefault("student", images[0]).sum() * torch.zeros(4, T, 16),
    )
    original = policy._teacher.teacher.targets
    monkeypatch.setattr(
        policy._teacher.teacher,
        "targets",
        lambda batch: seen.setdefault("teacher", batch[TEACHER_CAMERA]) is None or original(batch),
    )
    policy.train()
    policy(batch)
    assert torch.equal(seen["student"], seen["teacher"]) and not torch.equal(seen["student"], batch[CAMERA])
    seen.clear()
    policy.eval()
    policy(batch)
    assert torch.equal(seen["student"], batch[CAMERA])


def test_random_shift_moves_whole_pixels_and_repeats_the_border():
    image = torch.arange(16.0).view(1, 1, 4, 4).expand(64, 3, 4, 4)
    shifted = random_shift(image, 1)
    assert shifted.shape == image.shape and set(shifted.unique().tolist()) == set(range(16))
    assert len({tuple(sample.flatten().tolist()) for sample in shifted}) == 9


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda teacher: setattr(teacher, "chunk_size", 5), "it predicts 5 steps"),
        (lambda teacher: setattr(teacher, "state_dim", 7), "a state of 7 numbers"),
        (lambda teacher: setattr(teacher, "cameras", ("a.wrist", "b.top")), "which camera"),
        (
            lambda teacher: setattr(teacher, "recording", {"camera": "topview"}),
            "camera: recorded with 'corner2'",
        ),
    ],
)
def test_unfit_teacher_is_refused(paths, monkeypatch, change, problem):
    install_loader(monkeypatch, change)
    recording = RecordingInfo("metaworld", {}, "light", 96, 80, "corner2").to_dict()
    with pytest.raises(ValueError, match=problem):
        student(paths, recording=recording)


def test_dataset_on_another_action_scale_is_refused(paths):
    other = STATS | {"action": {"min": STATS["action"]["min"] * 3, "max": STATS["action"]["max"] * 3}}
    with pytest.raises(ValueError, match="does not fit: action 'x'"):
        VitaVLAPolicy(make_config(*paths[:2]), dataset_stats=other)
    student(paths).save_pretrained(paths[2])
    with pytest.raises(ValueError, match="scale actions differently"):
        VitaVLAPolicy.from_pretrained(paths[2], dataset_stats=other)


def test_missing_teacher_and_unknown_chunk_size_are_explained(paths):
    with pytest.raises(ValueError, match="needs the teacher: pass --policy.teacher_path"):
        VitaVLAPolicy(make_config(None, paths[1], chunk_size=T))
    with pytest.raises(ValueError, match="chunk size is unknown"):
        _ = VitaVLAConfig(device="cpu").action_delta_indices
    assert make_config(*paths[:2]).action_delta_indices == [0, 1, 2]


def test_bfloat16_acts_close_to_float32(paths):
    policy, batch = student(paths), make_batch()
    exact = policy.network.features([batch[CAMERA]], batch["task"], batch["observation.state"])
    policy.config.dtype = "bfloat16"
    with policy._autocast():
        half = policy.network.features([batch[CAMERA]], batch["task"], batch["observation.state"])
    assert (half.float() - exact).norm() / exact.norm() < 0.05
    loss, _ = policy(batch)
    loss.backward()
    assert policy.network.queries.vectors.grad.dtype == torch.float32
    held = student(paths, vlm_dtype="bfloat16", dtype="bfloat16")
    assert held.network.backbone.vlm.dtype == torch.bfloat16
    assert held.predict_action_chunk(batch).dtype == torch.float32


def test_pipelines_have_the_steps_that_lerobot_overrides_and_scale_nothing(paths):
    config = make_config(*paths[:2])
    before, after = make_vita_vla_pre_post_processors(config, STATS)
    names = [type(step)._registry_name for step in before.steps]
    wanted = {
        "rename_observations_processor",
        "to_batch_processor",
        "device_processor",
        "normalizer_processor",
    }
    assert wanted <= set(names)
    assert "unnormalizer_processor" in [type(step)._registry_name for step in after.steps]
    batch = make_batch()
    out = before(batch)
    assert torch.equal(out["observation.state"], batch["observation.state"])
    assert torch.equal(out["action"], batch["action"]) and out[CAMERA].shape == (4, 3, PX, PX)
    assert torch.equal(after(batch["action"][:, 0]), batch["action"][:, 0])


def test_seer_teaches_through_lerobots_own_factory(tmp_path):
    """The real teacher, found by path, and both stages made as lerobot-train makes them."""
    seer = teacher_helpers.make_policy(chunk_size=T, n_action_steps=T)
    seer.save_pretrained(tmp_path / "seer" / "checkpoints" / "last" / "pretrained_model")
    names = ["x", "y", "z", "gripper_opening"]
    shapes = {"observation.state": (S,), "action": (A,), TEACHER_CAMERA: (PX, PX, 3)}
    meta = types.SimpleNamespace(
        features={
            key: {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]}
            if len(shape) == 3
            else {"dtype": "float32", "shape": shape, "names": names}
            for key, shape in shapes.items()
        },
        stats=STATS,
        root=tmp_path,
        repo_id="a/b",
    )
    common = {"device": "cpu", "dtype": "float32", "teacher_path": str(tmp_path / "seer")}
    config = VitaVLAConfig(vlm=str(save("smolvlm", tmp_path / "vlm")), **common)
    assert config.chunk_size == T
    align = make_policy(config, ds_meta=meta)
    assert align.config.gripper_state_dims == [3]
    batch = make_batch()
    batch[TEACHER_CAMERA] = batch.pop(CAMERA)
    loss, metrics = align.train()(batch)
    loss.backward()
    assert metrics["feature_r2"] < 1
    align.save_pretrained(tmp_path / "align")
    resumed = PreTrainedConfig.from_pretrained(tmp_path / "align", cli_overrides=["--stage=finetune"])
    resumed.pretrained_path = tmp_path / "align"
    tuned = make_policy(resumed, ds_meta=meta)
    assert same_actions(tuned.predict_action_chunk(batch), align.predict_action_chunk(batch))
    for mine, theirs in zip(
        tuned.network.decoder.parameters(), seer.network.decoder.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs) and mine.requires_grad


def test_another_picture_size_than_the_demonstrations_is_refused(paths):
    policy = student(paths)
    batch = make_batch()
    wide = batch | {CAMERA: torch.zeros(len(batch["task"]), 3, PX, 2 * PX)}
    assert policy.predict_action_chunk(wide).shape[1:] == (T, A)
    policy.config.recording = {"observation_size": PX}
    for act in (policy.predict_action_chunk, policy.select_action):
        with pytest.raises(ValueError, match=f"is {2 * PX}x{PX} pixels .*trained on {PX}x{PX}"):
            act(wide)
    assert policy.predict_action_chunk(batch).shape[1:] == (T, A)
