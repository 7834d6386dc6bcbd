"""A TCP socket that is shut from outside stops TCP and nothing else: no turning in circles, no flood of log lines."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from structlog.testing import capture_logs

from tests.dns.loopback import sockets
from undercroft.clock import ManualClock
from undercroft.dns.server import NameServer

QUESTION = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x01a\x04test\x00\x00\x01\x00\x01"


async def test_a_shut_listener_is_left_alone_and_replaced() -> None:
    names = NameServer(ManualClock())
    udp, tcp = sockets()
    address = udp.getsockname()
    with tcp.dup() as outside:  # as ``ss -K`` has it: the same socket, not a copy
        await names.serve("net", udp, tcp)
        with capture_logs() as logs:
            outside.shutdown(socket.SHUT_RDWR)
            used = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - used < 0.25, "it turns in circles"
            assert [entry["event"] for entry in logs] == ["listener lost"]
    assert await ask(address), "datagrams are answered as before"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    await names.serve("net", *sockets())
    await names.close()


async def ask(address: tuple[str, int]) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect(address)
        client.send(QUESTION)
        async with asyncio.timeout(5):
            return await asyncio.get_running_loop().sock_recv(client, 4096)
