"""Files as a target: writes a restored tree under one folder, and nowhere else.

Directories are made first, open to nobody else; contents are written by several threads; hard links, symlinks and special
files come after all contents, metadata of directories last, deepest first. Every directory is opened component by component
without following symlinks, so neither a hostile tree nor a symlink that was there before leads outside. A content known as
a whole is written under its own name at once; one that comes in pieces gets its name only when it is complete.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from undercroft.engine.repository import Bytes
from undercroft.engine.snapshots import Directory, Entry, Problem, Snapshot, joined
from undercroft.errors import CapabilityMissing, Conflict, LocalProblem, StorageFull

__all__ = ["FilesTarget"]

_OPEN_DIRECTORY = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECTORY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL = {"p": stat.S_IFIFO, "s": stat.S_IFSOCK, "b": stat.S_IFBLK, "c": stat.S_IFCHR}


class _Folders:
    """The chain of open directories down to the one used last; one per thread."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._names: list[bytes] = []
        self._files: list[int] = []

    def open(self, path: bytes) -> int:
        wanted = path.split(b"/") if path else []
        common = 0
        for have, want in zip(self._names, wanted, strict=False):
            if have != want:
                break
            common += 1
        self._cut(common)
        for name in wanted[common:]:
            above = self._files[-1] if self._files else self._root
            try:
                opened = os.open(name, _OPEN_DIRECTORY, dir_fd=above)
            except FileNotFoundError:  # its own record was lost to damage
                os.mkdir(name, 0o700, dir_fd=above)
                opened = os.open(name, _OPEN_DIRECTORY, dir_fd=above)
            self._names.append(name)
            self._files.append(opened)
        return self._files[-1] if self._files else self._root

    def _cut(self, depth: int) -> None:
        while len(self._files) > depth:
            os.close(self._files.pop())
            self._names.pop()

    def close(self) -> None:
        self._cut(0)


class FilesTarget:
    """Implements ``engine.restore.Target``. Refuses a folder that is not empty, unless ``into_existing``; then what is there
    is kept, and files that are in the way are listed, never overwritten."""

    def __init__(self, folder: Path | str, into_existing: bool = False) -> None:
        self._folder = Path(folder)
        self._into_existing = into_existing
        self._root = -1
        self._root_entry: Entry | None = None
        self._local = threading.local()
        self._lock = threading.Lock()
        self._chains: list[_Folders] = []
        self._directories: list[tuple[bytes, Entry]] = []
        self._later: list[tuple[bytes, Entry]] = []
        self._temporary: dict[tuple[bytes, bytes], bytes] = {}
        self._mark = secrets.token_hex(4)
        self._problems: list[Problem] = []
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._owners_missed = 0

    # --- engine.restore.Target -------------------------------------------------------------------------------------------

    def begin(self, snapshot: Snapshot) -> None:
        if snapshot.source_kind != "files":
            raise CapabilityMissing(f"A point of kind '{snapshot.source_kind}' cannot be restored as files.")
        shown = str(self._folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._root = os.open(self._folder, _OPEN_DIRECTORY & ~os.O_NOFOLLOW)
            empty = not os.listdir(self._root)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(
                    f"No space left for {shown}. Free some, or restore elsewhere.", target=shown
                ) from error
            raise LocalProblem(f"The folder {shown} cannot be used: {error.strerror}.", target=shown) from error
        if not empty and not self._into_existing:
            self.close()
            raise Conflict(
                f"The folder {shown} is not empty. Restore to a new folder, or ask for into-existing.", target=shown
            )
        self._root_entry = snapshot.root

    def directory(self, directory: Directory) -> list[Entry]:
        contents: list[Entry] = []
        path = directory.path
        with self._writing(path):
            folder = self._folders().open(path)
            for entry in directory.entries:
                if entry.kind == "f":
                    contents.append(entry)
                elif entry.kind == "d":
                    if self._make_directory(folder, path, entry):
                        self._directories.append((path, entry))
                else:
                    self._later.append((path, entry))
        return contents

    def whole(self, folder: bytes, entry: Entry, data: Bytes) -> None:
        with self._writing(joined(folder, entry.name)):
            above = self._folders().open(folder)
            try:
                file = os.open(entry.name, _CREATE, 0o600, dir_fd=above)
            except FileExistsError:
                self._exists(folder, entry)
                return
            try:
                _write(file, data, 0)
                self._metadata(file, folder, entry)
            except BaseException:
                os.unlink(entry.name, dir_fd=above)
                raise
            finally:
                os.close(file)

    def piece(self, folder: bytes, entry: Entry, offset: int, data: Bytes) -> None:
        with self._writing(joined(folder, entry.name)):
            file = self._open_temporary(folder, entry)
            try:
                extents = entry.extra.extents if entry.extra is not None else None
                if extents is None:
                    _write(file, data, offset)
                    return
                for start, place, length in _placed(extents, offset, len(data)):
                    _write(file, memoryview(data)[start : start + length], place)
            finally:
                os.close(file)

    def complete(self, folder: bytes, entry: Entry) -> None:
        with self._writing(joined(folder, entry.name)):
            file = self._open_temporary(folder, entry)
            try:
                self._metadata(file, folder, entry)
            finally:
                os.close(file)
            above = self._folders().open(folder)
            with self._lock:
                temporary = self._temporary.pop((folder, entry.name))
            try:
                # Not rename: that would replace what is there.
                os.link(temporary, entry.name, src_dir_fd=above, dst_dir_fd=above, follow_symlinks=False)
            except FileExistsError:
                self._exists(folder, entry)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise
                os.rename(temporary, entry.name, src_dir_fd=above, dst_dir_fd=above)
                return
            os.unlink(temporary, dir_fd=above)

    def discard(self, folder: bytes, entry: Entry) -> None:
        with self._lock:
            temporary = self._temporary.pop((folder, entry.name), None)
        if temporary is not None:
            try:
                os.unlink(temporary, dir_fd=self._folders().open(folder))
            except FileNotFoundError:
                pass

    def finish(self) -> list[Problem]:
        try:
            for kinds in ("psbc", "l", "h"):
                for folder, entry in self._later:
                    if entry.kind in kinds:
                        self._make_other(folder, entry)
            for path, entry in reversed(self._directories):
                with self._writing(joined(path, entry.name)):
                    self._metadata(self._folders().open(joined(path, entry.name)), path, entry)
            if self._root_entry is not None and not self._into_existing:
                with self._writing(b""):
                    self._metadata(self._root, b"", self._root_entry)
        finally:
            self.close()
        if self._owners_missed:
            reason = f"{self._owners_missed} owners could not be set (this needs root), or were unknown to the backup."
            self._problems.append(Problem(b"", reason))
        return self._problems

    def close(self) -> None:
        """Close what is open; ``finish`` does it, and whoever gives up before."""
        for chain in self._chains:
            chain.close()
        self._chains.clear()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    # --- inside ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self, path: bytes) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            shown = os.fsdecode(os.path.join(os.fsencode(self._folder), path))
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(
                    f"No space left while writing {shown}. Free some, or restore elsewhere; nothing in the vault changed.",
                    target=shown,
                ) from error
            raise LocalProblem(f"{shown} cannot be written: {error.strerror}.", target=shown) from error

    def _folders(self) -> _Folders:
        chain: _Folders | None = getattr(self._local, "folders", None)
        if chain is None:
            chain = self._local.folders = _Folders(self._root)
            with self._lock:
                self._chains.append(chain)
        return chain

    def _exists(self, folder: bytes, entry: Entry) -> None:
        self._problems.append(Problem(joined(folder, entry.name), "Not restored: the name is taken."))

    def _make_directory(self, folder: int, path: bytes, entry: Entry) -> bool:
        try:
            os.mkdir(entry.name, 0o700, dir_fd=folder)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(entry.name, dir_fd=folder, follow_symlinks=False).st_mode):
                shown = os.fsdecode(joined(path, entry.name))
                raise Conflict(
                    f"{shown} in the target is not a folder. Restore to a new folder.", target=shown
                ) from None
            return not self._into_existing
        return True

    def _open_temporary(self, folder: bytes, entry: Entry) -> int:
        above = self._folders().open(folder)
        with self._lock:
            name = self._temporary.get((folder, entry.name))
            if name is not None:
                return os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
            name = f".undercroft-{self._mark}-{len(self._temporary)}-{secrets.token_hex(3)}".encode()
            file = os.open(name, _CREATE, 0o600, dir_fd=above)
            self._temporary[folder, entry.name] = name
            if entry.extra is not None and entry.extra.extents is not None:
                os.ftruncate(file, entry.size)
            return file

    def _metadata(self, file: int, folder: bytes, entry: Entry) -> None:
        """Owner first (it clears set-id bits and capabilities), attributes while the mode still lets us, then mode and times."""
        mode = entry.mode
        if not self._own(file, entry):
            mode &= ~(stat.S_ISUID | stat.S_ISGID)  # set-id for somebody else than it was meant for
        if entry.extra is not None:
            for name, value in entry.extra.xattrs:
                self._attribute(file, folder, entry, name, value)
        os.fchmod(file, mode)
        os.utime(file, ns=(entry.mtime, entry.mtime))

    def _own(self, file: int | bytes, entry: Entry, above: int | None = None) -> bool:
        """Whether the owners are now the recorded ones."""
        if entry.uid == self._uid and entry.gid == self._gid and above is None and not self._into_existing:
            return True
        known = entry.uid is not None and entry.gid is not None
        privileged = self._uid == 0
        uid = entry.uid if entry.uid is not None and (privileged or entry.uid == self._uid) else -1
        gid = entry.gid if entry.gid is not None else -1
        try:
            if above is None:
                os.chown(file, uid, gid)
            else:
                os.chown(file, uid, gid, dir_fd=above, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            known = False
        if not known or (uid == -1 and entry.uid != self._uid):
            self._owners_missed += 1
            return False
        return True

    def _attribute(self, file: int | str, folder: bytes, entry: Entry, name: bytes, value: bytes) -> None:
        try:
            os.setxattr(file, name, value, follow_symlinks=isinstance(file, int))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = f"Its attribute {os.fsdecode(name)} could not be set: {error.strerror}."
            self._problems.append(Problem(joined(folder, entry.name), reason))

    def _make_other(self, folder: bytes, entry: Entry) -> None:
        path = joined(folder, entry.name)
        with self._writing(path):
            above = self._folders().open(folder)
            try:
                if entry.kind == "h":
                    self._make_link(above, path, entry)
                    return
                extra = entry.extra
                if entry.kind == "l":
                    os.symlink(
                        extra.target if extra is not None and extra.target is not None else b"",
                        entry.name,
                        dir_fd=above,
                    )
                else:
                    device = os.makedev(*extra.device) if extra is not None and extra.device is not None else 0
                    os.mknod(entry.name, 0o600 | _SPECIAL[entry.kind], device, dir_fd=above)
            except FileExistsError:
                self._exists(folder, entry)
                return
            except PermissionError:
                self._problems.append(
                    Problem(path, "Not restored: making a device needs a right that this process lacks.")
                )
                return
            owned = self._own(entry.name, entry, above)
            if extra is not None:
                for name, value in extra.xattrs:
                    self._attribute(f"/proc/self/fd/{above}/{os.fsdecode(entry.name)}", folder, entry, name, value)
            if entry.kind != "l":
                mode = entry.mode if owned else entry.mode & ~(stat.S_ISUID | stat.S_ISGID)
                os.chmod(entry.name, mode, dir_fd=above)
            os.utime(entry.name, ns=(entry.mtime, entry.mtime), dir_fd=above, follow_symlinks=False)

    def _make_link(self, above: int, path: bytes, entry: Entry) -> None:
        target = entry.extra.target if entry.extra is not None and entry.extra.target is not None else b""
        first_folder, _, first = target.rpartition(b"/")
        other = _Folders(self._root)
        try:
            os.link(first, entry.name, src_dir_fd=other.open(first_folder), dst_dir_fd=above, follow_symlinks=False)
        except FileNotFoundError:
            reason = f"Not restored: the file it is another name of, {os.fsdecode(target)}, is not there."
            self._problems.append(Problem(path, reason))
        finally:
            other.close()


def _write(file: int, data: Bytes, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count


def _placed(extents: tuple[tuple[int, int], ...], offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(start in the data, place in the file, length) for content from ``offset`` on, which is the extents one after the other."""
    content = 0
    for place, size in extents:
        low, high = max(offset, content), min(offset + length, content + size)
        if low < high:
            yield low - offset, place + low - content, high - low
        content += size
