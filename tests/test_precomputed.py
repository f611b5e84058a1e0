"""Teacher and vision features that were computed before training: the same losses, or a refusal."""

import json
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lerobot.datasets import LeRobotDataset
from safetensors.torch import save_file

from lerobot_policy_vita_vla.contracts import TEACHER_FEATURES
from lerobot_policy_vita_vla.demos.check import check_dataset
from lerobot_policy_vita_vla.demos.findings import ERROR
from lerobot_policy_vita_vla.demos.fingerprint import fingerprint
from lerobot_policy_vita_vla.training.frame_cache import CachedDataset
from lerobot_policy_vita_vla.training.launch import reads_pictures, refuse_augmented
from lerobot_policy_vita_vla.training.teacher_features import add_teacher_features
from lerobot_policy_vita_vla.training.vision_features import store_vision
from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy
from lerobot_policy_vita_vla.vla.precomputed import TEACHER_RECORD, VISION_DATA
from student_helpers import CAMERA, PX, STATS, A, E, S, T, install_loader, make_config, save_teacher
from tiny_vlms import save

FPS = 10
AHEAD = {"action": [i / FPS for i in range(T)]}


def record(root, seed=0):
    features = {
        CAMERA: {"dtype": "image", "shape": (PX, PX, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (S,), "names": list("abcd")},
        "action": {"dtype": "float32", "shape": (A,), "names": ["x", "y", "z", "gripper"]},
    }
    dataset = LeRobotDataset.create("local/d", FPS, features, root=root, use_videos=False)
    draw = np.random.default_rng(seed)
    for episode in range(2):
        for _ in range(4):
            frame = {CAMERA: draw.integers(0, 256, (PX, PX, 3), np.uint8)}
            frame |= {"observation.state": draw.normal(size=S).astype(np.float32)}
            action = draw.uniform(-1, 1, A).astype(np.float32)
            action[3] = np.sign(action[3])
            dataset.add_frame(frame | {"action": action, "task": ["push", "open a door"][episode]})
        dataset.save_episode()
    dataset.finalize()
    (root / "meta" / "ours.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Demonstrations, a teacher, a VLM, and both kinds of features."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        install_loader(patch)
        demos = record(folder / "demos")
        teacher = save_teacher(folder / "teacher")
        save_file({"a": torch.zeros(1)}, teacher / "model.safetensors")
        torch.manual_seed(0)
        vlm = save("smolvlm", folder / "vlm")
        taught = add_teacher_features(demos, str(teacher), folder / "taught", batch_size=3)
        vision = store_vision(demos, folder / "vision", vlm=str(vlm), dtype="float32", batch_size=3)
        yield SimpleNamespace(
            folder=folder, demos=demos, teacher=teacher, vlm=vlm, taught=taught, vision=vision
        )


@pytest.fixture
def loader(monkeypatch):
    install_loader(monkeypatch)


def dataset(root):
    return LeRobotDataset("local/d", root=root, delta_timestamps=AHEAD, return_uint8=True)


def policy(made, root, **settings):
    torch.manual_seed(1)
    config = make_config(made.teacher, made.vlm, **settings)
    return VitaVLAPolicy(config, STATS, dataset_meta=dataset(root).meta).train()


def batch(root, rows=(0, 3, 5), pictures=True):
    found = CachedDataset(dataset(root), pictures=pictures).__getitems__(list(rows))
    return {k: v.float() / 255 if k == CAMERA else v for k, v in found.items()}


def loss_and_gradients(student, data):
    torch.manual_seed(2)
    loss, _ = student.forward(data)
    loss.backward()
    return loss, {n: p.grad for n, p in student.named_parameters() if p.requires_grad}


def same(one, other):
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert (gradient is None) == (other[1][name] is None), name
        if gradient is not None:
            torch.testing.assert_close(gradient, other[1][name], rtol=0, atol=0)


def test_align_on_stored_teacher_features_is_align_without_the_teacher(made, loader, monkeypatch):
    plain = loss_and_gradients(policy(made, made.demos), batch(made.demos))
    student = policy(made, made.taught)
    monkeypatch.setattr(type(student._teacher.teacher), "targets", lambda *_: pytest.fail("teacher ran"))
    same(plain, loss_and_gradients(student, batch(made.taught)))
    assert TEACHER_FEATURES not in student.config.input_features


@pytest.mark.parametrize("stage", ["align", "only_finetune"])
def test_stored_vision_features_give_exactly_the_same_step(made, loader, stage, monkeypatch):
    plain = loss_and_gradients(policy(made, made.demos, stage=stage), batch(made.demos))
    student = policy(made, made.demos, stage=stage, vision_features=str(made.vision))
    encoder = student.network.backbone.vlm.base_model
    monkeypatch.setattr(encoder, "get_image_features", lambda **_: pytest.fail("the encoder ran"))
    same(plain, loss_and_gradients(student, batch(made.demos)))


def test_with_both_no_picture_is_read_at_all(made, loader):
    plain = loss_and_gradients(policy(made, made.demos), batch(made.demos))
    student = policy(made, made.taught, vision_features=str(made.vision))
    data = batch(made.taught, pictures=False)
    assert CAMERA not in data
    same(plain, loss_and_gradients(student, data))


def test_frozen_parts_get_no_gradient_and_the_vocabulary_head_no_call(made, loader, monkeypatch):
    for stage in ("align", "only_finetune"):
        student = policy(made, made.demos, stage=stage)
        vlm = student.network.backbone.vlm
        head = vlm.get_output_embeddings()
        monkeypatch.setattr(type(head), "forward", _never(head, type(head).forward))
        loss_and_gradients(student, batch(made.demos))
        frozen = [n for n, p in student.named_parameters() if not p.requires_grad]
        assert any(".vision_model." in name for name in frozen)
        named = dict(student.named_parameters())
        assert all(named[name].grad is None for name in frozen)


def _never(head, plain):
    def forward(self, *args):
        assert self is not head, "lm_head was called"
        return plain(self, *args)

    return forward


def test_the_copy_keeps_everything_else(made):
    assert (made.taught / "meta" / "ours.json").is_file()
    assert fingerprint(made.taught) == fingerprint(made.demos)
    assert dataset(made.taught).meta.features[TEACHER_FEATURES]["shape"] == (T * E,)
    assert len(dataset(made.taught)) == 8
    stats = dataset(made.taught).meta.stats[TEACHER_FEATURES]
    column = batch(made.taught, range(8))[TEACHER_FEATURES].numpy()
    np.testing.assert_allclose(stats["mean"], column.mean(0), rtol=1e-4, atol=1e-5)
    assert stats["count"] == [8] and stats["std"].shape == (T * E,)
    assert not [f.what for f in check_dataset(made.taught) if f.level == ERROR]
    assert not made.taught.with_name("taught.partial").exists()


def test_features_of_something_else_are_refused(made, loader, tmp_path):
    other = save_teacher(tmp_path / "other")
    save_file({"a": torch.ones(1)}, other / "model.safetensors")
    elsewhere = record(tmp_path / "elsewhere", seed=1)
    assert fingerprint(elsewhere) != fingerprint(made.demos)
    with pytest.raises(ValueError, match="come from another teacher than .*other.*vita-vla teacher features"):
        policy(SimpleNamespace(teacher=other, vlm=made.vlm), made.taught)
    with pytest.raises(ValueError, match="of other demonstrations; make it again: rm -r"):
        policy(made, elsewhere, vision_features=str(made.vision))
    student = policy(made, made.demos, vision_features=str(made.vision))
    next(iter(student.network.backbone.parts()["vision"].values())).data += 1
    with pytest.raises(ValueError, match="by another image encoder"):
        student.forward(batch(made.demos))
    with pytest.raises(ValueError, match=r"precision than this student's \(dtype=bfloat16\)"):
        student = policy(made, made.demos, vision_features=str(made.vision), dtype="bfloat16")
        student.forward(batch(made.demos))
    for settings in ({}, {"vision_features": str(made.vision)}):
        with pytest.raises(ValueError, match="shifts them at random; pass --policy.image_shift_px=0"):
            policy(made, made.demos if settings else made.taught, image_shift_px=2, **settings)
    with pytest.raises(ValueError, match="prompts of one step"):
        policy(made, made.demos, vision_features=str(made.vision), n_obs_steps=2)
    with pytest.raises(ValueError, match="no stored vision features at .*nowhere"):
        policy(made, made.demos, vision_features=str(tmp_path / "nowhere"))


def test_a_record_that_is_lost_or_a_file_that_is_cut_off_is_refused(made, loader, tmp_path):
    bare = shutil.copytree(made.taught, tmp_path / "bare")
    (bare / TEACHER_RECORD).unlink()
    with pytest.raises(ValueError, match="no meta/teacher_features.json that says which teacher"):
        policy(made, bare)
    cut = shutil.copytree(made.vision, tmp_path / "cut")
    with (cut / VISION_DATA).open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="cut off or missing, expected"):
        policy(made, made.demos, vision_features=str(cut))


def test_the_size_is_said_and_a_full_disk_refused(made, tmp_path, caplog):
    with (
        caplog.at_level(logging.INFO, logger="lerobot_policy_vita_vla"),
        pytest.raises(ValueError, match="more than 0% of the free disk. Take more with --disk-share"),
    ):
        store_vision(made.demos, tmp_path / "v", vlm=str(made.vlm), dtype="float32", disk_share=1e-12)
    assert "8 frames of" in caplog.text and not (tmp_path / "v").exists()
    with pytest.raises(ValueError, match="exists already"):
        store_vision(made.demos, made.vision, vlm=str(made.vlm))
    with pytest.raises(ValueError, match="exists already"):
        add_teacher_features(made.demos, str(made.teacher), made.taught)


def test_a_family_that_uses_images_elsewhere_too_is_refused(made, tmp_path):
    torch.manual_seed(0)
    vlm = save("qwen3_vl", tmp_path / "vlm")
    with pytest.raises(ValueError, match="uses image features in other places than the prompt"):
        store_vision(made.demos, tmp_path / "v", vlm=str(vlm), dtype="float32")
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("family", ["internvl", "idefics3", "qwen2_5_vl"])
def test_other_families_store_what_they_see(made, tmp_path, family):
    torch.manual_seed(0)
    vlm = save(family, tmp_path / "vlm")
    # It compares hidden states with those of pixels before it writes.
    stored = store_vision(made.demos, tmp_path / "v", vlm=str(vlm), dtype="float32")
    assert json.loads((stored / "features.json").read_text())["rows"] == 8


def test_pictures_are_left_out_only_where_nobody_reads_them(made, tmp_path):
    vision = "--policy.vision_features=x"
    taught, demos = (f"--dataset.root={root}" for root in (made.taught, made.demos))
    assert reads_pictures(["--policy.stage=align", demos])
    assert reads_pictures(["--policy.stage=align", demos, vision])
    assert not reads_pictures(["--policy.stage=align", taught, vision])
    assert not reads_pictures(["--policy.stage=only_finetune", demos, vision])
    assert reads_pictures(["--policy.stage=finetune", demos, vision, "--policy.align_weight=0.1"])
    (tmp_path / "config.json").write_text(json.dumps({"align_weight": 0.5}))
    assert reads_pictures(["--policy.stage=finetune", f"--policy.path={tmp_path}", demos, vision])
    assert reads_pictures(["--policy.stage=finetune", "--policy.vision_features=null", demos])


def test_lerobots_transforms_are_refused_beside_stored_features(made):
    enabled = "--dataset.image_transforms.enable=true"
    vision = "--policy.vision_features=x"
    taught, demos = (f"--dataset.root={root}" for root in (made.taught, made.demos))
    refuse_augmented([enabled, demos])
    refuse_augmented([taught, vision])
    with pytest.raises(ValueError, match="but policy.vision_features were computed"):
        refuse_augmented([enabled, demos, vision])
    with pytest.raises(ValueError, match="but observation.teacher_features were computed"):
        refuse_augmented([enabled, taught])
