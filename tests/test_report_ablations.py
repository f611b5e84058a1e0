"""Ablations on the report page and in the README's figure: what is drawn is what the table holds."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lerobot_policy_vita_vla.evaluation.ablations import pool_seeds
from lerobot_policy_vita_vla.evaluation.report import build_report
from lerobot_policy_vita_vla.evaluation.report_ablations import _places, ablation_section
from lerobot_policy_vita_vla.evaluation.report_data import read_run
from lerobot_policy_vita_vla.evaluation.results import write_json
from lerobot_policy_vita_vla.evaluation.statistics import rate_with_interval, wilson
from report_helpers import TASKS, ablations, make_run

PLOT = Path(__file__).parents[1] / "scripts" / "plot_budgets.py"


def row(successes, n=100, seed=0, variant="two_stage", steps=300):
    return {"variant": variant, "finetune_steps": steps, "seed": seed, **rate_with_interval(successes, n)}


def width(successes):
    (found,) = pool_seeds([row(wins, seed=seed) for seed, wins in enumerate(successes)])
    return found.high - found.low


def test_one_seed_keeps_its_own_interval():
    (found,) = pool_seeds([row(72)])
    assert (found.low, found.high) == pytest.approx(wilson(72, 100)) and found.rate == 0.72


def test_seeds_that_agree_count_as_one_play_and_those_that_differ_widen_the_interval():
    assert width([72, 72, 72]) == pytest.approx(width([72]))
    assert width([68, 72, 76]) == pytest.approx(width([72]))  # no more than chance within one play
    assert width([52, 72, 92]) > 1.3 * width([72])
    assert width([100, 100, 100]) == pytest.approx(1 - wilson(100, 100)[0])  # never nothing


def test_pooled_rows_are_in_the_order_of_the_table_and_of_the_budgets():
    rows = [row(50, variant=v, steps=n, seed=s) for v in ("b", "a") for n in (600, 100) for s in (1, 0)]
    found = pool_seeds(rows)
    assert [(item.variant, item.finetune_steps) for item in found] == [
        ("b", 100),
        ("b", 600),
        ("a", 100),
        ("a", 600),
    ]
    assert [r["seed"] for r in found[0].rows] == [0, 1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "few"
    make_run(folder, tasks=TASKS[:1], rates={"finetune": 0.5}, n=3, films=0, full=False)
    write_json(folder / "ablation/ablations.json", ablations())
    return read_run(folder)


def test_every_seed_is_a_dot_and_every_variant_a_line(run):
    success, gain = ablation_section(run, "r0")["figures"]
    for figure, variants in ((success, 4), (gain, 3)):
        assert len(figure["curves"]) == variants
        assert len({(one.colour, one.marker) for one in figure["curves"]}) == variants
        assert all(f"var(--{one.colour})" in figure["svg"] for one in figure["curves"])
        assert "#f000" not in figure["svg"]
    by_name = {one.name: one for one in success["curves"]}
    two_stage = by_name["Two-stage"]
    assert two_stage.steps == [500, 1500]
    assert [len(dots) for dots in two_stage.dots] == [2, 2]
    assert two_stage.values[1] == pytest.approx(100 * (51 + 53) / 120)
    assert two_stage.lows[1] < min(two_stage.dots[1]) and max(two_stage.dots[1]) < two_stage.highs[1]
    # The same variant looks the same in both panels.
    looks = {one.name: (one.colour, one.marker) for one in success["curves"]}
    assert all(looks[one.name] == (one.colour, one.marker) for one in gain["curves"])


def test_comparisons_are_a_table_with_interval_episodes_seeds_and_p(run):
    shown = ablation_section(run, "r0")["comparisons"]
    assert [item["name"] for item in shown[:2]] == ["Only finetune, 500 steps", "Only finetune, 1,500 steps"]
    first = shown[0]
    assert first["difference"] == "+25 (+17 to +33)" and first["clear"]
    assert (first["n"], first["seeds"], first["p"]) == ("60", "2", "0.012")
    assert not next(item for item in shown if item["name"].startswith("One query"))["clear"]
    text = build_report([run.path]).read_text()
    assert "+25 (+17 to +33)" in text and "trained 900 steps" in text and "8 rates" in text


def test_one_budget_needs_no_curve(run):
    section = ablation_section(replace(run, ablations=ablations(budgets=(300,), seeds=(0,))), "r0")
    assert section["figures"] == [] and [len(item["seeds"]) for item in section["rates"]] == [0] * 4
    assert section["rates"][0]["name"] == "Two-stage"  # the budget is named only where there are several


def test_a_table_of_rows_alone_is_shown(run):
    section = ablation_section(replace(run, ablations={"rows": ablations()["rows"]}), "r0")
    assert len(section["figures"]) == 1 and section["comparisons"] == []


@pytest.mark.parametrize(("part", "key"), [("rows", "success_rate"), ("comparisons", "p_value")])
def test_a_table_that_lacks_a_number_is_named(run, part, key):
    table = ablations()
    del table[part][1][key]
    with pytest.raises(ValueError, match=rf"ablations\.json lacks \['{key}'\]"):
        ablation_section(replace(run, ablations=table), "r0")


def test_budgets_are_to_scale_unless_their_labels_would_overlap():
    assert _places({100, 300, 600}) == ({100: 0.0, 300: 0.4, 600: 1.0}, True)
    assert _places({25, 300, 3000}) == ({25: 0.0, 300: 0.5, 3000: 1.0}, False)
    assert _places({300}) == ({300: 0.0}, True)


@pytest.fixture
def plot():
    spec = importlib.util.spec_from_file_location("plot_budgets", PLOT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.plot


def test_the_readmes_figure_is_opaque_and_reproducible(plot, tmp_path):
    write_json(tmp_path / "ablation/ablations.json", ablations())
    first = plot(tmp_path).read_text()
    assert plot(tmp_path).read_text() == first
    ground = re.search(r'id="patch_1".*?fill: (#[0-9a-f]{6})', first, re.DOTALL)
    assert ground[1] == "#ffffff"
    assert "<text" not in first and "dc:date" not in first  # letters are outlines: no font is needed


def test_the_readmes_figure_needs_several_budgets(plot, tmp_path):
    with pytest.raises(ValueError, match="does not exist; publish"):
        plot(tmp_path)
    write_json(tmp_path / "ablation/ablations.json", ablations(budgets=(300,)))
    with pytest.raises(ValueError, match="single budget"):
        plot(tmp_path)
    assert not (tmp_path / "budget.svg").exists()
