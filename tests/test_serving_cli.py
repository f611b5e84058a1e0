"""`vita-vla serve` and `vita-vla demos limits` as a person types them."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

import teacher_helpers
from serving_helpers import save_policy
from vita_vla_cli import cli
from vita_vla_client import PolicyClient

STATS = teacher_helpers.statistics()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_policy(teacher_helpers.make_policy(), tmp_path_factory.mktemp("cli") / "seer", STATS)


def test_a_server_starts_answers_and_stops_with_a_signal(checkpoint, tmp_path):
    # OMP_NUM_THREADS and the rest as in these tests.
    command = [
        sys.executable,
        "-m",
        "vita_vla_cli",
        "serve",
        checkpoint,
        "--fallback",
        checkpoint,
        "--port",
        "0",
    ]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )
    try:
        said = []
        for line in server.stdout:
            said.append(line)
            if line.startswith("ready: "):
                break
        assert said[-1].startswith("ready: "), "".join(said)
        assert "  reads observation.image: (32, 32, 3) uint8\n" in said
        assert "  limits: the demonstrations' range\n" in said
        with PolicyClient(said[-1].split()[1]) as robot:
            seen = {"observation.image": np.zeros((32, 32, 3), np.uint8), "observation.state": np.zeros(4)}
            reply = robot.infer(seen | {"task": "open the door"})
            assert reply["source"] == "policy" and reply["actions"].shape == (3, 4)
            assert robot.metadata["action_names"] == ["x", "y", "z", "gripper"]
            assert robot.metadata["gripper_dims"] == [3]
            assert robot.metadata["limits"]["low"] == [-1, -1, -1, -1]
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=60) == 0
    finally:
        server.kill()
        server.stdout.close()


WRONG = {
    "an open network": (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from the network"),
    "a token that is not there": (["--token-file", "nowhere/token"], "no token at nowhere/token"),
    "half of TLS": (["--tls-cert", "cert.pem"], "both --tls-cert and --tls-key"),
    "a port that does not exist": (["--port", "99999"], "--port is 0 to 65535, got 99999"),
    "no robots": (["--clients", "0"], "--clients is 1 or more, got 0"),
    "no time": (["--deadline-ms", "0"], "--deadline-ms is a positive number of milliseconds, got 0"),
    "no limits there": (["--limits", "limits.json"], "no limits at limits.json; make them with"),
    "no fallback there": (["--fallback", "work/nowhere"], "there is no folder work/nowhere here"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_explained_before_anything_listens(checkpoint, name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    flags, words = WRONG[name]
    assert cli.main(["serve", str(checkpoint), *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_port_in_use_is_named(checkpoint, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", str(checkpoint), "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_a_checkpoint_without_ranges_asks_for_limits(capsys, tmp_path):
    bare = {key: {k: v for k, v in stats.items() if k not in ("min", "max")} for key, stats in STATS.items()}
    folder = save_policy(teacher_helpers.make_policy(), tmp_path / "seer", bare)
    assert cli.main(["serve", str(folder)]) == 2
    assert "does not keep the range of the actions" in capsys.readouterr().err


def test_limits_are_written_once(capsys, tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {"action": {"dtype": "float32", "shape": (2,), "names": ["x", "gripper"]}}
    dataset = LeRobotDataset.create("local/limits", 10, features, root=tmp_path / "demos")
    for value in (0, 0.5, -1):
        dataset.add_frame({"action": np.array([value, 1], np.float32), "task": "move"})
    dataset.save_episode()
    dataset.finalize()
    command = ["demos", "limits", str(tmp_path / "demos"), "--out", str(tmp_path / "new" / "limits.json")]
    assert cli.main(command) == 0
    assert "  x: -1 to 0.5, at most 1.5 per step" in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "limits.json").read_text())["max_change"] == [1.5, 1e-6]
    assert cli.main(command) == 2
    assert "limits.json exists already" in capsys.readouterr().err
    assert cli.main(["demos", "limits", str(tmp_path / "nowhere"), "--out", str(tmp_path / "a")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_what_a_server_costs_is_measured(checkpoint, capsys, tmp_path):
    words = ["bench", "serve", "--policy", str(checkpoint), "--toy", "--rounds", "2", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    found = json.loads((tmp_path / "serve.json").read_text())
    # A round trip holds the prediction; how much more it takes is a measurement's to say.
    assert found["serve_ratio_low"] <= found["serve_ratio"] <= found["serve_ratio_high"]
    assert 0 < found["serve_transport_ms"] < 60_000
    sides = found["comparisons"]["2 chunks of the policy"]["sides"]
    assert set(sides) == {"in process", "server, pixels", "server, JPEG"}
