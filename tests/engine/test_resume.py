"""Interruption: nothing is lost, nothing is sent twice, nothing hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.engine.depots import FaultyDepot, FolderDepot
from tests.engine.workbench import SMALL_PACKS, Bench, noise, plant
from undercroft.agent.sources.files import FilesSource
from undercroft.clock import SystemClock
from undercroft.engine.backup import Progress, Tuning, back_up
from undercroft.engine.crew import Crew
from undercroft.engine.repository import Bytes
from undercroft.engine.sealed import SealedWriter
from undercroft.errors import Conflict, LocalProblem, StorageFull, Unavailable


@pytest.mark.parametrize("after", [False, True], ids=["refused", "answer lost"])
def test_failing_at_the_first_second_third_put_until_it_succeeds(bench: Bench, after: bool) -> None:
    plant(bench.source)
    sent = 0
    for fail_at in range(1, 50):
        depot = FaultyDepot(bench.depot, fail_at, after)
        try:
            result = bench.back_up(depot, SMALL_PACKS, check=False)
        except Unavailable:
            assert depot.hit
            sent += depot.puts
            continue
        assert not depot.hit
        break
    else:
        pytest.fail("it never succeeded")
    assert fail_at >= 3
    bench.back_up(tuning=SMALL_PACKS)  # with the checker
    bench.assert_restores(result)


def test_what_arrived_is_not_sent_again(bench: Bench) -> None:
    plant(bench.source)
    (bench.source / "much").write_bytes(noise(8_000_000, 4))
    clean = bench.back_up(tuning=SMALL_PACKS)
    whole = sum((bench.depot.folder / name).stat().st_size for name in clean.packs)
    other = Bench(bench.folder / "other", FolderDepot(bench.folder / "other/depot"), bench.keys)
    os.rename(bench.source, other.source)
    with pytest.raises(Unavailable):
        other.back_up(FaultyDepot(other.depot, 5), Tuning(pack_size=SMALL_PACKS.pack_size, senders=1), check=False)
    arrived = sum(entry.size for entry in other.depot.objects("packs"))
    assert arrived
    second = other.back_up(tuning=SMALL_PACKS)
    assert second.statistics.bytes_sent < whole - arrived + 500_000
    other.assert_restores(second)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.engine.depots import FolderDepot
from undercroft.agent.sources.files import FilesSource
from undercroft.engine.backup import Tuning, back_up
from undercroft.engine.crypto import ContainerKeys

class Slow(FolderDepot):
    done = 0
    def put(self, name, parts):
        super().put(name, parts)
        Slow.done += 1
        print(Slow.done, flush=True)
        time.sleep(0.05)

folder = Path(sys.argv[1])
back_up(FilesSource(folder / "source"), Slow(folder / "depot"), ContainerKeys.of_master(bytes.fromhex(sys.argv[2])),
        folder / "cache", tuning=Tuning(pack_size=1280 * 1024, senders=1))
"""


def _start(bench: Bench, master: bytes) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(bench.folder), master.hex()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("puts", [4, 11])
def test_a_killed_backup_resumes(tmp_path: Path, puts: int) -> None:
    from undercroft.engine.crypto import ContainerKeys

    master = os.urandom(32)
    bench = Bench(tmp_path, FolderDepot(tmp_path / "depot"), ContainerKeys.of_master(master))
    (bench.source / "large").write_bytes(noise(20_000_000, 3))
    with _start(bench, master) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and int(line) < puts:
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    arrived = {entry.name: entry.size for entry in bench.depot.objects("packs")}
    assert len(arrived) >= puts - 2
    result = bench.back_up(tuning=SMALL_PACKS)
    # One pack may have arrived without its line in the journal.
    assert result.statistics.bytes_sent < 20_100_000 - sum(arrived.values()) + 2 * 1280 * 1024
    assert len(set(result.packs) & set(arrived)) >= len(arrived) - 1
    bench.assert_restores(result)


@pytest.mark.parametrize("stop", [signal.SIGINT])
def test_an_interrupted_backup_ends_cleanly(tmp_path: Path, stop: signal.Signals) -> None:
    from undercroft.engine.crypto import ContainerKeys

    master = os.urandom(32)
    bench = Bench(tmp_path, FolderDepot(tmp_path / "depot"), ContainerKeys.of_master(master))
    (bench.source / "large").write_bytes(noise(20_000_000, 3))
    with _start(bench, master) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        started = time.monotonic()
        os.kill(process.pid, stop)
        _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert time.monotonic() - started < 8
    bench.assert_restores(bench.back_up(tuning=SMALL_PACKS))


def test_an_exception_from_progress_cancels(bench: Bench) -> None:
    plant(bench.source)

    class Cancelled(Exception):
        pass

    def cancel(progress: Progress) -> None:
        raise Cancelled

    before = threading.active_count()
    with pytest.raises(Cancelled):
        back_up(FilesSource(bench.source), bench.depot, bench.keys, bench.cache, progress=cancel, tuning=SMALL_PACKS)
    assert threading.active_count() == before
    bench.assert_restores(bench.back_up(tuning=SMALL_PACKS))


class _Broken(FolderDepot):
    """Every put fails in a way nobody planned for (the writer thread's death that once hung a prototype)."""

    def put(self, name: str, parts: Sequence[Bytes]) -> None:
        raise OSError(22, "Invalid argument")


def test_a_thread_that_dies_ends_the_backup(bench: Bench) -> None:
    plant(bench.source)
    (bench.source / "much").write_bytes(noise(40_000_000, 4))
    started = time.monotonic()
    with pytest.raises(OSError, match="Invalid argument"):
        bench.back_up(_Broken(bench.depot.folder), SMALL_PACKS, check=False)
    assert time.monotonic() - started < 10


def test_a_crew_that_stands_still_is_found() -> None:
    crew = Crew(SystemClock(), stall_seconds=0.2)

    def wait_for_nothing() -> None:
        with crew.monitor:
            crew.wait(lambda: False, "something that never comes")

    with pytest.raises(LocalProblem, match="stands still"), crew.leading():
        crew.start("one", wait_for_nothing)
        crew.start("two", wait_for_nothing)


def test_two_backups_do_not_share_a_cache(bench: Bench) -> None:
    plant(bench.source)

    def again(progress: Progress) -> None:
        with pytest.raises(Conflict, match="Another backup is running"):
            bench.back_up()

    back_up(FilesSource(bench.source), bench.depot, bench.keys, bench.cache, progress=again, tuning=SMALL_PACKS)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs")
def test_a_full_disk_under_the_cache_is_told(bench: Bench, tmp_path: Path) -> None:
    plant(bench.source)
    for number in range(3000):
        (bench.source / f"{number:0200}").touch()
    bench.cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", bench.cache], check=True)
    try:
        with pytest.raises(StorageFull, match="Free some space"):
            bench.back_up(tuning=SMALL_PACKS, check=False)
    finally:
        subprocess.run(["umount", bench.cache], check=True)
    bench.assert_restores(bench.back_up(tuning=SMALL_PACKS))


def test_a_file_that_cannot_be_written_is_named(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalProblem, match="file/below"):
        SealedWriter(tmp_path / "file/below", b"x", bench.keys)
