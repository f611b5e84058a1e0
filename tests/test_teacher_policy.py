"""`SeerPolicy`: LeRobot's contract, losses, checkpoints, moving average."""

from __future__ import annotations

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from safetensors.torch import load_file, save_file

from lerobot_policy_vita_vla.contracts import PRIVILEGED_STATE
from lerobot_policy_vita_vla.conventions import RecordingInfo
from lerobot_policy_vita_vla.teacher.seer.configuration_seer import SeerConfig
from lerobot_policy_vita_vla.teacher.seer.modeling_seer import SeerPolicy
from teacher_helpers import A, features, make_policy, meta, observation, statistics, training_batch

torch.set_num_threads(1)

TWO_CAMERAS = ("observation.images.a", "observation.images.b")


def train_steps(policy, n=3, seed=0):
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    policy.train()
    for i in range(n):
        loss, parts = policy(training_batch(policy.config, seed=i))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        policy.update()
    return loss.item(), parts


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_obs_steps": 2, "cameras": TWO_CAMERAS, "foresight_weight": 0.1, "foresight_tokens": 4},
        {"dtype": "bfloat16", "image_shift_px": 2, "conv_layers": 4},
    ],
)
def test_gradient_reaches_every_trainable_parameter(settings):
    policy = make_policy(**settings).train()
    loss, parts = policy(training_batch(policy.config))
    loss.backward()
    assert torch.isfinite(loss) and {"loss_arm", "loss_gripper", "loss_auxiliary"} <= parts.keys()
    still = [n for n, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_padded_actions_do_not_change_the_loss():
    policy = make_policy(ema_decay=0.0).eval()
    batch = training_batch(policy.config)
    batch["action_is_pad"][0, 1:] = True
    expected, _ = policy(batch)
    batch["action"][0, 1:] = 0.7
    torch.testing.assert_close(policy(batch)[0], expected)
    batch["action"][0, :1] = 0.7
    assert not torch.allclose(policy(batch)[0], expected)


def test_one_loss_per_sample():
    policy = make_policy().eval()
    batch = training_batch(policy.config, batch_size=4)
    per_sample, _ = policy(batch, reduction="none")
    assert per_sample.shape == (4,)
    torch.testing.assert_close(per_sample.mean(), policy(batch)[0])


def test_pinned_loss():
    policy = make_policy(dropout=0.0).eval()
    loss, parts = policy(training_batch(policy.config))
    assert loss.item() == pytest.approx(PINNED["loss"], abs=2e-4)
    assert parts["loss_auxiliary"] == pytest.approx(PINNED["loss_auxiliary"], abs=2e-4)


PINNED = {"loss": 0.83103, "loss_auxiliary": 0.92134}


def test_it_learns():
    policy = make_policy(lr=1e-3)
    batch = training_batch(policy.config, batch_size=8)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    policy.train()
    losses = []
    for _ in range(60):
        loss, _ = policy(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_saved_policy_acts_the_same(tmp_path, ema_decay):
    policy = make_policy(ema_decay=ema_decay, n_obs_steps=2)
    train_steps(policy)
    policy.eval()
    expected = policy.predict_action_chunk(observation(policy.config))
    # LeRobot saves while the policy is in train mode, others while it is in eval mode: the same file.
    policy.save_pretrained(tmp_path / "eval")
    policy.train()
    policy.save_pretrained(tmp_path / "train")
    for name in ("eval", "train"):
        loaded = SeerPolicy.from_pretrained(tmp_path / name)
        assert not loaded.training
        torch.testing.assert_close(loaded.predict_action_chunk(observation(loaded.config)), expected)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("eval", "train"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_resuming_continues_raw_weights_and_average(tmp_path):
    straight = make_policy(ema_decay=0.9)
    train_steps(straight, n=2)
    straight.eval()
    straight.save_pretrained(tmp_path)
    resumed = SeerPolicy.from_pretrained(tmp_path)
    for policy in (straight, resumed):
        train_steps(policy, n=2, seed=1)
    for (name, a), (_, b) in zip(straight.state_dict().items(), resumed.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert straight.ema.updates == 4


def test_the_average_acts_and_the_raw_weights_train():
    policy = make_policy(ema_decay=0.9)
    train_steps(policy)
    raw = policy.network.action_queries.detach().clone()
    policy.eval()
    assert not torch.equal(policy.network.action_queries, raw)
    policy.train()
    assert torch.equal(policy.network.action_queries, raw)


def test_incomplete_weights_are_refused(tmp_path):
    policy = make_policy()
    policy.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    gone = state.pop("network.action_queries")
    save_file({**state, "network.other": gone}, file)
    with pytest.raises(ValueError, match="1 missing .network.action_queries.*1 unexpected .network.other"):
        SeerPolicy.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="no weights"):
        SeerPolicy.from_pretrained(tmp_path)


def test_losses_can_be_switched_off_afterwards(tmp_path):
    policy = make_policy(foresight_weight=0.1)
    policy.save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(
        tmp_path, cli_overrides=["--foresight_weight=0", "--auxiliary_weight=0", "--ema_decay=0"]
    )
    loaded = SeerPolicy.from_pretrained(tmp_path, config=config)
    batch = observation(policy.config)
    torch.testing.assert_close(loaded.predict_action_chunk(batch), policy.predict_action_chunk(batch))


def test_history_of_two_steps():
    policy = make_policy(n_obs_steps=2, n_action_steps=2).eval()
    first, second = (observation(policy.config, seed=i) for i in range(2))
    policy.predict_action_chunk(first)
    with_past = policy.predict_action_chunk(second)
    stacked = {
        key: torch.stack([first[key], second[key]], 1) if torch.is_tensor(second[key]) else second[key]
        for key in second
    }
    torch.testing.assert_close(with_past, policy.chunk_of_history(stacked))
    policy.reset()
    alone = policy.predict_action_chunk(second)
    assert not torch.allclose(alone, with_past)
    # An episode's first observation is repeated, as LeRobot's dataset does.
    repeated = {k: torch.stack([v, v], 1) if torch.is_tensor(v) else v for k, v in second.items()}
    torch.testing.assert_close(alone, policy.chunk_of_history(repeated))


def test_history_also_grows_while_a_chunk_is_executed():
    policy = make_policy(n_obs_steps=2, n_action_steps=2).eval()
    seen = [observation(policy.config, seed=i) for i in range(3)]
    chosen = [policy.select_action(batch) for batch in seen]
    assert chosen[0].shape == (2, A)
    last = {
        k: torch.stack([seen[1][k], seen[2][k]], 1) if torch.is_tensor(seen[2][k]) else seen[2][k]
        for k in seen[2]
    }
    torch.testing.assert_close(chosen[2], policy.chunk_of_history(last)[:, 0])


def test_a_batch_is_predicted_as_its_samples():
    policy = make_policy().eval()
    batch = observation(policy.config)
    together = policy.predict_action_chunk(batch)
    for i in range(2):
        one = {k: v[i : i + 1] for k, v in batch.items()}
        torch.testing.assert_close(policy.predict_action_chunk(one), together[i : i + 1])


def test_what_the_dataset_says_is_kept(tmp_path):
    RecordingInfo("metaworld", {"open": "door-open-v3"}, "light", 32, 80, "corner2").save(tmp_path)
    config = SeerConfig(device="cpu", width=32, n_heads=4, **features())
    policy = SeerPolicy(config, dataset_stats=statistics(), dataset_meta=meta(tmp_path))
    assert config.recording["quality"] == "light" and config.recording["control_hz"] == 80
    assert config.action_spec["names"] == ["x", "y", "z", "gripper"]
    assert (config.action_spec["gripper_dims"], config.action_spec["gripper_kind"]) == ([3], "binary")
    assert PRIVILEGED_STATE not in config.input_features
    torch.testing.assert_close(policy.network.state_std, torch.full((4,), 0.5))
    policy.save_pretrained(tmp_path)
    again = SeerPolicy.from_pretrained(tmp_path)
    assert again.config.recording == config.recording and again.config.action_spec == config.action_spec
    torch.testing.assert_close(again.network.state_mean, policy.network.state_mean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "huge"}, "preset must be one of"),
        ({"n_action_steps": 9}, "n_action_steps must lie in"),
        ({"temporal_ensemble_coeff": 0.01}, "--policy.n_action_steps=1"),
        ({"foresight_weight": 0.1, "image_size": 40}, "--policy.image_size=32"),
        ({"foresight_tokens": 3}, "square number"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        make_policy(**settings)


def test_of_other_simulators_all_privileged_numbers_are_predicted():
    stats = statistics()
    assert make_policy().config.auxiliary_indices == [4, 5, 6, 36, 37, 38], "Meta-World's object and goal"
    stats[PRIVILEGED_STATE] = {key: value[:6] for key, value in stats[PRIVILEGED_STATE].items()}
    policy = SeerPolicy(SeerConfig(device="cpu", **features()), dataset_stats=stats, dataset_meta=meta())
    assert policy.config.auxiliary_indices == list(range(6))
    torch.testing.assert_close(
        policy.network.auxiliary_mean, torch.as_tensor(stats[PRIVILEGED_STATE]["mean"]).float()
    )
    chosen = SeerConfig(device="cpu", auxiliary_indices=[0, 1, 2], **features())
    policy = SeerPolicy(chosen, dataset_stats=stats, dataset_meta=meta())
    assert policy.network.auxiliary_head[-1].out_features == 3


def test_missing_facts_are_named():
    config = SeerConfig(device="cpu", **features())
    with pytest.raises(ValueError, match="--policy.path"):
        SeerPolicy(config)
    stats = statistics()
    del stats[PRIVILEGED_STATE]
    with pytest.raises(ValueError, match="--policy.auxiliary_weight=0"):
        SeerPolicy(SeerConfig(device="cpu", **features()), dataset_stats=stats, dataset_meta=meta())
    policy = make_policy().eval()
    batch = observation(policy.config)
    with pytest.raises(ValueError, match="reads .'observation.image'.*rename_map"):
        policy.predict_action_chunk({k: v for k, v in batch.items() if k != "observation.image"})


def test_schedule_spans_the_run():
    config = SeerConfig(device="cpu", warmup_fraction=0.1, lr=1e-3)
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = config.get_optimizer_preset().build([parameter])
    schedule = config.get_scheduler_preset().build(optimizer, 200)
    rates = []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates.index(max(rates)) in (19, 20) and max(rates) == pytest.approx(1e-3, rel=0.05)
    assert rates[-1] < 2e-5 and rates[100] == pytest.approx(5e-4, rel=0.1)


def test_processors_leave_numbers_alone(tmp_path):
    policy = make_policy()
    before, after = make_pre_post_processors(policy.config, dataset_stats=statistics())
    sample = {k: v[0] for k, v in observation(policy.config).items()}
    batch = before(dict(sample))
    assert batch["observation.image"].shape[0] == 1 and batch["task"] == [sample["task"]]
    torch.testing.assert_close(batch["observation.state"][0], sample["observation.state"])
    chunk = torch.rand(1, A)
    torch.testing.assert_close(after(chunk), chunk)
    # What LeRobot overrides by name when a run starts from a checkpoint has to be there.
    before.save_pretrained(tmp_path)
    after.save_pretrained(tmp_path)
    make_pre_post_processors(
        policy.config,
        pretrained_path=str(tmp_path),
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "normalizer_processor": {"stats": statistics()},
            "rename_observations_processor": {"rename_map": {}},
        },
        postprocessor_overrides={"unnormalizer_processor": {"stats": statistics()}},
    )
