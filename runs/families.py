"""Which VLM families are tested, how, and at which size: results/families/, docs/vlm_families.md.

    python runs/families.py               # runs tests/test_families.py, writes everything
    python runs/families.py --no-tests    # keeps the recorded test results: counts, tokens and page only

families.json: per family the checks that passed, parameter counts of a published model (computed on the meta
device from its shapes, runs/vlm_shapes.py) and image tokens per camera as its processor makes them.
parameters.json: what learns in each stage of the paper's student (VITA-1.5-7B), on the meta device too.
Hardware: one CPU core. Wall time: a minute or two. Expected: every check passes in all nine families.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers.initialization import no_init_weights

ROOT = Path(__file__).resolve().parent.parent
# The tests' builders make a VLM with its processor on the spot, without a download.
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "runs")]

from vlm_shapes import PUBLISHED  # noqa: E402

from lerobot_policy_vita_vla.contracts import ActionSpec  # noqa: E402
from lerobot_policy_vita_vla.teacher.decoder import ActionDecoder  # noqa: E402
from lerobot_policy_vita_vla.vla.action_modules import ActionMapper, ActionQueries, StateEncoder  # noqa: E402
from lerobot_policy_vita_vla.vla.backbone import READS_BOTH_WAYS, VLMBackbone  # noqa: E402
from lerobot_policy_vita_vla.vla.stages import TRAINABLE, apply_stage  # noqa: E402
from lerobot_policy_vita_vla.vla.vlm_contract import parts_of  # noqa: E402
from tiny_vlms import FAMILIES  # noqa: E402

RESULTS = ROOT / "results" / "families"
PAGE = ROOT / "docs" / "vlm_families.md"
SUITE = "tests/test_families.py"
CAMERA_PX = 224
TITLES = {
    "smolvlm": "SmolVLM",
    "idefics3": "Idefics3",
    "internvl": "InternVL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "paligemma": "PaliGemma",
    "paligemma2": "PaliGemma 2",
    "llava_onevision": "LLaVA-OneVision",
    "gemma3": "Gemma 3",
}

PAPER = {"calvin": ("seer-large", 1024), "libero": ("seer-base", 384)}
"""The paper's two students: their teachers, and the width of the teacher's features."""


def run_suite() -> dict[str, Any]:
    """Run the suite; per family and check, whether all its variants passed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            SUITE,
            "-q",
            f"--junitxml={report}",
            "-p",
            "no:cacheprovider",
        ]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=ROOT, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cases = list(ET.parse(report).getroot().iter("testcase"))
    outcome: dict[str, dict[str, bool]] = {family: {} for family in FAMILIES}
    for case in cases:
        name, _, variant = case.get("name", "").partition("[")
        # Ids of a test's parameters are joined by "-"; exactly one of them is a family.
        family = next(part for part in variant.rstrip("]").split("-") if part in FAMILIES)
        passed = not any(child.tag in ("failure", "error", "skipped") for child in case)
        outcome[family][name] = outcome[family].get(name, True) and passed
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"tests": len(cases), "cpu_seconds": round(seconds, 1), "checks": outcome}


def published_model(family: str) -> tuple[torch.nn.Module, Any]:
    """A published model without weights, and its processor with a stand-in tokenizer."""
    made = PUBLISHED[family]
    with torch.device("meta"), no_init_weights():
        return FAMILIES[family](dict(made.text), dict(made.vision), made.image_size, made.tied)


def describe(family: str) -> dict[str, Any]:
    """Parameter counts and image tokens of a family's published model."""
    vlm, processor = published_model(family)
    vlm.tie_weights()
    counts = {part: sum(p.numel() for p in named.values()) for part, named in parts_of(vlm).items()}
    prompts = VLMBackbone(vlm, processor).prompts
    tokens = {}
    for cameras in (1, 2):
        row, _ = prompts._row("pick up the bowl", ((CAMERA_PX, CAMERA_PX),) * cameras, 4)
        tokens[cameras] = int((row["input_ids"] == processor.image_token_id).sum()) // cameras
    made = PUBLISHED[family]
    return {
        "checkpoint": made.checkpoint,
        "licence": made.licence,
        "parameters": {part: counts[part] for part in ("vision", "projector", "language", "lm_head")},
        "parameters_total": sum(counts.values()),
        "tied_embeddings": made.tied,
        "image_px": made.image_size,
        "image_tokens_one_camera": tokens[1],
        "image_tokens_per_camera": tokens[2],
        "history": "turns" if processor.chat_template else "none",
        "keys_and_values_kept": READS_BOTH_WAYS not in row and bool(processor.chat_template),
    }


def paper_parameters() -> dict[str, Any]:
    """What learns in each stage at the paper's shapes: VITA-1.5-7B and a Seer of width E."""
    from lerobot_policy_vita_vla.training.plan_model import paper_config
    from lerobot_policy_vita_vla.vlm.vita15_model import VitaVLForConditionalGeneration

    with torch.device("meta"), no_init_weights():
        vlm = VitaVLForConditionalGeneration(paper_config())
    spec = ActionSpec(tuple("xyzrpyg"), (0.0,) * 7, (1.0,) * 7, (6,), "binary")
    students = {}
    for name, (teacher, width) in PAPER.items():
        with torch.device("meta"):
            added = {
                "state_encoder": StateEncoder(state_dim=8, width=3584, gripper_dims=(6, 7)),
                "queries": ActionQueries(num_queries=3, width=3584, shared=True, init_std=1.0),
                "mapper": ActionMapper(width=3584, feature_dim=width),
                "decoder": ActionDecoder(kind="seer", feature_dim=width, spec=spec),
            }
        parts = parts_of(vlm) | {part: dict(module.named_parameters()) for part, module in added.items()}
        stages = {}
        for stage in TRAINABLE:
            counts = apply_stage(parts, stage)
            stages[stage] = counts | {"total": sum(counts.values())}
        students[name] = {"teacher": teacher, "feature_dim": width, "stages": stages}
    frozen = {part: sum(p.numel() for p in parts_of(vlm)[part].values()) for part in ("vision", "projector")}
    return {
        "vlm": "VITA-1.5-7B (InternViT-300M, Linear-GELU-Linear, Qwen2.5-7B)",
        "students": students,
        "never_trained": frozen,
        "align_params_calvin": students["calvin"]["stages"]["align"]["total"],
        "align_params_libero": students["libero"]["stages"]["align"]["total"],
        "finetune_params": students["calvin"]["stages"]["finetune"]["language"],
        "finetune_params_total": students["calvin"]["stages"]["finetune"]["total"],
    }


TEXT = """\
# VLM families

Written by `python runs/families.py` from results/families/. `--policy.vlm` takes any image-text-to-text model
of transformers that meets the contract; another is refused with the requirement that it fails. These families
are tested, on tiny random models built from their config classes with their real processors: the arithmetic
around the VLM is tested, not the weights. The suite is {suite}: {tests} tests, {seconds:.0f} seconds of one
core when last run ({date}).

| family | checks passed | example checkpoint | parameters, 10^9 | language alone | image tokens per camera \
| history | licence of the weights |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

Parameters are counted on the meta device from published shapes (runs/vlm_shapes.py), image tokens in the
prompt that the processor makes of two cameras of {px} px, tiling off. Qwen-VL's number grows with the
picture, the others' does not. Checkpoints were not downloaded here, and licences are those of the model cards
when this was written: read the card.

History: `--policy.n_obs_steps` above 1 makes one chat turn per step. While an episode is shorter than that, a
step is computed on the keys and values of the steps before it. Gemma 3 lets the tokens of an image see each
other in a first pass only, so there everything is computed anew, as it is in every family once the oldest
step leaves the window: what came later had read it.

A picture that comes alone is shown to LLaVA-OneVision twice, whole and as a tile; it has no switch for that.
A single camera of more than 384 px would become a grid of tiles and is refused.

## What is checked in each family

{checks}

## What learns, at the paper's size

{vlm}, counted on the meta device (results/families/parameters.json).

| part | align, CALVIN | finetune, CALVIN | align, LIBERO | finetune, LIBERO |
| --- | --- | --- | --- | --- |
{table}

The paper's 30 M of stage 1 is the first total divided by 1024 x 1024.
"""


def page(families: dict[str, Any], parameters: dict[str, Any]) -> str:
    """docs/vlm_families.md."""
    rows = [_row(title, families["families"][name]) for name, title in TITLES.items()]
    checks = sorted({check for entry in families["families"].values() for check in entry["checks"]})
    students = parameters["students"]
    columns = [students[name]["stages"][stage] for name in PAPER for stage in ("align", "finetune")]
    parts = ("state_encoder", "queries", "mapper", "decoder", "language", "total")
    table = [f"| {part} | " + " | ".join(f"{c.get(part, 0):,}" for c in columns) + " |" for part in parts]
    return TEXT.format(
        suite=SUITE,
        tests=families["tests"],
        seconds=families["cpu_seconds"],
        date=families["date"],
        rows="\n".join(rows),
        px=CAMERA_PX,
        checks="\n".join("- " + check.removeprefix("test_").replace("_", " ") for check in checks),
        vlm=parameters["vlm"],
        table="\n".join(table),
    )


def _row(title: str, entry: dict[str, Any]) -> str:
    one, more = entry["image_tokens_one_camera"], entry["image_tokens_per_camera"]
    if entry["history"] == "none":
        history = "no: no chat template"
    else:
        history = "yes" if entry["keys_and_values_kept"] else "yes, always computed anew"
    cells = (
        title,
        f"{sum(entry['checks'].values())} of {len(entry['checks'])}",
        f"`{entry['checkpoint']}`",
        f"{entry['parameters_total'] / 1e9:.2f}",
        f"{entry['parameters']['language'] / 1e9:.2f}",
        str(more) if one == more else f"{more}; a single camera {one}",
        history,
        entry["licence"],
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run, count, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-tests", action="store_true", help="keep the recorded test results")
    args = parser.parse_args()
    file = RESULTS / "families.json"
    if args.no_tests:
        before = json.loads(file.read_text())
        tested = {key: before[key] for key in ("tests", "cpu_seconds", "date")}
        checks = {family: entry["checks"] for family, entry in before["families"].items()}
    else:
        tested = run_suite() | {"date": date.today().isoformat()}
        checks = tested.pop("checks")
    families = {
        "command": "python runs/families.py",
        **tested,
        "families_passed": sum(bool(done) and all(done.values()) for done in checks.values()),
        "families": {family: {"checks": checks[family], **describe(family)} for family in FAMILIES},
    }
    parameters = {"command": "python runs/families.py", **paper_parameters()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(families, indent=2) + "\n")
    (RESULTS / "parameters.json").write_text(json.dumps(parameters, indent=2) + "\n")
    PAGE.write_text(page(families, parameters))
    for family, done in checks.items():
        print(f"{family:16} {sum(done.values())} of {len(done)} checks")
    if families["families_passed"] != len(FAMILIES):
        sys.exit("not every family passed every check; see above")


if __name__ == "__main__":
    main()
