"""Properties of the shared seams: action spec, decoder, loss, chunk execution, weight averaging."""

import math

import pytest
import torch
from torch import nn

from lerobot_policy_vita_vla.chunking import ChunkExecutor, ObservationHistory
from lerobot_policy_vita_vla.contracts import ActionSpec, check_shape
from lerobot_policy_vita_vla.ema import ParameterEMA, fold_average
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder, build_decoder, imitation_loss

SEVEN = ActionSpec(
    names=("x", "y", "z", "rx", "ry", "rz", "gripper"),
    offset=(0.0,) * 7,
    scale=(1.0,) * 7,
    gripper_dims=(6,),
)


def decoder(gripper_dims=(1,), kind="seer") -> ActionDecoder:
    spec = ActionSpec(("x", "gripper", "y"), (0.0, 0.5, 10.0), (1.0, 0.5, 2.0), gripper_dims)
    torch.manual_seed(0)
    return ActionDecoder(kind=kind, feature_dim=8, spec=spec)


@pytest.mark.parametrize(("width", "count"), [(384, 112_327), (1024, 791_047)])
def test_decoder_has_the_papers_size(width, count):
    with torch.device("meta"):
        module = ActionDecoder(kind="seer", feature_dim=width, spec=SEVEN)
    assert sum(p.numel() for p in module.parameters()) == count


def test_gripper_dimension_keeps_its_place_and_takes_two_values():
    module = decoder()
    raw = module(torch.randn(4, 3, 8) * 3)
    assert raw.shape == (4, 3, 3)
    assert raw[..., [0, 2]].abs().max() <= 1.0  # tanh, scaled units
    action = module.to_action(raw)
    assert set(action[..., 1].unique().tolist()) <= {0.0, 1.0}  # offset -+ scale
    torch.testing.assert_close(action[..., 2], raw[..., 2] * 2 + 10)
    torch.testing.assert_close(module.scale_action(action)[..., 2], raw[..., 2])


def test_decoder_round_trips_through_its_config():
    module = decoder()
    again = build_decoder(module.config())
    again.load_state_dict(module.state_dict())
    features = torch.randn(2, 3, 8)
    torch.testing.assert_close(again(features), module(features))
    assert again.spec == module.spec


def test_loss_is_the_formula_on_a_hand_made_case():
    module = decoder()
    raw = torch.tensor([[[0.5, 2.0, 0.0]]])
    action = torch.tensor([[[0.0, 1.0, 12.0]]])  # scaled: 0, +1, 1
    loss, parts = imitation_loss(
        module, raw, action, torch.zeros(1, 1, dtype=torch.bool), beta=1.0, gripper_weight=0.01
    )
    arm = (0.5 * 0.5**2 + 0.5 * 1.0**2) / 2
    gripper = math.log(1 + math.exp(-2.0))
    assert parts["loss_arm"] == pytest.approx(arm, abs=1e-6)
    assert parts["loss_gripper"] == pytest.approx(gripper, abs=1e-6)
    assert loss.item() == pytest.approx(arm + 0.01 * gripper, abs=1e-6)


def test_padded_steps_do_not_count():
    module, raw = decoder(), torch.randn(3, 4, 3)
    action, pad = torch.rand(3, 4, 3), torch.zeros(3, 4, dtype=torch.bool)
    pad[0, 2:] = True
    want, _ = imitation_loss(module, raw, action, pad, beta=0.1, gripper_weight=0.01)
    action[0, 2:] += 100.0
    got, _ = imitation_loss(module, raw, action, pad, beta=0.1, gripper_weight=0.01)
    torch.testing.assert_close(got, want)
    each, _ = imitation_loss(module, raw, action, pad, beta=0.1, gripper_weight=0.01, reduction="none")
    steps = torch.tensor([2.0, 4.0, 4.0])
    torch.testing.assert_close((each * steps).sum() / steps.sum(), want)


def test_spec_from_statistics():
    stats = {
        "min": [-0.9, -1.0, 3.0],
        "max": [1.0, 1.0, 7.0],
        "mean": [0.1, 0.2, 5.0],
        "std": [0.4, 0.96**0.5, 1.0],  # of 60 % at 1 and 40 % at -1
    }
    spec = ActionSpec.from_stats(["x", "gripper", "joint"], stats)
    assert spec.gripper_dims == (1,) and spec.binary_dims == (1,)
    assert spec.offset == (0.0, 0.0, 5.0) and spec.scale == (1.0, 1.0, 2.0)
    width = ActionSpec.from_stats(["x", "gripper", "joint"], stats | {"std": [0.4, 0.9, 1.0]})
    assert width.gripper_kind == "continuous" and width.binary_dims == ()
    assert ActionSpec.from_dict(spec.to_dict()) == spec


def test_a_gripper_that_never_moved_is_regressed():
    ones = {"min": [1.0], "max": [1.0], "mean": [1.0], "std": [0.0]}
    spec = ActionSpec.from_stats(["gripper"], ones)
    assert spec.gripper_kind == "continuous" and spec.scale == (1.0,) and spec.offset == (0.0,)


def test_bad_specs_are_named():
    with pytest.raises(ValueError, match="positive"):
        ActionSpec(("x",), (0.0,), (0.0,))
    with pytest.raises(ValueError, match=r"gripper dimensions \[3\]"):
        ActionSpec(("x",), (0.0,), (1.0,), (3,))
    with pytest.raises(ValueError, match="shape"):
        check_shape("thing", torch.zeros(2, 3), 2, 4)


def test_queue_replays_the_chunk_then_asks_again():
    executor, asked = ChunkExecutor(chunk_size=3, n_action_steps=2), []

    def predict():
        asked.append(1)
        return torch.arange(3.0).view(1, 3, 1) + 10 * len(asked)

    actions = [executor.next_action(predict).item() for _ in range(5)]
    assert actions == [10, 11, 20, 21, 30]
    executor.reset()
    assert executor.next_action(predict).item() == 40


def test_execution_starts_where_it_is_told_to():
    executor, asked = ChunkExecutor(chunk_size=4, n_action_steps=2, execute_from=1), []

    def predict():
        asked.append(1)
        return torch.arange(4.0).view(1, 4, 1) + 10 * len(asked)

    assert [executor.next_action(predict).item() for _ in range(3)] == [11, 12, 21]
    executor = ChunkExecutor(chunk_size=3, n_action_steps=1, execute_from=1)  # the paper's code on CALVIN
    chunks = (torch.tensor([[[0.0], [n], [9.0]]]) for n in (5.0, 6.0))
    assert [executor.next_action(lambda: next(chunks)).item() for _ in range(2)] == [5, 6]


def test_ensembling_weighs_overlapping_predictions():
    executor = ChunkExecutor(chunk_size=2, n_action_steps=1, ensemble_coeff=math.log(3))
    first = executor.next_action(lambda: torch.tensor([[[1.0], [2.0]]]))
    second = executor.next_action(lambda: torch.tensor([[[6.0], [0.0]]]))
    assert first.item() == 1.0
    # oldest (2.0) has weight 1, newest (6.0) weight exp(-log 3) = 1/3
    assert second.item() == pytest.approx((2.0 + 6.0 / 3) / (4 / 3))


def test_ensembling_agrees_with_lerobots():
    from lerobot.policies.act.modeling_act import ACTTemporalEnsembler

    theirs = ACTTemporalEnsembler(0.01, 4)
    ours = ChunkExecutor(chunk_size=4, n_action_steps=1, ensemble_coeff=0.01)
    torch.manual_seed(0)
    for _ in range(9):
        chunk = torch.randn(2, 4, 3)
        torch.testing.assert_close(ours.next_action(lambda c=chunk: c), theirs.update(chunk))


def test_contradicting_chunk_settings_are_refused():
    with pytest.raises(ValueError, match="1..chunk_size"):
        ChunkExecutor(chunk_size=3, n_action_steps=4)
    with pytest.raises(ValueError, match="n_action_steps must be 1"):
        ChunkExecutor(chunk_size=3, n_action_steps=2, ensemble_coeff=0.01)
    with pytest.raises(ValueError, match="from index 2 .* pass --policy.n_action_steps=1"):
        ChunkExecutor(chunk_size=3, n_action_steps=2, execute_from=2)
    with pytest.raises(ValueError, match="pass --policy.execute_from=2"):
        ChunkExecutor(chunk_size=3, n_action_steps=1, execute_from=3)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        ChunkExecutor(chunk_size=3, n_action_steps=1, execute_from=-1)
    with pytest.raises(ValueError, match="averages what several chunks say about the present step"):
        ChunkExecutor(chunk_size=3, n_action_steps=1, ensemble_coeff=0.01, execute_from=1)


def test_history_starts_by_repeating_the_first_observation():
    history = ObservationHistory(n_obs_steps=3, keys=("s",))
    assert history.push({"s": torch.tensor([1.0])})["s"].tolist() == [[1.0, 1.0, 1.0]]
    history.push({"s": torch.tensor([2.0])})
    batch = history.push({"s": torch.tensor([3.0]), "task": ["a"]})
    assert batch["s"].tolist() == [[1.0, 2.0, 3.0]] and batch["task"] == ["a"]
    history.reset()
    assert history.push({"s": torch.tensor([9.0])})["s"].tolist() == [[9.0, 9.0, 9.0]]


def test_average_swaps_in_and_out_and_folds():
    layer = nn.Linear(2, 1)
    ema = ParameterEMA([(f"layer.{n}", p) for n, p in layer.named_parameters()], decay=0.5)
    start = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1.0
    ema.update()  # decay min(0.5, 2 / 11)
    expected = start + (1 - 2 / 11)
    ema.activate(True)
    torch.testing.assert_close(layer.weight.data, expected)
    ema.activate(False)
    torch.testing.assert_close(layer.weight.data, start + 1.0)

    state = {f"layer.{k}": v for k, v in layer.state_dict().items()}
    state |= {f"ema.{k}": v for k, v in ema.state_dict().items()}
    assert fold_average(state, keep=True) is state
    folded = fold_average(state)
    assert set(folded) == {"layer.weight", "layer.bias"}
    torch.testing.assert_close(folded["layer.weight"], expected)
