"""`vita-vla serve`: a policy for robots that ask over the network."""

from __future__ import annotations

import argparse
from pathlib import Path

from vita_vla_cli.verbs import finish_verb, new_verb

FALLBACK_DEADLINE_MS = 1000.0
"""Without one a policy that hangs would never be stood in for (our choice: no robot waits longer)."""


def add(verbs: argparse._SubParsersAction, name: str) -> None:
    """Declare the verb."""
    p = new_verb(
        verbs,
        name,
        "Answer robots' observations with action chunks, over a websocket.",
        "vita-vla serve work/first/finetune --fallback work/first/teacher",
        description=(
            "On this machine only, unless --host is given, which needs a token and TLS. The robot's side "
            "is the\n"
            "package vita_vla_client (no torch), or any program written for openpi's client. docs/serving.md"
        ),
        examples="""\
vita-vla serve work/robot/finetune --limits work/robot/limits.json --deadline-ms 150 --device cuda
vita-vla serve work/robot/finetune --host 0.0.0.0 --token-file token --tls-cert cert.pem --tls-key key.pem""",
    )
    p.add_argument(
        "policy", metavar="POLICY", help="run folder, checkpoint folder, or hub id (with --online)"
    )
    p.add_argument(
        "--fallback",
        metavar="TEACHER",
        help="a small policy that answers when the first is late or its actions may not be sent",
    )
    p.add_argument(
        "--deadline-ms",
        type=float,
        help=f"how long an answer may take; a request may ask for less (default: {FALLBACK_DEADLINE_MS:g} "
        "with a --fallback, for ever without)",
    )
    p.add_argument(
        "--limits",
        default="demonstrations",
        metavar="FILE",
        help="JSON file of `vita-vla demos limits`; 'demonstrations': the range of the actions trained on; "
        "'none': only NaN and infinity are refused (default: %(default)s)",
    )
    p.add_argument("--device", help="cpu, cuda, mps (default: the best one there is)")
    net = p.add_argument_group("network")
    net.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    net.add_argument("--port", type=int, default=8000, help="0: a free one (default: %(default)s)")
    net.add_argument(
        "--token-file", type=Path, help="file with the token that clients must send (or VITA_VLA_TOKEN)"
    )
    net.add_argument("--tls-cert", type=Path, help="certificate, PEM")
    net.add_argument("--tls-key", type=Path, help="its key, PEM")
    net.add_argument(
        "--plaintext", action="store_true", help="no TLS, in a network that is encrypted by other means"
    )
    net.add_argument("--clients", type=int, default=4, help="robots at the same time (default: %(default)s)")
    finish_verb(p, _serve, memory_hint="Smaller: no --fallback, --device cpu.", hub=True)


def _serve(args: argparse.Namespace) -> int:
    try:
        import msgpack  # noqa: F401
        import websockets  # noqa: F401
    except ImportError:
        raise ValueError(
            "serving needs two more packages: pip install 'lerobot_policy_vita_vla[serve]'"
        ) from None
    from lerobot_policy_vita_vla.serving.access import check_exposure, read_token, tls_context

    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port is 0 to 65535, got {args.port}")
    if args.clients < 1:
        raise ValueError(f"--clients is 1 or more, got {args.clients}")
    if args.deadline_ms is not None and not args.deadline_ms > 0:
        raise ValueError(f"--deadline-ms is a positive number of milliseconds, got {args.deadline_ms:g}")
    token, tls = read_token(args.token_file), tls_context(args.tls_cert, args.tls_key)
    check_exposure(args.host, token, tls is not None, args.plaintext)
    if args.fallback is not None and args.deadline_ms is None:
        args.deadline_ms = FALLBACK_DEADLINE_MS
        print(
            f"the fallback answers where the policy takes more than {args.deadline_ms:g} ms; see "
            "--deadline-ms"
        )
    if args.fallback is None and args.deadline_ms is not None:
        print("no --fallback: an answer that is late becomes an error, and the robot holds")

    import asyncio

    from lerobot.utils.device_utils import auto_select_torch_device

    from lerobot_policy_vita_vla.serving.main import make_responder, serve_until_signal
    from lerobot_policy_vita_vla.serving.server import PolicyServer

    responder = make_responder(
        args.policy,
        fallback=args.fallback,
        limits=args.limits,
        deadline_ms=args.deadline_ms,
        device=args.device or auto_select_torch_device().type,
    )
    server = PolicyServer(
        responder, host=args.host, port=args.port, token=token, tls=tls, max_clients=args.clients
    )
    for key, wanted in server.metadata["observation"].items():
        print(f"  reads {key}: {tuple(wanted['shape'])} {wanted['dtype']}")
    about = server.metadata
    print(f"  answers {about['chunk_size']} actions of {', '.join(about['action_names'])}")
    if responder.limits is not None:
        print(f"  limits: {responder.limits.source}")
    asyncio.run(serve_until_signal(server))
    return 0
