"""What only the filesystem can show: leftovers, full disks, broken folders."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from undercroft.errors import Conflict, LocalProblem, StorageFull
from undercroft.store import filesystem
from undercroft.store.filesystem import FilesystemStore


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def test_a_start_removes_what_a_crash_left(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)
    await store.put("kept", pieces(b"1"))
    await store.close()
    (tmp_path / ".incoming" / "half").write_bytes(b"half an object")
    store = FilesystemStore(tmp_path)
    assert files(tmp_path) == ["kept"]
    assert [info.name async for info in store.list("")] == ["kept"]
    await store.close()


async def test_no_temporary_file_is_left_by_success_failure_or_cancellation(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * (2 << 20)
        await asyncio.sleep(30)

    await store.put("a/b", pieces(b"1" * (3 << 20)))
    task = asyncio.create_task(store.put("c", slow()))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(Conflict):
        await store.put("a/b", pieces(b"2"))
    with pytest.raises(Conflict):
        await store.put("a/b/c", pieces(b"an object is no folder"))
    assert files(tmp_path) == ["a/b"]
    await store.close()


async def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    store = FilesystemStore(tmp_path / "store")
    (tmp_path / "store" / "link").symlink_to(outside)
    with pytest.raises(OSError) as caught:
        _ = [piece async for piece in store.get("link")]
    assert caught.value.errno == errno.ELOOP
    await store.close()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LocalProblem, match="file"):
        FilesystemStore(tmp_path / "file" / "store")


async def _fill(root: Path) -> None:
    """Put until it is full; then nothing of the refused object is there, the others are whole, and it goes on after space."""
    store = FilesystemStore(root)
    await store.put("small", pieces(b"s" * 100_000))
    with pytest.raises(StorageFull, match="no room"):
        await store.put("large/one", pieces(*[b"x" * 500_000] * 20))
    assert files(root) == ["small"]
    assert b"".join([piece async for piece in store.get("small")]) == b"s" * 100_000
    await store.put("large/two", pieces(b"t" * 100_000))
    with pytest.raises(StorageFull):
        await store.compose("large/three", ("small",) * 60)
    assert files(root) == ["large/two", "small"]
    await store.close()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_a_full_disk(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "undercroft-test", str(root)], check=True)
    try:
        asyncio.run(_fill(root))
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_a_limit_of_the_process_is_a_full_disk_too(tmp_path: Path) -> None:
    """In a process of its own: the limit cannot be raised again."""
    program = f"""
        import asyncio, resource, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_filesystem_store import _fill
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
        asyncio.run(_fill(Path({str(tmp_path / "s")!r})))
    """
    assert resource.RLIM_INFINITY is not None
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
    )
    assert done.returncode == 0, done.stderr


async def test_an_object_whose_folder_could_not_be_synced_is_not_there(tmp_path: Path) -> None:
    """Otherwise the client, told of a failure, sends it again, hears that it is there, and relies on what is not durable."""
    store = FilesystemStore(tmp_path)
    await store.put("a/first", pieces(b"1"))
    real, failing = filesystem._sync_folder, True

    def sync(folder: Path) -> None:
        if failing and folder.name == "a":
            raise OSError(errno.EIO, "Input/output error")
        real(folder)

    filesystem._sync_folder = sync
    try:
        with pytest.raises(OSError):
            await store.put("a/b", pieces(b"2"))
        assert files(tmp_path) == ["a/first"]
        failing = False
        await store.put("a/b", pieces(b"2"))
    finally:
        filesystem._sync_folder = real
    await store.close()


async def test_a_folder_is_not_replaced_by_an_object(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path)
    await store.put("a/b/c", pieces(b"1"))
    with pytest.raises(Conflict):
        await store.put("a/b", pieces(b"2"), replace=True)
    assert files(tmp_path) == ["a/b/c"]
    await store.close()
