"""Backup programs, one form for all. Each starts from nothing in a folder of its own and leaves everything in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from bench.measure import Measured

__all__ = ["Borg", "Failed", "Peer", "Restic", "called", "measured", "restored_root", "stored_bytes"]

PASSPHRASE = "benchmark only"


class Failed(Exception):
    """A peer's command did not work; its last words."""


class Peer(Protocol):
    """Used in this order: prepare, back_up (three times), stored, restore, close. ``close`` always comes."""

    name: str

    def version(self) -> str: ...

    def prepare(self, place: Path) -> None:
        """Make a new repository. Not timed."""

    def back_up(self, source: Path) -> Measured: ...

    def stored(self) -> int:
        """Bytes on disk."""

    def restore(self, target: Path) -> Measured:
        """The newest point, into a folder that exists and is empty."""

    def close(self) -> None: ...


def called(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> str:
    """Standard output; ``Failed`` with the last words if the command does not work."""
    variables = {**os.environ, **(environment or {})}
    ran = subprocess.run(
        [str(word) for word in command], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        said = "\n".join((ran.stdout + ran.stderr).strip().splitlines()[-15:])
        raise Failed(f"{' '.join(map(str, command))}\nended with {ran.returncode}:\n{said}")
    return ran.stdout


def measured(
    place: Path,
    command: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    before: Sequence[str | Path] = (),
) -> Measured:
    """Run a command under ``bench.measure``; ``before`` is put in front of all (``undercroft vm exec ... --``)."""
    report = place / "measured.json"
    wrapper: list[str | Path] = [sys.executable, "-P", Path(__file__).with_name("measure.py"), report]
    os.sync()  # what others have written is not on our account
    called([*before, *wrapper, *command], environment, folder)
    return Measured(**json.loads(report.read_text("ascii")))


def stored_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def restored_root(target: Path, source: Path) -> Path:
    """Where below ``target`` a restore has put ``source``: at its full path, at its name, or right there."""
    for candidate in (target / source.relative_to("/"), target / source.name):
        if candidate.is_dir():
            return candidate
    return target


class Restic:
    name = "restic"

    def version(self) -> str:
        return (
            called(["restic", "version"]).split(" compiled")[0] + ", repository version 2, compression auto, local disk"
        )

    def prepare(self, place: Path) -> None:
        self._place = place
        self._repository = place / "repository"
        self._environment = {"RESTIC_PASSWORD": PASSPHRASE, "RESTIC_REPOSITORY": str(self._repository)}
        self._options = ["--cache-dir", str(place / "cache"), "--quiet"]
        called(["restic", *self._options, "init", "--repository-version", "2"], self._environment)

    def back_up(self, source: Path) -> Measured:
        command = ["restic", *self._options, "--compression", "auto", "backup", str(source)]
        return measured(self._place, command, self._environment)

    def stored(self) -> int:
        return stored_bytes(self._repository)

    def restore(self, target: Path) -> Measured:
        return measured(
            self._place, ["restic", *self._options, "restore", "latest", "--target", str(target)], self._environment
        )

    def close(self) -> None:
        pass


class Borg:
    name = "borg"

    def __init__(self) -> None:
        self._points = 0

    def version(self) -> str:
        return called(["borg", "--version"]).strip() + ", repokey-blake2, zstd,3, local disk"

    def prepare(self, place: Path) -> None:
        self._place = place
        self._repository = place / "repository"
        self._environment = {
            "BORG_PASSPHRASE": PASSPHRASE,
            "BORG_BASE_DIR": str(place),
            "BORG_REPO": str(self._repository),
        }
        called(["borg", "init", "--encryption", "repokey-blake2"], self._environment)

    def back_up(self, source: Path) -> Measured:
        self._points += 1
        command = ["borg", "create", "--compression", "zstd,3", f"::point{self._points}", str(source)]
        return measured(self._place, command, self._environment)

    def stored(self) -> int:
        return stored_bytes(self._repository)

    def restore(self, target: Path) -> Measured:
        return measured(self._place, ["borg", "extract", f"::point{self._points}"], self._environment, folder=target)

    def close(self) -> None:
        pass


def installed(name: str) -> bool:
    return shutil.which(name) is not None
