"""The robot's side: which action is due, what happens in silence, and a real episode over a real socket."""

import time

import numpy as np
import pytest

import teacher_helpers
from lerobot_policy_vita_vla.serving.main import running
from lerobot_policy_vita_vla.serving.responder import Responder
from lerobot_policy_vita_vla.serving.served import ServedPolicy
from serving_helpers import Scripted, in_process, look, save_policy
from vita_vla_client import ChunkPlayer, PolicyChangedError, PolicyClient, StaleActionsError, run
from vita_vla_client.playback import holding


def chunk(first, steps=3):
    """Actions whose only number says for which tick they are meant."""
    return np.arange(first, first + steps, dtype=np.float32)[:, None]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "seer"
    return ServedPolicy.load(
        save_policy(teacher_helpers.make_policy(), folder, teacher_helpers.statistics()), "cpu"
    )


# ---- the player ----


def test_actions_are_taken_at_the_ticks_they_were_meant_for():
    player = ChunkPlayer()
    player.offer(chunk(0, 6), 0)
    played = [player.action(t).action_A[0] for t in range(6)]
    # Seen at tick 4, arrives before tick 6: the actions for 4 and 5 are overdue.
    player.offer(100 + chunk(4, 6), 4)
    played += [player.action(t).action_A[0] for t in range(6, 10)]
    assert played == [0, 1, 2, 3, 4, 5, 106, 107, 108, 109]
    assert player.remaining(10) == 0


def test_older_chunks_change_nothing():
    player = ChunkPlayer()
    assert player.offer(chunk(4), 4) and not player.offer(chunk(2), 2) and not player.offer(chunk(4), 4)
    assert player.action(4).action_A[0] == 4


def test_execution_starts_where_the_checkpoint_says():
    player = ChunkPlayer(execute_from=1, n_action_steps=2)
    player.offer(chunk(0, 6), 0)
    assert [player.action(t).action_A[0] for t in (0, 1)] == [1, 2]
    with pytest.raises(StaleActionsError):
        player.action(2)


def test_overlapping_chunks_are_averaged_as_in_process():
    import torch

    from lerobot_policy_vita_vla.chunking import ChunkExecutor

    generator = np.random.default_rng(0)
    chunks = generator.normal(size=(8, 3, 2)).astype(np.float32)
    executor = ChunkExecutor(chunk_size=3, n_action_steps=1, ensemble_coeff=0.3)
    player = ChunkPlayer(ensemble_coeff=0.3)
    for t, predicted in enumerate(chunks):
        wanted = executor.next_action(lambda p=predicted: torch.from_numpy(p)[None])[0].numpy()
        player.offer(predicted, t)
        np.testing.assert_allclose(player.action(t).action_A, wanted, atol=1e-6)


def test_the_seam_between_chunks_keeps_the_largest_change():
    player = ChunkPlayer(max_change_A=np.array([1.0]))
    player.offer(chunk(0), 0)
    player.action(0)
    player.offer(50 + chunk(1), 1)
    assert [player.action(t).action_A[0] for t in (1, 2, 3)] == [1, 2, 3]


def test_a_robot_without_chunks_is_held_and_then_given_up():
    player = ChunkPlayer(hold=holding("delta", [1]), max_hold=2)
    with pytest.raises(StaleActionsError, match="no action chunk has arrived"):
        player.action(0)
    player.reset()
    player.offer(np.array([[0.5, 1.0]]), 0)
    assert player.action(0).source == "policy"
    held = player.action(1)
    assert held.source == "hold" and held.action_A.tolist() == [0, 1], "no motion, and the gripper stays shut"
    assert player.action(2).source == "hold"
    with pytest.raises(StaleActionsError, match="3 ticks ago.*2 ticks of holding"):
        player.action(3)
    player.offer(np.array([[0.5, 1.0]]), 4)
    assert player.action(4).source == "policy"


def test_ticks_that_were_missed_count_as_held():
    player = ChunkPlayer(hold=holding("absolute", []), max_hold=5)
    player.offer(chunk(0, 1), 0)
    player.action(0)
    with pytest.raises(StaleActionsError):
        player.action(50)


def test_holding_depends_on_what_actions_mean():
    assert holding("absolute", [])(np.array([3.0, 4.0])).tolist() == [3, 4]
    assert holding(None, []) is None
    player = ChunkPlayer(hold=None, max_hold=100)
    player.offer(chunk(0, 1), 0)
    player.action(0)
    with pytest.raises(StaleActionsError, match="0 ticks of holding"):
        player.action(1)


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((0, 3)), np.full((2, 2), np.nan)])
def test_what_is_no_chunk_is_refused(wrong):
    with pytest.raises(ValueError, match="a chunk is"):
        ChunkPlayer().offer(wrong, 0)
    with pytest.raises(ValueError, match="max_hold"):
        ChunkPlayer(max_hold=-1)
    player = ChunkPlayer()
    player.offer(chunk(0), 0)
    player.action(1)
    with pytest.raises(ValueError, match="tick 1 was played already"):
        player.action(1)


def test_after_a_hold_the_change_counts_from_the_hold():
    player = ChunkPlayer(hold=holding("delta", []), max_change_A=np.array([0.2]))
    player.offer(np.array([[0.9]]), 0)
    assert player.action(0).action_A[0] == pytest.approx(0.9)
    assert player.action(1).action_A[0] == 0, "held"
    player.offer(np.array([[-0.1], [0.9]]), 2)
    assert player.action(2).action_A[0] == pytest.approx(-0.1), "not 0.7, towards the other side"
    assert player.action(3).action_A[0] == pytest.approx(0.1)


def test_chunks_of_other_lengths_and_widths():
    player = ChunkPlayer(ensemble_coeff=0.1)
    player.offer(chunk(0, 6), 0)
    player.action(0)
    player.offer(chunk(1, 2), 1, "fallback")
    # The newer one ends first.
    assert [player.action(t).action_A[0] for t in (1, 2, 3, 4, 5)] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="actions had 1 numbers, these have 2"):
        player.offer(np.zeros((3, 2)), 6)
    early = ChunkPlayer()
    early.offer(chunk(3), 3)
    with pytest.raises(StaleActionsError):
        early.action(0)  # not the chunk's last action, by a negative index


# ---- the loop ----


class Robot:
    def __init__(self, served):
        self.served, self.looks, self.acted = served, 0, []

    def look(self):
        self.looks += 1
        return {key: value for key, value in look(self.served, self.looks).items() if key != "task"}

    def act(self, action_A):
        self.acted.append(action_A)


def test_an_episode_over_a_socket(served):
    robot = Robot(served)
    with running(Responder(served)) as server, PolicyClient(server.url) as client:
        counts = run(client, robot.look, robot.act, task="open", duration_s=2, control_hz=10)
    assert counts["ticks"] == len(robot.acted) == 20 - counts["missed"]
    assert counts["chunks"] >= 3 and counts["errors"] == 0
    assert len(counts["latency_ms"]) >= counts["chunks"]
    first = in_process(served, [look(served, 1, "open")])[0]
    np.testing.assert_allclose(robot.acted[0], first[0], atol=1e-5)


def test_the_robot_is_given_up_when_the_server_falls_silent(served):
    def answer(observation):
        if scripted.calls > 2:
            time.sleep(5)
        return np.zeros((3, 4))

    scripted, robot = Scripted(answer, served), Robot(served)
    with running(Responder(scripted)) as server, PolicyClient(server.url, timeout_s=0.5) as client:
        client.metadata["action_mode"] = "delta"
        began = time.monotonic()
        with pytest.raises(StaleActionsError, match="is the server slow") as raised:
            run(client, robot.look, robot.act, task="open", duration_s=30, control_hz=10, max_hold_s=1)
        assert time.monotonic() - began < 4
        assert 6 <= len(robot.acted) <= 20
        assert isinstance(raised.value.__cause__, TimeoutError)


def test_the_robot_goes_on_when_the_server_comes_back(served):
    robot, servers = Robot(served), []

    def act(action_A):
        robot.act(action_A)
        if len(robot.acted) == 5:
            servers[0].loop.call_soon_threadsafe(servers[0].hang_up)

    with running(Responder(served)) as server, PolicyClient(server.url) as client:
        import asyncio

        class Cutter:
            loop = server._server.get_loop()

            @staticmethod
            def hang_up():
                for connection in list(server._open):
                    connection.transport.abort()

        servers.append(Cutter)
        assert isinstance(Cutter.loop, asyncio.AbstractEventLoop)
        still = holding("delta", [])
        counts = run(
            client, robot.look, act, task="open", duration_s=3, control_hz=10, max_hold_s=2, hold=still
        )
    assert counts["errors"] >= 1 and counts["ticks"] + counts["missed"] == 30
    assert counts["held"] < 25, "chunks came again"


def test_another_rate_than_the_demonstrations_is_refused(served):
    robot = Robot(served)
    with running(Responder(served)) as server, PolicyClient(server.url) as client:
        with pytest.raises(ValueError, match="does not say its control rate"):
            run(client, robot.look, robot.act, task="open", duration_s=1)
        client.metadata["control_hz"] = 30
        with pytest.raises(ValueError, match="recorded at 30 Hz"):
            run(client, robot.look, robot.act, task="open", duration_s=1, control_hz=10)
    assert not robot.acted


def test_a_policy_with_a_history_sees_every_tick(tmp_path):
    policy = teacher_helpers.make_policy(n_obs_steps=3)
    served = ServedPolicy.load(save_policy(policy, tmp_path / "seer", teacher_helpers.statistics()), "cpu")
    robot = Robot(served)
    with running(Responder(served)) as server, PolicyClient(server.url) as client:
        counts = run(client, robot.look, robot.act, task="open", duration_s=1, control_hz=10)
    assert robot.looks == counts["ticks"]


def test_a_robot_that_means_something_else_is_refused(served):
    from dataclasses import fields

    from lerobot_policy_vita_vla.conventions import Conventions
    from vita_vla_client.client import CONVENTIONS

    assert {f.name for f in fields(Conventions)} == CONVENTIONS
    with running(Responder(served)) as server, PolicyClient(server.url) as client:
        with pytest.raises(ValueError, match="does not say its control_hz"):
            client.require(control_hz=20)
        assert client.require(control_hz=20, allow_unknown=True) == ["control_hz"]
        client.metadata["conventions"] = Conventions((32, 32), 20.0, action_mode="absolute").to_dict()
        assert client.require(control_hz=20, action_mode="absolute", image_size=(32, 32)) == []
        with pytest.raises(ValueError, match="(?s)gripper_open: trained with -1.0, this robot has 1.*act()"):
            client.require(gripper_open=1, control_hz=20)
        with pytest.raises(ValueError, match=r"no conventions \['hertz'\]"):
            client.require(hertz=20)


def test_another_policy_after_a_reconnection_is_not_obeyed(served, tmp_path):
    other = ServedPolicy.load(
        save_policy(
            teacher_helpers.make_policy(chunk_size=2, n_action_steps=2),
            tmp_path / "b",
            teacher_helpers.statistics(),
        ),
        "cpu",
    )
    robot = Robot(served)
    with running(Responder(served)) as first, PolicyClient(first.url) as client:
        client.metadata["action_mode"] = "delta"

        def act(action_A):
            robot.act(action_A)
            if len(robot.acted) == 4:
                client.url = second.url
                client._connection.socket.shutdown(2)

        with (
            running(Responder(other)) as second,
            pytest.raises(PolicyChangedError, match="another .*chunk_size"),
        ):
            run(client, robot.look, act, task="open", duration_s=30, control_hz=10, max_hold_s=20)


def test_what_look_gives_wrongly_is_told_at_once(served):
    robot = Robot(served)
    with running(Responder(served)) as server, PolicyClient(server.url) as client:
        began = time.monotonic()
        with pytest.raises(StaleActionsError, match="no first action chunk") as raised:
            run(client, lambda: {"x": object()}, robot.act, task="open", duration_s=1, control_hz=10)
        assert time.monotonic() - began < 8, "not two timeouts later"
        assert "does not travel" in str(raised.value.__cause__)


def test_answers_of_another_width_never_reach_the_robot(served):
    robot, responder = Robot(served), Responder(Scripted(np.zeros((3, 1)), served))
    with (
        running(responder) as server,
        PolicyClient(server.url) as client,
        pytest.raises(StaleActionsError) as raised,
    ):
        run(client, robot.look, robot.act, task="open", duration_s=1, control_hz=10)
    assert "expected (T, 4)" in str(raised.value.__cause__) and not robot.acted


def test_no_connection_is_left_behind(served):
    robot = Robot(served)
    scripted = Scripted(lambda o: time.sleep(0.3) or np.zeros((3, 4)), served)
    with running(Responder(scripted), max_clients=1) as server:
        for _ in range(2):
            with PolicyClient(server.url) as client:
                client.metadata["action_mode"] = "delta"
                run(client, robot.look, robot.act, task="open", duration_s=0.5, control_hz=10, max_hold_s=9)
            deadline = time.monotonic() + 10
            while server._open:
                assert time.monotonic() < deadline, "a connection was made again after the end"
                time.sleep(0.02)
