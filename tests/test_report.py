"""The report page: what it says is what the run folder holds, and it works in a real browser."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from lerobot_policy_vita_vla.evaluation import report
from lerobot_policy_vita_vla.evaluation.report import build_report
from lerobot_policy_vita_vla.evaluation.report_agreement import agreement_tables
from lerobot_policy_vita_vla.evaluation.report_curves import learning_curves
from lerobot_policy_vita_vla.evaluation.report_data import HOW_TO_MAKE, read_run
from lerobot_policy_vita_vla.evaluation.report_figures import (
    Curve,
    draw_curves,
    moving_average,
    policy_styles,
)
from lerobot_policy_vita_vla.evaluation.report_record import known_commands, one_option_per_line
from lerobot_policy_vita_vla.evaluation.report_videos import choose_videos
from lerobot_policy_vita_vla.evaluation.report_view import pair_rows
from lerobot_policy_vita_vla.evaluation.statistics import paired_comparison
from report_helpers import RATES, TASKS, Browser, make_run
from vita_vla_cli.cli import build_parser

BROWSERS = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
HERE = Path(__file__).parent
INSPECT = (HERE / "report_inspect.js").read_text()
OPERATE = (HERE / "report_operate.js").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "quickstart", films=1, n_frames=8)


@pytest.fixture(scope="module")
def page(run) -> Path:
    return build_report([run])


@pytest.fixture
def small(tmp_path) -> Path:
    """A run that a test may damage."""
    return make_run(
        tmp_path / "small", tasks=TASKS[:2], rates={"teacher": 0.9, "finetune": 0.6}, n=4, films=1, n_frames=3
    )


@pytest.fixture(scope="module")
def browser() -> Browser:
    if CHROMIUM is None:
        pytest.skip(
            "THE REPORT PAGE IS NOT TESTED: no Chromium found; install it with `scripts/setup.sh --test`"
        )
    return Browser(CHROMIUM)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_works_in_a_browser(browser, page, width, dark):
    seen = browser.visit(page, width=width, height=900, dark=dark, script=INSPECT)
    assert seen["complaints"] == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in seen["urls"]), (
        "the page asked the network"
    )
    found = seen["value"]
    assert found["width"] <= found["window"] == width
    assert found["wide"] == [], "elements stick out or scroll sideways"
    assert found["pale"] == [], "text with a contrast below 4.5"
    assert len(found["videos"]) >= len(TASKS)
    assert all(ready >= 1 and seconds > 0 and pixels == 192 for ready, seconds, pixels in found["videos"])
    assert all(pixels == 192 for pixels in found["posters"])
    assert found["doubled"] == [] and found["dangling"] == []
    assert found["nameless"] == 0 and found["unreachable"] == 0
    steps = [b - a for a, b in zip(found["levels"], found["levels"][1:], strict=False)]
    assert found["levels"].count(1) == 1 and max(steps) == 1, "heading levels are skipped"
    # One placeholder that was not replaced would show as a colour of matplotlib's.
    assert not any("240, 0, " in stroke for stroke in found["strokes"])
    red = int(re.findall(r"\d+", found["background"])[0])
    assert red < 60 if dark else red > 200


def test_buttons_do_what_they_say(browser, page):
    seen = browser.visit(page, width=1280, height=900, dark=False, script=OPERATE)
    assert seen["complaints"] == []
    found = seen["value"]
    assert found["all"] == found["again"]
    assert set(found["failures"]) == {"lost"} and len(found["failures"]) < found["all"]
    assert set(found["both"]) == {"lost finetune"}
    assert found["empty"] and found["playing"] and found["stopped"]
    assert found["moved"] and found["paused"] and found["copied"]


def test_several_runs_share_one_page(browser, run, small, tmp_path):
    with pytest.raises(ValueError, match="--out"):
        build_report([run, small])
    out = build_report([run, small], tmp_path / "both.html")
    seen = browser.visit(out, width=390, height=900, dark=False, script=INSPECT)
    assert seen["complaints"] == [] and seen["value"]["doubled"] == [] and seen["value"]["wide"] == []
    text = out.read_text()
    assert "quickstart" in text and "small" in text


def test_page_is_reproducible_and_has_no_link_to_elsewhere(run, page):
    first = page.read_bytes()
    assert build_report([run]).read_bytes() == first
    text = re.sub(r"data:[a-z0-9/]+;base64,[A-Za-z0-9+/=]+", "data:", first.decode())
    outside = set(re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*""", text))
    assert outside == set()


def test_rates_and_paired_tests_are_those_of_the_episodes(run, page):
    data = read_run(run)
    won = {e.label: {x["id"]: x["success"] for x in e.episodes} for e in data.evaluations}
    for row in pair_rows(data, policy_styles(RATES)):
        expected = paired_comparison(won["finetune"], won[row["other"]])
        assert (row["both"], row["only_main"], row["only_other"]) == (
            expected["both"],
            expected["only_a"],
            expected["only_b"],
        )
    text = page.read_text()
    for label, outcomes in won.items():
        assert f"<code>eval/{label}</code>" in text
        assert f"{sum(outcomes.values())} of {len(outcomes)}" in text


def test_policy_on_other_episodes_is_not_paired(small):
    path = small / "eval/teacher/result.json"
    path.write_text(path.read_text().replace("9f2c7a51", "00000000"))
    assert pair_rows(read_run(small), policy_styles(RATES)) == []
    assert "other episodes than this run" in build_report([small]).read_text()


def test_missing_parts_are_named_with_their_command(tmp_path):
    folder = make_run(tmp_path / "bare", tasks=TASKS[:1], rates={"finetune": 0.5}, n=3, films=0, full=False)
    (folder / "eval/late").mkdir()
    text = build_report([folder], tmp_path / "deep/er/page.html").read_text()
    for part, command in [
        ("teacher", "vita-vla teacher"),
        ("videos", "vita-vla eval"),
        ("ablations", "vita-vla ablate"),
    ]:
        assert f"<li>{part}: made by <code>{command}" in text
    assert "vita-vla quickstart" not in text  # it would want the folder for itself
    assert "<video" not in text and "Learning curves" not in text
    assert "Not finished, so not shown: late" in text


@pytest.mark.parametrize("command", HOW_TO_MAKE.values())
def test_commands_for_missing_parts_are_accepted_by_the_command_line(command):
    words = shlex.split(command.replace("RUN", "work/demo").replace("TASKS", "door-open"))
    assert words[0] == "vita-vla"
    build_parser().parse_args(words[1:])


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "timing.json",
        "agreement.json",
        "ablation/ablations.json",
        "eval/finetune/result.json",
        "eval/finetune/episodes.jsonl",
        "align/train_log.jsonl",
        "demos/meta/info.json",
    ],
)
def test_damaged_file_is_named(small, name):
    with (small / name).open("a") as stream:
        stream.write("{torn")
    with pytest.raises(ValueError, match=re.escape(str(small / name))):
        build_report([small])


def test_incomplete_folders_are_refused(small, tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        build_report([tmp_path / "nowhere"])
    path = small / "eval/finetune/episodes.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(
        ValueError, match=r"eval/finetune/result\.json counts .* 8 episodes, episodes\.jsonl has"
    ):
        build_report([small])
    shutil.rmtree(small / "eval")
    with pytest.raises(ValueError, match="vita-vla eval"):
        build_report([small])
    (small / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"manifest\.json"):
        build_report([small])


def test_agreement_of_a_long_chunk_is_thinned_out_and_a_damaged_one_is_named(small):
    path = small / "agreement.json"
    reports = json.loads(path.read_text())
    report = reports["align"]
    report["r2"] = [[t / 100, -0.5, None, None] for t in range(100)]
    report["gripper_agreement"] = None
    path.write_text(json.dumps({"align": report}))
    (table,) = agreement_tables(read_run(small), policy_styles(RATES))["tables"]
    assert table["columns"][0] == "1" and table["columns"][-1] == "100" and len(table["columns"]) == 8
    assert [row["name"] for row in table["rows"]] == ["x", "y"]
    assert {cell["heat"] for cell in table["rows"][1]["cells"]} == {0.0}
    assert "z, gripper" in table["note"]
    path.write_text(json.dumps({"align": {"n": 3}}))
    with pytest.raises(ValueError, match=r"agreement\.json: the report of 'align' lacks"):
        build_report([small])


def test_names_from_files_are_escaped(small):
    (small / "eval/teacher").rename(small / "eval/<img src=x onerror=alert(1)>")
    (small / "align/command.txt").write_text("lerobot-train --job_name='</pre><script>alert(1)</script>'")
    text = build_report([small]).read_text()
    assert "<img" not in text and text.count("<script>") == 1


def test_time_and_commands_of_a_quickstart_are_those_of_its_steps(small):
    asked = [
        json.loads((small / f"eval/{x}/result.json").read_text())["command"] for x in ("teacher", "finetune")
    ]
    names = ("demos", "teacher", "vision", "align", "only_finetune", "finetune", "agreement")
    steps = [
        {"name": n, "command": f"vita-vla {n} --of quickstart", "seconds": 60.0, "start": 0.0} for n in names
    ]
    for name, command in zip(("eval", "eval_finetune"), asked, strict=True):
        steps.append({"name": name, "command": command, "seconds": 60.0, "start": 60.0})
    path = small / "timing.json"
    path.write_text(json.dumps({"steps": steps, "total_seconds": 120.0}))
    data = read_run(small)
    commands, unknown = known_commands(data)
    assert [name for name, _ in commands] == [*names, "eval", "eval_finetune", "report"] and unknown == []
    text = build_report([small]).read_text()
    assert "ran side by side" in text and "2 min 00 s in all, up to this page" in text
    assert "lerobot-train --" not in text and "one after the other" not in text
    path.write_text(json.dumps({"steps": [*steps[:1], {"name": "report", "seconds": 5.0}]}))
    text = build_report([small]).read_text()
    assert "one after the other: 1 min 05 s in all, this page included" in text
    path.unlink()
    commands, unknown = known_commands(read_run(small))
    assert dict(commands)["teacher"].startswith("lerobot-train")
    assert [words.split("(")[1] for words in unknown] == ["demos/)", "agreement.json)"]
    assert "Not recorded" in build_report([small]).read_text()


def test_dashes_and_what_is_not_installed(small):
    path = small / "eval/teacher/result.json"
    path.write_text(path.read_text().replace('"torch": "2.11.0"', '"torch": "not installed"'))
    text = build_report([small]).read_text()
    assert "not installed" not in text
    assert "Action features need" in text and "gripper decision needs" not in text
    assert "Teacher and students answer the same 512" in text


def test_videos_keep_the_page_within_its_size(run, monkeypatch):
    data = read_run(run)
    everything = choose_videos(data, 10**9)
    budget = everything.n_bytes // 3
    fewer = choose_videos(data, budget)
    assert 0 < fewer.n_bytes <= budget and fewer.n_videos < everything.n_videos
    assert fewer.n_videos + fewer.n_left_out == everything.n_videos + everything.n_left_out
    monkeypatch.setattr(report, "PAGE_BYTES", report.REST_BYTES + budget)
    out = build_report([run], run.parent / "small.html")
    assert out.stat().st_size <= report.REST_BYTES + budget


def test_videos_show_failures_and_successes_of_every_policy(run):
    gallery = choose_videos(read_run(run), 10**9)
    shown = {
        (v.label, task, v.episode["success"]) for task, videos in gallery.by_task.items() for v in videos
    }
    for label in RATES:
        lines = (run / "eval" / label / "episodes.jsonl").read_text().splitlines()
        filmed = {(label, e["task"], e["success"]) for e in map(json.loads, lines) if e["video"]}
        assert filmed <= shown


def test_video_that_browsers_cannot_play_is_left_out_and_named(small):
    path = next((small / "eval/finetune/videos").iterdir())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(
            stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24"))
        )
        container.mux(stream.encode())
    text = build_report([small]).read_text()
    assert f"{path.name} is mpeg4" in text


def test_curves_take_the_colours_of_the_page():
    curves = [
        Curve(name, f"policy-{name}", range(50), np.linspace(1, 0.01, 50)) for name in ("align", "finetune")
    ]
    svg = draw_curves("one", curves)
    assert "var(--policy-align)" in svg and "var(--policy-finetune)" in svg
    assert not re.search(r"#f000|font-family|<metadata", svg)
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert all(i.startswith("one-") for i in ids)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= set(ids)


def test_imitation_is_compared_without_what_a_stage_adds_to_it(small):
    def log(stage, **parts):
        rows = [{"step": step, **parts} for step in (1, 2)]
        (small / stage / "train_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    log("finetune", loss=0.36, loss_arm=0.2, loss_gripper=0.5, loss_align=0.155)
    log("only_finetune", loss=0.28, loss_arm=0.28)
    log("teacher", loss=0.4, loss_arm=0.1, loss_gripper=1.0, loss_auxiliary=1.0)
    config = {"policy": {"gripper_weight": 0.1}}
    (small / "teacher/checkpoints/last/pretrained_model/train_config.json").write_text(json.dumps(config))
    curves = learning_curves(read_run(small), policy_styles(RATES), "r0")
    ends = {figure["title"]: figure["ends"] for figure in curves["losses"] + curves["further"]}
    assert ends["Teacher: imitation loss"] == "At the end: 0.2 after 2 steps"
    alone = "Two-stage: 0.205 after 2 steps; Only finetune: 0.28 after 2 steps"
    assert ends["Finetune: imitation loss"] == f"At the end: {alone}"
    assert "Two-stage: 0.36" in ends["loss with all terms"] and "Teacher: 0.4" in ends["loss with all terms"]
    assert "other terms that a stage learns" in build_report([small]).read_text()
    log("only_finetune", loss=0.28)  # a log of another policy: the same is drawn of both
    curves = learning_curves(read_run(small), policy_styles(RATES), "r0")
    ends = {figure["title"]: figure["ends"] for figure in curves["losses"]}
    assert "Two-stage: 0.36" in ends["Finetune: loss"] and "Only finetune: 0.28" in ends["Finetune: loss"]


def test_moving_average_keeps_a_straight_line():
    line = list(np.linspace(0.0, 1.0, 120))
    assert moving_average(line) == pytest.approx(line)


def test_styles_are_stable_and_distinct():
    styles = policy_styles(["b", "a", "finetune"])
    assert styles["finetune"].name == "Two-stage"
    assert (
        len({styles[label].colour for label in ("a", "b", "finetune", "teacher", "only_finetune", "align")})
        == 6
    )


def test_command_is_the_same_on_several_lines():
    command = "lerobot-train --policy.type=seer --job_name='two words --not-an-option' --steps=3"
    shown = one_option_per_line(command)
    assert shown.count("\n") == 3
    assert shown.replace(" \\\n  ", " ") == command.replace(
        "--job_name='two words --not-an-option'", "'--job_name=two words --not-an-option'"
    )
