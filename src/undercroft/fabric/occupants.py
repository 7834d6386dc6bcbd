"""Who lives in a network namespace, and how they are ended.

**Living fabric** (``end``): a process lives in the namespace whose inode ``/proc/PID/ns/net`` names, whatever its parent, session
or group; so daemons are found too. Each is pinned with a pidfd, looked at again, killed with SIGKILL and waited for, in
rounds, until a round finds nobody. Guaranteed on return: no process has its network there. Not covered: a process that moved
itself to another network namespace (as root in a VM it may), and a thread that did.

**Dead fabric** (``end_survivors``): before anything is built, what a killed fabric left running is ended. The record beside the
socket holds the boot id, the dead fabric's mark and the inodes of its VMs' namespaces, and is on disk before a VM runs anything.
The kernel gives an inode to another namespace once the old one is gone, so an inode alone proves nothing. A namespace is
taken for the dead fabric's if at least one process in it has that mark (``UNDERCROFT_FABRIC``) in its first environment, or its
session leader has; then everything in it is ended, because a namespace with somebody in it cannot have been replaced. Not found:
a VM in which no process and no session leader carries the mark any more (all cleared their environment before they executed
a program), and one whose processes this user may not look at.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Set
from pathlib import Path

import msgspec

from undercroft.errors import LocalProblem

__all__ = ["MARK", "Record", "end", "end_survivors", "occupants"]

MARK = "UNDERCROFT_FABRIC"
"""The environment variable that says which run of a fabric started a process."""

_ROUNDS = 50
_PATIENCE = 10.0


def occupants(namespaces: Set[int]) -> dict[int, int]:
    """Processes, by id, and the one of these network namespaces that each lives in."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (inode := _namespace_of(int(name))) in namespaces:
            found[int(name)] = inode
    return found


def _namespace_of(process: int) -> int:
    try:
        return os.stat(f"/proc/{process}/ns/net").st_ino
    except OSError:  # gone, a zombie, or somebody else's
        return -1


def end(namespaces: Set[int]) -> int:
    """Kill everything in these namespaces and wait; how many there were. ``LocalProblem`` if some do not end."""
    if not namespaces:
        return 0
    ended = 0
    deadline = time.monotonic() + _PATIENCE
    living: dict[int, int] = {}
    for _ in range(_ROUNDS):
        living = occupants(namespaces)
        if not living:
            return ended
        ended += _end_round(living, deadline)
        if time.monotonic() > deadline:
            break
    raise LocalProblem(f"Processes of a VM do not end after SIGKILL: {', '.join(map(str, sorted(living)))}.")


def _end_round(living: dict[int, int], deadline: float) -> int:
    poll = select.poll()
    descriptors: list[int] = []
    try:
        for process, inode in living.items():
            try:
                descriptor = os.pidfd_open(process)
            except ProcessLookupError:
                continue
            descriptors.append(descriptor)
            # The id may have been reused since it was listed; the descriptor cannot be.
            if _namespace_of(process) != inode:
                continue
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            except ProcessLookupError:
                continue
            poll.register(descriptor, select.POLLIN)
        waiting = ended = len(descriptors)
        while waiting and (remaining := deadline - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(min(remaining, 1.0) * 1000) or [(-1, 0)]:
                if descriptor < 0:
                    waiting = 0  # look again: some had moved and were never signalled
                    break
                poll.unregister(descriptor)
                waiting -= 1
        return ended
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class Record(msgspec.Struct, frozen=True):
    """What a later fabric has to know of this one, in a small file beside the socket."""

    boot: str
    mark: str
    namespaces: tuple[int, ...]

    @staticmethod
    def current_boot() -> str:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()

    def write(self, path: Path) -> None:
        """Atomically. Not synced: a record of before a power failure is of another boot, hence void."""
        new = path.with_name(path.name + ".new")
        new.write_bytes(msgspec.json.encode(self))
        new.replace(path)


def end_survivors(path: Path) -> int:
    """End what the fabric of that record left running (see above), and forget the record; how many processes."""
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return 0
    except msgspec.DecodeError as error:
        raise LocalProblem(
            f"{path} is damaged ({error}). End the processes of the last run's VMs by hand, remove the file, start again."
        ) from error
    ended = 0
    if record.boot == Record.current_boot():
        mark = f"{MARK}={record.mark}".encode()
        living = occupants(frozenset(record.namespaces))
        proved = {inode for process, inode in living.items() if _carries(process, mark)}
        ended = end(proved)
    path.unlink()
    return ended


def _carries(process: int, mark: bytes) -> bool:
    return any(mark in _environment(candidate) for candidate in (process, _session(process)))


def _session(process: int) -> int:
    try:
        return os.getsid(process)
    except OSError:
        return process


def _environment(process: int) -> list[bytes]:
    try:
        return Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
