"""Where the checkout is, and which files belong to it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["CHECKOUT", "files"]

CHECKOUT = Path(__file__).resolve().parent.parent
_NOT_OURS = {
    ".git",
    ".venv",
    ".venv-az",
    "__pycache__",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    "build",
    "dist",
}


def files() -> list[Path]:
    """Tracked files and new ones that are not ignored; without git (a tarball, a bare machine) all but the known rest."""
    if shutil.which("git") and (CHECKOUT / ".git").exists():
        # The checkout may belong to somebody else (sudo): git would refuse to read it.
        command = ["git", "-c", f"safe.directory={CHECKOUT}", "ls-files", "-co", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout
        return [path for name in sorted(set(listed.split("\0"))) if name and (path := CHECKOUT / name).is_file()]
    found: list[Path] = []
    for folder, folders, names in os.walk(CHECKOUT):
        folders[:] = sorted(name for name in folders if name not in _NOT_OURS and not name.endswith(".egg-info"))
        found += [Path(folder, name) for name in sorted(names)]
    return found
