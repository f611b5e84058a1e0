"""Several processes give what one gives: DDP through `lerobot-train`, torch's FSDP2 with our wrap units."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lerobot_policy_vita_vla.training.resuming import check_resume
from lerobot_policy_vita_vla.training.sharding import check_fsdp_request, make_mesh
from lerobot_policy_vita_vla.vla.accumulation import AccumulatingAdamW, AccumulatingAdamWConfig
from lerobot_policy_vita_vla.vla.wrap_units import block_classes, wrap_units
from tiny_vlms import build

SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("two")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, made], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return made


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")


def assert_close(one: dict, other: dict, tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=tolerance, rtol=1e-4, msg=name)


def test_two_processes_train_what_one_trains_on_their_samples(folder):
    one, two = weights(folder / "one"), weights(folder / "two")
    # AdamW divides by the gradient's size: where that is nothing but rounding, so is the update.
    assert_close(one, two, 2e-4)


def test_two_processes_finetune_the_language_model_and_nothing_frozen(folder):
    before, after = weights(folder / "two"), weights(folder / "two_finetune")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert any(".text_model.layers." in name for name in changed)
    assert any("network.decoder." in name for name in changed)
    assert not any(".vision_model." in name or ".connector." in name for name in changed)


def test_a_run_of_two_processes_resumes_exactly(folder):
    straight = load_file(folder / "straight" / "pretrained_model" / "model.safetensors")
    assert_close(straight, weights(folder / "two"), 0.0)
    step = json.loads((folder / "two/checkpoints/last/training_state/training_step.json").read_text())
    assert (step["step"], step["num_processes"], step["batch_size"]) == (4, 2, 2)


def test_what_two_processes_trained_is_evaluated(folder):
    found = json.loads((folder / "agreement.json").read_text())
    assert found["n"] == 8 and all(value >= 0 for step in found["mae"] for value in step)


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_sharded_training_gives_the_loss_and_gradients_of_one_process(folder, stage):
    loss, gradients, updated = torch.load(folder / f"whole_{stage}.pt")
    sharded_loss, sharded_gradients, chunk = torch.load(folder / f"sharded_{stage}.pt")
    assert sharded_loss == pytest.approx(loss, rel=1e-5)
    assert_close(gradients, sharded_gradients, 1e-6)
    assert torch.isfinite(chunk).all()
    saved = load_file(folder / f"sharded_{stage}" / "model.safetensors")
    assert_close({k: v for k, v in updated.items() if k in saved}, saved, 2e-3)
    learned = [name for name in gradients if ".vlm." in name]
    assert bool(learned) == (stage == "finetune")


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_each_process_holds_half(folder, stage):
    sizes = json.loads((folder / f"sizes_{stage}.json").read_text())
    assert sizes["held"] < 0.53 * sizes["parameters"]
    _, gradients, _ = torch.load(folder / f"whole_{stage}.pt")
    learned = sum(g.numel() for g in gradients.values())
    # Two states per learned weight, half of them here, and none for what is frozen.
    assert sizes["state_held"] == pytest.approx(learned, rel=0.06)


def test_align_keeps_no_optimizer_state_for_frozen_weights(folder):
    state = folder / "one/checkpoints/last/training_state"
    saved = load_file(state / "optimizer_state.safetensors")
    _, gradients, _ = torch.load(folder / "whole_align.pt")
    assert {name.split(".")[1] for name in gradients} == {"state_encoder", "queries", "mapper"}
    moments = sum(v.numel() for name, v in saved.items() if "exp_avg" in name)
    assert moments == 2 * sum(g.numel() for g in gradients.values())


def tiny_network(vlm: nn.Module) -> nn.Module:
    network = nn.Module()
    network.backbone = nn.Module()
    network.backbone.vlm = vlm
    for part in ("state_encoder", "queries", "mapper", "decoder"):
        setattr(network, part, nn.Linear(2, 2))
    return network


@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_is_in_one_unit_or_in_the_policy_itself(tied):
    network = tiny_network(build("smolvlm", tied=tied)[0])
    units = wrap_units(network)
    held = [id(p) for _, unit in units for p in unit.parameters()]
    assert len(held) == len(set(held))
    rest = {n for n, p in network.named_parameters() if id(p) not in set(held)}
    assert any("embed_tokens" in name for name in rest) == tied
    assert not any(".layers." in name and ".self_attn." in name for name in rest)


def test_a_vlm_without_blocks_is_refused_by_name():
    class Monolith(nn.Module):
        pass

    with pytest.raises(ValueError, match="Monolith cannot be sharded.*--policy.lora_rank=16"):
        block_classes(Monolith())


def test_fsdp2_through_lerobot_train_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    check_fsdp_request()
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match="configs/fsdp.yaml"):
        check_fsdp_request()
    with pytest.raises(ValueError, match="clips gradients in the optimiser"):
        AccumulatingAdamWConfig(accumulation=2, clip_norm=1.0).build([nn.Parameter(torch.ones(1))])


def test_a_mesh_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match="2 replicas x 3 shards are 6 processes, but 1 run"):
        make_mesh("cpu", shards=3, replicas=2)


def written(tmp_path, *, processes=4, batch_size=2, names=(0, 1)) -> Path:
    state = tmp_path / "training_state"
    state.mkdir(parents=True)
    step = {"step": 10, "num_processes": processes, "batch_size": batch_size}
    (state / "training_step.json").write_text(json.dumps(step))
    (state / "optimizer_param_groups.json").write_text(json.dumps([{"lr": 1.0, "params": list(names)}]))
    return tmp_path


def test_resuming_with_other_processes_needs_the_same_samples_per_update(tmp_path, monkeypatch):
    checkpoint = written(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="8 per update; 2 with 2 each are 4.*pass --batch_size=4"):
        check_resume(checkpoint)
    check_resume(checkpoint, batch_size=4)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="start 4 processes, or a number that divides 8"):
        check_resume(checkpoint)
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_resume(checkpoint)


def test_optimizer_states_of_sharded_and_other_runs_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    by_name = written(tmp_path / "a", names=("network.mapper.layers.0.weight",))
    with pytest.raises(ValueError, match="was written under FSDP, and this run does not use it"):
        check_resume(by_name)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_resume(by_name)
    with pytest.raises(ValueError, match="was written without FSDP, and this run uses it"):
        check_resume(written(tmp_path / "b"))
    with pytest.raises(ValueError, match="no training_state/training_step.json"):
        check_resume(tmp_path / "c")


def test_accumulated_batches_make_the_update_of_the_large_batch():
    torch.manual_seed(0)
    start, inputs, labels = torch.randn(5, 3), torch.randn(8, 5), torch.randn(8, 3)

    def run(k: int) -> torch.Tensor:
        weight = nn.Parameter(start.clone())
        optimizer = AccumulatingAdamW([weight], lr=0.1, accumulation=k, clip_norm=0.5)
        for _ in range(3):
            for rows in torch.arange(8).chunk(k):
                (inputs[rows] @ weight - labels[rows]).square().mean().backward()
                before = weight.detach().clone()
                optimizer.step()
                optimizer.zero_grad()
            assert not torch.equal(before, weight) and weight.grad is None
        return weight.detach()

    torch.testing.assert_close(run(4), run(1), atol=1e-6, rtol=1e-5)
