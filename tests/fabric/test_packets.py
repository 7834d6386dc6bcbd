"""What a VM can and cannot reach, seen by packets."""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from tests.fabric.machine import DATABASE, ENDPOINT, PUBLIC, PYTHON, WEB, Machine, connect, host, network, run
from undercroft.errors import InvalidParameter, LocalProblem, NotFound
from undercroft.fabric.client import FabricClient
from undercroft.fabric.specification import METADATA_ADDRESS, WIRE_ADDRESS, Transport

pytestmark = pytest.mark.rootless


class Greeter:
    """Accepts in this process, which is in no VNet, and says the local and the peer's address to whoever connects."""

    def __init__(self, listener: socket.socket, name: str) -> None:
        self._listener = listener
        self._name = name

    async def __aenter__(self) -> Greeter:
        self._server = await asyncio.start_server(self._greet, sock=self._listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _greet(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        local, peer = writer.get_extra_info("sockname")[0], writer.get_extra_info("peername")[0]
        writer.write(f"{self._name} {local} {peer}".encode())
        writer.close()
        await writer.wait_closed()


async def greeter(
    client: FabricClient, name: str = "a", port: int = 443, address: IPv4Address | None = None
) -> Greeter:
    return Greeter(await client.listen(f"/vnet/{name}", address, port, Transport.TCP), name)


async def test_reaches_an_endpoint(client: FabricClient) -> None:
    """One listener per network serves every address of it, and sees which one was meant and which VM calls."""
    await client.apply(network("a", host("web"), host("database", DATABASE)))
    async with await greeter(client):
        for address in (ENDPOINT, PUBLIC, WIRE_ADDRESS, METADATA_ADDRESS, IPv4Address("10.0.1.1")):
            assert await connect(client, "web", address) == f"a {address} {WEB}"
        assert await connect(client, "database", ENDPOINT) == f"a {ENDPOINT} {DATABASE}"


async def test_networks_with_the_same_range_do_not_meet(client: FabricClient) -> None:
    await client.apply(network("a", host("web")))
    await client.apply(network("b", host("other")))
    async with await greeter(client):
        assert await connect(client, "web", ENDPOINT) == f"a {ENDPOINT} {WEB}"
        assert await connect(client, "other", ENDPOINT) == f"ConnectionRefusedError {errno.ECONNREFUSED}"
        async with await greeter(client, "b"):
            assert await connect(client, "other", ENDPOINT) == f"b {ENDPOINT} {WEB}"
            assert await connect(client, "web", ENDPOINT) == f"a {ENDPOINT} {WEB}"


async def test_removed_address_is_unreachable(client: FabricClient) -> None:
    """Also from another subnet, and the other addresses stay; given again, it answers again."""
    await client.apply(network("a", host("web"), host("database", DATABASE)))
    async with await greeter(client):
        assert await connect(client, "database", ENDPOINT) == f"a {ENDPOINT} {DATABASE}"
        await client.apply(network("a", host("web"), host("database", DATABASE), addresses=()))
        for vm in ("web", "database"):
            assert await connect(client, vm, ENDPOINT) == f"OSError {errno.EHOSTUNREACH}"
        assert await connect(client, "web", PUBLIC) == f"a {PUBLIC} {WEB}"
        await client.apply(network("a", host("web"), host("database", DATABASE)))
        assert await connect(client, "web", ENDPOINT) == f"a {ENDPOINT} {WEB}"


async def test_awaited_address_is_found_at_once(client: FabricClient) -> None:
    """A VM that keeps trying an address before it exists gets through once it comes, without being started again."""
    await client.apply(network("a", host("web"), addresses=()))
    insist = (
        "import socket, sys, time\nprint('trying', flush=True)\n"
        "while True:\n"
        " try: print(socket.create_connection((sys.argv[1], 443), 8).recv(99).decode()); break\n"
        " except OSError: time.sleep(0.01)"
    )
    async with await greeter(client):
        trying = asyncio.ensure_future(run(client, "web", PYTHON, "-c", insist, str(ENDPOINT)))
        await asyncio.sleep(0.5)
        await client.apply(network("a", host("web")))
        output = await asyncio.wait_for(trying, 5)
        assert output.out.splitlines()[-1] == f"a {ENDPOINT} {WEB}"


async def test_nothing_outside_is_reachable(client: FabricClient) -> None:
    await client.apply(network("a", host("web")))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert await connect(client, "web", IPv4Address("127.0.0.1"), port) == "ConnectionRefusedError 111"
    assert await connect(client, "web", IPv4Address("192.0.2.1")) == f"OSError {errno.ENETUNREACH}"


async def test_machines_reach_each_other(client: FabricClient) -> None:
    """In one subnet and across subnets, through the network: each packet is routed."""
    neighbour = IPv4Address("10.0.1.5")
    await client.apply(network("a", host("web"), host("neighbour", neighbour), host("database", DATABASE)))
    serve = (
        "import socket\ns = socket.create_server(('0.0.0.0', 8080)); s.settimeout(20); print('up', flush=True)\n"
        "for _ in range(2):\n c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()"
    )
    serving = asyncio.ensure_future(run(client, "web", PYTHON, "-c", serve))
    answers = {}
    for vm in ("neighbour", "database"):
        for _ in range(100):
            answers[vm] = await connect(client, vm, WEB, 8080)
            if not answers[vm].startswith("ConnectionRefused"):
                break
            await asyncio.sleep(0.02)
    assert answers == {"neighbour": str(neighbour), "database": str(DATABASE)}
    assert (await serving).status == 0


async def test_forged_source_is_dropped(client: FabricClient, machine: Machine) -> None:
    """A VM that takes another's address gets no answer: the network checks where a packet comes from."""
    await client.apply(network("a", host("web")))
    listener = await client.listen("/vnet/a", None, 9000, Transport.UDP)
    send = (
        "import socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.bind((sys.argv[1], 0)); s.sendto(b'x', (sys.argv[2], 9000)); print('sent')"
    )
    with listener:
        good = await run(client, "web", PYTHON, "-c", send, str(WEB), str(ENDPOINT))
        assert good.out == "sent\n", good
        _, peer = await asyncio.get_running_loop().sock_recvfrom(listener, 10)
        assert peer[0] == str(WEB)
        machine.inside(machine.namespace_with(WEB), "ip", "addr", "add", "10.0.2.4/32", "dev", "lo")
        forged = await run(client, "web", PYTHON, "-c", send, "10.0.2.4", str(ENDPOINT))
        assert forged.out == "sent\n", forged
        with pytest.raises(BlockingIOError):
            listener.recvfrom(10)


async def test_name_server_port(client: FabricClient) -> None:
    """Port 53, UDP and TCP, on 168.63.129.16; the answer comes from the address that was asked."""
    await client.apply(network("a", host("web")))
    udp = await client.listen("/vnet/a", WIRE_ADDRESS, 53, Transport.UDP)
    ask = (
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(8)\n"
        "s.connect(('168.63.129.16', 53)); s.send(b'q'); print(s.recv(10).decode())"
    )
    loop = asyncio.get_running_loop()
    with udp:
        asking = asyncio.ensure_future(run(client, "web", PYTHON, "-c", ask))
        question, peer = await asyncio.wait_for(loop.sock_recvfrom(udp, 10), 10)
        assert (question, peer[0]) == (b"q", str(WEB))
        await loop.sock_sendto(udp, b"answer", peer)
        assert (await asking).out == "answer\n"
    async with await greeter(client, port=53, address=WIRE_ADDRESS):
        assert await connect(client, "web", WIRE_ADDRESS, 53) == f"a {WIRE_ADDRESS} {WEB}"
        assert await connect(client, "web", ENDPOINT, 53) == "ConnectionRefusedError 111"


async def test_listening_before_the_address_exists(client: FabricClient) -> None:
    await client.apply(network("a", host("web"), addresses=()))
    async with await greeter(client, address=ENDPOINT):
        await client.apply(network("a", host("web")))
        assert await connect(client, "web", ENDPOINT) == f"a {ENDPOINT} {WEB}"


async def test_listening_refused(client: FabricClient) -> None:
    with pytest.raises(NotFound, match="no network /vnet/a"):
        await client.listen("/vnet/a", None, 443, Transport.TCP)
    await client.apply(network("a"))
    with (
        await client.listen("/vnet/a", None, 443, Transport.TCP),
        pytest.raises(LocalProblem, match=r"0\.0\.0\.0:443/tcp in network /vnet/a: Address already in use"),
    ):
        await client.listen("/vnet/a", None, 443, Transport.TCP)


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("10.0.3.4", "in no subnet"),
        ("10.0.1.1", "something else"),
        (str(ENDPOINT), "something else"),
        ("10.0.2.4", "something else"),
    ],
)
async def test_impossible_specification_changes_nothing(client: FabricClient, address: str, problem: str) -> None:
    good = network("a", host("database", DATABASE))
    bad = replace(good, hosts=(*good.hosts, host("web", IPv4Address(address))))
    with pytest.raises(InvalidParameter, match=problem):
        await client.apply(bad)
    assert await client.networks() == frozenset()
    await client.apply(good)
    with pytest.raises(InvalidParameter, match=problem):
        await client.apply(bad)
    assert await client.apply(good) == ()


async def test_neighbour_is_azures(client: FabricClient, machine: Machine) -> None:
    """A VM's neighbours all have the one MAC that Azure's VMs see, and answer at once."""
    await client.apply(network("a", host("web")))
    async with await greeter(client):
        await connect(client, "web", ENDPOINT)
    output = await run(client, "web", "cat", "/proc/net/arp")
    entries = [line.split() for line in output.out.splitlines()[1:]]
    assert {entry[3] for entry in entries} == {"12:34:56:78:9a:bc"}
