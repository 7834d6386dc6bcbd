"""What a file has besides its content: owners, extended attributes, holes. As this process sees it, and nothing made up."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

__all__ = ["IdentityMap", "data_extents", "group_name", "read_attributes", "user_name"]

_NOT_SUPPORTED = (errno.ENOTSUP, errno.ENOSYS)


class IdentityMap:
    """Which numbers for owners can be believed. In a user namespace the kernel shows every owner that is not mapped as
    the overflow id (65534 unless set otherwise); such an owner is unknown, and recording it would hand the file to *nobody*
    on restore."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._unknown_uid = self._overflow(proc / "self/uid_map", proc / "sys/kernel/overflowuid")
        self._unknown_gid = self._overflow(proc / "self/gid_map", proc / "sys/kernel/overflowgid")

    @staticmethod
    def _overflow(id_map: Path, overflow: Path) -> int | None:
        try:
            lines = [tuple(map(int, line.split())) for line in id_map.read_text().splitlines()]
            if lines == [(0, 0, 4294967295)]:
                return None
            return int(overflow.read_text())
        except (OSError, ValueError):
            return 65534

    @property
    def complete(self) -> bool:
        """Whether every owner is visible (no user namespace)."""
        return self._unknown_uid is None and self._unknown_gid is None

    def uid(self, number: int) -> int | None:
        return None if number == self._unknown_uid else number

    def gid(self, number: int) -> int | None:
        return None if number == self._unknown_gid else number


def user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return ""


def group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return ""


def read_attributes(file: int | str) -> tuple[tuple[bytes, bytes], ...]:
    """Extended attributes of an open file, or of a path without following a symlink; sorted. ACLs are among them. Those that
    this process may not read are left out; a file system without any has none."""
    follow = isinstance(file, int)
    try:
        names = os.listxattr(file, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED or not follow:
            return ()
        raise
    found = []
    for name in names:
        try:
            found.append((os.fsencode(name), os.getxattr(file, name, follow_symlinks=follow)))
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EPERM, errno.EACCES, *_NOT_SUPPORTED):
                raise
    return tuple(sorted(found))


def data_extents(file: int, status: os.stat_result) -> tuple[tuple[int, int], ...] | None:
    """(offset, length) of the data of a file with holes; nothing for a file without. Only asked where fewer blocks are
    allocated than the size needs."""
    size = status.st_size
    if status.st_blocks * 512 >= size or not stat.S_ISREG(status.st_mode):
        return None
    extents, place = [], 0
    try:
        while place < size:
            try:
                start = os.lseek(file, place, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data after this place
                    break
                raise
            place = min(os.lseek(file, start, os.SEEK_HOLE), size)
            if start < place:
                extents.append((start, place - start))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTSUP):
            return None
        raise
    finally:
        os.lseek(file, 0, os.SEEK_SET)
    return None if extents == [(0, size)] else tuple(extents)
