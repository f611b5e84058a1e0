"""The quickstart's steps: done once, again when their inputs change, never silently half done."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from vita_vla_cli import cli, quickstart, running
from vita_vla_cli import steps as runner
from vita_vla_cli.recipe import FAST
from vita_vla_cli.steps import Step, StepFailedError

# Stands for `vita-vla`: appends a line to its file, or fails where told to.
PROGRAM = (
    sys.executable,
    "-c",
    "import sys, pathlib\n"
    "path, word = sys.argv[1:]\n"
    "if word == 'fail': sys.exit('noise\\nerror: a reason\\n  and a fix')\n"
    "if word != 'nothing': pathlib.Path(path).open('a').write(word + '\\n')",
)


def steps(run, first="one", second="two", resumes=False):
    a, b = run / "a.txt", run / "b.txt"
    return [
        Step("a", (str(a), first), makes=(a,), resumes=resumes),
        Step("b", (str(b), second), needs=("a",), makes=(b,)),
    ]


def run_steps(run, plan):
    run.mkdir(exist_ok=True)
    return runner.execute(run, plan, program=PROGRAM)


def test_finished_steps_are_skipped(tmp_path):
    assert run_steps(tmp_path, steps(tmp_path)).skipped == []
    again = run_steps(tmp_path, steps(tmp_path))
    assert again.skipped == ["a", "b"] and set(again.seconds) == {"a", "b"}
    assert (tmp_path / "a.txt").read_text() == "one\n"


def test_a_changed_step_runs_again_with_all_that_reads_it_once_there_is_room(tmp_path):
    run_steps(tmp_path, steps(tmp_path))
    with pytest.raises(ValueError, match="finished with other settings") as refusal:
        run_steps(tmp_path, steps(tmp_path, first="other"))
    assert (tmp_path / "a.txt").read_text() == "one\n" and (tmp_path / "b.txt").read_text() == "two\n"
    message = str(refusal.value)
    assert "--run" in message and f"rm -r {tmp_path / 'a.txt'} {tmp_path / 'b.txt'}" in message
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.txt").unlink()
    assert run_steps(tmp_path, steps(tmp_path, first="other")).skipped == []
    with pytest.raises(ValueError, match="b.txt") as refusal:
        run_steps(tmp_path, steps(tmp_path, first="other", second="new"))
    assert "a.txt" not in str(refusal.value)
    (tmp_path / "b.txt").unlink()
    assert run_steps(tmp_path, steps(tmp_path, first="other", second="new")).skipped == ["a"]


@pytest.mark.parametrize("resumes", [False, True])
def test_what_was_made_by_hand_is_never_removed(tmp_path, resumes):
    (tmp_path / "b.txt").write_text("mine\n")
    with pytest.raises(ValueError, match="not made by quickstart: b.txt"):
        run_steps(tmp_path, steps(tmp_path, resumes=resumes))
    assert (tmp_path / "b.txt").read_text() == "mine\n" and not (tmp_path / "a.txt").exists()
    plan = [replace(step, leftovers=(tmp_path / "b.txt",), makes=()) for step in steps(tmp_path)]
    with pytest.raises(ValueError, match="not made by quickstart"):  # nor the half of a recording
        run_steps(tmp_path, plan)


def test_a_run_made_by_hand_is_refused_on_the_command_line(tmp_path, capsys):
    recorded = tmp_path / "demos" / "meta" / "info.json"
    recorded.parent.mkdir(parents=True)
    recorded.write_text("{}")
    assert cli.main(["quickstart", "--fast", "--run", str(tmp_path)]) == 2
    assert f"rm -r {tmp_path / 'demos'}" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [recorded]


def test_what_was_made_by_hand_after_a_failure_is_kept(tmp_path, monkeypatch):
    with pytest.raises(StepFailedError):
        run_steps(tmp_path, steps(tmp_path, second="fail"))
    monkeypatch.setattr(runner, "SETTLE_SECONDS", -1.0)  # as if it were later
    (tmp_path / "b.txt").write_text("mine\n")
    with pytest.raises(ValueError, match="not made by quickstart"):
        run_steps(tmp_path, steps(tmp_path))
    monkeypatch.undo()
    assert (tmp_path / "b.txt").read_text() == "mine\n"
    assert run_steps(tmp_path, steps(tmp_path)).skipped == ["a"]  # left by the step itself
    assert (tmp_path / "b.txt").read_text() == "two\n"


def test_a_view_is_made_anew_over_one_made_by_hand(tmp_path):
    a, b = steps(tmp_path)
    (tmp_path / "b.txt").write_text("page\n")
    assert run_steps(tmp_path, [a, replace(b, replaces=True)]).skipped == []
    views = [step.name for step in quickstart.plan(tmp_path, FAST) if step.replaces]
    assert views == ["report"]  # all else is work that somebody may want to keep


def test_a_lost_output_is_made_again(tmp_path):
    run_steps(tmp_path, steps(tmp_path))
    (tmp_path / "b.txt").unlink()
    assert run_steps(tmp_path, steps(tmp_path)).skipped == ["a"]


def test_a_failed_step_shows_its_reason_and_keeps_what_was_done(tmp_path, capsys):
    with pytest.raises(StepFailedError) as failure:
        run_steps(tmp_path, steps(tmp_path, second="fail"))
    assert failure.value.step == "b" and failure.value.code == 1
    shown = capsys.readouterr().err
    assert "error: a reason" in shown and "and a fix" in shown and "noise" not in shown
    assert run_steps(tmp_path, steps(tmp_path)).skipped == ["a"]


def test_a_step_that_leaves_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="b.txt"):
        run_steps(tmp_path, steps(tmp_path, second="nothing"))


@pytest.mark.parametrize(("resumes", "expected"), [(True, "half\none\n"), (False, "one\n")])
def test_an_interrupted_step_continues_only_if_it_can(tmp_path, resumes, expected):
    plan = steps(tmp_path, resumes=resumes)
    stamp = runner._stamp(plan[0], {})
    (tmp_path / "stamps").mkdir()
    record = {"stamp": stamp, "done": False, "seconds": 100.0}
    (tmp_path / "stamps" / "a.json").write_text(json.dumps(record))
    (tmp_path / "a.txt").write_text("half\n")
    progress = run_steps(tmp_path, plan)
    assert (tmp_path / "a.txt").read_text() == expected
    assert (progress.seconds["a"] >= 100) == resumes  # its earlier time counts if its work did


def test_timing_holds_every_step_in_order(tmp_path):
    run_steps(tmp_path, steps(tmp_path))
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert [step["name"] for step in timing["steps"]] == ["a", "b"]
    assert timing["steps"][0]["command"] == f"vita-vla {tmp_path / 'a.txt'} one"
    assert timing["total_seconds"] == pytest.approx(sum(s["seconds"] for s in timing["steps"]), abs=0.4)


def test_steps_that_allow_it_run_side_by_side_and_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.os, "cpu_count", lambda: 2)
    for name in running.THREADS:
        monkeypatch.delenv(name, raising=False)
    names = ("one", "two", "three")
    files = {name: tmp_path / name for name in (*names, "last")}
    code = (
        "import os, pathlib, sys, time; time.sleep(1.0); "
        "pathlib.Path(sys.argv[1]).write_text(os.environ.get('OMP_NUM_THREADS', ''))"
    )
    plan = [Step(n, (str(files[n]),), makes=(files[n],), beside=True, threads=3) for n in names]
    plan.append(Step("last", (str(files["last"]),), needs=names, makes=(files["last"],)))
    start = time.monotonic()
    progress = runner.execute(tmp_path, plan, program=(sys.executable, "-c", code))
    wall = time.monotonic() - start
    spans = {n: running.read_record(tmp_path, n)["ran"][0] for n in (*names, "last")}
    assert spans["two"][0] < spans["one"][1]  # together with the first
    assert spans["three"][0] >= min(spans["one"][1], spans["two"][1])  # two at a time
    assert spans["last"][0] >= max(spans[n][1] for n in names) - 0.2
    assert files["one"].read_text() == "3"
    assert progress.total == pytest.approx(wall, abs=0.7) and sum(progress.seconds.values()) > wall
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert [step["name"] for step in timing["steps"]] == [*names, "last"]
    assert timing["total_seconds"] == pytest.approx(progress.total, abs=0.1)
    starts = {step["name"]: step["start"] for step in timing["steps"]}
    assert starts["one"] == 0 and starts["two"] < 1 <= starts["three"] < starts["last"]


def test_a_user_who_wants_fewer_threads_gets_them(monkeypatch):
    for users, got in (("1", 1), ("8", 3), ("", 3), ("4,2", 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", users)
        assert running._threads("OMP_NUM_THREADS", 3) == got


@pytest.mark.parametrize(("load", "warns"), [(4096.0, True), (0.0, False)])
def test_a_busy_machine_is_said_at_the_start(tmp_path, monkeypatch, capsys, load, warns):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    (tmp_path / "teacher").mkdir()  # in the way, so that nothing is run
    assert cli.main(["quickstart", "--fast", "--run", str(tmp_path)]) == 2
    assert ("export OMP_NUM_THREADS=1" in capsys.readouterr().err) == warns


def test_a_failure_ends_what_runs_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.os, "cpu_count", lambda: 2)
    code = "import sys, time; sys.exit('error: no') if sys.argv[1] == 'bad' else time.sleep(60)"
    plan = [Step("long", ("long",), beside=True), Step("bad", ("bad",), beside=True)]
    start = time.monotonic()
    with pytest.raises(StepFailedError, match="bad"):
        runner.execute(tmp_path, plan, program=(sys.executable, "-c", code))
    assert time.monotonic() - start < 30
    assert not running.read_record(tmp_path, "long")["done"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_process_starts_ends_that_process_too(tmp_path, monkeypatch, number):
    started = []

    def popen(*arguments, **options):
        started.append(start(*arguments, **options))
        signal.raise_signal(number)
        return started[0]

    start = subprocess.Popen
    monkeypatch.setattr(running.subprocess, "Popen", popen)
    # As `vita-vla quickstart` does for one; whoever started the tests may have them ignore the other.
    before = {n: signal.signal(n, signal.default_int_handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt):
            runner.execute(
                tmp_path, [Step("long", ())], program=(sys.executable, "-c", "import time; time.sleep(60)")
            )
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert started[0].poll() is not None
    assert not running.read_record(tmp_path, "long")["done"]


@pytest.mark.parametrize("ending", ["sys.exit(130)", "os.kill(os.getpid(), signal.SIGINT)"])
def test_an_interrupted_step_is_no_failure(tmp_path, ending, capsys):
    code = f"import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); {ending}"
    with pytest.raises(KeyboardInterrupt):
        runner.execute(tmp_path, [Step("a", ())], program=(sys.executable, "-c", code))
    assert "whole log" not in capsys.readouterr().err
    assert not running.read_record(tmp_path, "a")["done"]


def test_intervals_are_counted_once():
    assert runner._covered([[0, 2], [1, 3], [5, 6]]) == 4
    assert runner._covered([]) == 0


def test_the_last_state_of_a_progress_bar_is_what_is_shown(tmp_path):
    log = tmp_path / "log"
    log.write_text("first\n 1/9\r 2/9\r 3/9")
    assert running.tail(log, 1) == ["3/9"]


def test_nothing_outside_the_run_folder_is_removed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    with pytest.raises(AssertionError):
        runner._remove(tmp_path / "run", [outside])
    assert outside.exists()


def test_a_kill_ends_the_running_step_and_says_what_is_kept(tmp_path):
    command = [sys.executable, "-m", "vita_vla_cli", "quickstart", "--fast", "--run", str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children = []
    while not children and parent.poll() is None:
        time.sleep(0.05)
        children = psutil.Process(parent.pid).children(recursive=True)
    parent.send_signal(signal.SIGTERM)
    _, shown = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert "interrupted" in shown and "the same command continues" in shown and "Traceback" not in shown
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
