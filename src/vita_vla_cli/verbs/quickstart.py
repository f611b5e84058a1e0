"""`vita-vla quickstart`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vita_vla_cli.verbs import finish_verb, new_verb


def add(verbs: argparse._SubParsersAction, name: str) -> None:
    """Declare the verb."""
    p = new_verb(
        verbs,
        name,
        "Run the whole flow on simulated tasks: record, train, evaluate, report.",
        "vita-vla quickstart",
        description=(
            "Offline and on the CPU: five Meta-World tasks, the small teacher and the package's mini VLM.\n"
            "Prints the success rates of teacher, alignment alone, finetuning alone and both stages, and\n"
            "the path of a page with curves and videos. Run it again after an interruption: finished steps\n"
            "are skipped. It continues only runs of its own and removes nothing that it has not made."
        ),
        examples="""\
vita-vla quickstart --fast
vita-vla quickstart --run work/second --seed 1
vita-vla quickstart --dry-run""",
    )
    p.add_argument("--fast", action="store_true", help="tiny budgets: shows that it works, not how well")
    p.add_argument("--run", type=Path, dest="folder", help="run folder (default: work/quickstart, or -fast)")
    p.add_argument("--seed", type=int, help="of weights and data order")
    p.add_argument("--device", help="cpu, cuda, mps (default: the best one there is)")
    p.add_argument("--verbose", action="store_true", help="show the steps' own output")
    p.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    finish_verb(p, run, kept=lambda args: "finished steps; the same command continues")


def run(args: argparse.Namespace) -> int:
    """Plan, execute, print the table."""
    import shlex
    from dataclasses import replace

    from vita_vla_cli import doctor, quickstart
    from vita_vla_cli import steps as runner
    from vita_vla_cli.recipe import FAST, FULL

    recipe = FAST if args.fast else FULL
    if args.seed is not None:
        recipe = replace(recipe, seed=args.seed)
    folder = args.folder or Path("work") / ("quickstart-fast" if args.fast else "quickstart")
    steps = quickstart.plan(folder, recipe, args.device)
    if args.dry_run:
        for step in steps:
            print(shlex.join(["vita-vla", *step.argv]))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    if busy := doctor.other_programs():
        print(f"warning: {busy}, so that steps take much longer: {doctor.BUSY_FIX}", file=sys.stderr)
    try:
        progress = runner.execute(folder, steps, verbose=args.verbose)
    except runner.StepFailedError as error:
        print(f"error: {error}; fix the cause and run the same command again", file=sys.stderr)
        return error.code if error.code > 0 else 1
    print()
    print(table(folder))
    measured = f"{progress.total / 60:.1f} min in all; per step in {folder / 'timing.json'}"
    print(f"\ntime: {measured} (the page: up to its own making)")
    print(f"report: {(folder / 'report.html').absolute()}")
    return 0


def table(folder: Path) -> str:
    """Success rates of a run's policies, with their 95 % intervals.

    Raises:
        ValueError: The folder holds no evaluation.
    """
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("eval/*/result.json"))]
    if not results:
        raise ValueError(f"{folder} holds no finished evaluation; run `vita-vla eval` first")
    order = ("teacher", "align", "only_finetune", "finetune")
    results.sort(key=lambda r: order.index(r["label"]) if r["label"] in order else len(order))
    width = max(len("policy"), *(len(r["label"]) for r in results))
    lines = [f"{'policy':<{width}}  success  95 % interval  episodes"]
    for result in results:
        rate = result["overall"]
        interval, n = f"{rate['low']:.2f} - {rate['high']:.2f}", rate["n_episodes"]
        lines.append(f"{result['label']:<{width}}  {rate['success_rate']:>7.2f}  {interval:<13}  {n:>8}")
    return "\n".join(lines)
