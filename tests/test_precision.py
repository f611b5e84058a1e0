"""Eight bits: only in the engine's copy, only where asked for, and written only behind both gates."""

import argparse
import json
import sys

import numpy as np
import pytest
import torch

from engine_helpers import make_network, observe
from lerobot_policy_vita_vla.bench import precision
from lerobot_policy_vita_vla.contracts import ActionSpec
from lerobot_policy_vita_vla.vla import engine as engine_module
from lerobot_policy_vita_vla.vla.engine import Engine
from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy
from student_helpers import CAMERA, PX, STATS, S, install_loader, make_config, save_teacher
from tiny_vlms import save

SPEC = ActionSpec(("x", "y", "gripper"), (0.0, 1.0, 0.0), (1.0, 2.0, 1.0), (2,))


def rounded(network, kind):
    """Stands for torchao where it is not installed: weights of the language model in 8 bits."""
    for layer in network.backbone.vlm.base_model.get_decoder().layers.modules():
        if isinstance(layer, torch.nn.Linear) and kind != "full":
            scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
            layer.weight = torch.nn.Parameter((layer.weight.detach() / scale).round() * scale)
    return network


def test_only_the_engines_copy_is_changed(monkeypatch):
    network = make_network("smolvlm")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    monkeypatch.setattr(engine_module, "quantise", rounded)
    engine, seen = Engine(network, precision="int8"), observe(1, 1)
    with torch.no_grad():
        found, wanted = engine.act(*seen), network.act(*seen)
    assert engine.reason is None
    assert not torch.equal(found, wanted) and torch.allclose(found, wanted, atol=0.1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_torchao_runs_in_the_engine(autocast):
    pytest.importorskip("torchao")
    network = make_network("smolvlm", text={"hidden_size": 64, "intermediate_size": 128})
    engine, seen = Engine(network, precision="int8"), observe(2, 2)
    with torch.no_grad(), torch.autocast("cpu", autocast, enabled=autocast is not None):
        assert torch.allclose(engine.act(*seen), network.act(*seen), atol=0.1)
    assert engine.reason is None


def test_without_torchao_or_a_gpu_there_is_no_silent_full_precision(monkeypatch):
    network, seen = make_network("smolvlm"), observe(1, 1)
    with torch.no_grad():
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "torchao", None)
            with pytest.raises(ValueError, match="needs torchao; install it"):
                Engine(network, precision="int8").act(*seen)
        patched = type(sys)("torchao")
        patched.quantization = None
        monkeypatch.setitem(sys.modules, "torchao", patched)
        with pytest.raises(ValueError, match="compute capability 8.9"):
            Engine(network, precision="float8").act(*seen)
    with pytest.raises(ValueError, match="precision must be one of"):
        Engine(network, precision="int4")


def test_settings_that_exclude_each_other_are_refused(tmp_path):
    teacher, vlm = save_teacher(tmp_path / "teacher"), tmp_path / "vlm"
    with pytest.raises(ValueError, match=r"engine=off leaves out; pass --policy.engine=auto"):
        make_config(teacher, vlm, precision="int8", engine="off")
    with pytest.raises(ValueError, match="policy.precision must be one of"):
        make_config(teacher, vlm, precision="int4")


def test_differences_are_in_scaled_units_and_flips_are_counted():
    reference = np.zeros((2, 2, 3))
    other = reference.copy()
    other[..., 0] += 0.1
    other[..., 1] += 0.2
    reference[..., 2], other[..., 2] = 1.0, 1.0
    other[0, 0, 2] = -1.0
    found = precision.difference(reference, other, SPEC)
    assert found["mean"] == pytest.approx(0.1) and found["flips"] == pytest.approx(0.25)
    assert precision.difference(other, other, SPEC) == {"mean": 0.0, "p99": 0.0, "flips": 0.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    with pytest.MonkeyPatch.context() as patch:
        install_loader(patch)
        torch.manual_seed(0)
        config = make_config(save_teacher(folder / "teacher"), save("smolvlm", folder / "vlm"))
        VitaVLAPolicy(config, dataset_stats=STATS).save_pretrained(folder / "policy")
    return folder / "policy"


def record(folder):
    """Ten frames as LeRobot keeps them."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        CAMERA: {"dtype": "image", "shape": (PX, PX, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (S,), "names": None},
        "action": {"dtype": "float32", "shape": (4,), "names": None},
    }
    made = LeRobotDataset.create("toy", fps=10, features=features, root=folder, use_videos=False)
    draw = np.random.default_rng(0)
    for _ in range(10):
        made.add_frame(
            {
                CAMERA: draw.integers(0, 256, (PX, PX, 3), dtype=np.uint8),
                "observation.state": draw.normal(size=S).astype(np.float32),
                "action": np.zeros(4, np.float32),
                "task": "slide",
            }
        )
    made.save_episode()
    made.finalize()
    return folder


def test_actions_are_compared_and_nothing_is_written_unless_both_gates_pass(
    checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(engine_module, "quantise", rounded)
    parser = argparse.ArgumentParser()
    precision.add_arguments(parser)
    demos, manifest = record(tmp_path / "demos"), tmp_path / "manifest.json"
    before = (checkpoint / "config.json").read_text()

    def run(*flags, low):
        args = parser.parse_args(["--policy", str(checkpoint), "--demos", str(demos), *flags])
        args.toy, args.device = True, "cpu"
        pair = {"difference": low, "low": low, "high": 0.0}
        monkeypatch.setattr(precision, "success", lambda *_: pair)
        return precision.run(args)

    figures = run(low=0.0)
    assert 0 < figures["precision_difference"] < 0.02 and figures["gates"] == {"actions": True}
    assert json.dumps(figures, allow_nan=False)
    both = ("--write", "--manifest", str(manifest))
    with pytest.raises(ValueError, match="--write needs --manifest"):
        run("--write", low=0.0)
    with pytest.raises(ValueError, match="did not pass success"):
        run(*both, low=-0.2)
    with pytest.raises(ValueError, match="did not pass actions"):
        run(*both, "--max-difference", "1e-9", low=0.0)
    assert (checkpoint / "config.json").read_text() == before
    assert run(*both, low=-0.05)["gates"] == {"actions": True, "success": True}
    after = json.loads((checkpoint / "config.json").read_text())
    assert after == json.loads(before) | {"precision": "int8"}
    assert not list(checkpoint.glob(".*"))


def test_policies_that_the_engine_does_not_run_are_refused(checkpoint, tmp_path):
    saved = json.loads((checkpoint / "config.json").read_text())
    for change, message in (({"n_obs_steps": 7}, "reads 7 steps"), ({"type": "act"}, "type 'act'")):
        (tmp_path / "config.json").write_text(json.dumps(saved | change))
        with pytest.raises(ValueError, match=message):
            precision.check_policy(tmp_path)
