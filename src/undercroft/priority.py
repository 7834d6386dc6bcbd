"""How bulk work gives way to whoever waits for one answer, on a machine whose cores are full.

Two things, of the calling thread and of those that it starts later: five steps of nice(2), and the shortest time slice that the kernel grants
(sched_setattr(2), since Linux 6.12). The second is what counts: a thread that becomes ready waits until the running one has had its
slice, which by default is some milliseconds. On an idle machine neither changes anything.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

__all__ = ["GIVES_WAY", "give_way"]

GIVES_WAY = 5
"""Steps of nice(2): bulk work takes what others leave, but is not starved."""
_SLICE_NANOSECONDS = 100_000
"""The least that the kernel takes."""
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""Number of the system call, which the C library has no name for."""
_SCHED_BATCH = 3
"""It never takes the place of a running thread when it becomes ready (sched(7))."""


def give_way() -> None:
    """Quietly without what this kernel does not know."""
    nice = os.nice(GIVES_WAY)
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return
    # size, policy, flags, nice, priority, runtime (for other policies than deadline: the slice), deadline, period
    attributes = struct.pack("=IIQiIQQQ", 48, _SCHED_BATCH, 0, nice, 0, _SLICE_NANOSECONDS, 0, 0)
    ctypes.CDLL(None, use_errno=True).syscall(number, 0, attributes, 0)
