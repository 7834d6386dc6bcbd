"""One request to a running node, without an event loop: every command that talks to the node pays for these imports."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import msgspec

from undercroft import errors
from undercroft.errors import LocalProblem, NotFound, Unavailable, UndercroftError

__all__ = ["Request", "ask", "short"]

_KINDS: dict[str, type[UndercroftError]] = {name: getattr(errors, name) for name in errors.__all__}


_ENDED = "The node ended while it was working on this. It is started again by itself; ask again."


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``verb``: status, reconcile or execute; the rest is for execute."""

    verb: str
    vm: str | None = None
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    directory: str = "/"


def ask(path: Path, request: Request, descriptors: tuple[int, ...] = ()) -> Any:
    """One request over the control socket of a running node; its answer, or the error it answered with.

    Raises ``Unavailable`` (code ``NotRunning``, exit status 3 is the caller's choice) when no node listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(short(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotFound(
                f"Undercroft does not run for {path.parent.parent}. Start it with 'undercroft up'.", code="NotRunning"
            ) from error
        except PermissionError as error:
            raise LocalProblem(f"No right to use {path}: it belongs to another user.", code="NotYours") from error
        try:
            received = _exchange(connection, msgspec.json.encode(request) + b"\n", descriptors)
        except (ConnectionResetError, BrokenPipeError) as error:
            raise Unavailable(_ENDED, code="NodeEnded") from error
    answer = msgspec.json.decode(received)
    if "error" in answer:
        raise _KINDS.get(answer["error"]["kind"], UndercroftError)(
            answer["error"]["message"], code=answer["error"]["code"]
        )
    return answer.get("ok")


def _exchange(connection: socket.socket, text: bytes, descriptors: tuple[int, ...]) -> bytes:
    if descriptors:
        socket.send_fds(connection, [text[:1]], list(descriptors))
        text = text[1:]
    connection.sendall(text)
    received = b""
    while not received.endswith(b"\n"):
        piece = connection.recv(65536)
        if not piece:
            raise Unavailable(_ENDED, code="NodeEnded")
        received += piece
    return received


def short(path: Path) -> str:
    """Unix socket names end at 107 bytes (unix(7)); a longer path is reached through a descriptor of its folder."""
    text = str(path)
    if len(text.encode()) < 108:
        return text
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{folder}/{path.name}"
