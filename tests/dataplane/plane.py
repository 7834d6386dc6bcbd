"""A data plane on loopback for tests: real TLS, real tokens, real database and store; doors at 127.0.0.x.

``NETWORK`` has the endpoint of the vault ``backup-one`` (every member an address of its own), the endpoint of ``backup-two``,
and the public side. Names are resolved by the test's own resolver: to a private address, or to the public one when asked.
"""

from __future__ import annotations

import base64
import io
import secrets
import socket
import ssl
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import delete, insert, select, update

from undercroft.clock import Clock, SystemClock, timestamp
from undercroft.config import Home, Settings
from undercroft.dataplane.front import FRONT, Front, Serve
from undercroft.dataplane.listener import Limits
from undercroft.dataplane.server import DataPlane
from undercroft.identity import principals
from undercroft.identity.authority import CertificateAuthority
from undercroft.identity.tokens import Tokens
from undercroft.names import BACKUP_SERVICES, NameSuffixes, ResourceId
from undercroft.state import schema
from undercroft.state.database import Connection, Database
from undercroft.store.filesystem import FilesystemStore
from undercroft.store.store import Store
from undercroft.vault import containers, credentials, vaults
from undercroft.vault.vaults import VaultRecord
from undercroft.vnet.doors import Door
from undercroft.workers.manifests import ManifestWriter

NETWORK = "/subscriptions/s/resourcegroups/g/providers/microsoft.network/virtualnetworks/net"
SUBSCRIPTION = "11111111-1111-1111-1111-111111111111"
TENANT = "22222222-2222-2222-2222-222222222222"
SUFFIXES = NameSuffixes()
PUBLIC = {"backup": "127.0.0.210", "blob": "127.0.0.211", "queue": "127.0.0.212", "login": "127.0.0.220"}
UNMAPPED = "127.0.0.250"

_KEYS: dict[str, bytes] = {}
"""Made once per run: an RSA key takes longer than most tests."""


def public_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def make_vault(connection: Connection, name: str, clock: Clock) -> VaultRecord:
    group = ResourceId(SUBSCRIPTION, "rg", None, (), ())
    id = ResourceId(SUBSCRIPTION, "rg", "Microsoft.RecoveryServices", ("vaults",), (name,))
    now = clock.now()
    common = {"subscription": SUBSCRIPTION, "tags": "{}", "etag": "e", "provisioning_state": "Succeeded"}
    common |= {"created": timestamp(now), "changed": timestamp(now), "location": "eastus"}
    if connection.execute(select(schema.subscriptions.c.id)).first() is None:
        connection.execute(insert(schema.subscriptions).values(id=SUBSCRIPTION, display_name="Tests"))
        values = {"key": group.key, "id": str(group), "type": group.type.lower(), "name": "rg", "body": b"{}"}
        connection.execute(insert(schema.resources).values(**common, **values))
    body = msgspec.json.encode(vaults.Vault())
    values = {"key": id.key, "id": str(id), "type": id.type.lower(), "name": name, "body": body}
    values |= {"group_key": group.key, "parent_key": group.key}
    connection.execute(insert(schema.resources).values(**common, **values))
    vaults.create(connection, id.key, "eastus", SUFFIXES, now)
    return vaults.require(connection, id.key)


class Resolver(AbstractResolver):
    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = self._addresses.get(host)
        if address is None:
            raise OSError(f"{host} is not known")
        return [ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        return None


@dataclass
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str:
        if self.body.startswith(b"<?xml"):
            return self.body.split(b"<Code>")[1].split(b"</Code>")[0].decode()
        return str(self.json["error"]["code"])


@dataclass
class Plane:
    folder: Path
    clock: Clock = field(default_factory=SystemClock)
    limits: Limits | None = None
    """None: those of the settings."""
    settings: Settings = field(default_factory=Settings)
    store: Store | None = None
    """A store of the test's own (faulty, memory); the filesystem otherwise."""
    front: Serve | None = None
    private: dict[str, str] = field(default_factory=dict)
    """Name to private address; accounts are added by ``ready``."""
    port: int = 0

    async def __aenter__(self) -> Plane:
        self._stack = AsyncExitStack()
        home = Home(self.folder)
        home.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, content in _KEYS.items():
            if not (home.keys / name).exists():
                (home.keys / name).write_bytes(content)
                (home.keys / name).chmod(0o600)
        self.database = Database.open(home.state)
        self.bytes = self.store or FilesystemStore(home.store)
        self.authority = CertificateAuthority(home, SUFFIXES, SystemClock())
        self.ca = home.ca_bundle
        self.client_tls = ssl.create_default_context(cadata=self.authority.pem.decode())
        self.tokens = Tokens(home, TENANT, self.clock)
        _KEYS.update({each.name: each.read_bytes() for each in home.keys.iterdir() if each.is_file()})

        def make(connection: Connection) -> tuple[VaultRecord, ...]:
            found = connection.execute(select(schema.vaults.c.key).order_by(schema.vaults.c.created)).scalars().all()
            if found:
                return tuple(vaults.require(connection, key) for key in found)
            return tuple(make_vault(connection, name, self.clock) for name in ("backup-one", "backup-two"))

        self.vault, self.other = self.database.transact(make)
        context = self.authority.server_context()
        self._front = Front(self.front, context, self.settings, self.clock) if self.front else None
        self.plane = DataPlane(
            database=self.database,
            store=self.bytes,
            tokens=self.tokens,
            context=context,
            settings=self.settings,
            clock=self.clock,
            keep_vault=ManifestWriter(self.database, self.bytes).write,
            divert=self._divert if self._front else None,
            limits=self.limits,
        )
        self.recovered = await self.plane.start()
        listening = socket.create_server(("0.0.0.0", 0), backlog=64)
        self.port = listening.getsockname()[1]
        await self.plane.serve(NETWORK, listening)
        self._addresses: dict[IPv4Address, Door] = {
            IPv4Address(address): Door(NETWORK, service) for service, address in PUBLIC.items()
        }
        for number, vault in ((1, self.vault), (2, self.other)):
            for offset, service in enumerate(BACKUP_SERVICES):
                fqdn = SUFFIXES.backup_member(vault.vault_id, service, "eus")
                self.add_member(vault, fqdn, "backup", f"127.0.{number}.{10 + offset}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        await self.plane.close()
        if self._front is not None:
            await self._front.close()
        await self.bytes.close()
        self.database.close()

    def _divert(self, door: Door, accepted: socket.socket) -> bool:
        if self._front is None or door.service not in FRONT:
            return False
        self._front.arrive(door.network, accepted)
        return True

    def endpoint(self, vault: VaultRecord) -> str:
        return f"/subscriptions/s/resourcegroups/g/providers/microsoft.network/privateendpoints/pe-{vault.name}"

    def add_member(self, vault: VaultRecord, fqdn: str, service: str, address: str, *, secondary: bool = False) -> None:
        endpoint = f"{self.endpoint(vault)}-far" if secondary else self.endpoint(vault)
        door = Door(NETWORK, service, endpoint, vault.key, vault.vault_id, fqdn, secondary)
        self._addresses[IPv4Address(address)] = door
        self.private[fqdn] = address
        self.publish()

    def publish(self) -> None:
        self.plane.doors.set_network(NETWORK, self._addresses)
        if self._front is not None:
            self._front.doors.set_network(NETWORK, self._addresses)

    def remove_endpoint(self, vault: VaultRecord) -> None:
        gone = [address for address, door in self._addresses.items() if door.endpoint == self.endpoint(vault)]
        for address in gone:
            del self._addresses[address]
        self.publish()

    def ready(self, vault: VaultRecord) -> list[str]:
        """Give every account of the vault its addresses on the endpoint, as provisioning does. Returns the new names."""

        def work(connection: Connection) -> list[tuple[str, str, str]]:
            rows = connection.execute(
                select(schema.members).where(
                    schema.members.c.vault_key == vault.key, schema.members.c.account.is_not(None)
                )
            ).all()
            made: list[tuple[str, str, str]] = []
            for row in rows:
                if row.fqdn in self.private:
                    continue
                address = f"127.0.{1 if vault.key == self.vault.key else 2}.{40 + len(self.private) + len(made)}"
                table = schema.allocations
                connection.execute(delete(table).where(table.c.member_fqdn == row.fqdn))
                connection.execute(
                    insert(schema.allocations).values(
                        subnet_key=f"{NETWORK}/subnets/default",
                        network_key=NETWORK,
                        address=address,
                        owner_key=self.endpoint(vault),
                        member_fqdn=row.fqdn,
                        state="Ready",
                    )
                )
                made.append((row.fqdn, row.service, address))
            return made

        found = self.database.transact(work)
        for fqdn, service, address in found:
            self.add_member(vault, fqdn, service, address)
        return [fqdn for fqdn, _, _ in found]

    def set_public_access(self, vault: VaultRecord, allowed: bool) -> None:
        body = msgspec.json.encode(vaults.Vault(public_access=allowed))
        table = schema.resources
        self.database.transact(
            lambda connection: connection.execute(update(table).where(table.c.key == vault.key).values(body=body))
        )

    def taint_of(self, vault: VaultRecord) -> str | None:
        return self.database.transact(lambda connection: vaults.require(connection, vault.key)).taint_reason

    def last_door(self, container_id: str) -> str | None:
        found = self.database.transact(lambda connection: containers.find(connection, container_id))
        return None if found is None else found.last_door

    # --- callers -------------------------------------------------------------------------------------------------

    def audience(self, vault: VaultRecord) -> str:
        return credentials.audience(TENANT, "eus", vault.name, vault.vault_id)

    def vault_token(self, vault: VaultRecord, name: str = "cred", hours: float = 48) -> str:
        """New vault credentials, the newest of the vault, and a token for them."""
        from datetime import timedelta

        now = self.clock.now()

        def work(connection: Connection) -> principals.Principal:
            who = principals.create(
                connection,
                display_name=name,
                now=now,
                public_key=public_key(),
                kind="VaultCredential",
                audience=self.audience(vault),
                vault_key=vault.key,
            )
            connection.execute(
                insert(schema.vault_credentials).values(
                    key=f"{vault.key}/certificates/{name}",
                    vault_key=vault.key,
                    name=name,
                    certificate="-",
                    principal_id=who.object_id,
                    issued=timestamp(now),
                    not_after=timestamp(now + timedelta(hours=hours)),
                )
            )
            return who

        return self.tokens.issue(self.database.transact(work), self.audience(vault), "https://login").token

    def container_token(self, vault: VaultRecord, container_id: str) -> str:
        who = self.database.transact(lambda connection: principals.find(connection, container_id))
        assert who is not None
        return self.tokens.issue(who, self.audience(vault), "https://login").token

    async def registered(self, vault: VaultRecord | None = None, machine: str = "web01") -> Agent:
        vault = vault or self.vault
        agent = Agent(self, vault, self.vault_token(vault, f"cred-{secrets.token_hex(4)}"))
        answer = await agent.call("POST", "id1", "/v1/register", registration(machine))
        assert answer.status == 200, answer.body
        self.ready(vault)
        agent.container_id = answer.json["containerId"]
        agent.token = self.container_token(vault, agent.container_id)
        return agent

    # --- the wire ------------------------------------------------------------------------------------------------

    def session(self, *, public: bool = False) -> aiohttp.ClientSession:
        addresses = dict(self.private)
        for service, address in PUBLIC.items():
            if service == "backup":
                addresses |= {SUFFIXES.public_backup(each, "eus"): address for each in BACKUP_SERVICES}
        addresses[SUFFIXES.login] = PUBLIC["login"]
        if public:
            for name in self.account_hosts():
                addresses[name] = PUBLIC[name.split(".")[1]]
        connector = aiohttp.TCPConnector(resolver=Resolver(addresses), ssl=self.client_tls, force_close=True)
        return aiohttp.ClientSession(connector=connector)

    def account_hosts(self) -> list[str]:
        table = schema.members
        return self.database.transact(
            lambda connection: list(
                connection.execute(select(table.c.fqdn).where(table.c.account.is_not(None))).scalars()
            )
        )

    async def ask(
        self,
        method: str,
        host: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        public: bool = False,
    ) -> Answer:
        from yarl import URL

        url = URL(f"https://{host}:{self.port}{path}", encoded=True)
        async with (
            self.session(public=public) as session,
            session.request(
                method, url, data=None if body is None else io.BytesIO(body), headers=headers, allow_redirects=False
            ) as response,
        ):
            return Answer(response.status, await response.read(), response.headers)


def registration(machine: str = "web01", key: str | None = None) -> dict[str, Any]:
    return {
        "machineName": machine,
        "agentVersion": "0.1",
        "operatingSystem": "Linux",
        "publicKey": key or public_key(),
    }


STATISTICS = {
    "files": 3,
    "directories": 1,
    "bytesRead": 30,
    "bytesSent": 20,
    "bytesStored": 20,
    "unreadable": 0,
    "sourceBytes": 30,
}


@dataclass
class Agent:
    plane: Plane
    vault: VaultRecord
    token: str
    container_id: str = ""

    def host(self, service: str, *, public: bool = False) -> str:
        if public:
            return SUFFIXES.public_backup(service, "eus")
        return SUFFIXES.backup_member(self.vault.vault_id, service, "eus")

    async def call(
        self, method: str, service: str, path: str, body: Any = None, *, public: bool = False, host: str | None = None
    ) -> Answer:
        headers = {"Authorization": f"Bearer {self.token}"}
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else msgspec.json.encode(body)
            headers["Content-Type"] = "application/json"
        name = host or self.host(service, public=public)
        return await self.plane.ask(method, name, path, body=data, headers=headers)

    async def begin(self, item: str = "/srv") -> dict[str, Any]:
        """An open backup with its grant."""
        answer = await self.call(
            "POST", "prot1", "/v1/backups", {"item": {"name": item, "kind": "files"}, "formatVersion": 0}
        )
        assert answer.status == 200, answer.body
        if answer.json["grant"] is None:
            assert answer.json["pending"] == 1
            self.plane.ready(self.vault)
            answer = await self.call("POST", "prot1", f"/v1/backups/{answer.json['backupId']}/renew")
            assert answer.status == 200, answer.body
        assert answer.json["grant"] is not None
        found: dict[str, Any] = answer.json
        return found

    async def put(self, grant: Mapping[str, Any], name: str, body: bytes, **headers: str) -> Answer:
        path = f"/{grant['container']}/{name}?{grant['sas']}"
        return await self.plane.ask(
            "PUT", grant["blobHost"], path, body=body, headers={"x-ms-blob-type": "BlockBlob"} | headers
        )

    async def commit(self, backup_id: str, manifest: str, packs: list[str], indexes: list[str], **more: int) -> Answer:
        body = {"manifest": manifest, "packs": packs, "indexes": indexes, "statistics": STATISTICS | more}
        return await self.call("POST", "prot1", f"/v1/backups/{backup_id}/commit", body)

    async def back_up(self, item: str = "/srv") -> dict[str, Any]:
        """One whole backup of a pack, an index and a manifest; what commit answered, and the names."""
        session = await self.begin(item)
        names = [object_name(kind) for kind in ("packs", "indexes", "manifests")]
        for name in names:
            assert (await self.put(session["grant"], name, name.encode() * 100)).status == 201
        answer = await self.commit(session["backupId"], names[2], names[:1], names[1:2])
        assert answer.status == 200, answer.body
        return {**answer.json, "packs": names[:1], "indexes": names[1:2], "manifest": names[2], "session": session}


def object_name(kind: str) -> str:
    return f"{kind}/{secrets.token_hex(16)}"


def md5(body: bytes) -> str:
    import hashlib

    return base64.b64encode(hashlib.md5(body).digest()).decode()


def registration_of(plane: Plane, container_id: str) -> str:
    found = plane.database.transact(lambda connection: containers.find(connection, container_id))
    assert found is not None
    return found.registration
