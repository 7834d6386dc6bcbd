"""Real peers: programs that tests drive because they are what users drive (nslookup, az, named, squid).

``peer`` finds one. A missing peer skips the test on a developer's machine and fails it under continuous integration
(``CI=true``): there a skip would hide that the real thing was never asked.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.checkout import CHECKOUT

__all__ = ["peer", "under_ci"]


def under_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("true", "1")


def peer(name: str) -> Path:
    """The program of that name: ``az`` from ``.venv-az``, anything else from PATH."""
    if name == "az":
        found = os.environ.get("UNDERCROFT_TEST_AZ") or str(CHECKOUT / ".venv-az" / "bin" / "az")
        if os.access(found, os.X_OK):
            return Path(found)
        advice = "scripts/setup --azure-cli"
    else:
        where = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")  # servers; not in every user's PATH
        if where is not None:
            return Path(where)
        advice = "scripts/setup as root, or its apt line"
    message = f"missing peer: {name} (get it with {advice})"
    if under_ci():
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
