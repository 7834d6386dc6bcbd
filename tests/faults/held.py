"""An agent whose backup cannot be over before the test says so: it does not begin to read one file while another is there.

What a test does to a backup "in the middle" then meets one in the middle, however fast the machine. All else is the real agent.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["held_backup"]

SCRIPT = """
import os, sys, time
from undercroft.agent.sources.files import FilesSource
from undercroft.cli.main import main
waits_for, before, *words = sys.argv[1:]
read = FilesSource._file

def held(self, sink, directory, name, *more):
    while name == os.fsencode(before) and os.path.exists(waits_for):
        time.sleep(0.02)
    return read(self, sink, directory, name, *more)

FilesSource._file = held
sys.exit(main(words))
"""


def held_backup(files: Path, passphrase: Path, waits_for: Path, before: str) -> tuple[str, ...]:
    """The command, in a VM, that backs ``files`` up and waits with the file ``before`` while ``waits_for`` exists. Files are read in
    the order of their names."""
    agent = ("agent", "backup", str(files), "--passphrase-file", str(passphrase))
    return (sys.executable, "-c", SCRIPT, str(waits_for), before, *agent)
