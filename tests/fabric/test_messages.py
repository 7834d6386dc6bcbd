"""Framing: any cut of the bytes gives the same frames; descriptors stay with theirs; what is no frame ends the connection."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.fabric.machine import Machine, eventually, host, network
from undercroft.channel import Channel, Failure, reachable
from undercroft.errors import Conflict, InvalidInput, LocalProblem
from undercroft.fabric.client import FabricClient
from undercroft.fabric.messages import (
    Answer,
    Apply,
    Request,
    decode_answer,
    decode_request,
    encode,
)

pytestmark = pytest.mark.rootless


class Ends:
    """A channel and the bare socket at its other end."""

    def __init__(self) -> None:
        inner, self.outer = socket.socketpair()
        self.frames: list[tuple[bytes, list[int]]] = []
        self.closed = 0
        self.channel = Channel(inner, lambda body, fds: self.frames.append((body, fds)), self._close)

    def _close(self) -> None:
        self.closed += 1

    def end(self) -> None:
        self.channel.close()
        self.outer.close()
        for _, descriptors in self.frames:
            for descriptor in descriptors:
                os.close(descriptor)


def frame(body: bytes, descriptors: int = 0) -> bytes:
    return struct.pack("!IB", len(body), descriptors) + body


async def test_byte_by_byte_and_at_once() -> None:
    ends = Ends()
    data = frame(b"first") + frame(b"") + frame(b"third" * 1000)
    for byte in data:
        ends.outer.send(bytes([byte]))
        await asyncio.sleep(0)
    await eventually(lambda: len(ends.frames) == 3)
    ends.outer.sendall(data)
    await eventually(lambda: len(ends.frames) == 6)
    assert [body for body, _ in ends.frames] == [b"first", b"", b"third" * 1000] * 2
    ends.end()
    assert ends.closed == 1


async def test_descriptors_stay_with_their_frame() -> None:
    """Even when the receiver is slow and the frames are large; and the sender's copies are closed."""
    inner, outer = socket.socketpair()
    received: list[tuple[bytes, list[int]]] = []
    sender = Channel(inner, lambda *_: None, lambda: None)
    pipes = [os.pipe() for _ in range(5)]
    for number, (reader, _) in enumerate(pipes):
        sender.send(bytes([number]) * 300_000, [reader])
    receiver = Channel(outer, lambda body, fds: received.append((body, fds)), lambda: None)
    await eventually(lambda: len(received) == 5)
    for number, (reader, writer) in enumerate(pipes):
        body, descriptors = received[number]
        assert body == bytes([number]) * 300_000
        os.write(writer, bytes([number]))
        assert os.read(descriptors[0], 1) == bytes([number])
        with pytest.raises(OSError):
            if reader not in {descriptor for _, found in received for descriptor in found}:
                os.fstat(reader)
            else:
                raise OSError  # the number was given to another descriptor already
        os.close(writer)
        os.close(descriptors[0])
    sender.close()
    receiver.close()


async def test_a_body_that_is_too_large_is_refused_and_the_connection_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other side would end the connection, which costs everybody's networks what one network asks too much."""
    ends = Ends()
    reader, writer = os.pipe()
    monkeypatch.setattr("undercroft.channel._LARGEST", 10)
    with pytest.raises(InvalidInput, match="11 bytes"):
        ends.channel.send(b"x" * 11, [writer])
    assert os.read(reader, 1) == b"", "the descriptor was closed as promised"
    os.close(reader)
    ends.channel.send(b"x" * 10)
    assert ends.outer.recv(100) == frame(b"x" * 10) and ends.closed == 0
    ends.end()


async def test_a_network_that_says_too_much_hurts_no_other(
    client: FabricClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.apply(network("a"))
    monkeypatch.setattr("undercroft.channel._LARGEST", 1000)
    with pytest.raises(InvalidInput) as caught:
        await client.apply(network("b" * 2000))
    assert caught.value.code == "MessageTooLarge"
    assert await client.networks() == {"/vnet/a"}


@pytest.mark.parametrize("data", [struct.pack("!IB", 1 << 30, 0), struct.pack("!IB", 0, 200), frame(b"x", 1)])
async def test_broken_framing_ends_the_connection(data: bytes) -> None:
    ends = Ends()
    ends.outer.sendall(data)
    await eventually(lambda: ends.closed == 1)
    assert ends.frames == []
    ends.end()


@settings(max_examples=25, deadline=None)
@given(data=some.binary(max_size=200))
def test_any_body_is_refused_or_understood(data: bytes) -> None:
    for decode in (decode_request, decode_answer):
        try:
            decode(data)
        except ValueError:  # msgspec's errors are ValueErrors
            continue


def test_values_survive_the_wire() -> None:
    request = Request(7, Apply(network("a", host("web"))))
    assert decode_request(encode(request)) == request
    failure = Failure.of(Conflict("said", code="Code", target="thing"))
    answer = decode_answer(encode(Answer(1, failure)))
    assert answer.failure is not None
    error = answer.failure.error()
    assert (type(error), error.message, error.code, error.target) == (Conflict, "said", "Code", "thing")
    assert type(Failure("FromTheFuture", "x", "y", None).error()) is LocalProblem


async def test_garbage_does_not_hurt_other_clients(machine: Machine, client: FabricClient) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(machine.socket))
        stranger.sendall(frame(b"\xff\xff"))
        stranger.settimeout(5)
        assert stranger.recv(10) == b""
    assert await client.networks() == frozenset()


async def test_deep_folder(tmp_path: Path) -> None:
    """A socket's name has 108 bytes; a folder's may be longer."""
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    path = folder / "fabric.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connection:
        with reachable(path) as name:
            listener.bind(name)
        listener.listen()
        with reachable(path) as name:
            connection.connect(name)
    assert path.exists()
