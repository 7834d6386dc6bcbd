"""One backup or registration at a time per agent home. flock, so that a lock whose owner was killed is no lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from undercroft.errors import Conflict

from .identity import cannot_write

__all__ = ["only_one"]


@contextmanager
def only_one(path: Path, purpose: str) -> Iterator[None]:
    """Within the block this process holds the lock; ``Conflict`` names the process that has it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise Conflict(
                f"The agent is busy: {holder} holds {path}. Wait until it is done and run the command again.",
                code="UserErrorAgentBusy",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{purpose} (process {os.getpid()})\n".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
