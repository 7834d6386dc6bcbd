"""The agent against the real data plane and the real login, on loopback: what both sides understand by docs/protocol.md."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from sqlalchemy import insert

from tests.agent.peer import Names
from tests.dataplane.plane import PUBLIC, SUFFIXES, TENANT, Plane
from undercroft.agent import resolve
from undercroft.agent.backup import BackupReport, run_backup
from undercroft.agent.credentials import read_credentials
from undercroft.agent.identity import AgentHome
from undercroft.agent.registration import Registered, open_session, register
from undercroft.agent.restore import RestoreReport, run_restore
from undercroft.agent.sources.files import FilesSource
from undercroft.agent.sources.files_target import FilesTarget
from undercroft.clock import SystemClock, timestamp
from undercroft.errors import NotAuthorized, RefusedByNetworkRule
from undercroft.identity import principals
from undercroft.identity.audiences import Audiences
from undercroft.identity.login import Login
from undercroft.identity.wire import WebRequest
from undercroft.names import BACKUP_SERVICES
from undercroft.state import schema
from undercroft.state.database import Connection
from undercroft.trace import fresh
from undercroft.vault import jobs, paths
from undercroft.vault.paths import PathSeen

CLOCK = SystemClock()
PASSPHRASE = "correct horse battery staple"


class Site:
    """The plane, a login in front of it, and a host that resolves names as a VM of the network does."""

    def __init__(self, plane: Plane, folder: Path) -> None:
        self.plane, self.folder = plane, folder
        self.home = AgentHome(folder / "agent")
        self.files = folder / "files"
        self.private = True
        self.login: Login | None = None

    async def front(self, request: web.BaseRequest, _address: str) -> web.StreamResponse:
        if self.login is None:
            self.login = Login(self.plane.database, self.plane.tokens, Audiences.of(SUFFIXES), CLOCK)
        segments = tuple(part for part in request.path.split("/") if part)
        asked = WebRequest(
            request.method, segments, {}, await request.read(), request.content_type, None,
            f"https://{request.host}", fresh(),
        )  # fmt: skip
        answer = await self.login.answer(asked)
        return web.Response(
            status=answer.status, body=msgspec.json.encode(answer.body), content_type="application/json"
        )

    @property
    def names(self) -> Names:
        """The network's view now: with or without the private zones."""
        table: dict[str, tuple[str, ...]] = {SUFFIXES.login: (PUBLIC["login"],)}
        for service in BACKUP_SERVICES:
            table[SUFFIXES.public_backup(service, "eus")] = (PUBLIC["backup"],)
        for host in self.plane.account_hosts():
            table[host] = (PUBLIC[host.split(".")[1]],)
        if self.private:
            table |= {name: (address,) for name, address in self.plane.private.items()}
        return Names(table)

    def credentials(self) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        now, vault = CLOCK.now(), self.plane.vault
        until = now + timedelta(hours=48)

        def work(connection: Connection) -> str:
            who = principals.create(
                connection,
                display_name="credentials",
                now=now,
                public_key=public,
                kind="VaultCredential",
                audience=self.plane.audience(vault),
                vault_key=vault.key,
            )
            connection.execute(
                insert(schema.vault_credentials).values(
                    key=f"{vault.key}/certificates/{who.client_id}",
                    vault_key=vault.key,
                    name=who.client_id,
                    certificate="-",
                    principal_id=who.object_id,
                    issued=timestamp(now),
                    not_after=timestamp(until),
                )
            )
            return who.client_id

        client = self.plane.database.transact(work)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, vault.name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(until)
            .sign(key, hashes.SHA256())
        )
        document = {
            "version": 1,
            "vaultName": vault.name,
            "vaultId": str(vault.vault_id),
            "resourceId": vault.key,
            "subscriptionId": "s",
            "tenantId": TENANT,
            "region": "eastus",
            "geoCode": "eus",
            "audience": self.plane.audience(vault),
            "loginEndpoint": f"https://{SUFFIXES.login}",
            "clientId": client,
            "certificate": certificate.public_bytes(Encoding.PEM).decode(),
            "privateKey": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            "caBundle": self.plane.authority.pem.decode(),
            "privateHost": SUFFIXES.backup_member(vault.vault_id, "{svc}", "eus"),
            "publicHost": SUFFIXES.public_backup("{svc}", "eus"),
            "issued": timestamp(now),
            "notAfter": timestamp(until),
        }
        path = self.folder / "vault.credentials"
        path.write_text(json.dumps(document))
        path.chmod(0o600)
        return path

    async def register(self) -> Registered:
        file = read_credentials(self.credentials(), CLOCK)
        names = self.names
        return await asyncio.to_thread(register, self.home, file, "web01", names, CLOCK, lambda line: None)

    async def back_up(self) -> BackupReport:
        def work() -> BackupReport:
            identity = self.home.load()
            session = open_session(identity, Live(self), CLOCK)
            try:
                source = FilesSource(self.files)
                return run_backup(self.home, identity, session, source, PASSPHRASE, CLOCK, lambda line: None)
            finally:
                session.close()

        return await asyncio.to_thread(work)

    async def restore(self, target: Path) -> RestoreReport:
        def work() -> RestoreReport:
            session = open_session(self.home.load(), Live(self), CLOCK)
            try:
                target_files = FilesTarget(target)
                return run_restore(self.home, session, "latest", target_files, PASSPHRASE, CLOCK, lambda line: None)
            finally:
                session.close()

        return await asyncio.to_thread(work)


class Live:
    """Asks the site's names anew every time: records appear while the agent runs."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def addresses(self, name: str) -> tuple[str, ...]:
        return self._site.names.addresses(name)


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    plane = Plane(tmp_path / "home")
    made = Site(plane, tmp_path)
    plane.front = made.front
    made.files.mkdir()
    for number in range(30):
        (made.files / f"file-{number}").write_bytes(os.urandom(2000 + number))
    (made.files / "large").write_bytes(os.urandom(40_000_000))
    async with plane:
        monkeypatch.setattr(resolve, "PORT", plane.port)

        async def provision() -> None:
            """What provisioning does: new accounts get their addresses, a moment later."""
            while True:
                await asyncio.sleep(0.1)
                plane.ready(plane.vault)

        task = asyncio.create_task(provision())
        yield made
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def same(one: Path, other: Path) -> bool:
    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    return contents(one) == contents(other)


async def test_register_back_up_change_back_up_restore(site: Site, tmp_path: Path) -> None:
    registered = await site.register()
    assert any("ecs01" in account for account in registered.accounts)
    first = await site.back_up()
    assert first.summary.path == "private" and first.summary.files == 31
    (site.files / "file-1").write_bytes(b"changed")
    second = await site.back_up()
    assert second.summary.sent < 100_000
    done = await site.restore(tmp_path / "restored")
    assert done.damaged == () and done.point.id == second.point
    assert same(tmp_path / "restored", site.files)


async def test_a_denied_vault_refuses_the_public_path_without_a_taint(site: Site) -> None:
    site.plane.set_public_access(site.plane.vault, False)
    site.private = False
    with pytest.raises(RefusedByNetworkRule, match="NXDOMAIN") as caught:
        await site.register()
    assert caught.value.code == "UserErrorPublicNetworkAccessDenied"
    assert site.plane.taint_of(site.plane.vault) is None


async def test_storage_whose_private_record_is_missing_is_named(site: Site) -> None:
    """A custom DNS server knows the vault's names and not yet the account's: the public address, refused by the rule."""
    await site.register()
    site.plane.set_public_access(site.plane.vault, False)

    class OldRecords(Live):
        def addresses(self, name: str) -> tuple[str, ...]:
            if ".blob." in name:
                return (PUBLIC["blob"],)
            return super().addresses(name)

    def work() -> Any:
        identity = site.home.load()
        session = open_session(identity, OldRecords(site), CLOCK)
        try:
            source = FilesSource(site.files)
            return run_backup(site.home, identity, session, source, PASSPHRASE, CLOCK, lambda line: None)
        finally:
            session.close()

    with pytest.raises(RefusedByNetworkRule, match=r"prot01\.blob.*A record"):
        await asyncio.to_thread(work)


def paths_of(site: Site) -> dict[str, PathSeen]:
    identity = site.home.load()
    seen = site.plane.database.transact(lambda connection: paths.of_container(connection, identity.container_id))
    return {one.leg: one for one in seen}


async def test_the_path_of_each_leg_is_recorded_with_the_reason_of_a_fallback(site: Site) -> None:
    """Pains A7: while public access is enabled, a lost zone link leaves the jobs green and the path wrong."""
    await site.register()
    await site.back_up()
    seen = paths_of(site)
    assert {leg: one.door.partition(":")[0] for leg, one in seen.items()} == {
        "backup": "private",
        "blob": "private",
        "login": "public",
    }
    assert (seen["backup"].fallbacks, seen["backup"].public_time) == (0, None)
    site.private = False
    report = await site.back_up()
    assert report.summary.path == "public"
    seen = paths_of(site)
    assert seen["backup"].public and seen["blob"].public
    assert (seen["backup"].fallbacks, seen["blob"].fallbacks) == (1, 0)
    assert "privatelink" in (seen["backup"].reason or "") and "NXDOMAIN" in (seen["backup"].reason or "")
    assert seen["backup"].private_time is not None

    def details(connection: Connection) -> jobs.Details:
        job = jobs.find(connection, report.job)
        assert job is not None
        return job.details

    noted = site.plane.database.transact(details)
    assert noted.paths == {"backup": "public", "blob": "public", "login": "public"}
    assert "NXDOMAIN" in noted.fallbacks["backup"] and noted.files_done == 31
    site.private = True
    await site.back_up()
    seen = paths_of(site)
    assert not seen["backup"].public and not seen["blob"].public and seen["backup"].fallbacks == 1


async def test_storage_by_the_public_side_of_a_vault_that_is_reached_privately_is_told(site: Site) -> None:
    """A custom DNS server without the account's record: works while public access is enabled, and is not private."""
    await site.register()

    class NoBlobRecord(Live):
        def addresses(self, name: str) -> tuple[str, ...]:
            return (PUBLIC["blob"],) if ".blob." in name else super().addresses(name)

    said: list[str] = []

    def work() -> BackupReport:
        identity = site.home.load()
        session = open_session(identity, NoBlobRecord(site), CLOCK)
        try:
            return run_backup(site.home, identity, session, FilesSource(site.files), PASSPHRASE, CLOCK, said.append)
        finally:
            session.close()

    report = await asyncio.to_thread(work)
    assert report.summary.path == "private and public"
    assert any("public side" in line and PUBLIC["blob"] in line for line in said)
    blob = paths_of(site)["blob"]
    assert blob.public and blob.fallbacks == 1 and PUBLIC["blob"] in (blob.reason or "")


async def test_superseded_credentials_and_a_second_registration(site: Site) -> None:
    first = await site.register()
    old = read_credentials(site.credentials(), CLOCK)
    again = await site.register()
    assert again.identity.container_id == first.identity.container_id
    with pytest.raises(NotAuthorized) as caught:
        await asyncio.to_thread(register, site.home, old, "web01", site.names, CLOCK, lambda line: None)
    assert caught.value.code == "UserErrorVaultCredentialsSuperseded"
    await site.back_up()
