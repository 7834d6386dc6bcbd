"""Connections at a Unix socket while there is no descriptor for them."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from tests.descriptors import no_descriptors
from undercroft.channel import Arrivals


async def test_connections_wait_quietly_for_a_descriptor(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    said: list[str] = []
    arrived: asyncio.Queue[socket.socket] = asyncio.Queue()
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_later(0.01, turn)

    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client,
    ):
        listener.bind(str(tmp_path / "sock"))
        listener.listen(4)
        arrivals = Arrivals(listener, arrived.put_nowait, said.append)
        with no_descriptors():
            client.connect(str(tmp_path / "sock"))
            turn()
            before = loop.time()
            await asyncio.sleep(0.7)
            assert loop.time() - before < 2 and turns > 20, "everybody else goes on"
            assert said == ["connections wait: Too many open files."], "once, not at every attempt"
        (await asyncio.wait_for(arrived.get(), 5)).close()
        arrivals.close()
