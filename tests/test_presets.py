"""The paper's presets: what they set, what wins over them, and the schedule of the paper's code."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest
import torch

from lerobot_policy_vita_vla.vla.action_modules import StateEncoder
from lerobot_policy_vita_vla.vla.augmentation import shifted_cameras
from lerobot_policy_vita_vla.vla.configuration_vita_vla import VitaVLAConfig
from lerobot_policy_vita_vla.vla.presets import OURS, PRESETS, RUNS, preset_values
from lerobot_policy_vita_vla.vla.schedule import WarmupDecayConfig

ROOT = Path(__file__).parents[1]


def config(**settings):
    return VitaVLAConfig(device="cpu", chunk_size=3, **settings)


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_every_value_names_its_source_and_is_a_setting():
    fields = {field.name for field in dataclasses.fields(VitaVLAConfig)}
    for name, preset in PRESETS.items():
        assert set(preset) == set(OURS) <= fields, name
        assert all(option.source for option in preset.values())
        # A value of the code without a difference to explain would never be used, or be used unexplained.
        assert all(bool(option.difference) == (option.code is not None) for option in preset.values())


def test_presets_fill_in_and_flags_win():
    ours = config()
    assert (ours.n_obs_steps, ours.align_loss, ours.smooth_l1_beta, ours.grad_clip_norm) == (
        1,
        "mse",
        0.1,
        1.0,
    )
    assert ours.n_action_steps == 3 and ours.temporal_ensemble_coeff is None and not ours.reads_turns
    libero = config(preset="paper-libero")
    assert (libero.n_obs_steps, libero.temporal_ensemble_coeff, libero.n_action_steps) == (7, 0.01, 1)
    assert (libero.align_loss, libero.smooth_l1_beta, libero.gripper_weight) == ("mse", 0.0, 0.01)
    assert libero.schedule_accumulation == 1 and libero.reads_turns
    calvin = config(preset="paper-calvin", preset_follows="code")
    assert (calvin.n_obs_steps, calvin.temporal_ensemble_coeff, calvin.one_hot_gripper) == (10, None, True)
    assert (calvin.align_loss, calvin.smooth_l1_beta, calvin.gripper_weight) == ("norm", 1.0, 0.0)
    assert calvin.schedule_accumulation == 8
    mine = config(preset="paper-libero", align_loss="norm", n_obs_steps=2, n_action_steps=3)
    assert (mine.align_loss, mine.n_obs_steps, mine.smooth_l1_beta) == ("norm", 2, 0.0)
    # Executing whole chunks excludes ensembling, which the preset would have brought.
    assert mine.n_action_steps == 3 and mine.temporal_ensemble_coeff is None


def test_calvin_executes_the_second_action_unless_told_otherwise():
    execution = "n_action_steps", "temporal_ensemble_coeff", "execute_from"

    def executes(**settings):
        made = config(**settings)
        return tuple(getattr(made, name) for name in execution)

    assert executes(preset="paper-calvin") == executes(preset="paper-calvin", preset_follows="code")
    assert executes(preset="paper-calvin") == (1, None, 1)
    assert executes(preset="paper-calvin", execute_from=0) == (1, None, 0)
    # Checkpoints from before the setting existed name how many actions they execute, and began at the first.
    assert executes(preset="paper-calvin", n_action_steps=1) == (1, None, 0)
    assert executes(preset="paper-calvin", temporal_ensemble_coeff=0.01) == (1, 0.01, 0)
    assert executes(execute_from=1) == (2, None, 1)
    with pytest.raises(ValueError, match="averages what several chunks say about the present step"):
        config(preset="paper-libero", execute_from=1)
    with pytest.raises(ValueError, match="pass --policy.n_action_steps=2"):
        config(execute_from=1, n_action_steps=3)


def test_unknown_presets_and_senseless_settings_are_refused():
    for settings, problem in (
        ({"preset": "paper"}, "--policy.preset must be one of .'ours', 'paper-libero', 'paper-calvin'"),
        ({"preset_follows": "both"}, "--policy.preset_follows must be one of"),
        ({"n_obs_steps": 0}, "--policy.n_obs_steps must be at least 1, got 0"),
        ({"schedule": "linear"}, "--policy.schedule must be one of"),
        ({"prompt": "{instruction} {state} {state}"}, "may contain {state} once"),
    ):
        with pytest.raises(ValueError, match=problem):
            config(**settings)


def test_papers_batch_sizes():
    samples = {
        (preset, stage): run.samples_per_update for preset in RUNS for stage, run in RUNS[preset].items()
    }
    assert samples["paper-calvin", "align"] == 512 and samples["paper-calvin", "finetune"] == 256
    assert samples["paper-libero", "align (LIBERO-90)"] == 256
    assert samples["paper-libero", "finetune (Spatial)"] == 128


def rates(steps, **settings):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmupDecayConfig(**settings).build(optimizer, steps)
    out = []
    for _ in range(steps):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return out


def test_schedule_as_meant_and_as_the_code_counts():
    meant = rates(1000)
    assert meant[0] == 0.0 and meant[9] == pytest.approx(math.log(10) / math.log(100))
    assert max(meant) == meant[100] == pytest.approx(1.0) and meant[-1] == pytest.approx(1 / 900)
    # Four micro-batches per update: a warm-up over 40 % of the run, and 5/6 of the peak at its end.
    counted = rates(1000, accumulation=4)
    assert counted.index(max(counted)) == 399 and counted[-1] == pytest.approx(3001 / 3600)
    preset = config(preset="paper-libero", preset_follows="code").get_scheduler_preset()
    assert preset == WarmupDecayConfig(warmup_fraction=0.1, accumulation=4)
    assert type(preset).get_choice_name(type(preset)) == "vita_warmup_decay"


def test_one_hot_gripper_is_the_papers_two_numbers():
    encoder = StateEncoder(
        state_dim=3, width=4, gripper_dims=(2,), mean=torch.full((3,), 9.0), one_hot_gripper=True
    )
    assert [layer.in_features for layer in encoder.inputs] == [2, 2]
    open_, closed = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, -1.0]])
    arm, gripper = encoder.inputs
    for state, one_hot in ((closed, [1.0, 0.0]), (open_, [0.0, 1.0])):
        token = encoder.mix(torch.cat([arm(state[:, :2] - 9.0), gripper(torch.tensor([one_hot]))], -1))
        torch.testing.assert_close(encoder(state), token.unsqueeze(1))
    with pytest.raises(ValueError, match="one_hot_gripper needs one state dimension"):
        StateEncoder(state_dim=3, width=4, gripper_dims=(1, 2), one_hot_gripper=True)


def test_shifts_of_a_history_are_drawn_once_or_for_every_step():
    image = torch.arange(36.0).view(1, 1, 1, 6, 6).expand(8, 5, 3, 6, 6)
    batch = {"observation.images.front": image, "observation.images.wrist": image}
    torch.manual_seed(0)
    together = shifted_cameras(batch, list(batch), pixels=2, wrist_pixels=0, apart=False)
    moved = together["observation.images.front"]
    assert moved.shape == image.shape and all(torch.equal(moved[:, 0], moved[:, h]) for h in range(5))
    assert not torch.equal(moved[0], moved[1]) and torch.equal(together["observation.images.wrist"], image)
    apart = shifted_cameras(batch, list(batch), pixels=2, wrist_pixels=1, apart=True)
    moved = apart["observation.images.front"]
    assert any(not torch.equal(moved[:, 0], moved[:, h]) for h in range(5))
    assert not torch.equal(apart["observation.images.wrist"], image)


def test_preset_page_is_current():
    script = module(ROOT / "scripts" / "preset_page.py")
    assert script.PAGE.read_text() == script.text(), "docs/presets.md is stale: python scripts/preset_page.py"
    assert preset_values("ours", "code") == preset_values("ours", "paper")
