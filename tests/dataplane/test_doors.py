"""Doors: who is reset, who is misdirected, who is refused by which rule, and what happens when a door vanishes."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
import time
from pathlib import Path

import pytest
import structlog
from aiohttp import web

from tests.dataplane.plane import NETWORK, PUBLIC, SUFFIXES, UNMAPPED, Agent, Plane, object_name, registration
from undercroft.dataplane.listener import Limits


def raw_request(
    plane: Plane, address: str, server_name: str | None, host: str, *, path: str = "/v1/container", headers: str = ""
) -> bytes:
    """One GET over TLS with server name and Host of our choice; the answer's head."""
    context = ssl.create_default_context(cadata=plane.authority.pem.decode())
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((address, plane.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=server_name) as tls,
    ):
        tls.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Connection: close\r\n\r\n".encode())
        answer = b""
        while piece := tls.recv(65536):
            answer += piece
    return answer


async def test_an_address_that_is_nobodys_door_is_reset_before_tls(plane: Plane) -> None:
    def connect() -> None:
        with socket.create_connection((UNMAPPED, plane.port), timeout=5) as plain:
            plain.sendall(b"\x16\x03\x01")
            plain.recv(1)

    with pytest.raises(ConnectionResetError):
        await asyncio.to_thread(connect)


@pytest.mark.parametrize(
    ("server_name", "host"),
    [("same", "prot"), (None, "same"), ("same", "blob"), ("same", "foreign"), ("foreign", "foreign"), ("prot", "prot")],
)
async def test_server_name_host_and_door_must_agree(plane: Plane, server_name: str | None, host: str) -> None:
    names = {
        "same": SUFFIXES.backup_member(plane.vault.vault_id, "fc1", "eus"),
        "prot": SUFFIXES.backup_member(plane.vault.vault_id, "prot1", "eus"),
        "blob": "12345678prot01.blob.core.windows.net",
        "foreign": "example.com",
    }
    address = plane.private[names["same"]]
    answer = await asyncio.to_thread(
        raw_request, plane, address, names[server_name] if server_name else None, names[host]
    )
    assert answer.startswith(b"HTTP/1.1 421 "), answer
    assert b'"MisdirectedRequest"' in answer
    good = await asyncio.to_thread(raw_request, plane, address, names["same"], f"{names['same'].upper()}:{plane.port}")
    assert good.startswith(b"HTTP/1.1 401 "), good


async def test_a_private_name_is_not_served_on_the_public_side_nor_the_other_way(plane: Plane) -> None:
    private = SUFFIXES.backup_member(plane.vault.vault_id, "fc1", "eus")
    public = SUFFIXES.public_backup("fc1", "eus")
    for address, name in ((PUBLIC["backup"], private), (plane.private[private], public), (PUBLIC["blob"], public)):
        answer = await asyncio.to_thread(raw_request, plane, address, name, name)
        assert answer.startswith(b"HTTP/1.1 421 "), (address, name)


async def test_the_endpoint_of_another_vault_is_refused(plane: Plane) -> None:
    agent = await plane.registered()
    answer = await agent.call(
        "GET", "fc1", "/v1/points", host=SUFFIXES.backup_member(plane.other.vault_id, "fc1", "eus")
    )
    assert (answer.status, answer.code) == (403, "AuthorizationFailed")
    stranger = Agent(plane, plane.vault, plane.vault_token(plane.vault))
    host = SUFFIXES.backup_member(plane.other.vault_id, "id1", "eus")
    answer = await stranger.call("POST", "id1", "/v1/register", registration(), host=host)
    assert (answer.status, answer.code) == (403, "AuthorizationFailed")
    assert plane.taint_of(plane.other) is None


async def test_the_public_side_of_another_region_is_refused(plane: Plane) -> None:
    agent = await plane.registered()
    name = SUFFIXES.public_backup("fc1", "wus")
    headers = f"Authorization: Bearer {agent.token}\r\n"
    answer = await asyncio.to_thread(raw_request, plane, PUBLIC["backup"], name, name, headers=headers)
    assert answer.startswith(b"HTTP/1.1 403 "), answer


async def test_disabled_public_access_refuses_every_public_service(plane: Plane) -> None:
    agent = await plane.registered()
    session = await agent.begin()
    grant = session["grant"]
    path = f"/{grant['container']}/{object_name('packs')}?{grant['sas']}"
    headers = {"x-ms-blob-type": "BlockBlob"}
    put = await plane.ask("PUT", grant["blobHost"], path, body=b"x", headers=headers, public=True)
    assert put.status == 201
    assert (await agent.call("GET", "fc1", "/v1/points", public=True)).status == 200

    plane.set_public_access(plane.vault, False)
    answer = await agent.call("GET", "fc1", "/v1/points", public=True)
    assert (answer.status, answer.code) == (403, "UserErrorPublicNetworkAccessDenied")
    path = f"/{grant['container']}/{object_name('packs')}?{grant['sas']}"
    put = await plane.ask("PUT", grant["blobHost"], path, body=b"x", headers=headers, public=True)
    assert (put.status, put.code) == (403, "UserErrorPublicNetworkAccessDenied")
    assert (await plane.ask("PUT", grant["blobHost"], path, body=b"x", headers=headers)).status == 201
    assert (await agent.call("GET", "fc1", "/v1/points")).status == 200


async def test_nobody_is_known_without_a_good_token(plane: Plane) -> None:
    agent = await plane.registered()
    good = agent.token
    head, payload, signature = good.split(".")
    other_vault = plane.vault_token(plane.other)
    for bad in ("", "x", f"{head}.{payload}.{signature[:-4]}AAAA", f"{head}.{payload}."):
        agent.token = bad
        answer = await agent.call("GET", "fc1", "/v1/points")
        assert answer.status == 401, bad
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    agent.token = other_vault
    assert (await agent.call("GET", "fc1", "/v1/points")).status == 403


@pytest.mark.parametrize("way", ["vanished", "changed", "network removed"])
async def test_a_door_that_vanishes_closes_its_connections_at_once(plane: Plane, way: str) -> None:
    agent = await plane.registered()
    session = await agent.begin()
    grant = session["grant"]
    name = object_name("packs")
    address = plane.private[grant["blobHost"]]
    reader, writer = await asyncio.open_connection(
        address, plane.port, ssl=plane.client_tls, server_hostname=grant["blobHost"]
    )
    idle = await asyncio.open_connection(
        PUBLIC["blob"], plane.port, ssl=plane.client_tls, server_hostname=grant["blobHost"]
    )
    head = f"PUT /{grant['container']}/{name}?{grant['sas']} HTTP/1.1\r\nHost: {grant['blobHost']}\r\n"
    writer.write(f"{head}x-ms-blob-type: BlockBlob\r\nContent-Length: 4000000\r\n\r\n".encode() + b"x" * 3_000_000)
    await writer.drain()
    await asyncio.sleep(0.1)
    started = time.monotonic()
    if way == "vanished":
        plane.remove_endpoint(plane.vault)
    elif way == "changed":
        plane.add_member(plane.other, grant["blobHost"], "blob", address)
    else:
        plane.plane.doors.remove_network(NETWORK)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 2)
    assert time.monotonic() - started < 1
    writer.close()
    objects = [info.name async for info in plane.bytes.list("eastus/blobs/")]
    assert objects == []
    if way != "network removed":
        idle[1].write(f"GET /x HTTP/1.1\r\nHost: {grant['blobHost']}\r\n\r\n".encode())
        assert (await asyncio.wait_for(idle[0].readline(), 2)).startswith(b"HTTP/1.1 400")
    idle[1].close()


async def test_a_connection_is_cut_by_a_reset(plane: Plane) -> None:
    """A peer that only sends does not see a FIN, and when the address is gone nothing answers its segments: it would wait for
    minutes (seen with uploads while an endpoint was rejected)."""
    name = SUFFIXES.backup_member(plane.vault.vault_id, "fc1", "eus")

    def idle() -> ssl.SSLSocket:
        plain = socket.create_connection((plane.private[name], plane.port), timeout=5)
        tls = plane.client_tls.wrap_socket(plain, server_hostname=name)
        tls.sendall(f"GET /x/CommonProtectionCatalogService.svc HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += tls.recv(65536)
        assert b" 200 " in head
        return tls

    tls = await asyncio.to_thread(idle)
    plane.remove_endpoint(plane.vault)
    with tls, socket.socket(fileno=os.dup(tls.fileno())) as below:  # TLS would call both an end
        below.settimeout(5)
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(below.recv, 1)


async def test_unchanged_doors_keep_their_connections(plane: Plane) -> None:
    host = SUFFIXES.backup_member(plane.vault.vault_id, "fc1", "eus")
    reader, writer = await asyncio.open_connection(
        plane.private[host], plane.port, ssl=plane.client_tls, server_hostname=host
    )
    plane.remove_endpoint(plane.other)
    plane.publish()
    writer.write(f"GET /v1/points HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert (await asyncio.wait_for(reader.readline(), 2)).startswith(b"HTTP/1.1 401")
    writer.close()


async def test_stopping_a_network_closes_socket_and_connections(plane: Plane) -> None:
    host = SUFFIXES.backup_member(plane.vault.vault_id, "fc1", "eus")
    reader, writer = await asyncio.open_connection(
        plane.private[host], plane.port, ssl=plane.client_tls, server_hostname=host
    )
    await plane.plane.stop(NETWORK)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 2)
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(plane.private[host], plane.port)


async def test_too_many_connections_of_a_door_are_reset(tmp_path: Path) -> None:
    async with Plane(tmp_path, limits=Limits(connections_per_door=2)) as plane:
        host = SUFFIXES.backup_member(plane.vault.vault_id, "fc1", "eus")
        other = SUFFIXES.backup_member(plane.vault.vault_id, "id1", "eus")

        async def connect(name: str) -> asyncio.StreamWriter:
            return (
                await asyncio.open_connection(
                    plane.private[name], plane.port, ssl=plane.client_tls, server_hostname=name
                )
            )[1]

        first, second = await connect(host), await connect(host)
        with pytest.raises(OSError):
            await connect(host)
        third = await connect(other)
        first.close()
        await asyncio.sleep(0.1)
        again = await connect(host)
        for writer in (second, third, again):
            writer.close()


async def test_silent_and_stalled_peers_are_cut(tmp_path: Path) -> None:
    async with Plane(tmp_path, limits=Limits(handshake=0.3, idle=0.4, stall=0.4)) as plane:
        agent = await plane.registered()
        grant = (await agent.begin())["grant"]
        host = grant["blobHost"]
        address = plane.private[host]
        no_tls, no_request, no_body = (
            await asyncio.open_connection(address, plane.port),
            await asyncio.open_connection(address, plane.port, ssl=plane.client_tls, server_hostname=host),
            await asyncio.open_connection(address, plane.port, ssl=plane.client_tls, server_hostname=host),
        )
        path = f"/{grant['container']}/{object_name('packs')}?{grant['sas']}"
        no_body[1].write(
            f"PUT {path} HTTP/1.1\r\nHost: {host}\r\nx-ms-blob-type: BlockBlob\r\nContent-Length: 9\r\n\r\n1".encode()
        )
        no_request[1].write(b"GET / HT")
        for reader, writer in (no_tls, no_request, no_body):
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(reader.readexactly(1), 4)
            writer.close()
        assert plane.plane.doors.total() == 0


async def test_a_header_that_is_too_large_is_refused(plane: Plane) -> None:
    host = SUFFIXES.backup_member(plane.vault.vault_id, "fc1", "eus")
    answer = await asyncio.to_thread(
        raw_request, plane, plane.private[host], host, host, headers=f"X-Large: {'x' * 20_000}\r\n"
    )
    assert answer.startswith(b"HTTP/1.0 400 ")


async def test_a_refused_body_is_drained_so_that_the_answer_is_seen(plane: Plane) -> None:
    host = SUFFIXES.backup_member(plane.vault.vault_id, "fc1", "eus")
    answer = await plane.ask("POST", host, "/v1/backups", body=b"x" * 1_000_000)
    assert (answer.status, answer.code) == (401, "AuthenticationFailed")


async def test_a_client_that_asks_first_is_answered_before_its_body(plane: Plane) -> None:
    agent = await plane.registered()
    grant = (await agent.begin())["grant"]
    host = grant["blobHost"]
    name = object_name("packs")
    for sas, expected in ((grant["sas"], b"HTTP/1.1 100 Continue\r\n"), ("sig=AAAA", b"HTTP/1.1 401 ")):
        reader, writer = await asyncio.open_connection(
            plane.private[host], plane.port, ssl=plane.client_tls, server_hostname=host
        )
        head = f"PUT /{grant['container']}/{name}?{sas} HTTP/1.1\r\nHost: {host}\r\nx-ms-blob-type: BlockBlob\r\n"
        writer.write(f"{head}Content-Length: 4\r\nExpect: 100-continue\r\n\r\n".encode())
        line = await asyncio.wait_for(reader.readline(), 2)
        assert line.startswith(expected)
        if line.startswith(b"HTTP/1.1 100"):
            await reader.readline()
            writer.write(b"body")
            assert (await asyncio.wait_for(reader.readline(), 2)).startswith(b"HTTP/1.1 201")
        writer.close()


async def test_login_goes_to_the_front_on_its_public_door_only(tmp_path: Path) -> None:
    async def front(request: web.BaseRequest, _address: str) -> web.StreamResponse:
        return web.Response(text=f"front: {request.path} {len(await request.read())}")

    async with Plane(tmp_path, front=front) as plane:
        answer = await plane.ask("POST", SUFFIXES.login, "/t/oauth2/v2.0/token", body=b"x" * 1000)
        assert (answer.status, answer.body) == (200, b"front: /t/oauth2/v2.0/token 1000")
        wrong = await asyncio.to_thread(raw_request, plane, PUBLIC["backup"], SUFFIXES.login, SUFFIXES.login)
        assert wrong.startswith(b"HTTP/1.1 421 ")


async def test_a_client_that_resets_in_the_middle_leaves_the_service_well(plane: Plane) -> None:
    host = SUFFIXES.backup_member(plane.vault.vault_id, "fc1", "eus")
    for junk in (b"", b"\x00" * 300, b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection((plane.private[host], plane.port)) as plain:
            plain.sendall(junk)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await asyncio.sleep(0.2)
    assert (await plane.ask("GET", host, "/v1/points")).status == 401
    await asyncio.sleep(0.1)
    assert plane.plane.doors.total() == 0


async def test_decisions_are_logged_with_reason_door_and_principal_and_without_secrets(plane: Plane) -> None:
    with structlog.testing.capture_logs() as logs:
        agent = await plane.registered()
        done = await agent.back_up()
        grant = done["session"]["grant"]
        plane.set_public_access(plane.vault, False)
        await agent.call("GET", "fc1", "/v1/points", public=True)
        await agent.put(grant | {"sas": grant["sas"].replace("sp=c", "sp=w")}, object_name("packs"), b"x")
    decisions = [line for line in logs if line["event"] in ("admitted", "refused", "failed")]
    assert {"admitted", "refused"} <= {line["event"] for line in decisions}
    for line in decisions:
        assert line["door"] and line["principal"] and line["request_id"]
        assert line["event"] == "admitted" or line["reason"]
    refused = [(line["reason"], line["door"], line["status"]) for line in decisions if line["event"] == "refused"]
    private = f"private:{plane.endpoint(plane.vault)}"
    assert refused == [
        ("UserErrorPublicNetworkAccessDenied", "public", 403),
        ("AuthenticationFailed", private, 401),
    ]
    text = repr(logs)
    for secret in (agent.token, grant["sas"], grant["sas"].rsplit("sig=", 1)[1]):
        assert secret not in text
