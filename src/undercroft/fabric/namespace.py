"""Namespaces without names: each is held by a descriptor and vanishes when its last user does.

A network namespace is made by a thread that lives for a moment: it unshares, opens its own ``ns/net`` and ends; the descriptor
is the namespace. Work inside one is done the same way, by a thread that enters it, so the process itself never leaves home. Nothing
is left behind by a crash: no name under /run/netns, no mount, no process.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from undercroft.errors import LocalProblem
from undercroft.fabric.rtnetlink import Netlink

__all__ = [
    "CLONE_FS",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWUSER",
    "Namespace",
    "bind_mount",
    "enter",
    "enter_user_namespace",
    "in_thread",
    "keep_mounts_private",
    "make_mount_namespace",
    "mount_tmpfs",
    "unshare",
]

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_IP_FREEBIND = 15

_libc = ctypes.CDLL(None, use_errno=True)  # os.unshare and os.setns came with Python 3.12

Result = TypeVar("Result")


def _check(result: int, step: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), step)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def enter(descriptor: int, kind: int) -> None:
    """Move the calling thread into the namespace."""
    _check(_libc.setns(descriptor, kind), "setns")


def _mount(source: str | None, target: str, filesystem: str | None, flags: int) -> None:
    arguments = (None if text is None else os.fsencode(text) for text in (source, target, filesystem))
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), None), f"mount on {target}")


def keep_mounts_private() -> None:
    """Mounts made from here on are not seen outside; later mounts of the machine still arrive."""
    _mount(None, "/", None, _MS_REC | _MS_SLAVE)


def bind_mount(source: Path, target: Path) -> None:
    _mount(str(source), str(target), None, _MS_BIND)


def mount_tmpfs(target: Path) -> None:
    _mount("tmpfs", str(target), "tmpfs", 0)


def in_thread(function: Callable[[], Result]) -> Result:
    """Run it in a thread of its own, whose namespaces may be changed because it ends with the call."""
    results: list[Result] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failures:
        failure = failures.pop()
        try:
            raise failure
        finally:
            del failure  # the traceback would keep this frame alive
    return results[0]


def enter_user_namespace() -> None:
    """Give this process, which must have one thread yet, a user and a mount namespace of its own.

    The user is mapped onto itself (X to X): the process has every right over namespaces that it makes, and what it starts is
    the same ordinary user without any. The network namespace stays the machine's.
    """
    user, group = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny", "ascii")  # user_namespaces(7): before gid_map
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1", "ascii")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1", "ascii")
    keep_mounts_private()


def make_mount_namespace(binds: Sequence[tuple[Path, Path]], hidden: Sequence[Path] = ()) -> int:
    """A descriptor of a copy of the machine's mounts in which each (source, target) is mounted and ``hidden`` are empty.

    A bind mount follows the file's inode, not its name: a source is rewritten in place, never replaced by rename.
    """

    def body() -> int:
        unshare(CLONE_NEWNS)
        keep_mounts_private()
        for source, target in binds:
            bind_mount(source, target)
        for target in hidden:
            mount_tmpfs(target)
        return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    try:
        return in_thread(body)
    except OSError as error:
        raise LocalProblem(
            f"The kernel refused a mount namespace for a VM ({error.filename}: {error.strerror})."
        ) from error


class Namespace:
    """A network namespace: its descriptor, its inode (which names it while it lives) and a routing socket inside."""

    def __init__(self, *, forwarding: bool) -> None:
        def body() -> tuple[int, Netlink]:
            unshare(CLONE_NEWNET)
            _switch(Path("/proc/sys/net/ipv4/ip_forward"), "1" if forwarding else "0")
            # Strict filtering is set per link; the kernel uses the greater of "all" and the link's own.
            _switch(Path("/proc/sys/net/ipv4/conf/all/rp_filter"), "0")
            # Networks are IPv4 only: without this every link spends packets on router and duplicate discovery.
            _switch(Path("/proc/sys/net/ipv6/conf/default/disable_ipv6"), "1")
            # A name server or proxy in a VM binds 53 or 443; in a user namespace it runs without any capability.
            _switch(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start"), "0")
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), Netlink()

        try:
            self.descriptor, self.netlink = in_thread(body)
        except OSError as error:
            raise LocalProblem(
                f"The kernel refused a network namespace ({error.filename}: {error.strerror}); "
                "'undercroft fabric probe' says what to change."
            ) from error
        self.inode = os.fstat(self.descriptor).st_ino

    def close(self) -> None:
        """Let go of it. Sockets and processes that are still inside keep it alive."""
        self.netlink.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def run(self, function: Callable[[], Result]) -> Result:
        def body() -> Result:
            enter(self.descriptor, CLONE_NEWNET)
            return function()

        return in_thread(body)

    def bind(self, address: str, port: int, kind: socket.SocketKind) -> socket.socket:
        """A non-blocking socket bound here, listening if it is a stream; ``OSError`` as the kernel gave it.

        The address need not exist yet (IP_FREEBIND): listeners and addresses come in any order.
        """

        def body() -> socket.socket:
            made = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
                if kind == socket.SOCK_STREAM:
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind((address, port))
                if kind == socket.SOCK_STREAM:
                    made.listen(1024)
            except BaseException:
                made.close()
                raise
            return made

        return self.run(body)


def _switch(setting: Path, value: str) -> None:
    """Write a sysctl of the calling thread's network namespace; one that this kernel lacks needs no switching."""
    if setting.exists():
        setting.write_text(value, "ascii")
