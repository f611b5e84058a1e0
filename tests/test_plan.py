"""`vita-vla plan`: what is recorded on shapes is what real steps keep and compute."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lerobot_policy_vita_vla.contracts import ActionSpec
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder
from lerobot_policy_vita_vla.training import plan
from lerobot_policy_vita_vla.training.plan_model import (
    INSTRUCTION,
    Task,
    prompt_of,
    task_of_policy,
    task_of_vlm,
)
from lerobot_policy_vita_vla.training.plan_record import Operation, Recorder, measure, shape_of
from lerobot_policy_vita_vla.training.plan_step import Options, record_step
from lerobot_policy_vita_vla.vla.action_modules import ActionMapper, ActionQueries, StateEncoder
from lerobot_policy_vita_vla.vla.backbone import VLMBackbone
from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy
from lerobot_policy_vita_vla.vla.network import VitaVLANetwork
from lerobot_policy_vita_vla.vla.stages import apply_stage
from student_helpers import STATS, install_loader, make_config, save_teacher
from tiny_vlms import build, save
from vita_vla_cli import cli

ROOT = Path(__file__).parents[1]
ROBOT = {"image_px": 200, "state_dim": 8, "action_dim": 7, "chunk_size": 3, "width": 1024}
S, A, T, E, B, H, PX = 4, 4, 3, 16, 3, 3, 32


@pytest.fixture(scope="module")
def paper() -> Task:
    return task_of_vlm("vita-1.5", cameras=2, **ROBOT)


def test_the_7b_shape_has_its_weights_and_the_arithmetic_of_its_formulas(paper):
    """TFLOP per sample at two cameras of 448 px, computed by hand: 2 per weight and token, and attention."""
    task = replace(paper, prefix_tokens=552, patches=2050, pixels=2 * 3 * 448**2)
    align = record_step(task, Options("align", 1, vlm_dtype="bfloat16"))
    assert align.learned == 31_503_360
    assert align.gradients == 4 * align.learned and align.states == 8 * align.learned
    assert 14.5e9 < align.weights < 17e9  # lm_head included
    assert align.flops / 1e12 == pytest.approx(8.85, rel=0.03)
    tuned = record_step(task, Options("finetune", 1))
    assert 7.07e9 < tuned.learned < 7.12e9
    assert tuned.states == 8 * tuned.learned
    assert tuned.flops / 1e12 == pytest.approx(23.46, rel=0.03)


@pytest.fixture(scope="module")
def small():
    """A real student and the task that describes it."""
    vlm, processor = build("smolvlm", image_size=PX)
    vlm.set_attn_implementation("eager")
    backbone = VLMBackbone(vlm, processor)
    spec = ActionSpec(tuple("abcd"), (0.0,) * A, (1.0,) * A, (3,))
    network = VitaVLANetwork(
        backbone=backbone,
        state_encoder=StateEncoder(state_dim=S, width=backbone.width, gripper_dims=(3,)),
        queries=ActionQueries(num_queries=T, width=backbone.width, shared=True, init_std=0.1),
        mapper=ActionMapper(width=backbone.width, feature_dim=E),
        decoder=ActionDecoder(kind="seer", feature_dim=E, spec=spec),
        chunk_size=T,
    )
    backbone.read_histories(num_queries=T, has_state=True)
    return network, described(network, turns=0)


def described(network, turns: int) -> Task:
    """The task of a student that reads ``turns`` steps, or a single one."""
    vlm, processor = network.backbone.vlm, network.backbone.processor
    slots = T, True, ""
    tokens, patches, pixels = prompt_of(vlm.config, processor, [(PX, PX)], turns=turns, slots=slots)
    return Task(
        name="small",
        vlm=vlm.config,
        prefix_tokens=tokens,
        patches=patches,
        pictures=max(turns, 1),
        pixels=pixels,
        state_dim=S,
        chunk_size=T,
        num_queries=T,
        decoder=network.decoder.config(),
        turns=turns,
    )


@pytest.mark.parametrize("turns", [0, H])
@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_recorded_memory_is_what_autograd_keeps(small, stage, turns):
    network = small[0]
    task = described(network, turns)
    apply_stage(network.parts(), stage)
    network.backbone.cached = stage == "align"
    network.train()
    network.backbone.set_mode(stage == "finetune")
    seen = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    kept = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        words = [INSTRUCTION] * B
        if turns:
            pictures, exist = [torch.rand(B, H, 3, PX, PX)], torch.ones(B, H, dtype=torch.bool)
            features = network.step_features(pictures, words, torch.randn(B, H, S), exist)
        else:
            features = network.features([torch.rand(B, 3, PX, PX)], words, torch.randn(B, S))
        if stage == "finetune":
            features = network.decoder(features)
    recorded = record_step(task, Options(stage, B, dtype="float32", on_gpu=False))
    assert recorded.kept == pytest.approx(sum(kept), rel=0.1)
    assert recorded.learned == sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_a_history_keeps_the_whole_prompt_at_align(small):
    """A frozen prefix keeps nothing; slots in every turn make backward pass through all of it."""
    options = Options("align", B, dtype="float32", on_gpu=False)
    single, one, several = (record_step(described(small[0], turns), options) for turns in (0, 1, H))
    assert (
        one.kept > 3 * single.kept and several.kept > H * one.kept
    )  # attention grows faster than the prompt
    assert several.weights == single.weights and several.states == single.states


def test_checkpointing_asks_no_gradients_of_the_frozen_image_encoder(small):
    network, seen = small[0], []
    vlm, backbone = network.backbone.vlm, network.backbone
    apply_stage(network.parts(), "finetune")
    backbone.cached = False
    backbone.checkpoint_gradients()
    network.train()
    backbone.set_mode(True)
    hook = vlm.base_model.get_encoder(modality="image").register_forward_hook(
        lambda module, args, out: seen.append(out.last_hidden_state.requires_grad)
    )
    try:
        features = network.features([torch.rand(B, 3, PX, PX)], ["slide"] * B, torch.randn(B, S))
        network.decoder(features).sum().backward()
    finally:
        hook.remove()
        vlm.gradient_checkpointing_disable()
    assert seen == [False]
    learned = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learned)
    network.zero_grad()


def test_a_checkpoint_is_planned_with_its_own_prompt(tmp_path, monkeypatch):
    install_loader(monkeypatch)
    teacher, vlm = save_teacher(tmp_path / "teacher"), save("smolvlm", tmp_path / "vlm")
    for steps in (1, 2):
        settings = {"preset": "paper-libero", "n_obs_steps": steps, "gripper_state_dims": [3]}
        policy = VitaVLAPolicy(make_config(teacher, vlm, **settings), dataset_stats=STATS)
        policy.save_pretrained(tmp_path / "student")
        task = task_of_policy(tmp_path / "student")
        pictures, exist = [torch.zeros(1, steps, 3, PX, PX)], torch.ones(1, steps, dtype=torch.bool)
        prompt = policy.network.backbone.turns.lay_out(pictures, [INSTRUCTION], exist)
        assert task.prefix_tokens + prompt.columns.numel() == prompt.tokens["input_ids"].shape[1]
        assert (task.turns, task.pictures, task.suffix_tokens) == (steps, steps, 4)
    recorded = record_step(task, Options("align", 2, dtype="float32", on_gpu=False))
    assert recorded.learned == sum(p.numel() for p in policy.parameters() if p.requires_grad)


def test_each_option_saves_what_it_says(small):
    task = small[1]
    base = Options("finetune", 8, dtype="float32")
    full = record_step(task, base)
    less = record_step(task, replace(base, gradient_checkpointing=True))
    assert less.kept < 0.7 * full.kept and less.flops > full.flops and less.weights == full.weights
    lora = record_step(task, replace(base, lora_rank=2))
    assert lora.states < 0.5 * full.states and lora.learned < full.learned
    half = record_step(task, replace(base, vlm_dtype="bfloat16"))
    assert half.weights < 0.6 * full.weights
    cut = record_step(task, replace(base, accumulation=4))
    assert cut.kept == pytest.approx(full.kept / 4, rel=0.1) and cut.flops == pytest.approx(
        full.flops / 4, rel=0.1
    )
    shared = record_step(task, replace(base, devices=4, sharded=True))
    assert shared.states == full.states // 4 and shared.peak < full.peak
    copies = record_step(task, replace(base, devices=4))
    assert copies.peak >= full.peak


def test_a_recorder_counts_what_is_alive():
    recorder = Recorder()
    with recorder:
        a = torch.ones(100)
        b = (a * 2).view(10, 10)
        c = b @ b
        del b
    assert recorder.alive == 4 * (100 + 100) and recorder.peak == 4 * 300
    products = [o for o in recorder.calls if recorder.costs[o].flops]
    assert [recorder.costs[o].flops for o in products] == [2 * 10**3]
    del a, c
    assert recorder.alive == 0


def test_a_larger_product_takes_longer():
    small, large = (shape_of(torch.empty(n, n)) for n in (64, 512))
    assert measure(Operation(torch.mm, (large, large), ()), "cpu") > 20 * measure(
        Operation(torch.mm, (small, small), ()), "cpu"
    )


def test_rows_that_fit_are_cut_and_faster_devices_are_faster(small):
    task = small[1]
    rows = plan.plan(task, stage="finetune", batch_size=8, gib=24, devices=1, speed="rtx4090")
    assert [row.options.lora_rank for row in rows] == [0, 0, 0, 16, 16]
    assert all(row.options.accumulation == 1 for row in rows)
    quick = plan.plan(task, stage="finetune", batch_size=8, gib=24, devices=1, speed="h100")
    assert quick[0].seconds < rows[0].seconds
    cut = record_step(task, replace(rows[0].options, accumulation=4))
    gib = plan.needed_gib(cut, True) * 1.0001
    tight = plan.plan(task, stage="finetune", batch_size=8, gib=gib, devices=1, speed=None)[0]
    assert tight.options.accumulation == 4 and tight.needed_gib <= gib and tight.seconds is None
    assert "--batch_size=2" in tight.flags() and "--policy.accumulation=4" in tight.flags()
    hopeless = plan.plan(task, stage="finetune", batch_size=8, gib=0.001, devices=1, speed=None)
    assert all(row.options.accumulation == 1 and row.needed_gib > 0.001 for row in hopeless)


def test_the_verb_prints_flags_or_says_that_nothing_fits(capsys):
    flags = ["plan", "--vlm", "mini", "--cameras", "1", "--image-px", "96", "--stage", "align"]
    assert cli.main([*flags, "--gpu-memory", "24"]) == 0
    text = capsys.readouterr().out
    assert "use, the most useful first:" in text and "--policy.vlm_dtype=bfloat16" in text
    assert cli.main([*flags, "--gpu-memory", "0.1", "--n-obs-steps", "2"]) == 1
    text = capsys.readouterr().out
    assert "nothing fits" in text and "2 pictures" in text and "in 2 turns" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--vlm", "mini"], "pass --gpu-memory 24"),
        (["--vlm", "mini", "--gpu-memory", "0"], "--gpu-memory must be positive"),
        (["--vlm", "mini", "--gpu-memory", "8", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["--vlm", "mini", "--gpu-memory", "8", "--n-obs-steps", "0"], "--n-obs-steps must be at least 1"),
        (["--vlm", "nowhere", "--gpu-memory", "8"], "neither 'mini', an existing folder nor a hub id"),
        (["--policy", "nowhere", "--gpu-memory", "8"], "--policy nowhere: no such folder"),
        (["--policy", "run", "--gpu-memory", "8", "--image-px", "96"], "leave --image-px out"),
    ],
)
def test_bad_input_is_explained(flags, message, capsys):
    assert cli.main(["plan", *flags]) == 2
    assert message in capsys.readouterr().err


def test_published_errors_are_small():
    file = ROOT / "results" / "plan" / "plan_error.json"
    found = json.loads(file.read_text())
    assert len(found["configurations"]) == 3 and found["largest_error"] <= 0.15
    errors = [c[what]["error"] for c in found["configurations"].values() for what in ("memory", "seconds")]
    assert found["largest_error"] == pytest.approx(max(errors), abs=1e-4)


def test_the_gpu_run_works_in_tiny_shapes(tmp_path):
    out = tmp_path / "step.json"
    command = [sys.executable, ROOT / "runs" / "gpu_step_7b.py", "--tiny", "--repeats", "1", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["align"]["samples_per_second"] > 0
    # The operations were measured on this machine, as `--gpu cpu` does.
    assert all(found[stage]["plan"]["seconds"] > 0 for stage in ("align", "finetune"))
    assert found["finetune"]["trainable_parameters"] > found["align"]["trainable_parameters"]
