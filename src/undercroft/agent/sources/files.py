"""Files as a source: walks a tree, reads what changed, says what it could not read.

Nothing outside the root is ever opened: every directory is opened relative to its parent's descriptor, without following
symlinks. Directories are visited depth first, names in byte order, which is the order of the tree stream; so the parent snapshot
is followed in step, one directory at a time. A file whose size, times (mtime and ctime), inode are those of the parent is not
read again. For the restore side see ``files_target``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path

from undercroft.agent.sources.metadata import IdentityMap, data_extents, group_name, read_attributes, user_name
from undercroft.clock import Clock, SystemClock
from undercroft.engine.backup import Sink
from undercroft.engine.snapshots import Entry, Extra, ParentTree, joined
from undercroft.errors import InvalidInput, NotFound

__all__ = ["FilesSource"]

_UNSURE = -1
"""Recorded as ctime of a file that changed so recently that another change might leave no trace: it is read again next time."""
_SETTLED = timedelta(milliseconds=100)
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_OPEN_DIRECTORY = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECTORY
_KINDS = {stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFSOCK: "s", stat.S_IFBLK: "b", stat.S_IFCHR: "c"}


class FilesSource:
    """Implements ``engine.backup.Source`` for a directory. ``exclude`` are absolute paths of directories or files to leave out."""

    kind = "files"

    def __init__(
        self,
        root: Path | str,
        one_file_system: bool = False,
        exclude: Collection[Path | str] = (),
        clock: Clock | None = None,
        identities: IdentityMap | None = None,
    ) -> None:
        self._root = os.fsencode(os.path.abspath(root))
        self._one_file_system = one_file_system
        self._clock = clock or SystemClock()
        self._identities = identities or IdentityMap()
        self._exclude = {os.path.relpath(os.fsencode(path), self._root) for path in exclude}
        self._links: dict[tuple[int, int], bytes] = {}
        self._owners_seen: set[int] = set()
        self._groups_seen: set[int] = set()
        self._device = 0

    @property
    def path(self) -> bytes:
        return self._root

    def feed(self, sink: Sink, parent: ParentTree) -> Entry:
        shown = os.fsdecode(self._root)
        try:
            root = os.open(self._root, _OPEN_DIRECTORY & ~os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise NotFound(f"There is no folder {shown}.", target=shown) from error
        except NotADirectoryError as error:
            raise InvalidInput(f"{shown} is not a folder. Name the folder that holds it.", target=shown) from error
        except OSError as error:
            raise InvalidInput(f"{shown} cannot be read: {error.strerror}.", target=shown) from error
        self._links.clear()
        open_directories: list[tuple[int, bytes, list[bytes]]] = []
        try:
            status = os.fstat(root)
            self._device = status.st_dev
            entry = self._entry(sink, b"", "d", status, 0, extra=_extra(read_attributes(root)))
            open_directories.append((root, b"", self._directory(sink, parent, root, b"")))
            while open_directories:
                directory, path, rest = open_directories[-1]
                if not rest:
                    open_directories.pop()
                    os.close(directory)
                    continue
                name = rest.pop()
                below = joined(path, name)
                try:
                    child = os.open(name, _OPEN_DIRECTORY, dir_fd=directory)
                except OSError as error:
                    sink.problem(below, _reason(error))
                    continue
                open_directories.append((child, below, self._directory(sink, parent, child, below)))
            return entry
        finally:
            for directory, _, _ in open_directories:
                os.close(directory)

    def _directory(self, sink: Sink, parent: ParentTree, directory: int, path: bytes) -> list[bytes]:
        """One directory's entries go to the sink; answers the directories below, last first."""
        try:
            with os.scandir(directory) as listing:
                items = sorted((os.fsencode(item.name), item) for item in listing)
        except OSError as error:
            sink.problem(path, _reason(error))
            items = []
        before = parent.entries(path)
        settled = int((self._clock.now() - _SETTLED).timestamp() * 1e9)
        entries: list[Entry] = []
        below: list[bytes] = []
        sink.progress.directories += 1
        progress, known, exclude = sink.progress, sink.known, self._exclude
        for name, item in items:
            if exclude and joined(path, name) in exclude:
                continue
            try:
                status = item.stat(follow_symlinks=False)
                mode = status.st_mode
                if stat.S_ISREG(mode) and status.st_nlink == 1:
                    old = before.get(name)
                    if old is not None and _unchanged(old, status) and known(old.chunks):
                        sink.unchanged += 1
                        entries.append(old)
                        self._note_owner(sink, old)
                    else:
                        entries.append(self._file(sink, directory, name, path, status, settled))
                    progress.files += 1
                    progress.source_bytes += status.st_size
                elif stat.S_ISDIR(mode):
                    entries.append(
                        self._subdirectory(sink, directory, name, path, status, before.get(name), settled, below)
                    )
                else:
                    entries.append(self._other(sink, directory, name, path, status, before.get(name), settled))
            except FileNotFoundError:
                sink.problem(joined(path, name), "It vanished while the folder was read.", unreadable=False)
            except OSError as error:
                sink.problem(joined(path, name), _reason(error))
        sink.directory(path, entries)
        below.reverse()
        return below

    def _subdirectory(
        self,
        sink: Sink,
        directory: int,
        name: bytes,
        path: bytes,
        status: os.stat_result,
        old: Entry | None,
        settled: int,
        below: list[bytes],
    ) -> Entry:
        crossing = self._one_file_system and status.st_dev != self._device
        if old is not None and old.kind == "d" and old.ctime == status.st_ctime_ns and old.inode == status.st_ino:
            if not crossing:
                below.append(name)
            self._note_owner(sink, old)
            return old
        extra = None
        try:
            opened = os.open(name, _OPEN_DIRECTORY, dir_fd=directory)
        except OSError as error:
            sink.problem(joined(path, name), _reason(error))
        else:
            try:
                extra = _extra(read_attributes(opened))
            finally:
                os.close(opened)
            if not crossing:
                below.append(name)
        return self._entry(sink, name, "d", status, 0, settled=settled, extra=extra)

    def _file(
        self, sink: Sink, directory: int, name: bytes, path: bytes, status: os.stat_result, settled: int
    ) -> Entry:
        try:
            file = os.open(name, _OPEN_FILE | os.O_NOATIME, dir_fd=directory)
        except PermissionError as error:
            if error.errno != errno.EPERM:
                raise
            file = os.open(name, _OPEN_FILE, dir_fd=directory)  # O_NOATIME is for the owner and for root only
        try:
            extents = data_extents(file, status) if status.st_blocks * 512 < status.st_size else None
            chunks, count = sink.content(file, status.st_size, extents)
            after = os.fstat(file)
            if (
                after.st_mtime_ns != status.st_mtime_ns
                or after.st_ctime_ns != status.st_ctime_ns
                or after.st_size != status.st_size
                or after.st_ino != status.st_ino
            ):
                if not stat.S_ISREG(after.st_mode):
                    raise OSError(errno.ESTALE, "It became something else while it was read")
                sink.problem(
                    joined(path, name), "It changed while it was read; what was read is kept.", unreadable=False
                )
                settled = 0
            attributes = read_attributes(file)
        finally:
            os.close(file)
        size = count if extents is None else status.st_size
        extra = Extra(xattrs=attributes, extents=extents) if attributes or extents is not None else None
        return self._entry(sink, name, "f", after, size, chunks, settled, extra)

    def _other(
        self,
        sink: Sink,
        directory: int,
        name: bytes,
        path: bytes,
        status: os.stat_result,
        old: Entry | None,
        settled: int,
    ) -> Entry:
        """Files with several names, symlinks, fifos, sockets, devices."""
        inode = (status.st_dev, status.st_ino)
        if status.st_nlink > 1:
            first = self._links.get(inode)
            if first is not None:
                return self._entry(sink, name, "h", status, 0, settled=settled, extra=Extra(target=first))
        if stat.S_ISREG(status.st_mode):
            if old is not None and _unchanged(old, status) and sink.known(old.chunks):
                sink.unchanged += 1
                entry = old
                self._note_owner(sink, old)
            else:
                entry = self._file(sink, directory, name, path, status, settled)
            sink.progress.files += 1
            sink.progress.source_bytes += status.st_size
        else:
            kind = _KINDS[stat.S_IFMT(status.st_mode)]
            target = os.readlink(name, dir_fd=directory) if kind == "l" else None
            device = (os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in "bc" else None
            attributes = read_attributes(f"/proc/self/fd/{directory}/{os.fsdecode(name)}")
            extra = Extra(target=target, xattrs=attributes, device=device)
            entry = self._entry(sink, name, kind, status, 0, settled=settled, extra=extra)
        if status.st_nlink > 1:
            self._links[inode] = joined(path, name)
        return entry

    def _entry(
        self,
        sink: Sink,
        name: bytes,
        kind: str,
        status: os.stat_result,
        size: int,
        chunks: bytes = b"",
        settled: int = 0,
        extra: Extra | None = None,
    ) -> Entry:
        changed = status.st_ctime_ns
        entry = Entry(
            name,
            kind,
            stat.S_IMODE(status.st_mode),
            self._identities.uid(status.st_uid),
            self._identities.gid(status.st_gid),
            status.st_mtime_ns,
            changed if changed < settled else _UNSURE,
            status.st_ino,
            size,
            chunks,
            extra,
        )
        self._note_owner(sink, entry)
        return entry

    def _note_owner(self, sink: Sink, entry: Entry) -> None:
        """Names of owners are kept once per snapshot."""
        if entry.uid is not None and entry.uid not in self._owners_seen:
            self._owners_seen.add(entry.uid)
            sink.owners[entry.uid] = user_name(entry.uid)
        if entry.gid is not None and entry.gid not in self._groups_seen:
            self._groups_seen.add(entry.gid)
            sink.groups[entry.gid] = group_name(entry.gid)


def _unchanged(old: Entry, status: os.stat_result) -> bool:
    return (
        old.ctime == status.st_ctime_ns
        and old.mtime == status.st_mtime_ns
        and old.size == status.st_size
        and old.inode == status.st_ino
        and old.kind == "f"
    )


def _extra(attributes: tuple[tuple[bytes, bytes], ...]) -> Extra | None:
    return Extra(xattrs=attributes) if attributes else None


def _reason(error: OSError) -> str:
    return f"{error.strerror or error}."
