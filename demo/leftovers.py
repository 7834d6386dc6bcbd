"""What a deployment has in the kernel: processes, network namespaces and mounts, found from /proc by its folder's name.

A namespace without a name lives as long as a process is in it or holds it open, so what no process of the deployment holds is gone; one
that was seen during the run is looked for by its number in every process, whoever's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Traces", "traces"]


@dataclass(frozen=True)
class Traces:
    processes: frozenset[int]
    namespaces: frozenset[str]
    mounts: int

    def __str__(self) -> str:
        return f"{len(self.processes)} processes, {len(self.namespaces)} network namespaces, {self.mounts} mounts"

    @property
    def none(self) -> bool:
        return not (self.processes or self.namespaces or self.mounts)


def traces(home: Path, known: frozenset[str] = frozenset()) -> Traces:
    """Of the deployment at ``home``; ``known`` namespaces count wherever they are still held."""
    mark = str(home).encode()
    ours: set[int] = set()
    namespaces: set[str] = set()
    mounts = _mounts(Path("/proc/self"), mark)
    host = os.readlink("/proc/self/ns/net")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            marked = mark in (entry / "cmdline").read_bytes() or mark in (entry / "environ").read_bytes()
            held = {os.readlink(entry / "ns" / "net")}
            for descriptor in (entry / "fd").iterdir():
                link = os.readlink(descriptor)
                if link.startswith("net:["):
                    held.add(link)
        except OSError:
            continue  # gone meanwhile, or another user's
        namespaces |= (held if marked else held & known) - {host}
        if marked:
            ours.add(int(entry.name))
            mounts += _mounts(entry, mark)
    return Traces(frozenset(ours), frozenset(namespaces), mounts)


def _mounts(process: Path, mark: bytes) -> int:
    try:
        return sum(mark in line for line in (process / "mountinfo").read_bytes().splitlines())
    except OSError:
        return 0
