"""What a hostile or clumsy client may send, and what it must not cost the others."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from tests.dataplane.plane import PUBLIC, SUFFIXES, Plane, object_name
from undercroft.clock import ManualClock, SystemClock
from undercroft.config import Settings
from undercroft.dataplane.listener import Limits
from undercroft.errors import StorageFull
from undercroft.vault import jobs


async def eventually(check: Callable[[], bool]) -> None:
    """The limit is for what hangs; a slow machine is not told by it."""
    for _ in range(3000):
        if check():
            return
        await asyncio.sleep(0.02)
    raise TimeoutError("it did not happen in time")


async def raw(plane: Plane, host: str, request: bytes) -> bytes:
    """The answer to bytes that no client library would send."""
    context = plane.client_tls
    address = plane.private[host]
    reader, writer = await asyncio.open_connection(address, plane.port, ssl=context, server_hostname=host)
    try:
        writer.write(request)
        await writer.drain()
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()


@pytest.mark.parametrize("header", [b"x-ms-client-request-id", b"x-ms-version"])
async def test_what_is_echoed_may_be_no_text(plane: Plane, header: bytes) -> None:
    agent = await plane.registered()
    session = await agent.begin()
    grant = session["grant"]
    path = f"/{grant['container']}/{object_name('packs')}?{grant['sas']}"
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {grant['blobHost']}\r\nConnection: close\r\n".encode()
        + header
        + b": \xff\xfe\r\n\r\n"
    )
    answer = await raw(plane, grant["blobHost"], request)
    assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 ")), answer[:200]


async def test_a_status_with_a_line_end_is_refused(plane: Plane) -> None:
    agent = await plane.registered()
    point = (await agent.back_up())["recoveryPointId"]
    restore = (await agent.call("POST", "rec2", "/v1/restores", {"recoveryPointId": point})).json["restoreId"]
    body = {"status": "Completed\n", "files": 1, "bytes": 1}
    answer = await agent.call("POST", "rec2", f"/v1/restores/{restore}/complete", body)
    assert (answer.status, answer.code) == (400, "InvalidParameter")


async def test_one_block_cannot_be_multiplied(plane: Plane) -> None:
    """A list that names a block ten thousand times would fill the disk with one small request."""
    agent = await plane.registered()
    session = await agent.begin()
    grant, name = session["grant"], object_name("packs")
    path = f"/{grant['container']}/{name}?{grant['sas']}"
    block = base64.b64encode(b"b1").decode()
    sent = await plane.ask("PUT", grant["blobHost"], f"{path}&comp=block&blockid={block}", body=b"x" * 1000)
    assert sent.status == 201
    blocks = f"<BlockList>{f'<Latest>{block}</Latest>' * 10_000}</BlockList>".encode()
    answer = await plane.ask("PUT", grant["blobHost"], f"{path}&comp=blocklist", body=blocks)
    assert (answer.status, answer.code) == (400, "InvalidBlockList")


async def test_a_commit_of_no_backup_is_refused_before_its_body(plane: Plane) -> None:
    agent = await plane.registered()
    request = (
        f"POST /v1/backups/11111111-1111-1111-1111-111111111111/commit HTTP/1.1\r\nHost: {agent.host('prot1')}\r\n"
        f"Authorization: Bearer {agent.token}\r\nContent-Length: {60 << 20}\r\nExpect: 100-continue\r\n\r\n"
    ).encode()
    answer = await raw(plane, agent.host("prot1"), request)
    assert answer.startswith(b"HTTP/1.1 404 "), answer[:200]


async def test_a_host_waits_for_its_own_commits_only(plane: Plane) -> None:
    """A commit may be large; a host that sends many at once must not fill the service's memory, nor hold up others."""
    agent, other = await plane.registered(), await plane.registered(machine="web02")
    session = await agent.begin()
    host = agent.host("prot1")
    head = (
        f"POST /v1/backups/{session['backupId']}/commit HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {agent.token}\r\nContent-Length: {60 << 20}\r\n\r\n"
    ).encode()
    _, writer = await asyncio.open_connection(
        plane.private[host], plane.port, ssl=plane.client_tls, server_hostname=host
    )
    writer.write(head + b" " * 1000)
    await writer.drain()
    turn = plane.plane._application.sessions.committing(agent.container_id)
    await eventually(turn.locked)  # the first commit is being read
    assert (await other.back_up())["recoveryPointId"]
    second = asyncio.create_task(agent.back_up("/home"))
    done, _ = await asyncio.wait({second}, timeout=1.5)
    assert not done
    writer.transport.abort()
    assert (await asyncio.wait_for(second, 60))["recoveryPointId"]


async def test_restores_that_nobody_ends_are_limited(plane: Plane) -> None:
    agent = await plane.registered()
    point = (await agent.back_up())["recoveryPointId"]
    opened: list[str] = []
    for _ in range(jobs.OPEN_RESTORES):
        begun = await agent.call("POST", "rec2", "/v1/restores", {"recoveryPointId": point})
        assert (begun.status, begun.json["grant"] is not None) == (200, True)
        opened.append(begun.json["restoreId"])
    again = await agent.call("POST", "rec2", "/v1/restores", {"recoveryPointId": point})
    assert again.status == 200, "a host whose agent was killed often must be able to restore"
    states = [(await agent.call("POST", "rec2", f"/v1/restores/{each}/renew")).status for each in opened]
    assert states == [409] + [200] * (jobs.OPEN_RESTORES - 1)


async def test_public_access_that_is_disabled_cuts_what_streams(tmp_path: Path) -> None:
    async with Plane(tmp_path) as plane:
        agent = await plane.registered()
        session = await agent.begin()
        grant, name = session["grant"], object_name("packs")
        host = grant["blobHost"]
        head = (
            f"PUT /{grant['container']}/{name}?{grant['sas']} HTTP/1.1\r\nHost: {host}\r\n"
            "x-ms-blob-type: BlockBlob\r\nContent-Length: 100000\r\n\r\n"
        ).encode()
        reader, writer = await asyncio.open_connection(
            PUBLIC["blob"], plane.port, ssl=plane.client_tls, server_hostname=host
        )
        writer.write(head + b"x" * 50_000)
        await writer.drain()
        await eventually(lambda: bool(plane.plane._application._outside))  # admitted by the public side
        plane.set_public_access(agent.vault, False)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 60)
        writer.transport.abort()
        assert not [each async for each in plane.bytes.list(f"eastus/blobs/{grant['account']}/")]


async def test_who_asks_on_and_takes_no_answer_is_cut(tmp_path: Path) -> None:
    """Without a token: refusals are answers, too, and such connections would fill the door for ever."""
    async with Plane(tmp_path, limits=Limits(stall=1.0)) as plane:
        host = SUFFIXES.backup_member(plane.vault.vault_id, "id1", "eus")
        _, writer = await asyncio.open_connection(
            plane.private[host], plane.port, ssl=plane.client_tls, server_hostname=host, limit=1024
        )
        writer.write(f"GET /v1/container HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() * 50_000)
        await eventually(lambda: plane.plane.doors.total() == 0)
        writer.transport.abort()


async def test_one_host_does_not_take_every_place_of_a_door(tmp_path: Path) -> None:
    async with Plane(tmp_path, limits=Limits(connections_per_peer=3)) as plane:
        host = SUFFIXES.backup_member(plane.vault.vault_id, "fc1", "eus")

        async def connect(source: str) -> asyncio.StreamWriter:
            opened = await asyncio.open_connection(
                plane.private[host], plane.port, ssl=plane.client_tls, server_hostname=host, local_addr=(source, 0)
            )
            return opened[1]

        writers = [await connect("127.0.0.1") for _ in range(3)]
        with pytest.raises(OSError):
            await connect("127.0.0.1")
        writers.append(await connect("127.0.0.2"))
        writers.pop(0).close()
        await eventually(lambda: plane.plane.doors.total() == 3)
        writers.append(await connect("127.0.0.1"))
        for writer in writers:
            writer.close()


async def test_block_lists_of_a_container_are_read_one_after_the_other(plane: Plane) -> None:
    agent = await plane.registered()
    grant = (await agent.begin())["grant"]
    path = f"/{grant['container']}/{{}}?{grant['sas']}&comp=blocklist"
    head = (
        f"PUT {path.format(object_name('packs'))} HTTP/1.1\r\nHost: {grant['blobHost']}\r\n"
        f"Content-Length: {8 << 20}\r\n\r\n"
    ).encode()
    _, writer = await asyncio.open_connection(
        plane.private[grant["blobHost"]], plane.port, ssl=plane.client_tls, server_hostname=grant["blobHost"]
    )
    writer.write(head + b" " * 1000)
    turns = plane.plane._application._blob._listing
    await eventually(lambda: any(turn.locked() for turn in turns.values()))  # the first list is being read
    block = base64.b64encode(b"b1").decode()
    name = object_name("packs")
    url = f"/{grant['container']}/{name}?{grant['sas']}&comp=block&blockid={block}"
    assert (await plane.ask("PUT", grant["blobHost"], url, body=b"x")).status == 201
    blocks = f"<BlockList><Latest>{block}</Latest></BlockList>".encode()
    second = asyncio.create_task(plane.ask("PUT", grant["blobHost"], path.format(name), body=blocks))
    done, _ = await asyncio.wait({second}, timeout=1)
    assert not done
    writer.transport.abort()
    assert (await asyncio.wait_for(second, 60)).status == 201


async def test_a_backup_whose_agent_never_came_back_does_not_run_for_ever(tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().now())
    async with Plane(tmp_path, clock=clock) as plane:
        agent = await plane.registered()
        lost, kept = await agent.begin("/srv"), await agent.begin("/home")
        sessions = plane.plane._application.sessions

        def status(session: Mapping[str, Any]) -> tuple[str, str | None]:
            found = plane.database.transact(lambda connection: jobs.find(connection, session["jobId"]))
            assert found is not None
            return found.status, found.error_code

        clock.advance(timedelta(minutes=45))
        assert (await agent.call("POST", "prot1", f"/v1/backups/{kept['backupId']}/renew")).status == 200
        clock.advance(timedelta(minutes=30))
        assert await sessions.expire_overdue() == 1
        assert status(lost) == ("Failed", "UserErrorBackupExpired")
        assert status(kept) == ("InProgress", None)


async def test_a_host_that_calls_too_often_waits_and_the_others_do_not(tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().now())
    async with Plane(tmp_path, clock=clock, settings=Settings(calls_per_second=1)) as plane:
        agent, other = await plane.registered(), await plane.registered(machine="web02")
        answers = [await agent.call("GET", "fc1", "/v1/container") for _ in range(11)]
        assert [answer.status for answer in answers] == [200] * 10 + [429]
        assert (answers[-1].code, answers[-1].headers["Retry-After"]) == ("TooManyRequests", "1")
        assert (await other.call("GET", "fc1", "/v1/container")).status == 200
        clock.advance(timedelta(seconds=1))
        assert (await agent.call("GET", "fc1", "/v1/container")).status == 200


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Settings(connections_per_peer=2), "too many of one host"),
        (Settings(connections_per_door=2, connections_per_peer=2), "too many connections"),
    ],
)
async def test_how_many_connections_a_door_takes_is_a_setting(settings: Settings, reason: str, tmp_path: Path) -> None:
    async with Plane(tmp_path, settings=settings) as plane:
        host, address = next(iter(plane.private.items()))
        open_: list[asyncio.StreamWriter] = []
        for _ in range(2):
            _, writer = await asyncio.open_connection(address, plane.port, ssl=plane.client_tls, server_hostname=host)
            open_.append(writer)
        with structlog.testing.capture_logs() as logged, pytest.raises(OSError):
            await asyncio.open_connection(address, plane.port, ssl=plane.client_tls, server_hostname=host)
        assert [line["reason"] for line in logged if line["event"] == "connection reset"] == [reason]
        for writer in open_:
            writer.close()


async def test_guesses_are_rare_and_the_next_of_an_address_is_not_looked_at(tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().now())
    async with Plane(tmp_path, clock=clock, settings=Settings(calls_per_second=1)) as plane:
        agent = await plane.registered()
        good, agent.token = agent.token, "guess"
        name, other = agent.host("fc1"), agent.host("id1")
        misdirected = [await plane.ask("GET", name, "/v1/container", headers={"Host": other}) for _ in range(5)]
        assert [answer.status for answer in misdirected] == [421] * 5
        answers = [await agent.call("GET", "fc1", "/v1/container") for _ in range(6)]
        assert [answer.status for answer in answers] == [401] * 5 + [429]
        assert (answers[-1].code, answers[-1].headers["Retry-After"]) == ("TooManyRequests", "1")
        agent.token = good
        assert (await agent.call("GET", "fc1", "/v1/container")).status == 429  # or the answer would tell a right guess
        clock.advance(timedelta(seconds=1))
        assert [(await agent.call("GET", "fc1", "/v1/container")).status for _ in range(2)] == [200] * 2


async def test_guesses_of_signatures_are_rare_as_well(tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().now())
    async with Plane(tmp_path, clock=clock, settings=Settings(calls_per_second=1)) as plane:
        grant = (await (await plane.registered()).begin())["grant"]
        query = grant["sas"].replace("sig=", "sig=AAAA")
        path = f"/{grant['container']}/{object_name('packs')}?{query}"
        answers = [await plane.ask("GET", grant["blobHost"], path) for _ in range(11)]
        assert [answer.status for answer in answers] == [401] * 10 + [429]
        assert (answers[-1].code, answers[-1].headers["Retry-After"]) == ("TooManyRequests", "1")


async def test_a_host_that_changes_doors_with_every_call_costs_few_writes(tmp_path: Path) -> None:
    """Each note of a door is a durable transaction, and all hosts share the one writer."""
    clock = ManualClock(SystemClock().now())
    async with Plane(tmp_path, clock=clock) as plane:
        agent = await plane.registered()

        async def alternate() -> int:
            before = plane.database.changes
            for public in (True, False) * 5:
                assert (await agent.call("GET", "fc1", "/v1/container", public=public)).status == 200
            return plane.database.changes - before

        assert await alternate() <= 3
        assert plane.last_door(agent.container_id) is not None
        clock.advance(timedelta(seconds=2))
        assert 1 <= await alternate() <= 3
        clock.advance(timedelta(seconds=2))
        assert (await agent.call("GET", "fc1", "/v1/container", public=True)).status == 200
        assert plane.last_door(agent.container_id) == "public"
        clock.advance(timedelta(seconds=2))
        assert (await agent.call("GET", "fc1", "/v1/container")).status == 200
        assert plane.last_door(agent.container_id) == f"private:{plane.endpoint(plane.vault)}"


async def test_no_room_to_note_a_path_ends_no_restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(SystemClock().now())
    async with Plane(tmp_path, clock=clock) as plane:
        agent = await plane.registered()
        done = await agent.back_up()
        restore = await agent.call("POST", "rec2", "/v1/restores", {"recoveryPointId": done["recoveryPointId"]})
        grant, manifest = restore.json["grant"], restore.json["manifest"]
        clock.advance(timedelta(minutes=1))

        def full(work: object) -> None:
            raise StorageFull("The state database has no space to grow.")

        monkeypatch.setattr(plane.database, "transact", full)
        assert (await agent.call("GET", "fc1", "/v1/container")).status == 200
        path = f"/{grant['container']}/{manifest}?{grant['sas']}"
        assert (await plane.ask("GET", grant["blobHost"], path)).status == 200


def alive(kind: str) -> int:
    """Objects of that class that something still holds."""
    gc.collect()
    return sum(type(each).__name__ == kind for each in gc.get_objects())


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n", None])
async def test_a_handshake_that_fails_leaves_nothing_in_memory(tmp_path: Path, sent: bytes | None) -> None:
    """Each kept a quarter of a MiB for ever: half a million of them, and the service is out of memory. None: a reset."""
    kinds = ("SSLProtocol", "RequestHandler", "Connection")
    async with Plane(tmp_path, limits=Limits(handshake=0.3)) as plane:
        place = next(iter(plane.private.values()))
        before = [alive(kind) for kind in kinds]
        for _ in range(40):
            _, writer = await asyncio.open_connection(place, plane.port)
            if sent is None:
                writer.transport.abort()
            else:
                writer.write(sent)
            await asyncio.sleep(0)
            writer.close()
        with contextlib.suppress(TimeoutError):
            await eventually(
                lambda: (
                    not plane.plane.doors.total()
                    and all(alive(kind) <= held + 1 for kind, held in zip(kinds, before, strict=True))
                )
            )
        assert {
            kind: alive(kind) - held for kind, held in zip(kinds, before, strict=True) if alive(kind) > held + 1
        } == {}
