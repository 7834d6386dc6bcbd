"""Run one command and tell what it took: ``python -m bench.measure REPORT.json COMMAND ...`` (standard library only).

Seconds of wall clock, CPU seconds of the command and all its children that ended, and the peak of the summed PSS of the process
tree, sampled. PSS counts shared pages once, so several processes of one program compare fairly with one process of another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Measured", "cpu_seconds", "proportional_memory", "tree"]

INTERVAL = 0.1


@dataclass(frozen=True, slots=True)
class Measured:
    status: int
    seconds: float
    cpu: float
    memory: int
    """Peak, in bytes."""


def tree(root: int) -> list[int]:
    """The process and everything below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
            except OSError:
                continue  # it ended while we looked
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def proportional_memory(pids: Iterable[int]) -> int:
    """Summed PSS in bytes; processes that ended count nothing."""
    total = 0
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of living processes and of their ended children."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(command: list[str]) -> Measured:
    ended = threading.Event()
    peak = 0
    begun = time.monotonic()
    process = subprocess.Popen(command)

    def sample() -> None:
        nonlocal peak
        while True:
            peak = max(peak, proportional_memory(tree(process.pid)))
            if ended.wait(INTERVAL):
                return

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
    finally:
        ended.set()
        sampler.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    return Measured(process.returncode, seconds, usage.ru_utime + usage.ru_stime, peak)


def main(arguments: list[str]) -> int:
    measured = measure(arguments[1:])
    Path(arguments[0]).write_text(json.dumps(asdict(measured)), "ascii")
    return measured.status if measured.status >= 0 else 128 - measured.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
