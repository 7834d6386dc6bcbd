"""``scripts/demo``'s journey on a small tree, under every driver: the demo proves each step itself and ends with 0."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployment import REPOSITORY, drivers

pytestmark = [pytest.mark.rootless, pytest.mark.slow]


def keeps_attributes(folder: Path) -> bool:
    try:
        os.setxattr(folder, "user.undercroft.trial", b"")
    except OSError:
        return False
    return True


@pytest.mark.parametrize("driver", drivers())
def test_the_whole_journey(driver: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(300):
        (source / f"{number}").write_bytes(os.urandom(200) * (1 + number % 50))
    (source / "large").write_bytes(os.urandom(9 << 20))
    before = sorted((path.name, path.stat().st_mtime_ns) for path in source.iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "demo", str(source), "--driver", driver],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Fabric: {driver}." in done.stdout
    assert "no process, namespace or mount is left" in done.stdout
    assert "✘" not in done.stdout
    compared = [line for line in done.stdout.splitlines() if "are the same, byte for byte" in line]
    assert len(compared) == 2, "after the backups, and again after the rebuild"
    for line in compared:
        assert "2 hard links" in line
        assert "1 sparse" in line
        assert re.search(r"[1-9]\d* xattrs", line) or not keeps_attributes(tmp_path)
        assert line.endswith(", owners") == (driver == "netns")
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in source.iterdir()), "PATH is only read"
    assert not list(tmp_path.glob("undercroft-demo-*"))
