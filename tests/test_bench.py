"""The benchmark harness, its verb and its page."""

import argparse
import importlib
import json
import time
from pathlib import Path

import pytest
import torch

from lerobot_policy_vita_vla.bench import flops, harness
from student_helpers import needs_compiler
from vita_vla_cli import bench_page, cli
from vita_vla_cli.verbs import bench as verb

ROOT = Path(__file__).parents[1]


def test_sides_run_in_turns_and_ratios_are_paired():
    calls = []

    def slow():
        calls.append("slow")
        time.sleep(0.02)

    def fast():
        calls.append("fast")
        time.sleep(0.01)

    found = harness.side_by_side({"slow": slow, "fast": fast}, rounds=4, warmup=1)
    # One warm-up each, then the first of a round changes: neither always follows the other.
    assert calls == ["slow", "fast"] + ["slow", "fast", "fast", "slow"] * 2
    ratio = found["ratios"]["slow/fast"]
    # A busy machine may stretch any one call, so nothing is said about how far the ends lie.
    assert ratio["low"] <= ratio["median"] <= ratio["high"] and ratio["median"] > 1.1
    assert len(found["sides"]["slow"]["all_s"]) == 4
    assert found["sides"]["slow"]["cpu_s"] < 0.02  # sleeping is no work
    assert found["ratios"]["fast/slow"]["median"] < 1


def test_a_ratio_is_of_rounds_not_of_medians():
    # Both sides twice as slow in every second round: the ratio is 2 in each, whatever the medians are.
    ratio = harness.ratio([2.0, 2.0, 2.0])
    assert ratio == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert harness.percentile([4.0, 1.0, 3.0, 2.0], 25) == 1.75


def test_no_side_and_no_round_are_refused():
    with pytest.raises(ValueError, match="at least one side and one round, got 1 and 0"):
        harness.side_by_side({"a": int}, rounds=0)
    with pytest.raises(ValueError, match="at least one side"):
        harness.side_by_side({}, rounds=1)


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    path = harness.write("align", {"align_speedup": 2.0}, tmp_path / "new")
    written = json.loads(path.read_text())
    assert written["benchmark"] == "align" and written["align_speedup"] == 2.0
    assert written["machine"]["threads"] == torch.get_num_threads()
    assert written["machine"]["versions"]["torch"]
    before = path.read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        harness.write("align", {"align_speedup": float("nan")}, tmp_path / "new")
    assert path.read_text() == before and list(path.parent.iterdir()) == [path]


def test_counted_work_is_what_the_formulas_say():
    heads, dim, hidden, inner, n = 4, 16, 64, 128, 24
    text = flops.Transformer.decoder(
        layers=1, hidden=hidden, intermediate=inner, heads=heads, kv_heads=2, head_dim=dim
    )
    layers = torch.nn.ModuleDict(
        {
            "q": torch.nn.Linear(hidden, heads * dim),
            "k": torch.nn.Linear(hidden, 2 * dim),
            "v": torch.nn.Linear(hidden, 2 * dim),
            "o": torch.nn.Linear(heads * dim, hidden),
            "up": torch.nn.Linear(hidden, inner),
            "gate": torch.nn.Linear(hidden, inner),
            "down": torch.nn.Linear(inner, hidden),
        }
    )
    assert text.weights == sum(layer.weight.numel() for layer in layers.values())
    x = torch.randn(1, n, hidden, requires_grad=True)

    def step(learns: bool):
        for layer in layers.values():
            layer.requires_grad_(learns)

        def split(y, count):
            y = y.view(1, n, count, dim).transpose(1, 2)
            return y.repeat_interleave(heads // count, dim=1)

        q, k, v = split(layers["q"](x), heads), split(layers["k"](x), 2), split(layers["v"](x), 2)
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        y = layers["o"](mixed.transpose(1, 2).reshape(1, n, -1))
        layers["down"](layers["up"](y) * layers["gate"](y)).sum().backward()

    for learns in (False, True):
        expected = text.forward(n) + text.backward(n, learns=learns)
        assert flops.count(lambda learns=learns: step(learns)) == pytest.approx(expected, rel=0.02)
    assert flops.naive_step(text, 20, 4) == text.forward(24) + text.backward(24, learns=False)


def test_the_floors_of_the_paper_size_come_out():
    # VITA-1.5-7B: 552 tokens of prefix, 4 of suffix; a fused causal kernel.
    text = flops.Transformer.decoder(
        layers=28, hidden=3584, intermediate=18944, heads=28, kv_heads=4, head_dim=128
    )
    assert text.weights == pytest.approx(6.525e9, rel=1e-3)
    assert text.forward(556, causal=True) == pytest.approx(7.318e12, rel=2e-3)
    # Stage 1: 8.85 TFLOP in all, of which the vision part is 1.475.
    cached = text.forward(552, causal=True) + text.forward(4, 556)
    cached += text.backward(4, 556, learns=False, fused=True)
    assert cached + 1.475e12 == pytest.approx(8.85e12, rel=0.01)
    assert flops.cached_step(text, 552, 4) < flops.naive_step(text, 552, 4) / 1.8


def test_a_gpus_limit_stands_beside_the_step_and_a_cpu_has_none(monkeypatch):
    figures = {"headline": {"x": "something"}, "x": 1}
    assert flops.beside_peak(figures, 1e12, 0.5, "cpu") == figures
    monkeypatch.setattr(flops, "matmul_peak", lambda device: 8e12)
    found = flops.beside_peak(figures, 1e12, 0.5, "cuda")
    assert found["share_of_peak"] == 0.25 and found["tflops"] == 2.0
    assert all(key in found for key in found["headline"])


def test_the_verb_lists_and_refuses(capsys, tmp_path):
    assert cli.main(["bench", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}: " in shown for name in verb.BENCHMARKS)
    for arguments, message in (
        (["bench"], "which benchmark"),
        (["bench", "speed"], "no benchmark named speed; there are: align"),
        (["bench", "import", "--rounds", "0"], "--rounds must be at least 1"),
        (["bench", "import", "--toy"], "--toy says nothing about speed"),
        (["bench", "import", "--bacth=3"], "unknown argument --bacth=3 of benchmark 'import'"),
        (["bench", "--render"], "does not exist here"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            assert cli.main(arguments) != 0, arguments
        assert message in capsys.readouterr().err, arguments


def test_the_verb_measures_and_its_result_becomes_a_table(capsys, tmp_path):
    command = ["bench", "import", "startup", "--toy", "--rounds", "2", "--threads", "1"]
    threads = torch.get_num_threads()
    try:
        assert cli.main([*command, "--out", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "import of the plugin after json, seconds" in capsys.readouterr().out
    result = json.loads((tmp_path / "import.json").read_text())
    assert len(result["samples"]["import_seconds"]) == 2 and result["import_seconds"] > 0
    assert result["command"].startswith("vita-vla bench import startup --toy")
    page = bench_page.rendered(f"above {bench_page.BEGIN} old {bench_page.END} below", tmp_path)
    assert page.startswith("above ") and page.endswith(" below") and " old " not in page
    assert "### import\n" in page and "### startup\n" in page
    assert "| `vita-vla --help`, seconds |" in page


def test_a_comparison_becomes_a_table(tmp_path):
    found = harness.side_by_side({"a": lambda: 0, "b": lambda: 0}, rounds=3)
    figures = {
        "dtype": "float32",
        "setting": "Nothing, twice.",
        "command": "vita-vla bench align",
        "headline": {"x": "a / b"},
        "x": 2.0,
        "x_low": 1.5,
        "x_high": 2.5,
        "comparisons": {"doing nothing": found},
        "notes": ["the rest is waiting"],
    }
    harness.write("align", figures, tmp_path)
    page = bench_page.rendered(bench_page.BEGIN + bench_page.END, tmp_path)
    assert "| a / b | 2 | 1.5 - 2.5 |" in page and "| doing nothing | median | quartiles |" in page
    assert "float32" in page and "- the rest is waiting" in page
    with pytest.raises(ValueError, match="markers"):
        bench_page.rendered("no markers", tmp_path)


def toy(name: str, *flags: str) -> dict:
    module = importlib.import_module(f"{verb.PACKAGE}.{name}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    args = parser.parse_args(flags)
    args.toy, args.rounds, args.threads = True, 1, 1
    return module.run(args)


def test_an_align_step_has_equal_gradients_less_memory_and_the_formulas_work():
    found = toy("align")
    assert found["align_grad_diff"] < 1e-5 and found["align_memory_ratio"] > 1.5
    assert found["align_flop_error"] < 0.02 and found["align_flop_ratio"] > 2
    assert set(found["comparisons"]["an align step with a teacher"]["sides"]) == {
        "teacher in every step",
        "precomputed",
    }
    assert all(key in found for key in found["headline"])


def test_a_finetune_step_runs_beside_smolvlas_and_does_the_formulas_work():
    found = toy("train")
    assert found["train_flop_error"] < 0.02
    learned = found["learned_parameters"]
    assert learned["SmolVLA, default"] < learned["SmolVLA, VLM"]
    assert all(key in found for key in found["headline"])


@needs_compiler
def test_compiled_layers_have_the_plain_ones_gradients():
    found = toy("compile")
    # bfloat16 keeps 8 bits; fused arithmetic rounds in other places.
    assert 0 < found["compile_grad_diff"] < 0.05 and found["compile_seconds"] > 0
    assert all(key in found for key in found["headline"])


def test_loaders_are_compared_on_the_same_batches():
    found = toy("data")
    assert 0 < found["data_share"] < 1 and found["data_samples_per_s"] > 0
    assert all(key in found for key in found["headline"])


def test_the_page_shows_the_results():
    text = (ROOT / "docs" / "performance.md").read_text()
    assert text == bench_page.rendered(text, ROOT / "results" / "bench"), "run: vita-vla bench --render"
