"""Files in ``DIR/keys``: the folder 0700, each file 0600 from its first byte, written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from undercroft.errors import LocalProblem

__all__ = ["prepare", "read", "write"]


def prepare(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise LocalProblem(
            f"The folder for keys, {folder}, cannot be made ({error.strerror}). "
            "Choose another --home or correct its owner and mode.",
            target=str(folder),
        ) from error


def read(path: Path) -> bytes | None:
    """The file's bytes; None when it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LocalProblem(
            f"{path} cannot be read ({error.strerror}). Start as the user who owns it, or correct its mode.",
            target=str(path),
        ) from error


def write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Durable when it returns: a crash leaves the old file or the new one, never a half."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LocalProblem(
            f"{path} cannot be written ({error.strerror}). Free some space or correct the folder's owner and mode.",
            target=str(path),
        ) from error
