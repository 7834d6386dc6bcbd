"""The passphrase: the first line of a file. It is never sent, kept or logged."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from undercroft.errors import InvalidInput, LocalProblem

__all__ = ["FINAL", "Passphrase", "read_passphrase"]

ADVISED_LENGTH = 12
FINAL = (
    "A lost passphrase is final: nobody, the service included, can restore this host's data without it. Keep a copy of it "
    "in another place than this host."
)


@dataclass(frozen=True, slots=True, repr=False)
class Passphrase:
    secret: bytes
    warnings: tuple[str, ...]


def read_passphrase(path: Path) -> Passphrase:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            line = file.readline(4097)
    except OSError as error:
        raise LocalProblem(f"The passphrase file {path} cannot be read: {error.strerror}.") from error
    secret = line.rstrip(b"\r\n")
    if len(secret) > 4096:
        raise InvalidInput(f"The first line of {path} is longer than 4096 bytes: this is not a passphrase.")
    if not secret.strip():
        raise InvalidInput(
            f"The first line of the passphrase file {path} is empty. Write a passphrase of at least {ADVISED_LENGTH} "
            "characters into it.",
            code="UserErrorEmptyPassphrase",
        )
    warnings = []
    try:
        length = len(secret.decode("utf-8"))
    except UnicodeDecodeError:
        length = len(secret)
    if length < ADVISED_LENGTH:
        warnings.append(f"The passphrase in {path} has {length} characters; {ADVISED_LENGTH} or more are advised.")
    if mode & 0o077:
        warnings.append(f"{path} can be read by other users of this machine (mode {mode:04o}): chmod 600 it.")
    return Passphrase(secret, tuple(warnings))
