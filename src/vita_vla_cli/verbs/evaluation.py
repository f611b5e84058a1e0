"""`vita-vla eval` and `vita-vla report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vita_vla_cli import simulators, training_line
from vita_vla_cli.recipe import FULL
from vita_vla_cli.verbs import finish_verb, new_verb
from vita_vla_cli.verbs.demos import PROTOCOL_HELP, QUALITIES, SUITE_HELP, TASKS_HELP

EXPERT = "expert"


def add(verbs: argparse._SubParsersAction, name: str) -> None:
    """Declare one of the two verbs."""
    {"eval": _add_eval, "report": _add_report}[name](verbs, name)


def _add_eval(verbs: argparse._SubParsersAction, name: str) -> None:
    p = new_verb(
        verbs,
        name,
        "Play episodes in the simulator: success rates with intervals, on one list of episodes.",
        "vita-vla eval work/first/teacher work/first/finetune --tasks door-open,drawer-open --episodes 20",
        description=(
            "The episodes are laid down in RUN/manifest.json first; every policy plays the same ones, and a\n"
            "later call without --tasks uses them again. Finished episodes are kept: the same command\n"
            "continues."
        ),
        examples="""\
vita-vla eval work/first/only_finetune
vita-vla eval mine=work/other/finetune --run work/first
vita-vla eval work/first/finetune --manifest results/manifest.json --run work/first
vita-vla eval expert --run work/first
vita-vla eval work/libero/finetune --suite libero_object --episodes 20
vita-vla eval work/first/align work/first/finetune --agreement work/first/teacher --demos work/first/demos""",
    )
    p.add_argument(
        "policies",
        nargs="+",
        metavar="[LABEL=]POLICY",
        help="run folder, checkpoint folder, or 'expert' (the scripted one); label: the run's name",
    )
    p.add_argument(
        "--run", type=Path, dest="folder", help="run folder (default: the folder of the first policy)"
    )
    which = p.add_argument_group("which episodes")
    which.add_argument("--manifest", type=Path, help="list of episodes (default: RUN/manifest.json)")
    which.add_argument("--tasks", help=f"write RUN/manifest.json: {TASKS_HELP}")
    which.add_argument("--suite", help=f"the same for LIBERO: {SUITE_HELP}")
    which.add_argument("--protocol", help=PROTOCOL_HELP)
    which.add_argument(
        "--episodes", type=int, default=FULL.eval_episodes, help="per task (default: %(default)s)"
    )
    which.add_argument(
        "--seed",
        type=int,
        help=f"first episode's (default: {FULL.eval_seed}; LIBERO: 0, the first official initial state)",
    )
    which.add_argument("--size", type=int, help="pixels (default: as the policy was trained)")
    which.add_argument(
        "--quality", choices=QUALITIES, help="of rendering (default: as the policy was trained)"
    )
    which.add_argument(
        "--episode-length",
        type=int,
        help=f"limit in steps (default: {FULL.episode_length}; LIBERO: the protocol's)",
    )
    which.add_argument(
        "--allow-differences",
        action="store_true",
        help="play although the policy's demonstrations were made under another protocol or look",
    )
    p.add_argument("--workers", type=int, help="simulation processes (default: one per core)")
    p.add_argument(
        "--fresh-simulators",
        action="store_true",
        help="a new simulator for every episode: slow, only where runs/check_resets.py finds differences",
    )
    p.add_argument("--videos", type=int, default=1, help="per task and outcome (default: %(default)s)")
    p.add_argument("--device", help="cpu, cuda, mps (default: the best one there is)")
    agreement = p.add_argument_group("agreement with the teacher, instead of episodes")
    agreement.add_argument("--agreement", metavar="TEACHER", help="compare predictions with this teacher's")
    agreement.add_argument("--demos", type=Path, metavar="ROOT", help="dataset to compare on")
    finish_verb(
        p,
        _eval,
        kept=_kept,
        memory_hint="Smaller: --workers 1, --device cpu.",
        hub=True,
    )


def _add_report(verbs: argparse._SubParsersAction, name: str) -> None:
    p = new_verb(
        verbs,
        name,
        "Make one page of a run: rates, paired comparisons, curves, videos.",
        "vita-vla report work/first",
        description="One HTML file without external parts: it can be mailed, and opened offline.",
        examples="vita-vla report work/first work/second --out work/both.html",
    )
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    p.add_argument("--out", type=Path, help="HTML file (default: RUN/report.html)")
    finish_verb(p, _report)


def _eval(args: argparse.Namespace) -> int:
    policies = [_labelled(text) for text in args.policies]
    labels = [label for label, _ in policies]
    if len(set(labels)) < len(labels):
        raise ValueError(f"two policies have the same label, {', '.join(labels)}: give them as LABEL=POLICY")
    for flag in ("videos", "workers", "episode_length", "size"):
        least = 0 if flag == "videos" else 1
        if (value := getattr(args, flag)) is not None and value < least:
            raise ValueError(f"--{flag.replace('_', '-')} must be at least {least}, got {value}")
    if args.agreement is not None:
        return _agreement(args, policies, _folder(args))

    policies = [
        (label, policy if policy == EXPERT else _checkpoint(policy, args)) for label, policy in policies
    ]
    folder = _folder(args)
    if not all((folder / "eval" / label / "result.json").is_file() for label in labels):
        simulators.start_importing(_suite(args, folder))

    from lerobot_policy_vita_vla.evaluation.runner import evaluate

    manifest = _manifest(args, policies[0][1], folder)
    for label, policy in policies:
        print(f"{label}: {policy}")
        result = evaluate(
            policy,
            manifest,
            folder / "eval" / label,
            label=label,
            workers=args.workers,
            fresh_simulators=args.fresh_simulators,
            videos_per_task=(args.videos, args.videos),
            device=args.device,
            command=args.command,
            allow_other_recording=args.allow_differences,
            **_execution(manifest, policy),
        )
        rate = result["overall"]
        print(
            f"{label}: success {rate['success_rate']:.2f} ({rate['low']:.2f} - {rate['high']:.2f}, 95 %), "
            f"{rate['n_episodes']} episodes"
        )
    return 0


def _suite(args: argparse.Namespace, folder: Path) -> str:
    """Whose simulator will be needed, as far as can be told without importing anything."""
    spec = args.tasks if args.suite is None else "libero"
    listed = args.manifest or folder / "manifest.json"
    if spec is None and listed.is_file():
        # Whoever reads the list later says what is wrong with it.
        spec = "libero" if '"suite": "libero"' in listed.read_text(errors="replace") else ""
    return "libero" if (spec or "").startswith("libero") else "metaworld"


def _manifest(args: argparse.Namespace, policy: str, folder: Path):
    from lerobot_policy_vita_vla.demos.libero_suite import is_libero, suite_option
    from lerobot_policy_vita_vla.evaluation.manifest import load_manifest, make_manifest
    from lerobot_policy_vita_vla.evaluation.predictor import recording_defaults

    if args.tasks is not None and args.suite is not None:
        raise ValueError("--tasks and --suite both name the episodes: leave one of them out")
    spec = args.tasks if args.suite is None else suite_option(args.suite)
    stored = folder / "manifest.json"
    if args.manifest is not None:
        if spec is not None:
            raise ValueError("--manifest names the episodes and so does --tasks: leave one of them out")
        manifest = load_manifest(args.manifest)
    elif spec is None:
        if not stored.is_file():
            raise ValueError(
                f"which episodes? add --tasks door-open,drawer-open (or --manifest FILE): no {stored} yet"
            )
        return load_manifest(stored)
    else:
        seen = {} if policy == EXPERT else recording_defaults(policy)
        if not is_libero(spec):
            seen.pop("protocol", None)  # of LIBERO's; what else differs is said before anything is played
        given = {"quality": args.quality, "observation_size": args.size, "protocol": args.protocol}
        if not is_libero(spec):
            given |= {"episode_length": FULL.episode_length, "seed": FULL.eval_seed}
        given |= {
            name: getattr(args, name)
            for name in ("episode_length", "seed")
            if getattr(args, name) is not None
        }
        look = seen | {name: value for name, value in given.items() if value is not None}
        manifest = make_manifest(spec, args.episodes, **look)
    folder.mkdir(parents=True, exist_ok=True)
    if not _has_episodes(folder):
        stored.unlink(missing_ok=True)  # of a command that was refused: nothing was played under it
    manifest.save(stored)
    return manifest


def _has_episodes(folder: Path) -> bool:
    files = (file for part in ("eval", "ablation/eval") for file in folder.glob(f"{part}/*/episodes.jsonl"))
    return any(file.stat().st_size for file in files)


def _execution(manifest, policy: str) -> dict[str, Any]:
    """How a protocol executes chunks; the policy's own way where it does not say."""
    if manifest.protocol is None or policy == EXPERT:
        return {}
    from lerobot_policy_vita_vla.demos.libero_suite import find_protocol

    rules = find_protocol(manifest.protocol)
    executed, predicted = rules.n_action_steps, _chunk_size(policy)
    if executed is not None and predicted is not None and predicted < executed:
        print(
            f"protocol {rules.name} executes {executed} actions per prediction; {policy} predicts {predicted}"
        )
        executed = predicted
    return {"n_action_steps": executed, "temporal_ensemble_coeff": rules.ensemble_coeff}


def _chunk_size(policy: str) -> int | None:
    from lerobot_policy_vita_vla.evaluation.predictor import checkpoint_folder
    from lerobot_policy_vita_vla.files import read_json

    return read_json(checkpoint_folder(policy) / "config.json").get("chunk_size")


def _agreement(args: argparse.Namespace, policies: list[tuple[str, str]], folder: Path) -> int:
    if args.demos is None:
        raise ValueError("--agreement needs --demos ROOT: predictions are compared on recorded observations")
    training_line.dataset_folder(args.demos)

    from lerobot_policy_vita_vla.evaluation.agreement import agreement
    from lerobot_policy_vita_vla.evaluation.results import write_json

    report = {
        label: agreement(policy, args.agreement, args.demos, device=args.device or "cpu")
        for label, policy in policies
    }
    write_json(folder / "agreement.json", report)
    print(f"agreement: {folder / 'agreement.json'}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from lerobot_policy_vita_vla.evaluation.report import build_report

    print(f"report: {build_report(args.runs, args.out).absolute()}")
    return 0


def _checkpoint(policy: str, args: argparse.Namespace) -> str:
    fix = "vita-vla teacher --demos ROOT   (or align, or finetune)"
    return training_line.checkpoint_folder(policy, flag="POLICY", fix=fix, online=args.online)


def _labelled(text: str) -> tuple[str, str]:
    label, separator, policy = text.partition("=")
    if separator:
        return label, policy
    return _run_folder(Path(text)).name or text, text


def _kept(args: argparse.Namespace) -> str:
    return f"finished episodes in {_folder(args)}/eval; the same command continues"


def _folder(args: argparse.Namespace) -> Path:
    if args.folder is not None:
        return args.folder
    policy = args.policies[0].rpartition("=")[2]
    if policy == EXPERT or not Path(policy).exists():
        raise ValueError(f"where do the results go? add --run FOLDER ({policy} has no folder of its own)")
    return _run_folder(Path(policy)).parent


def _run_folder(path: Path) -> Path:
    """The training run that a checkpoint folder belongs to (RUN/checkpoints/STEP/pretrained_model)."""
    step = path.parent if path.name == "pretrained_model" else path
    return step.parents[1] if step.parent.name == "checkpoints" else path
