"""``python -m demo [PATH] [--driver netns|rootless]``: run the journey, print its table, leave nothing behind."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo.journey import Journey
from demo.shell import Failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="From a management call to restored bytes.")
    parser.add_argument("path", nargs="?", type=Path, help="back up a copy of this tree (it is only read)")
    parser.add_argument("--driver", default="auto", choices=("auto", "netns", "rootless"))
    chosen = parser.parse_args()
    if chosen.path is not None and not chosen.path.is_dir():
        parser.error(f"{chosen.path} is not a folder")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="undercroft-demo-") as folder:
        journey = Journey(Path(folder), chosen.path, chosen.driver, as_root=os.geteuid() == 0)
        try:
            journey.run()
        except Failed as failure:
            print(f"\nThe journey stopped: {failure}", file=sys.stderr)
            _show_logs(journey.home)
            return 1
        finally:
            down = [sys.executable, "-m", "undercroft.cli", "down", "--home", str(journey.home)]
            subprocess.run(down, capture_output=True, check=False)
        print("\n".join(journey.table()))
        print(f"\nDone in {time.monotonic() - start:.0f} s.")
    return 0


def _show_logs(home: Path) -> None:
    for log in sorted((home / "logs").glob("*.log")):
        lines = log.read_text("utf-8", "replace").splitlines()[-25:]
        print(f"--- {log.name}", *lines, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
