"""`vita-vla bench`."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

from vita_vla_cli import bench_page
from vita_vla_cli.verbs import finish_verb, new_verb

BENCHMARKS = {
    "align": "an align step: naive against cached prefix, and with precomputed teacher features",
    "infer": "an action chunk: our student against LeRobot's SmolVLA on the same backbone; plain and engine",
    "train": "finetune samples per second: our student against SmolVLA through LeRobot's own step",
    "compile": "a finetune step: the language model's layers plain and compiled",
    "data": "batches per second: LeRobot's loader against the frame cache, and the loader's share of a step",
    "eval": "episodes per hour: our evaluation against lerobot-eval, same policy, tasks and workers",
    "serve": "an action chunk through the policy server against in process, and the transport alone",
    "precision": "a policy in eight bits: what its actions and its success rate lose, and switching it on",
    "import": "importing the plugin beyond what LeRobot imports itself",
    "startup": "what `vita-vla --help` and a training command cost before they do anything",
}
MODULES = {"import": "imports"}
PACKAGE = "lerobot_policy_vita_vla.bench"
ROUNDS = 7


def add(verbs: argparse._SubParsersAction, name: str) -> None:
    """Declare the verb."""
    width = max(map(len, BENCHMARKS))
    listed = "\n".join(f"  {name:<{width}}  {what}" for name, what in BENCHMARKS.items())
    p = new_verb(
        verbs,
        name,
        "Measure speed: ratios of sides that run in turns, on this machine.",
        "vita-vla bench align --threads 1",
        description="Every side is warmed up, then all run in turns; a result holds medians, quartiles, the\n"
        "ratios of paired rounds with 95 % intervals, and a description of the machine. Let nothing\n"
        "else run meanwhile.\n\n"
        f"benchmarks:\n{listed}",
        examples="""\
vita-vla bench --list
vita-vla bench align --list
vita-vla bench align import --rounds 9 --out work/bench
vita-vla bench --render""",
    )
    p.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks, in this order")
    p.add_argument("--rounds", type=int, help=f"timed calls of each side (default: {ROUNDS}, or its own)")
    p.add_argument("--threads", type=int, help="of PyTorch (default: one per core)")
    p.add_argument(
        "--out", type=Path, default=Path("results/bench"), help="folder of results (default: %(default)s)"
    )
    p.add_argument("--toy", action="store_true", help="in a size that takes seconds and says nothing")
    p.add_argument("--list", action="store_true", help="say what there is; with NAMEs, their own flags")
    p.add_argument(
        "--render", action="store_true", help="write the tables of docs/performance.md from results/bench/"
    )
    finish_verb(
        p, run, takes_lerobot_flags=True, kept=lambda args: f"the benchmarks that have finished, {args.out}"
    )


def run(args: argparse.Namespace) -> int:
    """Run benchmarks one after the other, or list, or render."""
    if unknown := [name for name in args.names if name not in BENCHMARKS]:
        raise ValueError(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}")
    if args.list:
        _list(args.names)
        return 0
    if not args.names and not args.render:
        raise ValueError("which benchmark? `vita-vla bench --list` says what there is")
    for flag in ("rounds", "threads"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise ValueError(f"--{flag} must be at least 1, got {getattr(args, flag)}")
    if args.toy and args.out.resolve() == Path("results/bench").resolve():
        raise ValueError(
            "--toy says nothing about speed and must not take a result's place: add --out work/toy"
        )
    # All flags are read before the first benchmark runs, so that a typing error costs no minutes.
    own = {name: _own_arguments(name, args) for name in args.names}
    for name in args.names:
        _measure(name, own[name], args)
    if args.render:
        page = bench_page.write(Path("docs/performance.md"), Path("results/bench"))
        print(f"wrote {page}")
    return 0


def _list(names: list[str]) -> None:
    for name in names or BENCHMARKS:
        print(f"{name}: {BENCHMARKS[name]}")
        if names:
            print(_own_parser(name).format_help().split("\n\n", 1)[1])


def _module(name: str):
    return importlib.import_module(f"{PACKAGE}.{MODULES.get(name, name)}")


def _own_parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"vita-vla bench {name}", add_help=False, allow_abbrev=False)
    _module(name).add_arguments(parser)
    return parser


def _own_arguments(name: str, args: argparse.Namespace) -> argparse.Namespace:
    """The common flags and the benchmark's own; several benchmarks share a command line."""
    own, unknown = _own_parser(name).parse_known_args(args.extra)
    others = {known for other in args.names if other != name for known in _flags(other)}
    if bad := [word for word in unknown if word.startswith("-") and word.split("=")[0] not in others]:
        raise ValueError(
            f"unknown argument {bad[0]} of benchmark {name!r}; its flags: vita-vla bench {name} --list"
        )
    own.rounds = args.rounds or getattr(own, "rounds", ROUNDS)
    own.threads, own.toy = args.threads, args.toy
    return own


def _flags(name: str) -> list[str]:
    return [flag for action in _own_parser(name)._actions for flag in action.option_strings]


def _measure(name: str, own: argparse.Namespace, args: argparse.Namespace) -> None:
    import torch

    from lerobot_policy_vita_vla.bench import harness

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    own.threads = torch.get_num_threads()
    print(f"{name}: {BENCHMARKS[name]}; {own.threads} threads")
    start = time.perf_counter()
    figures = _module(name).run(own)
    figures |= {"command": args.command, "seconds": round(time.perf_counter() - start, 1)}
    if args.toy:
        figures["toy"] = True
    path = harness.write(name, figures, args.out)
    print(bench_page.text(figures | {"benchmark": name}))
    print(f"wrote {path}")
