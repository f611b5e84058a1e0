"""What learns in which stage, and how large the added parts are."""

import pytest
import torch

from lerobot_policy_vita_vla.vla.action_modules import ActionMapper, ActionQueries, StateEncoder
from lerobot_policy_vita_vla.vla.align import align_loss
from lerobot_policy_vita_vla.vla.lora import add_adapters
from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy
from lerobot_policy_vita_vla.vla.stages import apply_stage, check_stage_order
from student_helpers import STATS, install_loader, make_batch, make_config, save_teacher
from tiny_vlms import build, save

ADDED = {"state_encoder", "queries", "mapper"}


@pytest.fixture
def paths(tmp_path, monkeypatch):
    install_loader(monkeypatch)
    return save_teacher(tmp_path / "teacher"), tmp_path


def student(paths, family="smolvlm", continued=None, **settings):
    teacher, root = paths
    vlm = root / family
    if not vlm.is_dir():
        save(family, vlm)
    config = make_config(teacher, vlm, **settings)
    if continued is not None:
        continued.save_pretrained(root / "checkpoint")
        return VitaVLAPolicy.from_pretrained(root / "checkpoint", config=config)
    return VitaVLAPolicy(config, dataset_stats=STATS)


@pytest.mark.parametrize(
    ("width", "feature_dim", "millions"), [(3584, 1024, 31.50), (3584, 384, 27.41)], ids=["calvin", "libero"]
)
def test_added_parts_have_the_papers_size(width, feature_dim, millions):
    with torch.device("meta"):
        parts = (
            StateEncoder(state_dim=8, width=width, gripper_dims=(6, 7)),
            ActionQueries(num_queries=3, width=width, shared=True, init_std=0.02),
            ActionMapper(width=width, feature_dim=feature_dim),
        )
    count = sum(p.numel() for part in parts for p in part.parameters())
    assert count == {1024: 31_503_360, 384: 27_405_440}[feature_dim]
    assert round(count / 1e6, 2) == millions


def test_adapters_on_a_tied_model_leave_the_embedding_alone():
    vlm, _ = build("smolvlm", tied=True)
    add_adapters(vlm, rank=2, alpha=4)
    assert not any("lora" in n for n, _ in vlm.get_input_embeddings().named_parameters())
    assert not any("lora" in n for n, _ in vlm.lm_head.named_parameters())


def test_frozen_vlm_stays_in_eval_and_the_language_model_trains_at_finetune(paths):
    align = student(paths)
    align.train()
    assert align.training and not any(m.training for m in align.network.backbone.vlm.modules())
    tuned = student(paths, continued=align, stage="finetune").train()
    base = tuned.network.backbone.vlm.base_model
    assert all(m.training for m in base.get_decoder().modules())
    assert not any(m.training for m in base.get_encoder(modality="image").modules())
    assert not any(m.training for m in tuned.eval().modules())


def test_gradient_checkpointing_gives_the_same_gradients(paths):
    student(paths)  # Writes the VLM's folder, which draws random numbers.
    gradients = []
    for on in (False, True):
        torch.manual_seed(0)
        policy = student(paths, stage="only_finetune", gradient_checkpointing=on).train()
        policy(make_batch())[0].backward()
        gradients.append([p.grad for p in policy.network.parts()["language"].values()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_optimizer_groups_cover_exactly_what_learns(paths):
    align = student(paths)
    assert [group["lr"] for group in align.get_optim_params()] == [1e-3]
    policy = student(paths, continued=align, stage="finetune", lr_language=2e-4)
    added, language = policy.get_optim_params()
    assert (added["lr"], language["lr"]) == (1e-3, 2e-4)
    assert len(language["params"]) == len(policy.network.parts()["language"])
    grouped = [id(p) for group in (added, language) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in policy.parameters() if p.requires_grad)


def test_unknown_stage_and_wrong_order_are_refused(paths):
    with pytest.raises(ValueError, match="unknown stage 'warmup'"):
        apply_stage({}, "warmup")
    with pytest.raises(ValueError, match="--policy.stage must be one of"):
        student(paths, stage="warmup")
    with pytest.raises(ValueError, match="Align first.*only_finetune"):
        student(paths, stage="finetune")
    with pytest.raises(ValueError, match="'only_finetune' cannot start from a checkpoint of stage 'align'"):
        student(paths, continued=student(paths), stage="only_finetune")
    check_stage_order("finetune", "align")


def test_state_encoder_standardises_and_separates_the_gripper():
    encoder = StateEncoder(
        state_dim=4, width=8, gripper_dims=(1,), mean=torch.ones(4), std=torch.tensor([2.0, 2.0, 2.0, 0.0])
    )
    assert [layer.in_features for layer in encoder.inputs] == [3, 1]
    state = torch.tensor([[3.0, 5.0, 1.0, 1.0]])
    arm, gripper = encoder.inputs
    token = encoder.mix(torch.cat([arm(torch.tensor([[1.0, 0.0, 0.0]])), gripper(torch.tensor([[2.0]]))], -1))
    torch.testing.assert_close(encoder(state), token.unsqueeze(1))
    with pytest.raises(ValueError, match="gripper_state_dims"):
        StateEncoder(state_dim=4, width=8, gripper_dims=(4,))
    with pytest.raises(ValueError, match=r"observation.state has shape \(1, 3\), expected \('any', 4\)"):
        encoder(state[:, :3])


def test_one_query_gives_several_steps_in_order():
    mapper = ActionMapper(width=8, feature_dim=5, features_per_query=3)
    hidden = torch.randn(2, 2, 8)
    features = mapper(hidden)
    assert features.shape == (2, 6, 5)
    torch.testing.assert_close(features[:, 3:], mapper(hidden[:, 1:]))
    separate = ActionQueries(num_queries=3, width=8, shared=False, init_std=1.0)(2)
    assert not torch.equal(separate[0, 0], separate[0, 1])
    shared = ActionQueries(num_queries=3, width=8, shared=True, init_std=1.0)(2)
    assert torch.equal(shared[0, 0], shared[0, 2]) and shared.shape == (2, 3, 8)


def test_align_loss_values():
    features, target = torch.zeros(2, 1, 2), torch.tensor([[[3.0, 4.0]], [[-3.0, -4.0]]])
    mse, metrics = align_loss(features, target, kind="mse")
    assert mse.item() == pytest.approx(12.5) and metrics["feature_r2"] == pytest.approx(0.0)
    assert align_loss(features, target, kind="norm")[0].item() == pytest.approx(5.0)
    assert align_loss(target, target, kind="mse")[1]["feature_r2"] == pytest.approx(1.0)
    per_sample, _ = align_loss(features, target, kind="mse", reduction="none")
    torch.testing.assert_close(per_sample, torch.tensor([12.5, 12.5]))
    with pytest.raises(ValueError, match="'mse' or 'norm'"):
        align_loss(features, target, kind="cosine")
