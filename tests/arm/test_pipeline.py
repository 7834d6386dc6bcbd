"""Every request passes the same links; each refuses what it is there for, in ARM's form, and nothing is ever a 500."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import re
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.arm.control_plane import API, ControlPlane, control_plane
from undercroft.arm.call import Call, Reply, Route
from undercroft.arm.listener import Listener
from undercroft.clock import ManualClock, SystemClock
from undercroft.errors import LocalProblem

GUID = "00000000-0000-4000-8000-000000000001"


async def test_without_a_token_nothing_is_told_but_where_to_log_in(plane: ControlPlane) -> None:
    answer = await plane.get(f"/subscriptions?{API}", token="")
    assert (answer.status, answer.code) == (401, "AuthenticationFailed")
    assert f'authorization_uri="{plane.url}/{plane.deployment.tenant_id}"' in answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize("header", ["Basic abc", "Bearer", "Bearer ", "abc"])
async def test_an_authorization_header_of_another_form(plane: ControlPlane, header: str) -> None:
    answer = await plane.get(f"/subscriptions?{API}", token="", headers={"Authorization": header})
    assert (answer.status, answer.code) == (401, "AuthenticationFailedInvalidHeader")


async def test_a_token_that_was_changed(plane: ControlPlane) -> None:
    head, payload, signature = plane.token.split(".")
    flipped = "A" if signature[10] != "A" else "B"
    answer = await plane.get(
        f"/subscriptions?{API}", token=f"{head}.{payload}.{signature[:10]}{flipped}{signature[11:]}"
    )
    assert (answer.status, answer.code) == (401, "InvalidAuthenticationToken")
    assert "signature" in answer.message


@pytest.mark.parametrize("token", ["abc", "a.b.c", "....", "é.é.é", "e30.e30.e30", "x" * 9000])
async def test_something_that_is_no_token(plane: ControlPlane, token: str) -> None:
    answer = await plane.get(f"/subscriptions?{API}", token=token)
    assert (answer.status, answer.code) == (401, "InvalidAuthenticationToken")


async def test_a_token_for_something_else(plane: ControlPlane) -> None:
    graph = await plane.log_in(plane.deployment.client_id, plane.deployment.client_secret, f"{plane.url}/msgraph/")
    answer = await plane.get(f"/subscriptions?{API}", token=graph.json["access_token"])
    assert (answer.status, answer.code) == (401, "InvalidAuthenticationTokenAudience")
    assert "/msgraph/" in answer.message


async def test_an_expired_token(tmp_path: Path) -> None:
    clock = ManualClock()
    async with control_plane(tmp_path, clock=clock) as plane:
        assert (await plane.get(f"/subscriptions?{API}")).status == 200
        clock.advance(timedelta(minutes=61))
        answer = await plane.get(f"/subscriptions?{API}")
        assert (answer.status, answer.code) == (401, "ExpiredAuthenticationToken")
        assert "Log in again" in answer.message


@pytest.mark.parametrize(
    ("version", "code"),
    [
        ("", "MissingApiVersionParameter"),
        ("?x=1", "MissingApiVersionParameter"),
        ("?api-version=", "MissingApiVersionParameter"),
        ("?api-version=latest", "InvalidApiVersionParameter"),
        ("?api-version=2024-13-01", "InvalidApiVersionParameter"),
        ("?api-version=2024-11-01-", "InvalidApiVersionParameter"),
    ],
)
async def test_api_version_must_be_a_date(plane: ControlPlane, version: str, code: str) -> None:
    answer = await plane.get(f"/subscriptions{version}")
    assert (answer.status, answer.code) == (400, code)


@pytest.mark.parametrize("version", ["2018-09-01", "2026-08-01", "2022-05-01-preview", "1999-01-31"])
async def test_any_date_is_an_api_version(plane: ControlPlane, version: str) -> None:
    assert (await plane.get(f"/subscriptions?API-Version={version}")).status == 200


async def test_unknown_query_parameters_are_refused_by_name(plane: ControlPlane) -> None:
    answer = await plane.get(f"/subscriptions?{API}&$fitler=x")
    assert (answer.status, answer.code) == (400, "InvalidQueryParameter")
    assert "$fitler" in answer.message
    twice = await plane.get(f"/subscriptions?{API}&$top=1&$TOP=2")
    assert (twice.status, twice.code) == (400, "InvalidQueryParameter")


async def test_a_foreign_subscription_is_not_found(plane: ControlPlane) -> None:
    answer = await plane.get(f"/subscriptions/{GUID}/resourceGroups?{API}")
    assert (answer.status, answer.code) == (404, "SubscriptionNotFound")
    answer = await plane.get(f"/subscriptions/nonsense/resourceGroups?{API}")
    assert (answer.status, answer.code) == (400, "InvalidSubscriptionId")


async def test_what_is_not_there_is_named(plane: ControlPlane) -> None:
    group = f"{plane.subscription}/resourceGroups/rg"
    nowhere = await plane.get(f"/nothing/here?{API}")
    assert (nowhere.status, nowhere.code) == (404, "InvalidResourceType")
    namespace = await plane.get(f"{group}/providers/Microsoft.Nope/things/x?{API}")
    assert (namespace.status, namespace.code) == (404, "InvalidResourceNamespace")
    kind = await plane.get(f"{group}/providers/Microsoft.Resources/deployments/x?{API}")
    assert (kind.status, kind.code) == (501, "NotImplemented")
    assert "Microsoft.Resources/deployments" in kind.message
    verb = await plane.send("PATCH", f"/subscriptions?{API}", json={})
    assert (verb.status, verb.code) == (405, "MethodNotAllowed")
    assert "GET" in verb.message


@pytest.mark.parametrize(
    "path",
    [
        "/subscriptions/../etc?api-version=2024-11-01",
        "/subscriptions/%2e%2e/x?api-version=2024-11-01",
        "/subscriptions/a%2Fb?api-version=2024-11-01",
        "/subscriptions/a%00b?api-version=2024-11-01",
        "/subscriptions/a%ZZ?api-version=2024-11-01",
        "/subscriptions/%ff%fe?api-version=2024-11-01",
        "/subscriptions//x?api-version=2024-11-01",
        "/subscriptions/a%5Cb?api-version=2024-11-01",
        "/" + "x" * 300 + "?api-version=2024-11-01",
    ],
)
async def test_path_tricks_are_refused_before_anything_else(plane: ControlPlane, path: str) -> None:
    answer = await plane.get(path)
    assert (answer.status, answer.code) == (400, "InvalidRequestUri")


async def test_paths_are_compared_without_case_and_decoded_after_splitting(tmp_path: Path) -> None:
    seen: list[Call] = []

    async def show(call: Call) -> Reply:
        seen.append(call)
        return Reply(200, {"name": call.parameters["container"]})

    pattern = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.RecoveryServices/vaults/{vault}/backupFabrics/{fabric}/protectionContainers/{container}"
    route = Route("GET", pattern, "Microsoft.RecoveryServices/vaults/read", show)
    async with control_plane(tmp_path, routes=[route]) as plane:
        path = f"//SUBSCRIPTIONS/{plane.deployment.subscription_id.upper()}/resourcegroups/RG/PROVIDERS/microsoft.recoveryservices/vaults/v/backupfabrics/Azure/protectioncontainers/VMAppContainer%3BCompute%3Brg%3Bvm/"
        answer = await plane.get(f"{path}?{API}")
        assert (answer.status, answer.json) == (200, {"name": "VMAppContainer;Compute;rg;vm"})
    (call,) = seen
    assert call.id.key.endswith(
        "/resourcegroups/rg/providers/microsoft.recoveryservices/vaults/v/backupfabrics/azure/protectioncontainers/vmappcontainer;compute;rg;vm"
    )
    assert call.parameters["group"] == "RG"


async def test_the_slash_of_a_parent_that_is_left_out_is_no_segment(plane: ControlPlane) -> None:
    """As ``az resource`` sends it; anywhere else an empty segment is refused."""
    group = await plane.group()
    answer = await plane.get(f"{group}/providers/Microsoft.Nothing//things/x?{API}")
    assert (answer.status, answer.code) == (404, "InvalidResourceNamespace")
    for path in (f"{group}/providers//Microsoft.Nothing/things/x", f"{group}//providers/Microsoft.Nothing/things/x"):
        assert (await plane.get(f"{path}?{API}")).code == "InvalidRequestUri"


async def test_a_body_that_is_too_large(plane: ControlPlane) -> None:
    path = f"{plane.subscription}/resourceGroups/rg?{API}"
    declared = await plane.send("PUT", path, data=io.BytesIO(b" " * (4 * 2**20 + 1)))
    assert (declared.status, declared.code) == (413, "RequestContentTooLarge")


async def test_a_chunked_body_that_is_too_large(plane: ControlPlane) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b" " * 2**16

    path = f"{plane.url}{plane.subscription}/resourceGroups/rg?{API}"
    async with plane.http.put(path, data=chunks(), headers={"Authorization": f"Bearer {plane.token}"}) as response:
        assert response.status == 413


async def test_a_defect_is_a_500_without_a_traceback(tmp_path: Path) -> None:
    async def broken(_call: Call) -> Reply:
        raise RuntimeError("secret detail")

    route = Route("GET", "/subscriptions/{subscription}/providers/Microsoft.Test/things", None, broken)
    async with control_plane(tmp_path, routes=[route]) as plane:
        answer = await plane.get(f"{plane.subscription}/providers/Microsoft.Test/things?{API}")
        assert (answer.status, answer.code) == (500, "InternalServerError")
        assert answer.headers["x-ms-request-id"] in answer.message
        assert "secret detail" not in answer.text and "Traceback" not in answer.text


async def test_correlation_headers(plane: ControlPlane) -> None:
    sent = {"x-ms-client-request-id": "mine-1", "x-ms-correlation-request-id": "corr-1"}
    answer = await plane.get(f"/subscriptions?{API}", headers=sent)
    assert answer.headers["x-ms-client-request-id"] == "mine-1"
    assert answer.headers["x-ms-correlation-request-id"] == "corr-1"
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-ms-request-id"])


async def test_links_name_the_host_that_the_client_used_unless_it_is_not_ours(plane: ControlPlane) -> None:
    for host, expected in [
        (f"127.0.0.1:{plane.port}", f"https://127.0.0.1:{plane.port}"),
        ("management.undercroft.internal", "https://management.undercroft.internal"),
        ("evil.example", plane.application.base_url),
    ]:
        answer = await plane.get("/metadata/endpoints?api-version=2022-09-01", headers={"Host": host})
        assert answer.json["resourceManager"] == expected


async def test_the_number_of_calls_of_one_principal_is_limited(tmp_path: Path) -> None:
    gate, running = asyncio.Event(), 0

    async def wait(_call: Call) -> Reply:
        nonlocal running
        running += 1
        await gate.wait()
        return Reply(200, {})

    route = Route("GET", "/subscriptions/{subscription}/providers/Microsoft.Test/things", None, wait)
    async with control_plane(tmp_path, routes=[route]) as plane:
        path = f"{plane.subscription}/providers/Microsoft.Test/things?{API}"
        calls = [asyncio.create_task(plane.get(path)) for _ in range(64)]
        for _ in range(500):
            if running == 64:
                break
            await asyncio.sleep(0.01)
        answer = await plane.get(path)
        gate.set()
        await asyncio.gather(*calls)
        assert (answer.status, answer.code, answer.headers["Retry-After"]) == (429, "TooManyRequests", "1")
        assert (await plane.get(path)).status == 200


async def test_the_rate_of_calls_of_one_principal_is_limited_and_nobody_elses(tmp_path: Path) -> None:
    clock = ManualClock(SystemClock().now())
    async with control_plane(tmp_path, clock=clock, calls_per_second=2) as plane:
        _, token = await plane.principal("Reader", plane.subscription)
        other = dataclasses.replace(plane, token=token)
        path = f"{plane.subscription}/resourceGroups?{API}"
        answers = [await plane.get(path) for _ in range(21)]
        assert [answer.status for answer in answers] == [200] * 20 + [429]
        assert (answers[-1].code, answers[-1].headers["Retry-After"]) == ("TooManyRequests", "1")
        assert (await other.get(path)).status == 200
        clock.advance(timedelta(seconds=1))
        assert [(await plane.get(path)).status for _ in range(3)] == [200, 200, 429]


async def test_guesses_of_tokens_and_secrets_are_rare(tmp_path: Path) -> None:
    """One account for both: of an address, not of a name."""
    clock = ManualClock(SystemClock().now())
    async with control_plane(tmp_path, clock=clock, calls_per_second=1) as plane:
        path = f"{plane.subscription}/resourceGroups?{API}"
        assert [(await plane.get(path, token="guess")).status for _ in range(5)] == [401] * 5
        assert [(await plane.log_in(plane.deployment.client_id, "guess")).status for _ in range(5)] == [401] * 5
        for answer in (await plane.log_in(plane.deployment.client_id, "guess"), await plane.get(path)):
            assert (answer.status, answer.code, answer.headers["Retry-After"]) == (429, "TooManyRequests", "1")
        clock.advance(timedelta(seconds=1))
        assert [(await plane.get(path)).status for _ in range(3)] == [200] * 3


async def test_a_port_in_use_is_named(plane: ControlPlane) -> None:
    with pytest.raises(LocalProblem, match=f"Port {plane.port} .* in use.*--port"):
        await Listener.open(plane.application.handle, plane.authority.server_context(), plane.port)


async def test_a_client_that_sends_no_request_is_cut_off(plane: ControlPlane) -> None:
    listener = await Listener.open(plane.application.handle, plane.authority.server_context(), 0, head_seconds=0.2)
    try:
        context: ssl.SSLContext = plane.authority.client_context()
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", listener.port, ssl=context, server_hostname="localhost"
        )
        writer.write(b"GET / HT")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    finally:
        await listener.close()


@pytest.mark.parametrize("sent", [b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"a" * 20000])
async def test_bytes_that_are_no_http_do_not_hurt(plane: ControlPlane, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", plane.port, ssl=plane.authority.client_context(), server_hostname="localhost"
    )
    writer.write(sent + b"\r\n\r\n")
    writer.write_eof() if writer.can_write_eof() else None
    answer = await asyncio.wait_for(reader.read(4096), 5)
    assert b"HTTP/1.1 5" not in answer and b"Traceback" not in answer
    writer.close()
    assert (await plane.get(f"/subscriptions?{API}")).status == 200


async def test_plain_http_is_not_answered(plane: ControlPlane) -> None:
    def talk() -> bytes:
        with socket.create_connection(("127.0.0.1", plane.port), timeout=5) as link:
            link.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            try:
                return link.recv(100)
            except ConnectionResetError:
                return b""

    assert not (await asyncio.to_thread(talk)).startswith(b"HTTP/")
