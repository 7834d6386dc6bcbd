"""Files as a source and target: trees of every kind come back exactly, and what cannot be read is said."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.depots import FolderDepot
from tests.engine.workbench import Bench, SettledClock, noise
from undercroft.agent.sources.files import FilesSource
from undercroft.agent.sources.metadata import IdentityMap
from undercroft.clock import SystemClock
from undercroft.engine.crypto import ContainerKeys
from undercroft.engine.restore import PointReader
from undercroft.engine.snapshots import Entry
from undercroft.errors import InvalidInput, NotFound

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield Bench(tmp_path, FolderDepot(tmp_path / "depot"), ContainerKeys.of_master(os.urandom(32)))


def _entries(bench: Bench, result: object) -> dict[bytes, Entry]:
    from undercroft.engine.backup import BackupResult

    assert isinstance(result, BackupResult)
    point = PointReader(bench.depot, bench.keys, result.manifest, result.packs, result.indexes)
    return {
        os.path.join(directory.path, entry.name): entry
        for directory in point.directories()
        for entry in directory.entries
    }


names = st.binary(min_size=1, max_size=12).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
leaves = st.tuples(
    st.one_of(
        st.binary(max_size=200).map(lambda data: ("f", data)),
        st.integers(500_000, 1_200_000).map(lambda size: ("f", noise(size, size))),
        st.binary(min_size=1, max_size=30).filter(lambda data: b"\0" not in data).map(lambda data: ("l", data)),
        st.just(("p", b"")),
    ),
    st.integers(0, 0o777),
    st.integers(-(10**18), 4 * 10**18),
)
trees = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=5), max_leaves=15)


def _grow(folder: bytes, tree: object) -> None:
    if not isinstance(tree, dict):
        return
    for name, what in tree.items():
        path = os.path.join(folder, name)
        if isinstance(what, dict):
            os.mkdir(path)
            _grow(path, what)
            continue
        (kind, data), mode, mtime = what
        if kind == "f":
            with open(path, "wb") as file:
                file.write(data)
        elif kind == "l":
            os.symlink(data, path)
        else:
            os.mkfifo(path)
        if kind != "l":
            os.chmod(path, mode | stat.S_IRUSR)
        os.utime(path, ns=(mtime, mtime), follow_symlinks=False)


@settings(max_examples=12, deadline=None)
@given(st.dictionaries(names, trees, max_size=6))
def test_random_trees_come_back_exactly(tree: dict[bytes, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), FolderDepot(Path(folder) / "depot"), ContainerKeys.of_master(bytes(32)))
        _grow(os.fsencode(bench.source), tree)
        bench.assert_restores(bench.back_up())
        again = bench.back_up()
        assert again.statistics.bytes_read == 0
        bench.assert_restores(again)


def test_every_kind_of_file_comes_back(bench: Bench) -> None:
    root = bench.source
    (root / "plain").write_bytes(b"plain")
    (root / "empty").touch()
    (root / "read-only").write_bytes(b"x")
    (root / "read-only").chmod(0o444)
    (root / "folder").mkdir()
    (root / "link").symlink_to("plain")
    (root / "dangling").symlink_to("/nowhere/at/all")
    (root / "second-name").hardlink_to(root / "plain")
    (root / "a").mkdir()
    (root / "a" / "third-name").hardlink_to(root / "plain")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.getcwd()
        os.chdir(root)
        unix.bind("socket")
        os.chdir(here)
    (root / b"not utf-8 \xff\xfe".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    os.setxattr(root / "plain", "user.colour", b"blue\0green")
    os.setxattr(root / "folder", "user.of-a-folder", b"1")
    os.utime(root / "plain", ns=(1, -5_000_000_001))
    os.utime(root / "folder", ns=(1, 123_456_789_123_456_789))
    (root / "folder").chmod(0o500)
    result = bench.back_up()
    assert not result.problems
    assert result.statistics.files == 4
    bench.assert_restores(result)
    again = bench.back_up()
    assert again.statistics.bytes_read == 0
    assert again.statistics.new_chunks == 0
    bench.assert_restores(again)


@needs_root
def test_owners_devices_and_acls_come_back(bench: Bench) -> None:
    root = bench.source
    (root / "owned").write_bytes(b"x")
    os.chown(root / "owned", 12345, 54321)
    (root / "owned").chmod(0o6755)
    (root / "capable").write_bytes(b"x")
    os.setxattr(root / "capable", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    (root / "acl").write_bytes(b"x")
    acl = bytes.fromhex("02000000 01000600ffffffff 02000400e8030000 04000400ffffffff 10000600ffffffff 20000000ffffffff")
    os.setxattr(root / "acl", "system.posix_acl_access", acl)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "link").symlink_to("owned")
    os.chown(root / "link", 7, 8, follow_symlinks=False)
    (root / "folder").mkdir()
    os.chown(root / "folder", 9, 10)
    bench.assert_restores(bench.back_up())


def test_sparse_files_stay_sparse(bench: Bench) -> None:
    size = 300_000_000
    with (bench.source / "sparse").open("wb") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), noise(700_000, 1), 10_000_000)
        os.pwrite(file.fileno(), b"end", size - 3)
    with (bench.source / "only-a-hole").open("wb") as file:
        file.truncate(5_000_000)
    result = bench.back_up()
    assert result.statistics.bytes_read < 2_000_000
    into, restored = bench.restore(result)
    assert not restored.partial
    for name in ("sparse", "only-a-hole"):
        ours, theirs = into / name, bench.source / name
        assert ours.stat().st_size == theirs.stat().st_size
        assert ours.stat().st_blocks <= theirs.stat().st_blocks + 16
        assert subprocess.run(["cmp", ours, theirs], check=False).returncode == 0


def test_unchanged_files_are_not_read_and_changed_ones_are(bench: Bench) -> None:
    for number in range(20):
        (bench.source / f"f{number}").write_bytes(noise(10_000, number))
    (bench.source / "large").write_bytes(noise(5_000_000, 99))
    first = bench.back_up()
    with (bench.source / "large").open("r+b") as file:
        file.seek(2_500_000)
        file.write(b"changed")
    (bench.source / "f3").chmod(0o600)
    second = bench.back_up()
    assert second.statistics.unchanged_files == 19
    assert second.statistics.bytes_read == 5_010_000
    assert second.statistics.bytes_sent < 4_300_000
    assert first.statistics.bytes_sent > 5_000_000
    bench.assert_restores(second)


def test_a_change_in_the_same_instant_is_seen(bench: Bench) -> None:
    """Times have a grain; a file written twice within one, with the same size, must not pass as unchanged."""
    file = bench.source / "file"
    for number in range(10):
        file.write_bytes(b"%d" % number)
        os.utime(file, ns=(0, 0))
        bench.assert_restores(bench.back_up(clock=SystemClock()))


@pytest.mark.rootless
@pytest.mark.skipif(ROOT, reason="needs an ordinary user: root reads everything")
def test_unreadable_files_are_left_out_and_listed(bench: Bench) -> None:
    (bench.source / "secret").write_text("x")
    (bench.source / "secret").chmod(0)
    (bench.source / "closed").mkdir(mode=0)
    (bench.source / "open").write_text("x")
    try:
        result = bench.back_up()
        assert result.statistics.unreadable == 2
        assert {problem.path for problem in result.problems} == {b"secret", b"closed"}
        assert all("Permission denied" in problem.reason for problem in result.problems)
        into, _ = bench.restore(result)
        assert (into / "open").read_text() == "x"
        assert not (into / "secret").exists()
    finally:
        (bench.source / "closed").chmod(0o700)


UNPRIVILEGED = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from tests.agent.test_files_source import *
folder = Path(sys.argv[1])
bench = Bench(folder, FolderDepot(folder / "depot"), ContainerKeys.of_master(bytes(32)))
test_unreadable_files_are_left_out_and_listed(bench)
print("held")
"""


@needs_root
def test_unreadable_files_as_an_ordinary_user() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        os.chmod(folder, 0o777)
        ran = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, folder],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if (
            "PermissionError" in ran.stderr
            and "held" not in ran.stdout
            and str(Path(__file__).parents[2]) in ran.stderr
        ):
            pytest.skip("this checkout is not readable for others")
        assert ran.stdout == "held\n", ran.stderr


def test_a_file_that_grows_or_vanishes_while_it_is_read_is_noted(bench: Bench) -> None:
    growing = bench.source / "growing"
    growing.write_bytes(b"x" * 1000)
    (bench.source / "vanishing").write_bytes(b"x")

    class Meddling(FilesSource):
        def _file(self, sink, directory, name, path, status, settled):  # type: ignore[no-untyped-def]
            if name == b"growing":
                with growing.open("ab") as file:
                    file.write(b"y" * 600_000)
            return super()._file(sink, directory, name, path, status, settled)

        def _directory(self, sink, parent, directory, path):  # type: ignore[no-untyped-def]
            before = os.scandir

            class Listing:
                def __init__(self, where: int) -> None:
                    self.inner = before(where)

                def __enter__(self) -> list[os.DirEntry[str]]:
                    items = list(self.inner)
                    (bench.source / "vanishing").unlink(missing_ok=True)
                    return items

                def __exit__(self, *_: object) -> None:
                    self.inner.close()

            os.scandir = Listing  # type: ignore[assignment]
            try:
                return super()._directory(sink, parent, directory, path)
            finally:
                os.scandir = before

    from undercroft.engine.backup import back_up

    result = back_up(Meddling(bench.source, clock=SettledClock()), bench.depot, bench.keys, bench.cache)
    noted = {problem.path: problem.reason for problem in result.problems}
    assert "vanished" in noted[b"vanishing"]
    assert "changed while" in noted[b"growing"]
    assert result.statistics.unreadable == 0
    into, restored = bench.restore(result)
    assert not restored.partial
    assert (into / "growing").read_bytes() == b"x" * 1000 + b"y" * 600_000


def test_nothing_outside_the_root_is_read(bench: Bench) -> None:
    outside = bench.folder / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    (bench.source / "way-out").symlink_to(outside)
    entries = _entries(bench, bench.back_up())
    assert list(entries) == [b"way-out"]
    assert entries[b"way-out"].kind == "l"


@needs_root
@pytest.mark.root
def test_other_file_systems_can_be_left_out(bench: Bench) -> None:
    mount = bench.source / "mount"
    mount.mkdir()
    (bench.source / "file").write_text("x")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mount], check=True)
    try:
        (mount / "inside").write_text("x")
        assert b"mount/inside" not in _entries(bench, bench.back_up(one_file_system=True))
        assert b"mount/inside" in _entries(bench, bench.back_up())
    finally:
        subprocess.run(["umount", mount], check=True)


def test_what_is_excluded_is_left_out(bench: Bench) -> None:
    (bench.source / "cache/deep").mkdir(parents=True)
    (bench.source / "cache/deep/file").write_text("x")
    (bench.source / "kept").write_text("x")
    assert set(_entries(bench, bench.back_up(exclude=[bench.source / "cache/deep"]))) == {b"cache", b"kept"}


def _proc(folder: Path, id_map: str) -> Path:
    (folder / "self").mkdir(parents=True)
    (folder / "sys/kernel").mkdir(parents=True)
    for kind in ("uid", "gid"):
        (folder / f"self/{kind}_map").write_text(id_map)
        (folder / f"sys/kernel/overflow{kind}").write_text("65534\n")
    return folder


def test_unmapped_owners_are_unknown_never_nobody(tmp_path: Path) -> None:
    rootless = IdentityMap(_proc(tmp_path / "a", "         0       1000          1\n"))
    assert (rootless.uid(0), rootless.uid(65534), rootless.gid(65534)) == (0, None, None)
    assert not rootless.complete
    real = IdentityMap(_proc(tmp_path / "b", "         0          0 4294967295\n"))
    assert (real.uid(65534), real.gid(65534), real.complete) == (65534, 65534, True)


IN_NAMESPACE = """
import sys
from tests.agent.test_files_source import *
from tests.agent.test_files_source import _entries
folder = Path(sys.argv[1])
bench = Bench(folder, FolderDepot(folder / "depot"), ContainerKeys.of_master(bytes(32)))
(bench.source / "mine").touch()
entries = _entries(bench, bench.back_up())
print({name.decode(): (entry.uid, entry.gid) for name, entry in sorted(entries.items())})
"""


@needs_root
def test_owners_in_a_real_user_namespace() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        source = Path(folder) / "source"
        source.mkdir()
        (source / "theirs").write_text("x")
        os.chown(source, 1234, 1234)
        os.chown(folder, 1234, 1234)
        command = ["setpriv", "--reuid", "1234", "--regid", "1234", "--clear-groups", "unshare", "-U", "-r"]
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
            pytest.skip("this kernel gives ordinary users no namespaces")
        ran = subprocess.run(
            [*command, sys.executable, "-c", IN_NAMESPACE, folder],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.stdout == "{'mine': (0, 0), 'theirs': (None, None)}\n", ran.stderr


def test_an_unknown_owner_is_recorded_and_restored_as_unknown(bench: Bench, tmp_path: Path) -> None:
    (bench.source / "file").write_text("x")
    (bench.source / "file").chmod(0o755)
    identities = IdentityMap(_proc(tmp_path / "proc", "0 1000 1\n"))
    identities._unknown_uid = os.geteuid()  # this file's owner stands for one that is not mapped
    result = bench.back_up(identities=identities)
    assert _entries(bench, result)[b"file"].uid is None
    into, restored = bench.restore(result)
    assert any("owners could not be set" in problem.reason for problem in restored.problems)
    assert (into / "file").stat().st_uid == os.geteuid()


def test_a_source_that_is_not_a_folder_is_named(bench: Bench, tmp_path: Path) -> None:
    from undercroft.engine.backup import back_up

    with pytest.raises(NotFound, match="no folder"):
        back_up(FilesSource(tmp_path / "nowhere"), bench.depot, bench.keys, bench.cache)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="not a folder"):
        back_up(FilesSource(tmp_path / "file"), bench.depot, bench.keys, bench.cache)


def test_very_deep_trees_come_back(bench: Bench) -> None:
    here = os.open(bench.source, os.O_RDONLY)
    for _ in range(100):
        os.mkdir("d" * 50, dir_fd=here)
        below = os.open("d" * 50, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with os.fdopen(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here), "w") as file:
        file.write("at the bottom")
    os.close(here)
    result = bench.back_up()
    assert result.statistics.directories == 101
    into, restored = bench.restore(result)
    assert not restored.partial
    again = Bench(bench.folder / "again", FolderDepot(bench.folder / "again/depot"), bench.keys)
    into.rename(again.source)
    assert again.back_up().statistics.files == 1
    for path in (bench.source, again.source):
        subprocess.run(["rm", "-rf", path], check=True)
