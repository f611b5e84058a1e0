"""One self-contained HTML page about one or several runs: ``vita-vla report``.

Everything is inside the file (style, script, figures, videos); its content security policy forbids the
network.

    report_data     reads the run folder
    report_view     results as rows and sentences        report_curves   learning curves
    report_figures  drawing, colours                     report_videos   chooses and inlines videos
    report_record   how the run was made
    report_agreement   teacher-student agreement         report_ablations   variants over budgets and seeds
    report_page/    template, style, script, pipeline drawing
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lerobot_policy_vita_vla.evaluation import report_record, report_view
from lerobot_policy_vita_vla.evaluation.report_ablations import ablation_section
from lerobot_policy_vita_vla.evaluation.report_agreement import agreement_tables
from lerobot_policy_vita_vla.evaluation.report_curves import learning_curves
from lerobot_policy_vita_vla.evaluation.report_data import POLICY_ORDER, Run, read_run
from lerobot_policy_vita_vla.evaluation.report_figures import PolicyStyle, policy_styles
from lerobot_policy_vita_vla.evaluation.report_videos import choose_videos

PAGE_BYTES = 15_000_000
"""About what a mail attachment or a code host's viewer still takes."""

REST_BYTES = 1_500_000
"""Kept free of videos: style, figures and tables of the page."""

_FOLDER = Path(__file__).parent / "report_page"


def build_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report page.

    Args:
        runs: Run folders; with several, the page starts with a table over all of them.
        out: The HTML file; None means ``report.html`` in the run folder, possible with one run only.

    Returns:
        The file that was written.

    Raises:
        ValueError: No run, several runs without `out`, or a run folder that cannot be read; names the file.
    """
    runs = [Path(run) for run in runs]
    if not runs:
        raise ValueError("a report needs at least one run folder, e.g. `vita-vla report work/quickstart`")
    if out is None and len(runs) > 1:
        raise ValueError(
            f"with {len(runs)} runs, say where the page goes, e.g. --out {runs[0].parent}/report.html"
        )
    out = Path(out) if out is not None else runs[0] / "report.html"
    data = [read_run(run) for run in runs]
    labels = [e.label for run in data for e in run.evaluations]
    further = [
        name for run in data for name in (*(stage.name for stage in run.stages), *(run.agreement or ()))
    ]
    styles = policy_styles([*labels, *further])
    budget = (PAGE_BYTES - REST_BYTES) // len(data)
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=_title(data),
            runs=[_content(run, styles, f"r{i}", budget) for i, run in enumerate(data)],
            all_policies=[style for label, style in _in_order(styles) if label in labels],
            css=(_FOLDER / "page.css").read_text(),
            js=(_FOLDER / "page.js").read_text(),
            version=_version(),
        )
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def _content(run: Run, styles: dict[str, PolicyStyle], prefix: str, budget: int) -> dict[str, Any]:
    pairs = report_view.pair_rows(run, styles)
    gallery = choose_videos(run, budget)
    content = {
        "name": run.name,
        "headline": report_view.headline(run, styles, pairs),
        "nodes": report_record.pipeline_nodes(run),
        "pipeline_words": report_record.PIPELINE_IN_WORDS,
        "rates": report_view.rate_rows(run, styles),
        "unfinished": run.unfinished,
        "pairs": pairs,
        "tasks": report_view.task_table(run, styles),
        "instructions": report_view.instructions(run),
        "gallery": gallery,
        "gallery_policies": [
            styles[e.label]
            for e in run.evaluations
            if any(video.label == e.label for videos in gallery.by_task.values() for video in videos)
        ],
        "styles": styles,
        "curves": learning_curves(run, styles, prefix),
        "agreement": agreement_tables(run, styles),
        "ablations": ablation_section(run, prefix),
        "timeline": report_record.timeline(run, styles),
        "provenance": report_record.provenance(run, styles),
        "missing": report_record.missing_parts(run, has_videos=gallery.n_videos > 0),
    }
    words = [
        ("success", "Success", True),
        ("tasks", "Per task", True),
        ("videos", "Watch", gallery.n_videos > 0),
        ("learning", "Learning curves", content["curves"]),
        ("agreement", "Agreement", content["agreement"]),
        ("ablations", "Ablations", content["ablations"]),
        ("time", "Time", content["timeline"]),
        ("repeat", "Do it again", True),
    ]
    content["sections"] = [(anchor, word) for anchor, word, there in words if there]
    return content


def _environment():
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Task names, labels and commands come from files: all is escaped unless the template says otherwise.
    return Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _in_order(styles: dict[str, PolicyStyle]) -> list[tuple[str, PolicyStyle]]:
    def rank(label: str) -> tuple[int, str]:
        return (POLICY_ORDER.index(label) if label in POLICY_ORDER else len(POLICY_ORDER), label)

    return sorted(styles.items(), key=lambda item: rank(item[0]))


def _title(data: Sequence[Run]) -> str:
    return f"VITA-VLA: {data[0].name}" if len(data) == 1 else f"VITA-VLA: {len(data)} runs"


def _version() -> str:
    try:
        return version("lerobot_policy_vita_vla")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return ""
