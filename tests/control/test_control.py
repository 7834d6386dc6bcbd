"""The control socket with a handler of the test's own: real sockets, what goes wrong in the middle."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from pathlib import Path
from typing import Any

import pytest

from undercroft.control.client import Request, ask
from undercroft.control.server import ControlServer
from undercroft.errors import UndercroftError


async def answer(request: Request, descriptors: tuple[int, ...]) -> Any:
    if request.verb == "break":
        raise RuntimeError("the database is upside down")
    return request.verb


async def test_an_unexpected_error_is_an_error_and_not_the_nodes_end(tmp_path: Path) -> None:
    server = ControlServer(tmp_path / "control.sock", answer)
    await server.start()
    try:
        with pytest.raises(UndercroftError, match=r"failed on this request.*log") as caught:
            await asyncio.to_thread(ask, tmp_path / "control.sock", Request("break"))
        assert caught.value.code != "NodeEnded"
        assert await asyncio.to_thread(ask, tmp_path / "control.sock", Request("status")) == "status"
    finally:
        await server.close()


async def test_a_moment_without_descriptors_does_not_end_it(tmp_path: Path) -> None:
    server = ControlServer(tmp_path / "control.sock", answer)
    await server.start()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 10, hard))
            with pytest.raises(OSError):
                while True:
                    taken.append(os.dup(client.fileno()))
            client.connect(str(tmp_path / "control.sock"))
            client.sendall(b'{"verb":"status"}\n')
            await asyncio.sleep(0.3)
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        client.settimeout(5)
        assert await asyncio.to_thread(client.recv, 100) == b'{"ok":"status"}\n'
    await server.close()


async def test_a_node_that_dies_while_it_is_asked_is_said_to_have_ended(tmp_path: Path) -> None:
    """Killed with the request unread, the kernel resets the connection; with it read, there is an end of file."""
    for reads in (0, 100):
        path = tmp_path / f"control-{reads}.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(1)
            asking = asyncio.create_task(asyncio.to_thread(ask, path, Request("status")))
            connected, _ = await asyncio.to_thread(listener.accept)
            await asyncio.sleep(0.1)
            if reads:
                connected.recv(reads)
            connected.close()
            with pytest.raises(UndercroftError, match="ask again") as caught:
                await asking
            assert caught.value.code == "NodeEnded"
