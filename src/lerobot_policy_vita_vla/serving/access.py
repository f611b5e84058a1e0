"""Who may talk to the server, decided before a connection becomes one.

On loopback everyone on this machine may, but no web page: browsers send the header Origin, robots do not. On
any other address a token and TLS are required.
"""

from __future__ import annotations

import hmac
import os
import ssl
import stat
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from vita_vla_client.client import is_loopback

MIN_TOKEN = 32
"""Characters of a token, those of 24 random bytes in base64: beyond guessing."""

MAKE_TOKEN = "(umask 077; python -c 'import secrets; print(secrets.token_urlsafe(32))' > {path})"
"""Shell command; the file is its owner's alone."""


def read_token(path: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token of a file, or of the variable VITA_VLA_TOKEN, or None. Never from the command line, which
    every user of a machine can read.

    Raises:
        ValueError: The file is not there, others may read it, or the token is too short to be random.
    """
    if path is None:
        token, source = environment.get("VITA_VLA_TOKEN"), "VITA_VLA_TOKEN"
        if token is None:
            return None
    else:
        source = str(path)
        if not path.is_file():
            raise ValueError(f"no token at {path}; make one: {MAKE_TOKEN.format(path=path)}")
        with open(path) as file:
            _check_private(os.fstat(file.fileno()), path, "token")
            token = file.read()
    token = token.strip()
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"the token in {source} must be at least {MIN_TOKEN} characters of ASCII without spaces, got "
            f"{len(token)} characters; make one: {MAKE_TOKEN.format(path=path or 'token')}"
        )
    return token


def _check_private(status: os.stat_result, path: Path, what: str) -> None:
    if os.name != "posix":
        return
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ValueError(f"others may read the {what} in {path}: chmod 600 {path}")
    if status.st_uid not in (0, os.geteuid()):
        raise ValueError(f"the {what} in {path} belongs to another user: copy it to a file of your own")


def check_exposure(host: str, token: str | None, tls: bool, plaintext: bool) -> None:
    """Refuse to open a server to a network that everyone in it could use or listen to.

    Raises:
        ValueError: With the ways out.
    """
    if is_loopback(host):
        return
    tunnel = (
        "or leave --host out and let the robot come through SSH: ssh -N -L 8000:127.0.0.1:8000 THIS_MACHINE"
    )
    if token is None:
        raise ValueError(
            f"--host {host} can be reached from the network, and whoever reaches it could drive the "
            "robot's policy: "
            f"pass --token-file token, made with {MAKE_TOKEN.format(path='token')}, {tunnel}"
        )
    if not tls and not plaintext:
        raise ValueError(
            f"--host {host} without TLS would send token, pictures and actions in clear text: pass "
            "--tls-cert and "
            f"--tls-key (docs/serving.md makes them in one command), {tunnel}, or, where the network "
            "itself is "
            "encrypted, such as WireGuard, --plaintext"
        )


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """TLS as Python's defaults have it, from PEM files; None without them.

    Raises:
        ValueError: One of the two is missing or cannot be used.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ValueError("TLS needs both --tls-cert and --tls-key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if key.is_file():
        _check_private(key.stat(), key, "key")
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise ValueError(f"--tls-cert {certificate} and --tls-key {key} cannot be used: {error}") from None
    return context


class Gate:
    """Looks at a request before it becomes a connection.

    Args:
        token: What a client must know; None asks nobody.
    """

    def __init__(self, token: str | None):
        self._token = token.encode() if token is not None else None

    def refusal(self, headers: Mapping[str, str]) -> tuple[HTTPStatus, str] | None:
        """Status and words for a client that may not come in, or None.

        Args:
            headers: Of its HTTP request (`websockets.Headers`, which raise LookupError for repeated ones).
        """
        try:
            origin, given = headers.get("Origin"), headers.get("Authorization")
            site, host = headers.get("Sec-Fetch-Site"), headers.get("Host") or ""
            upgrade, key = headers.get("Upgrade") or "", headers.get("Sec-WebSocket-Key")
        except LookupError:
            return HTTPStatus.BAD_REQUEST, "repeated header"
        if origin is not None or site is not None:
            # Any page in a browser on this machine could otherwise connect to it.
            return HTTPStatus.FORBIDDEN, "not for browsers"
        if upgrade.lower() != "websocket" or key is None:
            # A picture's address on a web page: no Origin, but no robot either.
            return HTTPStatus.UPGRADE_REQUIRED, "this is a websocket"
        if self._token is None:
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if not is_loopback(name.strip("[]")):
                return HTTPStatus.FORBIDDEN, "not under this name"
            return None
        scheme, _, secret = (given or "").partition(" ")
        # openpi's clients say Api-Key.
        known = scheme.lower() in ("bearer", "api-key")
        if known and hmac.compare_digest(secret.strip().encode(errors="surrogateescape"), self._token):
            return None
        return HTTPStatus.UNAUTHORIZED, "the token is missing or wrong"
