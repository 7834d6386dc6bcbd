"""Giving way, as the kernel tells it; in a process of its own, because nobody gets its priority back."""

from __future__ import annotations

import os
import subprocess
import sys

GIVE_WAY = """
import os, threading
from undercroft.priority import give_way
before = os.nice(0)
give_way()
def show():
    print(os.sched_getscheduler(0), os.nice(0) - before)
show()
thread = threading.Thread(target=show)
thread.start()
thread.join()
"""


def test_the_thread_and_those_it_starts_give_way() -> None:
    done = subprocess.run([sys.executable, "-c", GIVE_WAY], capture_output=True, text=True, check=True)
    steps = min(5, 19 - os.getpriority(os.PRIO_PROCESS, 0))
    assert done.stdout.splitlines() == [f"{os.SCHED_BATCH} {steps}"] * 2
