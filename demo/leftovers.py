"""What a run leaves behind: network namespaces, mounts and processes, counted from /proc, before and after."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Count", "count"]


@dataclass(frozen=True)
class Count:
    """``namespaces``: network namespaces that some process of ours is in or holds open. ``mounts``: of this mount namespace.
    ``processes``: those of this user that mention the home or carry a VM's mark."""

    namespaces: int
    mounts: int
    processes: int


def count(home: Path) -> Count:
    namespaces: set[str] = set()
    processes = 0
    mark = str(home).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            namespaces.add(os.readlink(entry / "ns" / "net"))
            for descriptor in (entry / "fd").iterdir():
                link = os.readlink(descriptor)
                if link.startswith("net:["):
                    namespaces.add(link)
            command = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue  # gone meanwhile, or another user's
        if mark in command or b"UNDERCROFT_VM=" in environment:
            processes += 1
    mounts = len(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines())
    return Count(len(namespaces), mounts, processes)
