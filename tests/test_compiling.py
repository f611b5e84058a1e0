"""Compiled layers: the same gradients and names, only where the language model learns, and clear refusals."""

import pytest
import torch
from torch import nn

from lerobot_policy_vita_vla.vla import compiling
from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy
from student_helpers import STATS, install_loader, make_batch, make_config, needs_compiler, save_teacher
from tiny_vlms import save


@pytest.fixture
def student(tmp_path, monkeypatch):
    """Makes a student in stage only_finetune, with the weights of all its others."""
    install_loader(monkeypatch)
    teacher = save_teacher(tmp_path / "teacher")
    save("smolvlm", tmp_path / "vlm")

    def make(**settings) -> VitaVLAPolicy:
        torch.manual_seed(0)
        config = make_config(teacher, tmp_path / "vlm", **({"stage": "only_finetune"} | settings))
        return VitaVLAPolicy(config, dataset_stats=STATS).train()

    return make


def compiled_layers(policy: VitaVLAPolicy) -> int:
    return sum(module._compiled_call_impl is not None for module in policy.network.backbone.vlm.modules())


def gradients(policy: VitaVLAPolicy) -> list[torch.Tensor]:
    policy(make_batch())[0].backward()
    return [p.grad for part in ("language", "adapters") for p in policy.network.parts()[part].values()]


@needs_compiler
@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"lora_rank": 2}], ids=str)
def test_compiled_layers_have_the_same_gradients_and_names(student, settings):
    plain, compiled = student(**settings), student(compile_model=True, **settings)
    wanted, found = gradients(plain), gradients(compiled)
    assert compiled_layers(plain) == 0
    assert compiled_layers(compiled) == compiled.network.backbone.vlm.config.text_config.num_hidden_layers
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    # Acting goes on as before.
    batch = make_batch()
    torch.testing.assert_close(
        compiled.predict_action_chunk(batch), plain.predict_action_chunk(batch), atol=1e-5, rtol=1e-4
    )


def test_a_policy_that_acts_or_whose_vlm_is_frozen_is_not_compiled(student):
    frozen = student(stage="align", compile_model=True)
    frozen(make_batch())
    acting = student(compile_model=True).eval()
    acting.predict_action_chunk(make_batch())
    with torch.no_grad():
        acting(make_batch())
    assert compiled_layers(frozen) == compiled_layers(acting) == 0


def test_a_missing_compiler_is_named_before_anything_is_trained(student, monkeypatch):
    def no_compiler(function):
        raise RuntimeError("no working C++ compiler\nlong trace")

    policy = student(compile_model=True)
    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(ValueError, match=r"RuntimeError: no working C\+\+ compiler\).*compile_model=false"):
        policy(make_batch())
    assert compiled_layers(policy) == 0


def test_a_language_model_without_marked_layers_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        base_model = property(lambda self: self)

        def get_decoder(self):
            return self

    with pytest.raises(ValueError, match="Odd cannot be compiled layer by layer.*compile_model=false"):
        compiling.compile_layers(Odd())
