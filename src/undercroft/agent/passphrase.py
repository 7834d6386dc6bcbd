"""The passphrase: the first line of a file. It is never sent, kept or logged."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from undercroft.errors import InvalidInput, LocalProblem

__all__ = ["FINAL", "Passphrase", "ask_passphrase", "first_line", "read_passphrase"]

ADVISED_LENGTH = 12
FINAL = (
    "A lost passphrase is final: nobody, the service included, can restore this host's data without it. Keep a copy of it "
    "in another place than this host."
)


@dataclass(frozen=True, slots=True, repr=False)
class Passphrase:
    secret: str
    warnings: tuple[str, ...]


def read_passphrase(path: Path) -> Passphrase:
    text, warnings = first_line(path, "passphrase")
    return Passphrase(text, (*advised(text), *warnings))


def first_line(path: Path, what: str) -> tuple[str, tuple[str, ...]]:
    """The secret in a file, and what is wrong with the file."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            line = file.readline(4097)
    except OSError as error:
        raise LocalProblem(f"The {what} file {path} cannot be read: {error.strerror}.") from error
    secret = line.rstrip(b"\r\n")
    if len(secret) > 4096:
        raise InvalidInput(f"The first line of {path} is longer than 4096 bytes: this is not a {what}.")
    if not secret.strip():
        raise InvalidInput(
            f"The first line of the {what} file {path} is empty. Write the {what} into it.",
            code="UserErrorEmptyPassphrase",
        )
    try:
        text = secret.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"The first line of {path} is not UTF-8 text: write the {what} as text.") from error
    if mode & 0o077:
        return text, (f"{path} can be read by other users of this machine (mode {mode:04o}): chmod 600 it.",)
    return text, ()


def ask_passphrase() -> Passphrase:
    """From the terminal, without an echo; only where there is one."""
    import getpass
    import sys

    if not sys.stdin.isatty():
        raise InvalidInput(
            "A passphrase is needed: name the file that holds it with --passphrase-file.",
            code="UserErrorPassphraseNeeded",
        )
    text = getpass.getpass("Passphrase: ")
    if not text.strip():
        raise InvalidInput("The passphrase is empty.", code="UserErrorEmptyPassphrase")
    return Passphrase(text, ())


def advised(text: str) -> tuple[str, ...]:
    if len(text) >= ADVISED_LENGTH:
        return ()
    return (f"The passphrase has {len(text)} characters; {ADVISED_LENGTH} or more are advised.",)
