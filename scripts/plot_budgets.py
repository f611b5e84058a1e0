"""Draw success over finetune budgets, and what two-stage adds, from a published ablation table.

    python scripts/plot_budgets.py results/budgets

reads results/budgets/ablation/ablations.json and writes results/budgets/budget.svg, the figure of README and
docs: the report page's own drawing on an opaque ground, since a code host shows it in light and dark schemes.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from lerobot_policy_vita_vla.evaluation import report_ablations
from lerobot_policy_vita_vla.evaluation.ablations import pool_seeds

CSS = Path(report_ablations.__file__).parent / "report_page" / "page.css"


def light_colours() -> dict[str, str]:
    """The page's light scheme: name of the CSS variable without dashes -> colour."""
    scheme = CSS.read_text().split("}", 1)[0]
    return dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", scheme))


def plot(folder: Path) -> Path:
    """Write ``budget.svg`` beside the ablation table's folder.

    Args:
        folder: Holds ``ablation/ablations.json``.

    Returns:
        The file.

    Raises:
        ValueError: There is no table, or it has a single budget.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    path = folder / "ablation" / "ablations.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; publish a run first, e.g. `bash runs/budgets.sh`")
    table = json.loads(path.read_text())
    pooled = pool_seeds(table["rows"])
    if len({item.finetune_steps for item in pooled if item.finetune_steps}) < 2:
        raise ValueError(
            f"{path} has a single budget; a curve needs `vita-vla ablate --finetune-steps 100,300`"
        )
    styles = report_ablations.variant_styles([item.variant for item in pooled])
    success = report_ablations.success_series(pooled, styles)
    gain = report_ablations.difference_series(table["comparisons"], styles)
    colours = light_colours()
    rc = {"svg.fonttype": "path", "svg.hashsalt": "budget", "font.size": 10, "text.color": colours["ink"]}
    with rc_context(rc):
        figure = Figure(figsize=(8.6, 3.5), layout="constrained", facecolor=colours["card"])
        panels = figure.subplots(1, 2 if gain else 1, squeeze=False)[0]
        words = (
            ("Success; small dots are single seeds", success),
            ("Two-stage minus the others, points", gain),
        )
        for axes, (title, series) in zip(panels, words, strict=False):
            report_ablations.paint(axes, series, colours.__getitem__, difference=series is gain)
            axes.set_facecolor(colours["card"])
            axes.set_title(title, loc="left", fontsize=10, pad=10)
        handles = [
            panels[0].plot([], [], color=colours[one.colour], marker=one.marker, label=one.name)[0]
            for one in success
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
        out = folder / "budget.svg"
        figure.savefig(out, metadata={"Date": None, "Creator": None})
    return out


def main() -> None:
    """Draw the figure of one results folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="results folder, e.g. results/budgets")
    print(f"wrote {plot(parser.parse_args().folder)}")


if __name__ == "__main__":
    main()
