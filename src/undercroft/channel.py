"""Frames over a Unix stream socket with descriptors beside them: how the processes of one node talk to each other.

A frame is a length (4 bytes, network order), a count of descriptors (1 byte) and a body. The descriptors go by SCM_RIGHTS with the
first byte of their frame; the kernel never merges two such messages in one read, so they arrive at or before the frame that owns
them and are handed out in order. What the bodies say is the affair of who uses it (``fabric.messages``, ``dns.messages``).
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import msgspec

from undercroft import errors
from undercroft.capacity import scarce

__all__ = [
    "Arrivals",
    "Channel",
    "Failure",
    "close_all",
    "decode_address",
    "encode_address",
    "namespace_of",
    "peer",
    "reachable",
]

_HEADER = struct.Struct("!IB")
_LARGEST = 64 << 20
_DESCRIPTORS = 16
_READ = 1 << 16
_PAUSE_SECONDS = 0.2
_SO_NETNS_COOKIE = 71
"""asm-generic/socket.h, since Linux 5.14."""


class Failure(msgspec.Struct, frozen=True):
    """An error of the tree in ``undercroft.errors``, by the name of its class."""

    kind: str
    message: str
    code: str
    target: str | None

    @classmethod
    def of(cls, error: errors.UndercroftError) -> Failure:
        return cls(type(error).__name__, error.message, error.code, error.target)

    def error(self) -> errors.UndercroftError:
        kind = {found.__name__: found for found in _tree(errors.UndercroftError)}.get(self.kind, errors.LocalProblem)
        return kind(self.message, code=self.code, target=self.target)


def _tree(root: type[errors.UndercroftError]) -> list[type[errors.UndercroftError]]:
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]


def encode_address(value: Any) -> str:
    if isinstance(value, IPv4Address | IPv4Network):
        return str(value)
    raise NotImplementedError(type(value).__name__)


def decode_address(kind: type, value: Any) -> Any:
    if kind in (IPv4Address, IPv4Network):
        return kind(value)
    raise NotImplementedError(kind.__name__)


def peer(connected: socket.socket) -> tuple[int, int]:
    """Process and user id of the other side, by the kernel's word (unix(7), SO_PEERCRED)."""
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    process, user, _ = struct.unpack("3i", raw)
    return process, user


def namespace_of(sock: socket.socket) -> int:
    """The cookie of the network namespace that a socket is in; 0 where the kernel does not say."""
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
    except OSError:
        return 0


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """A name for a Unix socket that fits into the kernel's 108 bytes, however deep the folder is."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class Arrivals:
    """Connections at a listening Unix socket, from construction in the running loop until ``close``; the socket is its owner's.

    Peers must run as this user or as root. While there is no descriptor for one more, connections wait in the socket: trying all the
    time would take the loop from everybody who is connected. ``say`` is told once each time that begins, and of refused users.
    """

    def __init__(
        self, listener: socket.socket, arrived: Callable[[socket.socket], None], say: Callable[[str], None]
    ) -> None:
        self._listener = listener
        self._arrived = arrived
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self._waiting = False
        self._listen()

    def close(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._listener)

    def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connected, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            if not scarce(error):
                raise
            self._loop.remove_reader(self._listener)
            self._resume = self._loop.call_later(_PAUSE_SECONDS, self._listen)
            if not self._waiting:
                self._say(f"connections wait: {error.strerror}.")
            self._waiting = True
            return
        self._waiting = False
        _, user = peer(connected)
        if user not in (0, os.geteuid()):
            self._say(f"refused a connection of user {user}.")
            connected.close()
            return
        self._arrived(connected)


class Channel:
    """One end of the connection, driven by the running loop.

    ``received`` gets each body with its descriptors, which it then owns. ``closed`` is called once, when the other side has gone,
    has broken the framing, or ``close`` was called. Descriptors given to ``send`` are closed once they are sent, or cannot be.
    """

    def __init__(
        self, connected: socket.socket, received: Callable[[bytes, list[int]], None], closed: Callable[[], None]
    ) -> None:
        self._socket = connected
        self._socket.setblocking(False)
        self._received = received
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._input = bytearray()
        self._arrived: deque[int] = deque()
        self._output: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._open = True
        self._loop.add_reader(self._socket, self._read)

    @property
    def open(self) -> bool:
        return self._open

    def send(self, body: bytes, descriptors: Sequence[int] = ()) -> None:
        """``InvalidInput`` for a body that the other side would not take; nothing is sent, and the connection goes on."""
        if not self._open or len(body) > _LARGEST:
            close_all(descriptors)
            if self._open:
                raise errors.InvalidInput(
                    f"What is to be told to another process of this node has {len(body):,} bytes, and {_LARGEST:,} are possible.",
                    code="MessageTooLarge",
                )
            return
        frame = _HEADER.pack(len(body), len(descriptors)) + body
        self._output.append((memoryview(frame), tuple(descriptors)))
        if len(self._output) == 1:
            self._write()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for _, descriptors in self._output:
            close_all(descriptors)
        self._output.clear()
        close_all(self._arrived)
        self._arrived.clear()
        self._closed()

    def _write(self) -> None:
        while self._output:
            data, descriptors = self._output[0]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                sent = self._socket.sendmsg([data], ancillary)
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._write)
                return
            except OSError:
                self.close()
                return
            close_all(descriptors)
            if sent == len(data):
                self._output.popleft()
            else:
                self._output[0] = (data[sent:], ())
        self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                _READ, socket.CMSG_SPACE(_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
                self._arrived.extend(numbers)
        if (
            flags & socket.MSG_CTRUNC
        ):  # there was no room for them (recvmsg(2)): the frames that come would own wrong ones
            print("Descriptors of a message were lost: too many are open. Its connection is closed.", file=sys.stderr)
        if not data or flags & socket.MSG_CTRUNC:
            self.close()
            return
        self._input += data
        while self._open and len(self._input) >= _HEADER.size:
            length, count = _HEADER.unpack_from(self._input)
            if length > _LARGEST or count > _DESCRIPTORS:
                self.close()
                return
            end = _HEADER.size + length
            if len(self._input) < end:
                return
            if len(self._arrived) < count:
                self.close()
                return
            body = bytes(self._input[_HEADER.size : end])
            del self._input[:end]
            self._received(body, [self._arrived.popleft() for _ in range(count)])


def close_all(descriptors: Sequence[int] | deque[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
