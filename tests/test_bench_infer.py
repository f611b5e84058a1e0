"""The inference benchmark: both sides have the same VLM and input, and its figures are the ratios it says."""

import argparse
import json

import pytest
import torch

from lerobot_policy_vita_vla.bench import infer, random_vlm

TOY = random_vlm.SHAPES["smolvlm2-500m"].toy()


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return infer.pair(TOY, "cpu")


def test_a_toy_run_has_every_figure_and_its_work_is_the_formulas():
    parser = argparse.ArgumentParser()
    infer.add_arguments(parser)
    args = parser.parse_args(["--dtypes", "bfloat16", "--device", "cpu"])
    args.rounds, args.toy = 1, True
    figures = infer.run(args)
    json.dumps(figures, allow_nan=False)
    assert set(figures["headline"]) <= set(figures)
    for kind in ("", "_no_vision"):
        title = f"an action chunk, {'without vision' if kind else 'end to end'}, bfloat16"
        ratio = figures["comparisons"][title]["ratios"][f"{infer.THEIRS}/{infer.FAST}"]
        assert figures[f"infer_vs_smolvla{kind}"] == ratio["median"] > 0
    assert figures["infer_flop_error"] < 0.02
    counted = figures["work"]["counted"]
    assert counted[infer.FAST] < counted[infer.PLAIN] < counted[infer.THEIRS]


def test_both_models_have_the_same_vlm_and_react_to_the_same_input(models):
    ours, theirs = models
    mine, other = ours.backbone.vlm.state_dict(), theirs.model.vlm_with_expert.vlm.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    calls, engines, tokens = infer.sides(ours, theirs, TOY, "cpu", "float32")
    torch.manual_seed(1)
    chunks = {side: call() for side, call in calls.items()}
    assert chunks[infer.THEIRS].shape == (1, 50, 7) and chunks[infer.FAST].shape == (1, 3, 7)
    assert chunks[infer.LONG].shape == (1, 50, 7) and engines[0].reason is None
    assert torch.allclose(chunks[infer.PLAIN], chunks[infer.FAST], atol=1e-5)
    assert tokens[infer.FAST] > tokens[infer.THEIRS] > 2 * TOY.image_tokens


def test_without_vision_takes_the_layers_from_both_and_gives_them_back(models):
    ours, theirs = models
    encoders = [m.model.vision_model.encoder for m in (ours.backbone.vlm, theirs.model.vlm_with_expert.vlm)]
    with infer.encoder_of(ours, theirs, 0):
        assert [len(encoder.layers) for encoder in encoders] == [0, 0]
        calls, engines, _ = infer.sides(ours, theirs, TOY, "cpu", "float32")
        calls[infer.FAST]()
        assert engines[0].reason is None
    assert [len(encoder.layers) for encoder in encoders] == [TOY.vision[2]] * 2


def test_a_benchmark_of_an_engine_that_does_not_run_fails(monkeypatch):
    args = argparse.Namespace(dtypes=["float32"], device="cpu", rounds=1, toy=True)
    monkeypatch.setattr("lerobot_policy_vita_vla.vla.engine.TOLERANCE", {torch.float32: -1.0})
    with pytest.raises(ValueError, match="nothing to measure: its action features differ"):
        infer.run(args)
