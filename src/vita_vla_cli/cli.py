"""`vita-vla`: the verbs in the order in which a project uses them."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import metadata

from vita_vla_cli import environment, errors
from vita_vla_cli.verbs import HelpFormatter

# Verb -> module that adds it. The order is the flow, and the order of the help.
VERBS = {
    "doctor": "vita_vla_cli.verbs.doctor",
    "demos": "vita_vla_cli.verbs.demos",
    "teacher": "vita_vla_cli.verbs.training",
    "align": "vita_vla_cli.verbs.training",
    "finetune": "vita_vla_cli.verbs.training",
    "eval": "vita_vla_cli.verbs.evaluation",
    "report": "vita_vla_cli.verbs.evaluation",
    "serve": "vita_vla_cli.verbs.serve",
    "plan": "vita_vla_cli.verbs.plan",
    "bench": "vita_vla_cli.verbs.bench",
    "ablate": "vita_vla_cli.verbs.ablation",
    "quickstart": "vita_vla_cli.verbs.quickstart",
    "vlm": "vita_vla_cli.verbs.vlm",
}

DESCRIPTION = """\
Teach a pretrained vision-language model to act, by distilling a small action model into it.

  demos ----> teacher ----> align ----> finetune ----> eval ----> report
  recorded    small action  VLM frozen; LLM trains,    success    one page
  in a        model learns  match the   through the    rates
  simulator   the tasks     teacher     teacher's decoder
"""

EPILOG = """\
the whole flow in one command, offline, on two CPU cores:
  vita-vla quickstart              (a small version in minutes: vita-vla quickstart --fast)

the same by hand:
  vita-vla doctor
  vita-vla demos record --tasks door-open,drawer-open --episodes 60 --root work/first/demos
  vita-vla teacher  --demos work/first/demos
  vita-vla align    --demos work/first/demos --teacher work/first/teacher
  vita-vla finetune --demos work/first/demos --from work/first/align
  vita-vla eval work/first/teacher work/first/finetune --tasks door-open,drawer-open --episodes 20
  vita-vla report work/first

`vita-vla VERB --help` shows each verb's flags and more examples.
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; imports nothing but the standard library."""
    parser = argparse.ArgumentParser(
        prog="vita-vla",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vita-vla {_version()}")
    verbs = parser.add_subparsers(title="verbs, in the order in which a project uses them", metavar="VERB")
    for name, module in VERBS.items():
        importlib.import_module(module).add(verbs, name)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Arguments without the program's name; None takes the process's.

    Returns:
        Exit code: 0 done, 1 the verb found a problem, 2 wrong use or input, 130 interrupted or killed
        (SIGTERM).
    """
    parser = build_parser()
    args, extra = parser.parse_known_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    if extra and not args.takes_lerobot_flags:
        args.parser.error(f"unrecognized arguments: {' '.join(extra)}")
    args.extra = extra
    args.command = shlex.join(["vita-vla", *(sys.argv[1:] if argv is None else argv)])
    environment.prepare(online=args.online)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lerobot_policy_vita_vla").setLevel(logging.INFO)
    # Lines of the verb and of what it starts appear in order, also in a log file.
    sys.stdout.reconfigure(line_buffering=True)
    try:
        with _killed_as_interrupted():
            return args.run(args) or 0
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) has gone; the interpreter would complain at exit
        return 1
    except (Exception, KeyboardInterrupt) as error:
        explained = errors.explain(error, kept=_kept(args), memory_hint=args.memory_hint)
        if explained is None or args.debug:
            raise
        message, code = explained
        print(message, file=sys.stderr)
        return code


def _kept(args: argparse.Namespace) -> str:
    try:
        return args.kept(args)
    except (OSError, ValueError):  # what is wrong with the arguments is being told already
        return ""


@contextlib.contextmanager
def _killed_as_interrupted() -> Iterator[None]:
    """Let a kill end a verb the way Ctrl-C does: what is kept is said, and its processes are ended."""
    ours = threading.current_thread() is threading.main_thread()  # others may set no handler
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def interrupt(number, frame):
        if os.getpid() != process:  # a child that was forked: a kill ends it as any other
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _version() -> str:
    try:
        return metadata.version("lerobot_policy_vita_vla")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
