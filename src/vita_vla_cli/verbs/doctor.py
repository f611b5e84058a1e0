"""`vita-vla doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path

from vita_vla_cli.verbs import finish_verb, new_verb


def add(verbs: argparse._SubParsersAction, name: str) -> None:
    """Declare the verb."""
    p = new_verb(
        verbs,
        name,
        "Check this machine: versions, plugin, rendering, video, memory, disk.",
        "vita-vla doctor",
        description="Prints a fix beside each problem. Exit code 1 if something will not work.",
        examples="vita-vla doctor --json\nvita-vla doctor --folder /data/runs",
    )
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument(
        "--folder", type=Path, default=Path("work"), help="where runs will be written (default: work)"
    )
    finish_verb(p, run)


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    from vita_vla_cli import doctor

    report = doctor.run_checks(args.folder)
    print(doctor.as_json(report) if args.json else doctor.as_table(report))
    return 1 if doctor.failed(report) else 0
