"""The doctor: finds what is broken, says how to repair it, survives what it looks for."""

import json
from importlib import metadata

import pytest

from vita_vla_cli import cli, doctor


@pytest.fixture(scope="module")
def lerobot_answer():
    return doctor._ask_lerobot()


def test_json_report_of_this_machine(capsys):
    code = cli.main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (code == 0)
    checks = {check["name"]: check for check in report["checks"]}
    assert {"python", "packages", "lerobot plugin", "rendering", "video", "disk", "memory"} <= set(checks)
    for check in checks.values():
        assert check["status"] in (doctor.OK, doctor.WARN, doctor.FAIL)
        assert bool(check["fix"]) == (check["status"] != doctor.OK), check
    for name in ("packages", "lerobot plugin", "rendering"):
        assert checks[name]["status"] == doctor.OK, checks[name]


def test_plugin_that_lerobot_does_not_find_fails(lerobot_answer):
    assert doctor.check_plugin(lerobot_answer).status == doctor.OK
    without = lerobot_answer | {"policies": ["act"]}
    check = doctor.check_plugin(without)
    assert check.status == doctor.FAIL and "vita_vla" in check.found and check.fix
    assert doctor.check_plugin("ModuleNotFoundError: no lerobot").status == doctor.FAIL


def test_wrong_and_missing_packages_fail_with_a_command(monkeypatch):
    wanted = [
        "torch<1",
        "no-such-distribution>=2",
        "metaworld==0.0.1; extra == 'sim'",
        "pytest<1; extra == 'dev'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    failed = {check.name: check for check in doctor.check_packages() if check.status == doctor.FAIL}
    assert set(failed) == {"torch", "no-such-distribution", "metaworld"}
    assert "uv pip install 'torch<1'" in failed["torch"].fix


def test_a_renderer_that_does_not_work_is_named(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    check = doctor.check_rendering()
    assert check.status == doctor.FAIL and "nonsense" in check.found.lower() and check.fix


def test_full_disk_and_strange_settings_are_noticed(monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 2**20, "total": 2**40})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert doctor.check_disk(tmp_path / "not" / "made" / "yet").status == doctor.FAIL
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "--wandb.mode=offline" in doctor.check_wandb().fix
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert doctor.check_bytecode().status == doctor.WARN


def test_threads_against_cores_and_load(monkeypatch):
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (0.1, 0.1, 0.1))
    assert doctor.check_threads({"threads": 1}).status == doctor.OK
    assert "OMP_NUM_THREADS" in doctor.check_threads({"threads": 4096}).fix
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (4096.0, 0.1, 0.1))
    assert "OMP_NUM_THREADS=1" in doctor.check_threads({"threads": 1}).fix


def test_table_puts_the_fix_below_the_problem_and_the_exit_code_follows(monkeypatch, capsys):
    report = [
        doctor.Check("good", doctor.OK, "fine"),
        doctor.Check("bad", doctor.FAIL, "broken", "repair it"),
    ]
    monkeypatch.setattr(doctor, "run_checks", lambda folder: report)
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["fail", "bad", "broken"] and lines[2].strip() == "fix: repair it"
    monkeypatch.setattr(doctor, "run_checks", lambda folder: report[:1])
    assert cli.main(["doctor"]) == 0
