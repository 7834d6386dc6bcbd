"""The Blob service: with Azure's own SDK, and what a job's SAS may not do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
import requests
from azure.core.exceptions import (
    ClientAuthenticationError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import BlobBlock, ContainerClient, ContainerSasPermissions, generate_container_sas
from requests.adapters import HTTPAdapter

from tests.dataplane.plane import Agent, Plane, md5, object_name
from undercroft.errors import StorageFull, Unavailable
from undercroft.store.faulty import Fault, Faults, FaultyStore
from undercroft.store.memory import MemoryStore
from undercroft.vault import accounts


class ToAddress(HTTPAdapter):
    """Connects to an address of our choice, with server name and Host of the URL."""

    def __init__(self, host: str, address: str, port: int) -> None:
        self._host, self._to = host, f"{address}:{port}"
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, server_hostname=self._host, assert_hostname=self._host, **options)

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        parts = urlsplit(str(request.url))
        request.headers["Host"] = parts.netloc
        request.url = urlunsplit(parts._replace(netloc=self._to))
        return super().send(request, *arguments, **options)


def account_key(plane: Plane, name: str) -> bytes:
    found = plane.database.transact(lambda connection: accounts.find(connection, name))
    assert found is not None
    return found.signing_key


def signed(plane: Plane, grant: dict[str, Any], permissions: str, **more: Any) -> str:
    """A SAS by the SDK's own signer, with the account's key."""
    import base64

    now = datetime.now(UTC)
    options: dict[str, Any] = {"start": now - timedelta(minutes=1), "expiry": now + timedelta(minutes=10)} | more
    return str(
        generate_container_sas(
            grant["account"],
            more.pop("container", grant["container"]),
            account_key=base64.b64encode(account_key(plane, grant["account"])).decode(),
            permission=ContainerSasPermissions.from_string(permissions),
            **{name: value for name, value in options.items() if name != "container"},
        )
    )


@contextmanager
def client(plane: Plane, grant: dict[str, Any], sas: str, **options: Any) -> Iterator[ContainerClient]:
    host = grant["blobHost"]
    with requests.Session() as session:
        session.mount("https://", ToAddress(host, plane.private[host], plane.port))
        transport = RequestsTransport(session=session, session_owner=False, connection_verify=str(plane.ca))
        with ContainerClient.from_container_url(
            f"https://{host}/{grant['container']}?{sas}",
            transport=transport,
            retry_total=0,
            **options,
        ) as made:
            yield made


@pytest.fixture
async def job(plane: Plane) -> tuple[Agent, dict[str, Any]]:
    agent = await plane.registered()
    grant: dict[str, Any] = (await agent.begin())["grant"]
    return agent, grant


Job = tuple[Agent, dict[str, Any]]


async def test_the_sdk_uploads_reads_lists_and_deletes(plane: Plane, job: Job) -> None:
    _, grant = job
    whole, blocks, staged = sorted(object_name("packs") for _ in range(3))
    body = bytes(range(256)) * 20_000  # 5 MB

    def work() -> None:
        with client(
            plane,
            grant,
            signed(plane, grant, "rcwdl"),
            max_single_put_size=6 << 20,
            max_single_get_size=1 << 20,
            max_chunk_get_size=700_000,
            max_block_size=1 << 20,
        ) as container:
            container.upload_blob(whole, body, validate_content=True)
            container.upload_blob(blocks, body * 2, max_concurrency=2)
            blob = container.get_blob_client(staged)
            blob.stage_block("b1", b"one")
            blob.stage_block("b2", b"two")
            blob.commit_block_list([BlobBlock("b2"), BlobBlock("b1")])
            assert container.download_blob(whole).readall() == body
            assert container.download_blob(blocks).readall() == body * 2
            assert container.download_blob(staged).readall() == b"twoone"
            assert container.download_blob(whole, offset=7, length=1_500_000).readall() == body[7:1_500_007]
            properties = container.get_blob_client(whole).get_blob_properties()
            assert (properties.size, str(properties.blob_type)) == (len(body), "BlobType.BLOCKBLOB")
            assert [each.name for each in container.list_blobs()] == [whole, blocks, staged]
            assert [each.name for each in container.list_blobs(name_starts_with=whole[:-1])] == [whole]
            pages = list(container.list_blobs(results_per_page=2).by_page())
            assert len(pages) == 2
            assert [each.name for each in container.walk_blobs()] == ["packs/"]
            container.delete_blob(staged)
            assert [each.name for each in container.list_blobs()] == [whole, blocks]
            with pytest.raises(ResourceNotFoundError):
                container.download_blob(staged)
            with pytest.raises(ResourceExistsError) as caught:
                container.upload_blob(whole, b"other", overwrite=True)
            assert caught.value.error_code == "BlobAlreadyExists"  # type: ignore[attr-defined]

    await asyncio.to_thread(work)
    left = [info.name async for info in plane.bytes.list("eastus/staged/")]
    assert left == []


async def test_walking_with_a_delimiter_pages_over_prefixes(plane: Plane, job: Job) -> None:
    agent, grant = job
    for kind in ("packs", "packs", "indexes", "manifests", "keys"):
        assert (await agent.put(grant, object_name(kind), b"x")).status == 201

    def work() -> list[str]:
        with client(plane, grant, signed(plane, grant, "l")) as container:
            return [each.name for each in container.walk_blobs(results_per_page=1)]

    assert await asyncio.to_thread(work) == ["indexes/", "keys/", "manifests/", "packs/"]


async def test_a_jobs_sas_creates_and_nothing_else(plane: Plane, job: Job) -> None:
    agent, grant = job
    name = object_name("packs")
    assert (await agent.put(grant, name, b"first")).status == 201
    again = await agent.put(grant, name, b"second")
    assert (again.status, again.code) == (409, "BlobAlreadyExists")
    calls = [
        ("GET", f"/{grant['container']}/{name}?{grant['sas']}"),
        ("HEAD", f"/{grant['container']}/{name}?{grant['sas']}"),
        ("DELETE", f"/{grant['container']}/{name}?{grant['sas']}"),
        ("GET", f"/{grant['container']}?restype=container&comp=list&{grant['sas']}"),
    ]
    for method, path in calls:
        answer = await plane.ask(method, grant["blobHost"], path)
        assert (answer.status, answer.headers["x-ms-error-code"]) == (403, "AuthorizationPermissionMismatch"), method
    stored = [info async for info in plane.bytes.list("eastus/blobs/")]
    assert [(info.name.rsplit("/", 2)[-2:], info.size) for info in stored] == [(name.split("/"), 5)]


async def test_a_restores_sas_reads_and_nothing_else(plane: Plane, job: Job) -> None:
    agent, _ = job
    done = await agent.back_up("/home")
    restore = await agent.call("POST", "rec2", "/v1/restores", {"recoveryPointId": done["recoveryPointId"]})
    grant = restore.json["grant"]
    put = await agent.put(grant, object_name("packs"), b"x")
    assert (put.status, put.code) == (403, "AuthorizationPermissionMismatch")
    gone = await plane.ask("DELETE", grant["blobHost"], f"/{grant['container']}/{done['packs'][0]}?{grant['sas']}")
    assert (gone.status, gone.code) == (403, "AuthorizationPermissionMismatch")


async def test_a_sas_is_good_for_its_container_its_time_and_as_signed(plane: Plane, job: Job) -> None:
    agent, grant = job
    other = (await (await plane.registered(machine="web02")).begin())["grant"]
    now = datetime.now(UTC)
    tries = {
        "another container's": other["sas"],
        "more permissions than signed": grant["sas"].replace("sp=c", "sp=rcwdl"),
        "a later end than signed": grant["sas"].replace("se=2", "se=3"),
        "expired": signed(plane, grant, "c", start=now - timedelta(hours=2), expiry=now - timedelta(seconds=1)),
        "not begun": signed(plane, grant, "c", start=now + timedelta(hours=1), expiry=now + timedelta(hours=2)),
        "tampered": grant["sas"][:-6] + "AAA%3D",
        "not base64": grant["sas"].split("sig=")[0] + "sig=%21",
        "an old version": grant["sas"].replace("sv=2020-12-06", "sv=2015-04-05"),
    }
    for what, sas in tries.items():
        answer = await agent.put(grant | {"sas": sas}, object_name("packs"), b"x")
        assert (answer.status, answer.code) == (401, "AuthenticationFailed"), what
    unsupported = await agent.put(grant | {"sas": grant["sas"] + "&sip=10.0.0.1"}, object_name("packs"), b"x")
    assert (unsupported.status, unsupported.code) == (501, "NotImplemented")
    twice = await agent.put(grant | {"sas": grant["sas"] + "&sp=r"}, object_name("packs"), b"x")
    assert twice.status == 400
    assert (await agent.put(grant, object_name("packs"), b"x")).status == 201

    def work() -> None:
        with client(plane, grant, other["sas"]) as container, pytest.raises(ClientAuthenticationError):
            container.upload_blob(object_name("packs"), b"x")

    await asyncio.to_thread(work)


async def test_the_sas_of_another_vault_by_our_endpoint(plane: Plane, job: Job) -> None:
    _, grant = job
    stranger = await plane.registered(plane.other)
    theirs = (await stranger.begin())["grant"]
    address = plane.private[grant["blobHost"]]
    plane.private[theirs["blobHost"]] = address  # as with a wrong record: their name, our address
    answer = await stranger.put(theirs, object_name("packs"), b"x")
    assert (answer.status, answer.code) == (421, "MisdirectedRequest")


@pytest.mark.parametrize(
    "name",
    [
        "packs/xyz",
        "packs/" + "A" * 32,
        "other/" + "a" * 32,
        "packs",
        "packs/" + "a" * 33,
        "x/packs/" + "a" * 32,
        "packs/%2e%2e/x",
    ],
)
async def test_names_that_a_protection_container_does_not_take(plane: Plane, job: Job, name: str) -> None:
    agent, grant = job
    answer = await agent.put(grant, name, b"x")
    assert (answer.status, answer.code) == (400, "InvalidResourceName")


async def test_the_communication_account_takes_job_logs(plane: Plane, job: Job) -> None:
    agent, grant = job
    ecs = (await agent.call("GET", "fc1", "/v1/container")).json["accounts"][0]
    logs = (await agent.begin("/other"))["logGrant"]
    assert (logs["account"], logs["blobHost"]) == (ecs["name"], ecs["blobHost"])
    assert (await agent.put(logs, "jobs/2026/log.txt", b"line")).status == 201
    assert (await agent.put(logs, object_name("packs"), b"x")).status == 400
    unauthenticated = await plane.ask("GET", ecs["queueHost"], "/")
    assert (unauthenticated.status, unauthenticated.code) == (400, "InvalidAuthenticationInfo")
    sas = logs["sas"]
    queue = await plane.ask("GET", ecs["queueHost"], f"/{grant['container']}/messages?{sas}")
    assert (queue.status, queue.code) == (501, "NotImplemented")
    assert b"Get Messages" in queue.body


async def test_hashes_are_verified_when_sent(plane: Plane, job: Job) -> None:
    agent, grant = job
    name, body = object_name("packs"), b"x" * 300_000
    wrong = await agent.put(grant, name, body, **{"Content-MD5": md5(b"other")})
    assert (wrong.status, wrong.code) == (400, "Md5Mismatch")
    broken = await agent.put(grant, name, body, **{"Content-MD5": "AAAA"})
    assert (broken.status, broken.code) == (400, "InvalidMd5")
    crc = await agent.put(grant, name, body, **{"x-ms-content-crc64": "AAAAAAAAAAA="})
    assert (crc.status, crc.code) == (501, "NotImplemented")
    assert b"x-ms-content-crc64" in crc.body
    assert (await agent.put(grant, name, body, **{"Content-MD5": md5(body)})).status == 201


REFUSED = [
    ("PUT", "{c}/{n}", {"x-ms-blob-type": "PageBlob"}, 501, "NotImplemented"),
    ("PUT", "{c}/{n}", {}, 400, "MissingRequiredHeader"),
    ("PUT", "{c}/{n}", {"x-ms-blob-type": "BlockBlob", "x-ms-meta-a": "1"}, 501, "NotImplemented"),
    ("PUT", "{c}/{n}", {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2011-08-18"}, 400, "InvalidHeaderValue"),
    ("PUT", "{c}/{n}?comp=lease", {}, 501, "NotImplemented"),
    ("PUT", "{c}/{n}?comp=metadata", {}, 501, "NotImplemented"),
    ("PUT", "{c}/{n}?comp=block&blockid=%21", {}, 400, "InvalidQueryParameterValue"),
    ("PUT", "{c}/{n}?comp=blocklist", {}, 400, "InvalidXmlDocument"),
    ("PUT", "{c}?restype=container", {}, 501, "NotImplemented"),
    ("GET", "{c}/{n}", {}, 404, "BlobNotFound"),
    ("HEAD", "{c}/{n}", {}, 404, "BlobNotFound"),
    ("GET", "{c}/{n}?color=red", {}, 400, "UnsupportedQueryParameter"),
    ("GET", "{c}?restype=container&comp=list&maxresults=0", {}, 400, "OutOfRangeQueryParameterValue"),
    ("GET", "{c}?restype=container&comp=list&include=metadata", {}, 501, "NotImplemented"),
]


@pytest.mark.parametrize(("method", "path", "headers", "status", "code"), REFUSED, ids=range(len(REFUSED)))
async def test_what_is_refused_and_how(
    plane: Plane, job: Job, method: str, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    _, grant = job
    where = "/" + path.format(c=grant["container"], n=object_name("packs"))
    where += ("&" if "?" in where else "?") + signed(plane, grant, "rcwdl")
    answer = await plane.ask(method, grant["blobHost"], where, body=b"" if method == "PUT" else None, headers=headers)
    assert (answer.status, answer.headers["x-ms-error-code"]) == (status, code), answer.body


async def test_ranges_and_conditions(plane: Plane, job: Job) -> None:
    agent, grant = job
    name = object_name("packs")
    created = await agent.put(grant, name, b"0123456789")
    path = f"/{grant['container']}/{name}?{signed(plane, grant, 'r')}"

    async def get(**headers: str) -> tuple[int, bytes, str | None]:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        answer = await plane.ask("GET", grant["blobHost"], path, headers=named)
        return answer.status, answer.body, answer.headers.get("Content-Range")

    assert await get(Range="bytes=2-4") == (206, b"234", "bytes 2-4/10")
    assert await get(Range="bytes=8-100") == (206, b"89", "bytes 8-9/10")
    assert await get(x_ms_range="bytes=0-0", Range="bytes=5-5") == (206, b"0", "bytes 0-0/10")
    assert (await get(Range="bytes=10-"))[::2] == (416, "bytes */10")
    assert (await get(Range="lines=1-2"))[0] == 400
    assert (await get(If_Match=created.headers["ETag"]))[0] == 200
    assert (await get(If_Match='"other"'))[0] == 412
    assert (await get(If_None_Match=created.headers["ETag"]))[0] == 304
    assert (await get(If_Modified_Since="Mon, 01 Jan 2024 00:00:00 GMT"))[0] == 501


async def test_without_any_credential_and_with_a_foreign_one(plane: Plane, job: Job) -> None:
    _, grant = job
    path = f"/{grant['container']}/{object_name('packs')}"
    nothing = await plane.ask("GET", grant["blobHost"], path)
    assert (nothing.status, nothing.code) == (400, "InvalidAuthenticationInfo")
    shared = await plane.ask("GET", grant["blobHost"], path, headers={"Authorization": "SharedKey a:b"})
    assert (shared.status, shared.code) == (401, "AuthenticationFailed")


async def test_a_full_store_answers_507_and_goes_on(tmp_path: Path) -> None:
    plan = Faults(Fault("put", 2, StorageFull("The store has no room left."), prefix="eastus/blobs/", after=100_000))
    inner = MemoryStore()
    async with Plane(tmp_path, store=FaultyStore(inner, plan)) as plane:
        agent = await plane.registered()
        grant = (await agent.begin())["grant"]
        first, second = object_name("packs"), object_name("packs")
        assert (await agent.put(grant, first, b"x" * 3_000_000)).status == 201
        full = await agent.put(grant, second, b"y" * 3_000_000)
        assert (full.status, full.code) == (507, "InsufficientStorage")
        assert (await agent.put(grant, second, b"y" * 3_000_000)).status == 201
        plan.check()


async def test_a_read_that_fails_in_the_middle_is_cut_and_never_short(tmp_path: Path) -> None:
    plan = Faults(Fault("get", 1, Unavailable("the disk went away"), prefix="eastus/blobs/", after=1 << 20))
    async with Plane(tmp_path, store=FaultyStore(MemoryStore(), plan)) as plane:
        agent = await plane.registered()
        grant = (await agent.begin())["grant"]
        name = object_name("packs")
        await agent.put(grant, name, b"x" * (3 << 20))

        def work() -> None:
            with client(plane, grant, signed(plane, grant, "r")) as container:
                assert container.download_blob(name).readall() == b"x" * (3 << 20)  # it saw the cut and asked again

        await asyncio.to_thread(work)
        plan.check()


async def test_many_uploads_at_once(plane: Plane, job: Job) -> None:
    agent, grant = job
    names = [object_name("packs") for _ in range(12)]
    answers = await asyncio.gather(*(agent.put(grant, name, name.encode() * 30_000) for name in names))
    assert [answer.status for answer in answers] == [201] * 12
