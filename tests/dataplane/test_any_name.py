"""Whatever stands in SNI and Host, and whatever comes before TLS: one host of the deployment, or one named refusal."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataplane.plane import PUBLIC, SUFFIXES, UNMAPPED, Plane
from undercroft.dataplane.admission import address
from undercroft.dataplane.hosts import Hosts, without_port
from undercroft.dataplane.listener import Limits
from undercroft.errors import Misdirected
from undercroft.vnet.doors import Door

HOSTS = Hosts(SUFFIXES)
MEMBER = SUFFIXES.backup_member(1132794570626989392, "prot1", "eus")
ACCOUNT = SUFFIXES.storage_member("0a1b2c3dprot01", "blob")
DOORS = [
    Door("/n", "backup", "/pe", "/v", 1132794570626989392, MEMBER),
    Door("/n", "blob", "/pe", "/v", 1132794570626989392, ACCOUNT),
    *(Door("/n", service) for service in ("backup", "blob", "queue", "login", "management")),
]
REAL = [MEMBER, ACCOUNT, SUFFIXES.public_backup("id1", "eus"), SUFFIXES.login, SUFFIXES.management]
PIECES = st.sampled_from(
    [*REAL, ":443", ".", "..", "-", "\x00", "%00", " ", "\t", "[::1]", "@", "/", "é", "K", "privatelink", "9" * 30]
)
NAMES = st.one_of(
    st.text(max_size=300), st.lists(PIECES, max_size=4).map("".join), st.sampled_from(REAL).map(str.upper)
)


@given(NAMES)
def test_any_name_is_a_host_of_the_deployment_or_none(text: str) -> None:
    name = without_port(text)
    host = HOSTS.parse(name)
    if host is not None:
        assert host.name == name and name.isascii() and name == name.lower()
        assert host.service in ("backup", "blob", "queue", "login", "management")


@given(NAMES, NAMES, st.sampled_from(DOORS))
def test_any_server_name_and_host_are_served_at_their_door_or_misdirected(sni: str, header: str, door: Door) -> None:
    try:
        host = address(door, sni, header, HOSTS)
    except Misdirected as error:
        assert error.status == 421
        return
    assert without_port(sni) == without_port(header) == host.name
    assert host.service == door.service
    assert door.public == (door.fqdn is None) and (door.public or host.name == door.fqdn)


PREAMBLES = {
    "PROXY version 1": b"PROXY TCP4 10.0.0.1 10.0.0.2 5 443\r\n",
    "PROXY version 2": b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x0a\x00\x00\x01\x0a\x00\x00\x02\x00\x05\x01\xbb",
    "plain HTTP": b"GET /v1/container HTTP/1.1\r\nHost: x\r\n\r\n",
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "half a record": b"\x16\x03\x01\xff\xff\x01",
    "a server name of 64 KiB": b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03"
    + b"\x00" * 32
    + b"\x00\x00\x02\x13\x01\x01\x00"
    + b"\xff" * 16_000,
    "nothing": b"",
}


@pytest.mark.parametrize("what", PREAMBLES)
async def test_what_is_no_tls_never_passes_for_somebody_else(tmp_path: Path, what: str) -> None:
    """Without a front of ours, a PROXY header is a client's word about itself: it is no TLS, and ends the connection."""
    async with Plane(tmp_path, limits=Limits(handshake=1.0)) as plane:
        for place in (next(iter(plane.private.values())), PUBLIC["backup"]):
            reader, writer = await asyncio.open_connection(place, plane.port)
            writer.write(PREAMBLES[what])
            if what in ("nothing", "half a record"):
                writer.write_eof()
            try:
                answer = await asyncio.wait_for(reader.read(), 15)
            except ConnectionError:
                answer = b""
            assert b"HTTP" not in answer
            writer.close()
        reader, writer = await asyncio.open_connection(UNMAPPED, plane.port)
        with pytest.raises(ConnectionError):
            writer.write(PREAMBLES[what] or b"x")
            await writer.drain()
            if await asyncio.wait_for(reader.read(), 10) == b"":
                raise ConnectionResetError  # reset before we read
        writer.close()
        for _ in range(100):
            if not plane.plane.doors.total():
                break
            await asyncio.sleep(0.05)
        assert plane.plane.doors.total() == 0
