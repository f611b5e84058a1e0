"""docs/vlm_families.md and results/families/ say what the suite and the code say."""

import ast
import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def families():
    spec = importlib.util.spec_from_file_location("families", ROOT / "runs" / "families.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def recorded(name):
    return json.loads((ROOT / "results" / "families" / name).read_text())


def test_page_is_current(families):
    text = families.page(recorded("families.json"), recorded("parameters.json"))
    assert families.PAGE.read_text() == text, "docs/vlm_families.md is stale: run python runs/families.py"


def test_every_check_of_the_suite_passed_in_every_family(families):
    results = recorded("families.json")
    tree = ast.parse((ROOT / families.SUITE).read_text())
    checks = {node.name for node in tree.body if getattr(node, "name", "").startswith("test_")}
    assert (
        set(results["families"]) == set(families.FAMILIES) == set(families.PUBLISHED) == set(families.TITLES)
    )
    for family, entry in results["families"].items():
        assert set(entry["checks"]) == checks, f"run python runs/families.py: {family}"
        assert all(entry["checks"].values()), family
    assert results["families_passed"] == 9


@pytest.mark.parametrize("family", ["internvl", "gemma3"])
def test_counts_and_image_tokens_are_recomputed(families, family):
    entry = recorded("families.json")["families"][family]
    assert {**families.describe(family), "checks": entry["checks"]} == entry


def test_trainable_parameters_at_the_papers_shapes(families):
    """Stage 1: 31.5 M (CALVIN, E=1024) and 27.4 M (LIBERO, E=384); stage 2: 7.07 B of language model."""
    parameters = families.paper_parameters()
    assert parameters["align_params_calvin"] == 31_503_360
    assert parameters["align_params_libero"] == 27_405_440
    assert parameters["finetune_params"] == 7_070_619_136
    stages = parameters["students"]["calvin"]["stages"]
    assert set(stages["align"]) == {"state_encoder", "queries", "mapper", "total"}
    assert stages["finetune"]["decoder"] == 791_047
    assert parameters["students"]["libero"]["stages"]["finetune"]["decoder"] == 112_327
    assert stages["finetune"]["total"] == 7_070_619_136 + 31_503_360 + 791_047
    assert recorded("parameters.json") == {"command": "python runs/families.py", **parameters}
