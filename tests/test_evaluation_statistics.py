import numpy as np
import pytest

from lerobot_policy_vita_vla.evaluation.statistics import (
    mcnemar_exact,
    paired_comparison,
    rate_with_interval,
    seed_comparison,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (
            81,
            263,
            0.2553,
            0.3662,
        ),  # Newcombe 1998, "Two-sided confidence intervals for the single proportion"
        (0, 20, 0.0, 0.1611),  # same table
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_gives_published_limits(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


def test_rates_carry_their_interval_and_nonsense_is_refused():
    assert rate_with_interval(3, 4)["success_rate"] == 0.75
    for successes, n in ((0, 0), (5, 4), (-1, 4)):
        with pytest.raises(ValueError, match="interval"):
            wilson(successes, n)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p_value"),
    [
        (1, 8, 2 * (1 + 9) / 2**9),  # twice the chance of at most 1 head in 9 throws
        (0, 5, 2 / 2**5),
        (4, 4, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_is_a_fair_coin(only_a, only_b, p_value):
    assert mcnemar_exact(only_a, only_b) == pytest.approx(p_value)
    assert mcnemar_exact(only_b, only_a) == pytest.approx(p_value)


def _pair(both, only_a, only_b, neither):
    outcomes = [(1, 1)] * both + [(1, 0)] * only_a + [(0, 1)] * only_b + [(0, 0)] * neither
    a = {str(i): bool(x) for i, (x, _) in enumerate(outcomes)}
    return a, {str(i): bool(y) for i, (_, y) in enumerate(outcomes)}


def test_the_paired_interval_is_the_published_one():
    # Bentur's airway data in Fagerland et al. 2014, table 6: Newcombe's interval is -0.507 to -0.026.
    result = paired_comparison(*_pair(both=1, only_a=1, only_b=7, neither=12))
    assert result["difference"] == pytest.approx(-6 / 21)
    assert (result["low"], result["high"]) == pytest.approx((-0.507, -0.026), abs=5e-4)
    assert [result[key] for key in ("both", "only_a", "only_b", "neither", "n")] == [1, 1, 7, 12, 21]
    assert result["p_value"] == pytest.approx(2 * 9 / 2**8)


def test_swapping_the_policies_mirrors_the_comparison():
    a, b = _pair(both=20, only_a=9, only_b=3, neither=8)
    one, other = paired_comparison(a, b), paired_comparison(b, a)
    assert one["difference"] == -other["difference"]
    assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))


def test_the_paired_interval_covers_about_95_percent():
    generator = np.random.default_rng(0)
    probabilities, truth, covered = [0.5, 0.25, 0.1, 0.15], 0.15, 0
    for _ in range(400):
        result = paired_comparison(*_pair(*generator.multinomial(60, probabilities)))
        covered += result["low"] <= truth <= result["high"]
    assert 0.92 <= covered / 400 <= 0.985


def test_different_episodes_are_not_paired():
    with pytest.raises(ValueError, match="1 in common"):
        paired_comparison({"a/1": True, "a/2": True}, {"a/1": True, "a/3": True})


def test_the_spread_between_trainings_widens_the_interval():
    generator = np.random.default_rng(1)
    ids = [f"task/{i}" for i in range(100)]

    def run(rate):
        return dict(zip(ids, (generator.random(100) < rate).tolist(), strict=True))

    steady = seed_comparison([run(0.8) for _ in range(4)], [run(0.6) for _ in range(4)], resamples=2000)
    erratic = seed_comparison(
        [run(r) for r in (0.6, 1.0, 0.7, 0.9)], [run(r) for r in (0.3, 0.9, 0.5, 0.7)], resamples=2000
    )
    assert steady["difference"] == pytest.approx(erratic["difference"], abs=0.08)
    assert erratic["high"] - erratic["low"] > 2 * (steady["high"] - steady["low"])
    assert steady["low"] > 0 > erratic["low"]
    assert (steady["n_runs_a"], steady["n_episodes"]) == (4, 100)


def test_runs_of_other_episodes_are_refused():
    with pytest.raises(ValueError, match="same episodes"):
        seed_comparison([{"t/1": True}], [{"t/2": True}])
