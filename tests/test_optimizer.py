"""The fused update is AdamW's, and is left out where PyTorch cannot do it."""

import pytest
import torch
from lerobot.optim.optimizers import AdamWConfig, OptimizerConfig
from torch import nn

from lerobot_policy_vita_vla.optimizer import FusedAdamWConfig, can_fuse
from lerobot_policy_vita_vla.vla.accumulation import AccumulatingAdamWConfig


def trained(config, steps=5):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))
    groups = [{"params": layers[0].parameters(), "lr": 1e-2}, {"params": layers[2].parameters()}]
    optimizer = config.build([{**group, "params": list(group["params"])} for group in groups])
    x = torch.randn(32, 8)
    for _ in range(steps):
        layers(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer, [p.detach() for p in layers.parameters()]


def test_a_fused_update_is_the_plain_one():
    optimizer, fused = trained(FusedAdamWConfig(lr=1e-3, weight_decay=0.1))
    assert optimizer.defaults["fused"]
    _, plain = trained(AdamWConfig(lr=1e-3, weight_decay=0.1))
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    optimizer, _ = trained(FusedAdamWConfig(fused=False), steps=1)
    assert not optimizer.defaults["fused"]


def test_accumulated_updates_are_fused_too():
    optimizer, _ = trained(AccumulatingAdamWConfig(accumulation=2, clip_norm=1.0), steps=2)
    assert optimizer.defaults["fused"]


def test_it_is_not_fused_where_that_cannot_work(monkeypatch):
    weight = nn.Parameter(torch.ones(2))
    assert can_fuse([weight]) and can_fuse([{"params": [weight]}])
    assert not can_fuse([nn.Parameter(torch.ones(2, device="meta"))])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not can_fuse([weight])


def test_lerobot_finds_it_by_name():
    assert OptimizerConfig.get_choice_class("vita_adamw") is FusedAdamWConfig
    with (
        pytest.raises(ValueError, match="clips gradients in the optimiser"),
        pytest.MonkeyPatch.context() as m,
    ):
        m.setenv("ACCELERATE_USE_FSDP", "true")
        AccumulatingAdamWConfig(accumulation=2, clip_norm=1.0).build([nn.Parameter(torch.ones(1))])
