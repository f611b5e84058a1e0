"""The inference engine behind the policy that LeRobot sees."""

import copy
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lerobot_policy_vita_vla.evaluation.predictor import PolicyPredictor
from lerobot_policy_vita_vla.vla.modeling_vita_vla import VitaVLAPolicy
from lerobot_policy_vita_vla.vla.processor_vita_vla import make_vita_vla_pre_post_processors
from student_helpers import (
    CAMERA,
    PX,
    STATS,
    TASKS,
    S,
    install_loader,
    make_batch,
    make_config,
    save_teacher,
)
from tiny_vlms import save

ROOT = Path(__file__).parents[1]
LOGGER = "lerobot_policy_vita_vla.vla.engine"


@pytest.fixture
def paths(tmp_path, monkeypatch):
    install_loader(monkeypatch)
    return save_teacher(tmp_path / "teacher"), save("smolvlm", tmp_path / "vlm")


def student(paths, **settings):
    torch.manual_seed(0)
    return VitaVLAPolicy(make_config(*paths, **settings), dataset_stats=STATS).eval()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_engine_and_plain_path_act_alike(paths, dtype):
    fast, plain = (student(paths, engine=mode, dtype=dtype) for mode in ("auto", "off"))
    batch = make_batch()
    atol = 1e-5 if dtype == "float32" else 2e-2
    found, wanted = (policy.predict_action_chunk(batch) for policy in (fast, plain))
    assert fast.engine.reason is None and fast.engine._programs and not plain.engine._programs
    assert torch.allclose(found, wanted, atol=atol)
    assert torch.allclose(fast.select_action(batch), plain.select_action(batch), atol=atol)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    # A copy acts for itself.
    twin = copy.deepcopy(fast)
    assert twin.engine is not fast.engine and twin.engine.network is twin.network
    assert torch.equal(twin.predict_action_chunk(batch), found)


def test_training_between_predictions_is_followed(paths):
    policy = student(paths, ema_decay=0.5)
    batch = make_batch()
    before = policy.predict_action_chunk(batch)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=0.01)
    for _ in range(2):
        policy.train()
        policy(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
    after = policy.eval().predict_action_chunk(batch)
    assert not torch.allclose(before, after, atol=1e-3)
    policy.engine.give_up("the test asks for the plain path")
    assert torch.allclose(policy.predict_action_chunk(batch), after, atol=1e-5)


def test_histories_say_once_that_they_go_the_plain_way(paths, caplog):
    policy = student(paths, n_obs_steps=2, n_action_steps=1)
    batch = make_batch(size=1)
    with caplog.at_level(logging.WARNING, LOGGER):
        for _ in range(3):
            policy.select_action(batch)
    messages = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert len(messages) == 1 and "several turns" in messages[0]


@pytest.mark.parametrize("settings", [{}, {"n_obs_steps": 2, "n_action_steps": 1}])
def test_an_evaluation_hands_pictures_on_as_bytes_without_another_result(paths, settings, monkeypatch):
    policy = student(paths, **settings)
    processors = make_vita_vla_pre_post_processors(policy.config)
    draw, lead = np.random.default_rng(0), (2,) if settings else ()
    seen = [
        {
            "pixels": draw.integers(0, 256, (*lead, PX, PX, 3), dtype=np.uint8),
            "agent_pos": draw.normal(size=(*lead, S)),
            "task": task,
        }
        for task in TASKS[:2]
    ]
    predictor = PolicyPredictor(policy, *processors, fingerprint="")
    assert predictor._batch(seen)[CAMERA].dtype == torch.uint8
    as_bytes = predictor.predict(seen)
    monkeypatch.setattr("lerobot_policy_vita_vla.evaluation.predictor.READS_BYTES", ())
    assert predictor._batch(seen)[CAMERA].dtype == torch.float32
    assert np.array_equal(predictor.predict(seen), as_bytes)


def test_an_unknown_mode_is_refused(paths):
    with pytest.raises(ValueError, match=r"policy.engine must be one of .*'auto', 'off'.*got 'fast'"):
        make_config(*paths, engine="fast")


def test_the_pictures_size_may_change(paths):
    policy = student(paths)
    batch = make_batch(size=1)
    camera = next(iter(policy.config.image_features))
    policy.predict_action_chunk(batch)
    batch[camera] = torch.rand(1, 3, 2 * PX, PX)
    found = policy.predict_action_chunk(batch)
    assert policy.engine.reason is None and len(policy.engine._encoders) == 2
    policy.engine.give_up("the test asks for the plain path")
    assert torch.allclose(policy.predict_action_chunk(batch), found, atol=1e-5)


def test_the_gpu_run_works_in_tiny_shapes(tmp_path):
    out = tmp_path / "infer.json"
    command = [sys.executable, ROOT / "runs" / "gpu_infer.py", "--tiny", "--out", out]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(out.read_text())
    for name in ("7b", "500m"):
        shape = found["shapes"][name]
        assert set(shape["ways"]) == {"plain", "engine"} and shape["largest_difference"]["engine"] < 0.05
        assert found[f"infer_{name}_ms"] == shape["ways"]["engine"]["median_ms"]
        assert shape["floor"]["gflop"] > 0 and shape["profile"]["engine"]["by_kind_ms"]
    done = subprocess.run([*command[:3]], capture_output=True, text=True)
    assert done.returncode != 0 and "add --out FILE" in done.stderr
