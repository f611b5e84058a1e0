"""Write docs/presets.md from `vla/presets.py`: every hyper-parameter of the paper's scripts with its source.

    python scripts/preset_page.py

A test checks that the page is what this would write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.vla.presets import NOT_OFFERED, OURS, PRESETS, RUN_FLAGS, RUNS, Option

PAGE = Path(__file__).resolve().parents[1] / "docs" / "presets.md"
PAPER = ("paper-libero", "paper-calvin")

TEXT = """\
# Presets: the paper's hyper-parameters

Written by `scripts/preset_page.py` from `vla/presets.py`. A preset fills in every setting that is not given:

    lerobot-train --policy.type=vita_vla --policy.preset=paper-libero --policy.teacher_path=...

Where the paper and its published code disagree, the preset follows the paper; `--policy.preset_follows=code`
follows the code in all of them, and each can be chosen by its own flag. A checkpoint keeps its preset:
another one needs a new student. "Code" is the authors' published code.

| setting (`--policy.`...) | ours | paper-libero | paper-calvin | source of the paper's value |
| --- | --- | --- | --- | --- |
{settings}

## Where paper and code disagree

| setting | paper | code | what it means |
| --- | --- | --- | --- |
{differences}

## Runs

What the scripts pass to the trainer; `lerobot-train` takes `--batch_size` per process, and `--steps` instead
of epochs: epochs x frames / samples per update.

| preset | stage | processes | per process | micro-batches per update | samples per update | epochs \
| checkpoint that goes on |
| --- | --- | --- | --- | --- | --- | --- | --- |
{runs}

In all of them: {flags}.

## Not offered

{missing}
"""


def show(value: Any) -> str:
    """A value in a table cell."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return f'`"{value}"`' if len(value) < 40 else "a paragraph, see `SYSTEM_PROMPT`"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def text() -> str:
    """The page."""
    settings, differences = [], []
    for name, ours in OURS.items():
        options: list[Option] = [PRESETS[preset][name] for preset in PAPER]
        sources = dict.fromkeys(o.source for o in options)
        cells = (f"`{name}`", show(ours.value), *(show(o.value) for o in options), "; ".join(sources))
        settings.append("| " + " | ".join(cells) + " |")
        for preset, option in zip(PAPER, options, strict=True):
            row = f"| `{name}` | {show(option.value)} | {show(option.code)} | {option.difference} |"
            if option.difference and (preset == PAPER[0] or option != options[0]):
                differences.append(row)
    runs = [
        f"| {preset} | {stage} | {r.gpus} | {r.batch_size} | {r.accumulation} | {r.samples_per_update} | "
        f"{r.epochs} | {r.used} |"
        for preset in PAPER
        for stage, r in RUNS[preset].items()
    ]
    return TEXT.format(
        settings="\n".join(settings),
        differences="\n".join(differences),
        runs="\n".join(runs),
        flags=", ".join(f"`{flag}` ({source})" for flag, source in RUN_FLAGS.items()),
        missing="\n".join(f"- {what}: {why}." for what, why in NOT_OFFERED.items()),
    )


if __name__ == "__main__":
    PAGE.write_text(text())
