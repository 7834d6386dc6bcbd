"""The name server behind its socket: published piece by piece, handed from one node to the next, and killed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import dns.asyncquery
import dns.message
import dns.rcode
import pytest

from tests.dns.loopback import PUBLIC, sockets
from undercroft.calls import listen
from undercroft.clock import ManualClock
from undercroft.dns.process import NameProcess
from undercroft.dns.published import Published
from undercroft.dns.remote import RemoteNames
from undercroft.dns.server import NameServer
from undercroft.dns.views import (
    AccountNames,
    NetworkView,
    PublicNames,
    RecordChange,
    RecordSetView,
    ZoneChange,
    ZoneLink,
)
from undercroft.errors import InvalidParameter, NamesUnavailable

ZONE = "/zones/privatelink.example"
NAME = "privatelink.example"
LINK = (ZoneLink(ZONE, NAME),)


def record(name: str, *values: str, kind: str = "A") -> RecordChange:
    return RecordChange(name, kind, RecordSetView(10, values) if values else None)


def change(*records: RecordChange, whole: bool = False) -> ZoneChange:
    return ZoneChange(ZONE, NAME, records, whole)


class Recorder(NameServer):
    """What was published, beside the real thing."""

    def __init__(self) -> None:
        super().__init__(ManualClock())
        self.views: list[tuple[str, NetworkView]] = []
        self.public: list[PublicNames] = []

    def publish(self, network: str, view: NetworkView) -> None:
        super().publish(network, view)
        self.views.append((network, view))

    def publish_public(self, names: PublicNames) -> None:
        super().publish_public(names)
        self.public.append(names)


def test_a_zone_is_held_once_and_shown_to_each_network_that_is_linked() -> None:
    names = Recorder()
    published = Published(names)
    published.put_zone(change(record("a", "10.0.0.1"), record("b", "10.0.0.2"), whole=True))
    for network in ("one", "two", "none"):
        published.put_links(network, LINK if network != "none" else ())
    first, second = (view.zones[0].records for network, view in names.views if network != "none")
    assert first is second
    names.views.clear()
    published.put_zone(change(record("b", "10.0.0.3")))
    assert [network for network, _ in names.views] == ["one", "two"]
    now = names.views[0][1].zones[0].records
    assert now["a", "A"] is first["a", "A"], "what did not change is the same object"
    assert now["b", "A"].values == ("10.0.0.3",)
    names.views.clear()
    published.put_zone(change(record("a", "10.0.0.1"), record("b", "10.0.0.3"), whole=True))
    assert names.views == [], "told again what it knows, it disturbs nobody"
    published.put_zone(change(record("a")))
    assert ("a", "A") not in names.views[-1][1].zones[0].records
    published.keep_zones(frozenset())
    assert names.views[-1][1].zones[0].records == {}


def test_a_record_set_that_cannot_be_served_is_named_and_left_out() -> None:
    names = Recorder()
    published = Published(names)
    published.put_links("one", LINK)
    bad = record("bad", "10.0.0.300")
    (said,) = published.put_zone(change(record("good", "10.0.0.1"), bad))
    assert "bad" in said
    assert set(names.views[-1][1].zones[0].records) == {("good", "A")}
    published.put_zone(change(record("good", "not an address")))
    assert names.views[-1][1].zones[0].records["good", "A"].values == ("10.0.0.1",), "the old one stays"
    with pytest.raises(InvalidParameter, match="unlink one"):
        published.put_links("one", (*LINK, ZoneLink("/zones/other", NAME)))
    published.put_zone(change(record("late", "10.0.0.4")))
    assert ("late", "A") in names.views[-1][1].zones[0].records


def test_accounts_come_and_go_beside_the_deployments_own_names() -> None:
    names = Recorder()
    published = Published(names)
    account = AccountNames({"x.blob.core.windows.net": (IPv4Address("203.0.113.11"),)})
    published.put_accounts({"vault": account}, whole=True)
    published.put_public(PUBLIC)
    assert "x.blob.core.windows.net" in names.public[-1].addresses
    count = len(names.public)
    published.put_accounts({"vault": account}, whole=False)
    assert len(names.public) == count
    published.put_accounts({"vault": AccountNames()}, whole=False)
    assert names.public[-1].addresses == PUBLIC.addresses


# --- over the socket -------------------------------------------------------------------------------------------------


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    """The socket of a name server in this loop."""
    place = tmp_path / "dns.sock"
    process = NameProcess(NameServer(ManualClock()), listen(place))
    process.start()
    yield place
    await process.close()


async def ask(port: int, name: str = f"a.{NAME}", seconds: float = 5) -> str:
    answer = await dns.asyncquery.udp(dns.message.make_query(name, "A"), "127.0.0.1", port=port, timeout=seconds)
    return str(answer.answer[0][0]) if answer.answer else dns.rcode.to_text(answer.rcode())


async def told(names: RemoteNames) -> int:
    """Everything that one network needs; its port."""
    await names.connect()
    await names.publish_public(PUBLIC)
    assert await names.publish_zone(change(record("a", "10.0.0.1"), whole=True)) == ()
    await names.publish("net", LINK)
    udp, tcp = sockets()
    port: int = udp.getsockname()[1]
    await names.serve("net", udp, tcp)
    return port


async def test_a_new_node_takes_over_what_is_served_without_a_pause(path: Path) -> None:
    first = RemoteNames(path)
    port = await told(first)
    await first.close()
    assert await ask(port) == "10.0.0.1", "it goes on without a node"
    second = RemoteNames(path)
    await second.connect()
    assert second.networks == {"net"}
    here, _ = sockets()
    with here, _:
        cookie = int.from_bytes(here.getsockopt(socket.SOL_SOCKET, 71, 8), "little")  # SO_NETNS_COOKIE
        assert second.serves("net", cookie)
        assert not second.serves("net", cookie + 1) and not second.serves("net", 0)
    assert not second.serves("other", cookie)
    assert not second.deaf("net") and not second.deaf("other")
    await second.publish_zone(change(record("a", "10.0.0.2"), whole=True))
    assert await ask(port) == "10.0.0.2"
    await second.stop("net")
    with pytest.raises((TimeoutError, OSError, dns.exception.Timeout)):
        await ask(port, seconds=0.3)
    await second.withdraw("net")
    assert second.networks == frozenset()
    await second.close()


async def test_a_zone_that_is_larger_than_a_frame_is_served(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undercroft.channel._LARGEST", 4000)
    monkeypatch.setattr("undercroft.dns.remote._PART_CHARACTERS", 500)
    names = RemoteNames(path)
    port = await told(names)
    text = [record(f"t{number}", '"' + "x" * 200 + '"', kind="TXT") for number in range(30)]
    assert await names.publish_zone(change(record("z", "10.0.0.9"), *text, record("a", "10.0.0.1"), whole=True)) == ()
    assert await ask(port) == "10.0.0.1"
    bad = record("bad", "10.0.0.300")
    moved = (record("a"), record("a", "t1.privatelink.example", kind="CNAME"))
    refused = await names.publish_zone(change(moved[1], *text[:5], bad, moved[0]))
    assert len(refused) == 1 and "10.0.0.300" in refused[0], "what a name has is changed at once"
    await names.close()


async def test_an_error_of_the_name_server_reaches_the_node_as_itself(path: Path) -> None:
    names = RemoteNames(path)
    await names.connect()
    with pytest.raises(InvalidParameter, match="unlink one"):
        await names.publish("net", (*LINK, ZoneLink("/zones/other", NAME)))
    await names.close()


async def test_garbage_on_the_socket_ends_that_connection_only(path: Path) -> None:
    names = RemoteNames(path)
    port = await told(names)
    for garbage in (b"\xff" * 64, b"\x00\x00\x00\x03\x00abc"):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(garbage)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await writer.wait_closed()
    assert await ask(port) == "10.0.0.1"
    await names.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "run").mkdir(mode=0o700)
    yield tmp_path


@contextlib.contextmanager
def process(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "undercroft.dns", "--home", str(home)]
    with subprocess.Popen(command, env={"PYTHONPATH": ":".join(sys.path)}) as running:
        try:
            yield running
        finally:
            running.terminate()
            assert running.wait(10) in (0, -signal.SIGKILL)


async def test_questions_wait_in_the_sockets_while_it_is_killed_and_started_again(home: Path) -> None:
    names = RemoteNames(home / "run" / "dns.sock")
    lost = asyncio.Event()
    names.on_lost = lost.set
    with process(home) as running:
        await names.connect(20)
        port = await told(names)
        assert names.pid == running.pid
        assert await ask(port) == "10.0.0.1"
        running.kill()
        await asyncio.wait_for(lost.wait(), 5)
    question = asyncio.create_task(ask(port, seconds=30))
    with pytest.raises(NamesUnavailable):
        await names.publish("net", ())
    with pytest.raises(NamesUnavailable):
        await names.connect(0.1)
    with process(home):
        assert await names.connect(20) == 2
        await names.publish_public(PUBLIC)
        await names.publish_zone(change(record("a", "10.0.0.7"), whole=True))
        await names.publish("net", LINK)
        assert not question.done()
        await names.resume()
        assert await question == "10.0.0.7"
        await names.close()


async def test_it_keeps_to_the_limit_that_the_settings_say(home: Path) -> None:
    (home / "undercroft.toml").write_text("dns_queries_per_second = 3\n", "ascii")
    names = RemoteNames(home / "run" / "dns.sock")
    with process(home):
        await names.connect(20)
        port = await told(names)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
            mine.setblocking(False)
            mine.connect(("127.0.0.1", port))
            for number in range(5):
                mine.send(dns.message.make_query(f"a.{NAME}", "A", id=number).to_wire())
            cut = [bool((await asyncio.wait_for(loop.sock_recv(mine, 512), 10))[2] & 2) for _ in range(5)]
        assert sorted(cut) == [False] * 3 + [True] * 2
        reply = await dns.asyncquery.tcp(dns.message.make_query(f"a.{NAME}", "A"), "127.0.0.1", port=port, timeout=10)
        assert reply.answer
        await names.close()


def test_its_memory_holds_no_service_but_itself() -> None:
    """Lean: neither HTTP nor the database nor certificates are imported (DESIGN section 4)."""
    code = "import sys, undercroft.dns.__main__; print(*(name for name, module in sys.modules.items() if module))"
    said = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in said.stdout.split()}
    assert loaded & {"aiohttp", "sqlalchemy", "cryptography", "rich", "cyclopts", "joserfc"} == set()
