"""Objects as files under a folder. See the package's docstring for the order of writing.

All blocking calls run in a pool of threads of this store. A write holds at most two buffers of 1 MiB: one being written
while the next one fills.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import stat
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from undercroft.errors import Conflict, LocalProblem, NotFound, StorageFull
from undercroft.store.names import checked, checked_prefix
from undercroft.store.store import ObjectInfo

__all__ = ["FilesystemStore"]

T = TypeVar("T")

PIECE = 1 << 20
_PAGE = 512
_INCOMING = ".incoming"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""EFBIG as well: the process may not make a file as large as this (RLIMIT_FSIZE, or the file system's own limit)."""


@dataclass(slots=True)
class _Incoming:
    """A temporary file that becomes an object. One folder for all of them, so that cleaning up at start costs no walk."""

    path: Path
    descriptor: int

    def write(self, pieces: Sequence[bytes]) -> None:
        waiting = [memoryview(piece) for piece in pieces if piece]
        while waiting:
            written = os.writev(self.descriptor, waiting[:1024])
            while written:
                if written >= len(waiting[0]):
                    written -= len(waiting.pop(0))
                else:
                    waiting[0] = waiting[0][written:]
                    written = 0

    def discard(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self.path.unlink(missing_ok=True)


class FilesystemStore:
    """One process uses a folder at a time; what a crashed one left half-written is removed when the next one starts."""

    def __init__(self, root: Path, *, threads: int = 4) -> None:
        self._root = root
        self._pool = ThreadPoolExecutor(threads, "store")
        self._composer = ThreadPoolExecutor(1, "store-compose")  # copying for minutes must keep no other call waiting
        self._made: set[Path] = set()
        self._incoming = root / _INCOMING
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._incoming.mkdir(mode=0o700, exist_ok=True)
            for leftover in self._incoming.iterdir():
                leftover.unlink()
        except OSError as error:
            raise LocalProblem(
                f"The store at {root} cannot be used: {error.strerror or error}.", target=str(root)
            ) from error

    # --- Store ---------------------------------------------------------------------------------------------------

    async def put(self, name: str, body: AsyncIterable[bytes], *, replace: bool = False) -> ObjectInfo:
        path = self._path(name)
        if not replace and await self._run(path.exists):
            raise Conflict(f"The object '{name}' already exists.", code="ObjectAlreadyExists", target=name)
        incoming = await self._run(self._open_incoming)
        writing: asyncio.Future[None] | None = None
        finishing: asyncio.Future[ObjectInfo] | None = None
        try:
            pieces: list[bytes] = []
            gathered = 0
            async for piece in body:
                pieces.append(piece)
                gathered += len(piece)
                if gathered >= PIECE:
                    if writing is not None:
                        await asyncio.shield(writing)
                    writing = self._submit(_write, incoming, pieces)
                    pieces, gathered = [], 0
            if writing is not None:
                await asyncio.shield(writing)
            finishing = self._submit(self._finish, incoming, pieces, path, name, replace)
            return await asyncio.shield(finishing)
        finally:
            await asyncio.shield(self._settle(incoming, finishing or writing))

    async def compose(self, name: str, parts: tuple[str, ...], *, replace: bool = False) -> ObjectInfo:
        path = self._path(name)
        sources = [self._path(part) for part in parts]
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._composer, self._compose, path, name, sources, parts, replace)
        return await asyncio.shield(work)

    async def info(self, name: str) -> ObjectInfo:
        return await self._run(_stat, self._path(name), name)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        descriptor, piece = await self._run(_open_and_read, self._path(name), name, offset, length)
        try:
            left = length
            while piece:
                offset += len(piece)
                left = None if left is None else left - len(piece)
                yield piece
                piece = b"" if left == 0 else await self._run(os.pread, descriptor, _next(left), offset)
        finally:
            os.close(descriptor)

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        checked_prefix(prefix)
        names = self._walk("", prefix, after)
        while page := await self._run(_page, names):
            for each in page:
                yield each

    async def delete(self, name: str) -> None:
        await self._run(self._delete, self._path(name))

    async def close(self) -> None:
        for pool in (self._composer, self._pool):
            await asyncio.get_running_loop().run_in_executor(None, pool.shutdown)

    # --- in a thread ---------------------------------------------------------------------------------------------

    def _open_incoming(self) -> _Incoming:
        path = self._incoming / secrets.token_hex(16)
        with _space():
            return _Incoming(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _finish(self, incoming: _Incoming, rest: Sequence[bytes], path: Path, name: str, replace: bool) -> ObjectInfo:
        with _space():
            incoming.write(rest)
            os.fdatasync(incoming.descriptor)
            self._make_folder(path.parent)
            if replace:
                try:
                    incoming.path.rename(path)
                except IsADirectoryError as error:
                    raise Conflict(f"The name '{name}' is taken by a folder.", target=name) from error
            else:
                try:
                    os.link(incoming.path, path)
                except FileExistsError as error:
                    raise Conflict(
                        f"The object '{name}' already exists.", code="ObjectAlreadyExists", target=name
                    ) from error
            try:
                _sync_folder(path.parent)
            except OSError:
                if not replace:  # who sends it again must not hear that it is there
                    path.unlink(missing_ok=True)
                raise
        found = os.fstat(incoming.descriptor)
        incoming.discard()
        return _info(name, found)

    def _compose(
        self, path: Path, name: str, sources: Sequence[Path], parts: tuple[str, ...], replace: bool
    ) -> ObjectInfo:
        incoming = self._open_incoming()
        try:
            for source, part in zip(sources, parts, strict=True):
                descriptor = _open_object(source, part)
                try:
                    with _space():
                        while os.sendfile(incoming.descriptor, descriptor, None, 1 << 24):
                            pass
                finally:
                    os.close(descriptor)
            return self._finish(incoming, [], path, name, replace)
        finally:
            incoming.discard()

    def _make_folder(self, folder: Path) -> None:
        """Each new folder's entry in its parent is on disk before anything is put into it."""
        if folder in self._made or folder == self._root:
            return
        self._make_folder(folder.parent)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if not folder.is_dir():
                raise Conflict(f"'{folder.relative_to(self._root)}' is an object, not a folder.") from None
        _sync_folder(folder.parent)
        self._made.add(folder)

    def _delete(self, path: Path) -> None:
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        _sync_folder(path.parent)

    def _walk(self, folder: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
        """Objects below ``folder`` (empty or ending in ``/``); only one folder's names are in memory per level.

        A folder sorts as its name with ``/``: ``a-b`` comes before ``a/b``, as the full names compare.
        """
        try:
            with os.scandir(self._root / folder) as entries:
                here = sorted(
                    f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
                    for entry in entries
                    if not entry.name.startswith(".")
                )
        except (FileNotFoundError, NotADirectoryError):
            return
        for each in here:
            name = folder + each
            if each.endswith("/"):
                wanted = name.startswith(prefix) or prefix.startswith(name)
                if wanted and (name > after or after.startswith(name)):
                    yield from self._walk(name, prefix, after)
            elif name.startswith(prefix) and name > after:
                try:
                    yield _stat(self._root / name, name)
                except NotFound:
                    continue  # deleted while we listed

    # --- between ------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return self._root / checked(name)

    def _submit(self, work: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        return await self._submit(work, *arguments)

    async def _settle(self, incoming: _Incoming, work: asyncio.Future[Any] | None) -> None:
        """The temporary file is gone when this returns, also when the body broke off while a thread was writing."""
        if work is not None:
            await asyncio.wait({work})
            if not work.cancelled():
                work.exception()  # raised where it was awaited, or superseded by the error of the body
        if incoming.descriptor >= 0:
            await self._run(incoming.discard)


class _space:
    """Says that the disk is full in the tree's words."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise StorageFull(
                f"The store has no room left ({os.strerror(error.errno)}). Nothing of this object was kept; free space and "
                "send it again."
            ) from error


def _write(incoming: _Incoming, pieces: Sequence[bytes]) -> None:
    with _space():
        incoming.write(pieces)


def _page(names: Iterator[ObjectInfo]) -> list[ObjectInfo]:
    page = []
    for each in names:
        page.append(each)
        if len(page) == _PAGE:
            break
    return page


def _info(name: str, found: os.stat_result) -> ObjectInfo:
    etag = f"{found.st_ino:x}-{found.st_mtime_ns:x}"
    return ObjectInfo(name, found.st_size, etag, datetime.fromtimestamp(found.st_mtime_ns / 1e9, UTC))


def _missing(name: str) -> NotFound:
    return NotFound(f"The object '{name}' does not exist.", code="ObjectNotFound", target=name)


def _stat(path: Path, name: str) -> ObjectInfo:
    try:
        found = path.stat(follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(name) from error
    if not stat.S_ISREG(found.st_mode):
        raise _missing(name)
    return _info(name, found)


def _open_object(path: Path, name: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(name) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _missing(name)
    return descriptor


def _open_and_read(path: Path, name: str, offset: int, length: int | None) -> tuple[int, bytes]:
    """The descriptor and the first piece by one visit to a thread: most reads have no second one."""
    descriptor = _open_object(path, name)
    try:
        return descriptor, os.pread(descriptor, _next(length), offset)
    except BaseException:
        os.close(descriptor)
        raise


def _next(left: int | None) -> int:
    return PIECE if left is None else min(PIECE, left)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
