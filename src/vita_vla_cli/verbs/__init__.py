"""One module per group of verbs: `add(verbs, name)` declares the flags, a function does the work."""

from __future__ import annotations

import argparse
from collections.abc import Callable


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Descriptions as written; help texts wrapped, except lines that start with a space (commands)."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=20)

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines = []
        for line in text.splitlines():
            lines.extend([line] if line.startswith(" ") else super()._split_lines(line, width))
        return lines


def new_verb(
    verbs: argparse._SubParsersAction,
    name: str,
    summary: str,
    example: str,
    *,
    description: str = "",
    examples: str = "",
) -> argparse.ArgumentParser:
    """Add a verb whose help has the same shape as every other's.

    Args:
        verbs: What `ArgumentParser.add_subparsers` returned.
        name: Word on the command line.
        summary: One line: what it does.
        example: One command, shown in the list of verbs.
        description: Further lines of the verb's own help.
        examples: Further commands of the verb's own help.
    """
    parser = verbs.add_parser(
        name,
        help=f"{summary}\n  {example}".replace("%", "%%"),
        description=f"{summary}\n\n{description}".strip(),
        epilog="examples:\n" + "\n".join(f"  {line}" for line in [example, *examples.strip().splitlines()]),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    return parser


def finish_verb(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int | None],
    *,
    kept: Callable[[argparse.Namespace], str] = lambda args: "",
    memory_hint: str = "",
    takes_lerobot_flags: bool = False,
    hub: bool = False,
) -> None:
    """Add the flags that every verb has and say who does the work.

    Args:
        parser: The verb.
        run: Does it; its return value is the exit code.
        kept: What is still there when the verb is interrupted.
        memory_hint: Which flags take less memory.
        takes_lerobot_flags: Unknown arguments go to `lerobot-train`.
        hub: The verb can load models from the hub.
    """
    if hub:
        parser.add_argument("--online", action="store_true", help="allow downloads from the model hub")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    parser.set_defaults(
        run=run,
        kept=kept,
        memory_hint=memory_hint,
        takes_lerobot_flags=takes_lerobot_flags,
        parser=parser,
    )
    if not hub:
        parser.set_defaults(online=False)
