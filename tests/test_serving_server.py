"""The server on real sockets: who gets in, what is answered in time, and what never reaches a robot."""

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import threading
import time

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import teacher_helpers
from lerobot_policy_vita_vla.serving.access import check_exposure, read_token, tls_context
from lerobot_policy_vita_vla.serving.connection import MAX_UNFINISHED
from lerobot_policy_vita_vla.serving.limits import (
    ActionLimits,
    UnusableActionsError,
    limits_of_dataset,
    read_limits,
)
from lerobot_policy_vita_vla.serving.main import running
from lerobot_policy_vita_vla.serving.responder import Responder
from lerobot_policy_vita_vla.serving.served import ServedPolicy
from lerobot_policy_vita_vla.serving.server import largest_request
from serving_helpers import Scripted, look, save_policy
from vita_vla_client import ConnectionLostError, DeadlineMissedError, PolicyClient, ServerError
from vita_vla_client.wire import pack, unpack

TOKEN = "x" * 20 + "0123456789abcdefghij"
GOOD = np.full((3, 4), 0.5)
LIMITS = ActionLimits(-np.ones(4), np.ones(4), source="a test")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "seer"
    return ServedPolicy.load(
        save_policy(teacher_helpers.make_policy(), folder, teacher_helpers.statistics()), "cpu"
    )


def answering(served, answers=GOOD, fallback=None, **settings):
    second = None if fallback is None else Scripted(fallback, served)
    return Responder(Scripted(answers, served), fallback=second, **settings)


def get(server, path, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read().decode()


def slow(seconds, chunk=GOOD):
    def answer(observation):
        time.sleep(seconds)
        return chunk

    return answer


# ---- who gets in ----


def test_without_the_token_nobody_gets_in(served):
    with running(answering(served), token=TOKEN) as server:
        with PolicyClient(server.url, token=TOKEN) as robot:
            assert robot.infer(look(served))["source"] == "policy"
        for token in (None, TOKEN[:-1], TOKEN + "x", TOKEN.upper(), ""):
            with pytest.raises(PermissionError, match="the token is missing or wrong"):
                PolicyClient(server.url, token=token)
        for value in (f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer \xff", f"Bearer {TOKEN}\tx"):
            with pytest.raises(InvalidStatus, match="401"):
                connect(server.url, additional_headers={"Authorization": value}, proxy=None)
        # As openpi's client sends it.
        with connect(
            server.url, additional_headers={"Authorization": f"Api-Key {TOKEN}"}, proxy=None
        ) as openpi:
            assert unpack(openpi.recv())["chunk_size"] == 3
        with pytest.raises(InvalidStatus, match="400"):
            headers = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")]
            connect(server.url, additional_headers=headers, proxy=None)


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:8000", "null", ""])
def test_web_pages_do_not_get_in(served, origin):
    with running(answering(served)) as server, pytest.raises(InvalidStatus, match="403"):
        connect(server.url, additional_headers={"Origin": origin}, proxy=None)


def test_other_requests_learn_nothing(served):
    with running(answering(served), token=TOKEN) as server:
        assert get(server, "/healthz") == (200, "ok\n")
        assert get(server, "/metadata")[0] == 404
        assert get(server, "/../etc/passwd")[0] == 404
        # As a web page can ask for a picture, without an Origin: it takes no robot's place.
        assert [get(server, "/")[0] for _ in range(6)] == [426] * 6
        assert get(server, "/", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
        upgrade = {"Upgrade": "websocket", "Sec-WebSocket-Key": "x"}
        status, words = get(server, "/", **upgrade)
        assert status == 401 and "vita" not in words
        # What is no HTTP is hung up on.
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(b"\x80\x04cposix\nsystem\n")
            assert b"200" not in raw.recv(1000)
        assert get(server, "/healthz")[0] == 200


def test_more_robots_than_allowed_are_turned_away_and_places_come_back(served):
    with running(answering(served), max_clients=1) as server:
        with (
            PolicyClient(server.url),
            pytest.raises(ConnectionLostError, match="503.*1 robots are connected"),
        ):
            PolicyClient(server.url)
        deadline = time.monotonic() + 10
        while True:
            try:
                PolicyClient(server.url).close()
                break
            except ConnectionLostError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        # One that was let in and leaves before it is a robot keeps no place.
        request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
                raw.sendall(request)
                raw.recv(1000)
        time.sleep(0.2)
        PolicyClient(server.url).close()


def test_connections_that_say_nothing_do_not_keep_robots_out(served):
    with running(answering(served)) as server:
        silent = [
            socket.create_connection(("127.0.0.1", server.port), timeout=10)
            for _ in range(MAX_UNFINISHED + 40)
        ]
        # They stay, and new ones come all the time: the oldest go.
        with PolicyClient(server.url) as robot:
            assert robot.infer(look(served))["source"] == "policy"
            silent += [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(80)]
            assert robot.infer(look(served))["source"] == "policy", "who was let in stays"
            assert len(server._open) <= MAX_UNFINISHED + 2
        for connection in silent:
            connection.close()


def test_under_another_name_nobody_gets_in_without_a_token(served):
    # A web page whose name was made to point to this machine, in a browser that sends no Origin.
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "x"}
    with running(answering(served)) as server:
        assert get(server, "/", Host="evil.example", **upgrade)[0] == 403
        assert get(server, "/", Host="localhost:8000", **upgrade)[0] != 403


def test_a_flood_of_pings_is_cut_off(served):
    ping = b"\x89\x80\0\0\0\0"
    with running(answering(served)) as server, PolicyClient(server.url) as robot:
        attacker = connect(server.url, proxy=None)
        attacker.recv()
        began = time.monotonic()
        with contextlib.suppress(OSError):
            attacker.socket.sendall(ping * 500_000)
        assert robot.infer(look(served))["source"] == "policy"
        assert time.monotonic() - began < 20
        deadline = time.monotonic() + 20
        while len(server._open) > 1:
            assert time.monotonic() < deadline, "the flood is still connected"
            time.sleep(0.05)


def test_messages_of_many_small_parts_are_refused(served):
    with running(answering(served)) as server, connect(server.url, proxy=None) as attacker:
        attacker.recv()
        attacker.send(msgpack.packb({"a": [{}] * 250, "b": [{}] * 250}))
        assert "at most 256 lists, maps and arrays" in attacker.recv(timeout=10)


def test_what_a_robot_that_has_gone_asked_for_is_not_computed(served):
    responder = answering(served, slow(0.2))
    with running(responder, max_clients=3) as server:
        for _ in range(12):
            leaving = connect(server.url, proxy=None)
            leaving.recv()
            leaving.send(pack(look(served) | {"deadline_ms": 1e9}))
            leaving.socket.close()
            deadline = time.monotonic() + 20
            while server._open:
                assert time.monotonic() < deadline, "its place was not given back"
                time.sleep(0.01)
        assert responder.lanes[0].waiting <= 1
        with PolicyClient(server.url) as robot:
            assert robot.infer(look(served))["source"] == "policy"
        assert responder.policy.calls <= 13


def test_a_hanging_policy_does_not_keep_the_server_from_stopping(served):
    held = threading.Event()
    responder = answering(served, lambda observation: held.wait(60) and GOOD)
    try:
        with running(responder) as server:
            hanging = connect(server.url, proxy=None)
            hanging.recv()
            hanging.send(pack(look(served)))
            time.sleep(0.2)
            began = time.monotonic()
        assert time.monotonic() - began < 20
    finally:
        held.set()


def test_the_second_policys_work_is_taken_back_when_it_is_not_needed(served):
    responder = answering(served, GOOD, fallback=slow(0.3, -GOOD))
    with running(responder) as server, PolicyClient(server.url) as robot:
        for _ in range(10):
            assert robot.infer(look(served))["source"] == "policy"
        assert responder.lanes[1].waiting <= 1
        assert responder.fallback.calls <= 3


def test_a_request_may_shorten_the_servers_deadline_but_not_lengthen_it(served):
    responder = answering(served, slow(1.0), fallback=-GOOD, deadline_ms=50)
    with running(responder) as server, PolicyClient(server.url) as robot:
        assert robot.infer(look(served), deadline_ms=1e9)["source"] == "fallback"
        assert robot.metadata["fallback_grace_ms"] == 200


def test_a_robot_of_another_name_learns_nothing_from_the_log(served, caplog, capfd):
    with running(answering(served), token=TOKEN) as server:
        for words in (
            b"GET / HTTP/1.1\r\nAuthorization: " + TOKEN.encode() + b"\x01\r\n\r\n",
            b"\x1b[31mred\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
                raw.sendall(words)
                raw.recv(1000)
        for _ in range(5):
            with pytest.raises(PermissionError):
                PolicyClient(server.url, token="y" * 40)
    said = caplog.text + "".join(capfd.readouterr())
    assert TOKEN not in said and "y" * 40 not in said and "\x1b" not in said
    assert caplog.text.count("turned") == 1, "refusals are counted, not told one by one"


def test_a_network_address_needs_a_token_and_tls():
    for host in ("127.0.0.1", "127.3.4.5", "::1", "localhost"):
        check_exposure(host, None, False, False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "robot.example", ""):
        with pytest.raises(ValueError, match="--token-file.*ssh -N -L"):
            check_exposure(host, None, True, True)
        with pytest.raises(ValueError, match="--tls-cert.*--plaintext"):
            check_exposure(host, TOKEN, False, False)
        check_exposure(host, TOKEN, True, False)
        check_exposure(host, TOKEN, False, True)


def test_the_token_is_read_from_a_private_file_or_the_environment(tmp_path):
    path = tmp_path / "token"
    with pytest.raises(ValueError, match="no token at.*secrets"):
        read_token(path)
    path.write_text(TOKEN + "\n")
    path.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        read_token(path)
    path.chmod(0o600)
    assert read_token(path) == TOKEN
    path.write_text("secret")
    with pytest.raises(ValueError, match="at least 32.*got 6"):
        read_token(path)
    assert read_token(None, {}) is None
    assert read_token(None, {"VITA_VLA_TOKEN": TOKEN}) == TOKEN
    with pytest.raises(ValueError, match="VITA_VLA_TOKEN must be at least 32"):
        read_token(None, {"VITA_VLA_TOKEN": ""})


def test_clients_do_not_send_tokens_in_clear_text():
    for url in ("ws://192.168.1.5:8000", "ws://robot.example", "ws://127.0.0.1.example:8000"):
        with pytest.raises(ValueError, match="clear text.*wss://"):
            PolicyClient(url, token=TOKEN)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl (apt-get install openssl)")
def test_tls_is_spoken_and_the_certificate_is_checked(served, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=server"
    command += " -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    with running(answering(served), token=TOKEN, tls=tls_context(cert, key)) as server:
        assert server.url.startswith("wss://")
        with PolicyClient(server.url, token=TOKEN, ca_file=str(cert)) as robot:
            assert robot.infer(look(served))["source"] == "policy"
        with pytest.raises(ConnectionLostError, match="certificate"):
            PolicyClient(server.url, token=TOKEN)
        with pytest.raises(ConnectionLostError):
            PolicyClient(server.url.replace("wss", "ws"), token=TOKEN)
    with pytest.raises(ValueError, match="both --tls-cert and --tls-key"):
        tls_context(cert, None)
    with pytest.raises(ValueError, match="cannot be used"):
        tls_context(key, key)


# ---- what is sent to it ----


def test_what_is_no_message_ends_the_connection_and_nothing_else(served):
    with running(answering(served)) as server, PolicyClient(server.url) as robot:
        for data, code in (
            ("text", 1003),
            (b"noise", 1003),
            (b"\x00" * 2 * largest_request(answering(served)), 1009),
        ):
            with connect(server.url, proxy=None) as attacker:
                attacker.recv()
                attacker.send(data)
                with pytest.raises(ConnectionClosed) as closed:
                    for _ in range(2):
                        attacker.recv(timeout=10)
                assert closed.value.rcvd.code == code
        with connect(server.url, proxy=None) as attacker:
            attacker.recv()
            attacker.send(pack({"request_id": [1]}))
            assert "request_id" in attacker.recv(timeout=10)
        assert robot.infer(look(served))["source"] == "policy"


def test_errors_say_nothing_of_the_servers_inside(served, caplog):
    def fail(observation):
        raise RuntimeError("/home/secret/weights")

    with running(answering(served, fail)) as server, PolicyClient(server.url) as robot:
        with pytest.raises(ServerError, match="failed with RuntimeError; see the server's log") as raised:
            robot.infer(look(served))
        assert "secret" not in str(raised.value)
        assert "/home/secret/weights" in caplog.text


def test_requests_without_a_number_are_answered_as_openpis_server_does(served):
    with running(answering(served)) as server, connect(server.url, proxy=None) as openpi:
        openpi.recv()
        openpi.send(pack({}))
        assert openpi.recv(timeout=10).startswith("error: ")
        openpi.send(pack(look(served)))
        reply = unpack(openpi.recv(timeout=10))
        np.testing.assert_array_equal(reply["actions"], GOOD.astype(np.float32))
        assert "request_id" not in reply and reply["server_timing"]["infer_ms"] > 0


def test_an_idle_robot_is_hung_up_on(served):
    with running(answering(served), idle_s=0.2) as server, PolicyClient(server.url) as robot:
        time.sleep(0.6)
        with pytest.raises(ConnectionLostError):
            robot.infer(look(served))


# ---- what is answered, and when ----


def test_the_second_policy_answers_when_the_first_is_late(served):
    responder = answering(served, slow(3.0), fallback=-GOOD, deadline_ms=50)
    with running(responder) as server, PolicyClient(server.url) as robot:
        for _ in range(5):
            reply = robot.infer(look(served))
            assert reply["source"] == "fallback" and reply["actions"][0, 0] == -0.5
            assert "not ready in time" in reply["reason"]
            # Not the three seconds of the first, however often it was asked before.
            assert reply["server_timing"]["total_ms"] < 1500
        # What was given up before it began was taken back: it does not delay the next request.
        assert responder.policy.calls <= 2


def test_without_a_second_policy_a_late_answer_is_an_error(served):
    with (
        running(answering(served, slow(0.4), deadline_ms=50)) as server,
        PolicyClient(server.url) as robot,
        pytest.raises(DeadlineMissedError, match="not ready in time"),
    ):
        robot.infer(look(served))


def test_late_replies_are_not_taken_for_the_next_ones(served):
    answers = iter([0.1, 0.2, 0.3])

    def answer(observation):
        value = next(answers)
        time.sleep(0.4 if value == 0.1 else 0)
        return np.full((3, 4), value)

    with running(answering(served, answer)) as server, PolicyClient(server.url, timeout_s=0.1) as robot:
        with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
            robot.infer(look(served))
        robot.timeout_s = 10
        assert robot.infer(look(served))["actions"][0, 0] == pytest.approx(0.2)


WRONG = {
    "NaN": np.where(np.arange(12).reshape(3, 4) == 5, np.nan, GOOD),
    "infinity": np.where(np.arange(12).reshape(3, 4) == 5, np.inf, GOOD),
    "far outside": GOOD * 100,
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_actions_never_leave_the_server(served, name):
    words = "may not be sent: action . of the chunk has .* in dimension"
    with (
        running(answering(served, WRONG[name], limits=LIMITS)) as server,
        PolicyClient(server.url) as robot,
        pytest.raises(ServerError, match=words),
    ):
        robot.infer(look(served))
    responder = answering(served, WRONG[name], fallback=-GOOD, limits=LIMITS)
    with running(responder) as server, PolicyClient(server.url) as robot:
        assert robot.infer(look(served))["source"] == "fallback"
    responder = answering(served, WRONG[name], fallback=WRONG[name], limits=LIMITS)
    with (
        running(responder) as server,
        PolicyClient(server.url) as robot,
        pytest.raises(ServerError, match="may not be sent"),
    ):
        robot.infer(look(served))


def test_a_busy_policy_does_not_keep_the_server_from_answering(served):
    with running(answering(served, slow(1.0))) as server, PolicyClient(server.url) as robot:
        asked = threading.Thread(target=robot.infer, args=(look(served),))
        asked.start()
        time.sleep(0.1)
        began = time.monotonic()
        assert get(server, "/healthz")[0] == 200
        with connect(server.url, proxy=None) as other:
            other.recv()
            assert other.ping().wait(timeout=10)
        assert asked.is_alive(), f"the server was silent for {time.monotonic() - began:.2f} s"
        asked.join()


def test_slightly_large_actions_are_cut_and_counted(served):
    with running(answering(served, GOOD * 3, limits=LIMITS)) as server, PolicyClient(server.url) as robot:
        reply = robot.infer(look(served))
        assert reply["limited"] == 12 and (reply["actions"] == 1).all()
        assert robot.metadata["limits"]["high"] == [1, 1, 1, 1]


# ---- limits ----


def test_limits_cut_range_and_change():
    limits = ActionLimits([-1, -1], [1, 1], [0.25, 9])
    chunk, changed = limits.apply(
        np.array([[0, 0], [1, 1], [1, 1.5]], np.float32), before_A=np.array([-0.5, 0])
    )
    np.testing.assert_allclose(chunk, [[-0.25, 0], [0, 1], [0.25, 1]])
    assert changed == 4
    unchanged, changed = limits.apply(np.zeros((2, 2), np.float32))
    assert changed == 0 and not unchanged.any()


def test_limits_kept_exactly_are_not_counted_as_cut():
    steps = np.cumsum(np.full((50, 1), 0.1), axis=0).astype(np.float32)
    chunk, changed = ActionLimits([0], [10], [0.1]).apply(steps)
    assert changed == 0
    np.testing.assert_allclose(chunk, steps, atol=1e-4)


def test_a_wide_dimension_does_not_hide_a_wild_narrow_one():
    limits = ActionLimits([-0.05, 0], [0.05, 100])
    with pytest.raises(UnusableActionsError, match="50 in dimension 0"):
        limits.apply(np.array([[50, 20]], np.float32))


def test_a_dimension_that_never_moved_is_cut_but_not_refused():
    limits = ActionLimits([-1, 7], [1, 7])
    chunk, changed = limits.apply(np.array([[0.5, 7.01]], np.float32))
    np.testing.assert_array_equal(chunk, [[0.5, 7]])
    assert changed == 1
    with pytest.raises(UnusableActionsError, match="3.5 in dimension 0, whose limits are -1 to 1"):
        limits.apply(np.array([[3.5, 7]], np.float32))


BAD_LIMITS = {
    "no file": (None, "vita-vla demos limits"),
    "no JSON": ("low: 1", "does not hold action limits"),
    "a list": ("[1]", 'must hold "low" and "high"'),
    "a misspelt name": ('{"low": [0], "hihg": [1]}', 'must hold "low" and "high"'),
    "words": ('{"low": ["a"], "high": [1]}', "does not hold action limits"),
    "another length": ('{"low": [0], "high": [1]}', "limits 1 numbers, the policy's actions have 2: x, y"),
    "unequal lengths": ('{"low": [0, 1], "high": [1]}', "lists of one length"),
    "low above high": ('{"low": [0, 2], "high": [1, 1]}', "must not exceed"),
    "no change allowed": ('{"low": [0, 0], "high": [1, 1], "max_change": [1, 0]}', "must be positive"),
    "NaN": ('{"low": [0, NaN], "high": [1, 1]}', "must be finite"),
    "infinity": ('{"low": [0, 0], "high": [1, Infinity]}', "must be finite"),
    "another order": (
        '{"low": [0, 0], "high": [1, 1], "names": ["y", "x"]}',
        "limits y, x, the policy's actions are x, y",
    ),
}


@pytest.mark.parametrize("name", BAD_LIMITS)
def test_bad_limits_are_refused(tmp_path, name):
    text, words = BAD_LIMITS[name]
    path = tmp_path / "limits.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_limits(path, ["x", "y"])


def test_limits_of_demonstrations(tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {"action": {"dtype": "float32", "shape": (2,), "names": ["x", "gripper"]}}
    dataset = LeRobotDataset.create("local/limits", 10, features, root=tmp_path / "demos")
    for episode in ([[0, 1], [0.5, 1], [0.25, -1]], [[9, 1], [8, 1]]):
        for action in episode:
            dataset.add_frame({"action": np.array(action, np.float32), "task": "move"})
        dataset.save_episode()
    dataset.finalize()
    record = limits_of_dataset(tmp_path / "demos")
    # From 0.25 to 9 is a change between episodes, not one that was demonstrated.
    assert record == {"low": [0, -1], "high": [9, 1], "max_change": [1, 2], "names": ["x", "gripper"]}
    (tmp_path / "limits.json").write_text(json.dumps(record))
    limits = read_limits(tmp_path / "limits.json", ["x", "gripper"])
    np.testing.assert_array_equal(limits.max_change_A, [1, 2])


def test_policies_that_cannot_stand_in_for_each_other_are_refused(served, tmp_path):
    other = teacher_helpers.make_policy(cameras=("observation.images.wrist",))
    second = ServedPolicy.load(save_policy(other, tmp_path / "other", teacher_helpers.statistics()), "cpu")
    with pytest.raises(ValueError, match="the fallback reads observation.images.wrist"):
        Responder(served, fallback=second)
    wrong = Responder(Scripted(np.full((3, 4), np.nan), served))
    with pytest.raises(UnusableActionsError, match="nan in dimension 0"):
        wrong.warm_up()
    with pytest.raises(ValueError, match="are for 2 numbers per action"):
        Responder(served, limits=ActionLimits([0, 0], [1, 1])).warm_up()
