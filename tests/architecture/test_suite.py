"""``scripts/test`` promises that nothing is left behind: its check sees what a test leaves, and ends it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.checkout import CHECKOUT

LEAVING = """
import ctypes, json, os, subprocess, sys, time
from pathlib import Path
from tests import suite

suite.GRACE_SECONDS = 0.3
ctypes.CDLL(None).prctl(suite.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
place, before = Path(sys.argv[1]), suite.world()
escape = "import os; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); os.execlp('sleep', 'sleep', '600')"
subprocess.run([sys.executable, "-c", escape], env={}, check=True, stdout=subprocess.DEVNULL)
while "sleep 600" not in suite.descendants(os.getpid()).values():
    time.sleep(0.05)
(place / "forgotten").touch()
found = suite.leftovers(before, place)
print(json.dumps([found, list(suite.descendants(os.getpid()))]))
"""


def test_a_process_that_got_away_and_a_file_are_found(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LEAVING, str(tmp_path)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    found, still_there = json.loads(ran.stdout)
    assert [line for line in found if line.endswith("sleep 600")]
    assert f"temporary {tmp_path / 'forgotten'}" in found
    assert still_there == []
