"""A real control plane for tests: every part as the composition root builds it, behind TLS on a free port."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from undercroft.allowance import Allowance
from undercroft.arm import operations
from undercroft.arm.application import Application
from undercroft.arm.call import Route
from undercroft.arm.listener import Listener
from undercroft.arm.routes import resource_types
from undercroft.clock import Clock, SystemClock
from undercroft.config import Home, Settings
from undercroft.identity import deployment, principals
from undercroft.identity.assignments import assign
from undercroft.identity.audiences import Audiences
from undercroft.identity.authority import CertificateAuthority
from undercroft.identity.authorization import Authorization
from undercroft.identity.deployment import Deployment
from undercroft.identity.graph import Graph
from undercroft.identity.login import Login
from undercroft.identity.metadata import Metadata
from undercroft.identity.roles import by_name
from undercroft.identity.tokens import Tokens
from undercroft.providers import authorization as authorization_provider
from undercroft.providers import resources as resources_provider
from undercroft.providers.resources import Deleters, GroupDeletion
from undercroft.state.database import Database

API = "api-version=2024-11-01"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str
    json: Any

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])


@dataclass
class ControlPlane:
    database: Database
    home: Home
    clock: Clock
    deployment: Deployment
    tokens: Tokens
    authority: CertificateAuthority
    authorization: Authorization
    deletion: GroupDeletion
    application: Application
    port: int
    http: aiohttp.ClientSession
    token: str = ""

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def subscription(self) -> str:
        return f"/subscriptions/{self.deployment.subscription_id}"

    @property
    def token_path(self) -> str:
        return f"/{self.deployment.tenant_id}/oauth2/v2.0/token"

    async def send(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: Any = None,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """With the owner's token, unless another (or "" for none) is given. The path is sent as it is."""
        sent = dict(headers or {})
        chosen = self.token if token is None else token
        if chosen:
            sent["Authorization"] = f"Bearer {chosen}"
        url = URL(self.url + path if path.startswith("/") else path, encoded=True)
        async with self.http.request(method, url, json=json, data=data, headers=sent) as response:
            text = await response.text()
            kind = response.headers.get("Content-Type", "")
            found = await response.json() if text and kind.startswith("application/json") else None
            return Answer(response.status, dict(response.headers), text, found)

    async def get(self, path: str, **more: Any) -> Answer:
        return await self.send("GET", path, **more)

    async def log_in(self, client_id: str, secret: str, audience: str | None = None) -> Answer:
        form = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": secret,
            "scope": (audience or f"{self.url}/") + "/.default",
        }
        return await self.send("POST", self.token_path, data=form, token="")

    async def principal(self, role: str | None = None, scope: str | None = None) -> tuple[str, str]:
        """A new service principal (object id, token) with a role at a scope."""

        made = await self.database.write(
            lambda connection: principals.create(connection, display_name="someone", now=self.clock.now())
        )
        if role is not None:
            await self.grant(made.object_id, role, scope or self.subscription)
        return made.object_id, self.tokens.issue(made, f"{self.url}/", self.url).token

    async def grant(self, object_id: str, role: str, scope: str) -> None:
        definition = by_name(role)
        assert definition is not None
        await self.database.write(
            lambda connection: assign(
                connection,
                scope=scope,
                name=str(uuid.uuid4()),
                role_definition_id=definition.name,
                principal_id=object_id,
                now=self.clock.now(),
            )
        )

    async def group(self, name: str = "rg", location: str = "westeurope") -> str:
        path = f"{self.subscription}/resourceGroups/{name}"
        answer = await self.send("PUT", f"{path}?{API}", json={"location": location})
        assert answer.status in (200, 201), answer.text
        return path


def prepare(folder: Path) -> None:
    """What a first start makes in the folder."""
    clock, home = SystemClock(), Home(folder)
    database = Database.open(home.state)
    try:
        made = deployment.ensure(database, home, clock)
    finally:
        database.close()
    Tokens(home, made.tenant_id, clock)
    CertificateAuthority(home, Settings().suffixes, clock)


@asynccontextmanager
async def control_plane(
    folder: Path,
    *,
    clock: Clock | None = None,
    routes: Iterable[Route] = (),
    deleters: Deleters | None = None,
    patience: float = 5.0,
    calls_per_second: int = 0,
) -> AsyncIterator[ControlPlane]:
    clock = clock or SystemClock()
    home, settings = Home(folder), Settings()
    database = Database.open(home.state)
    try:
        made = deployment.ensure(database, home, clock)
        tokens = Tokens(home, made.tenant_id, clock)
        # certificates need the real time: OpenSSL looks at the wall clock
        authority = CertificateAuthority(home, settings.suffixes, SystemClock())
        audiences, authorization = Audiences.of(settings.suffixes), Authorization(database, clock)
        deletion = GroupDeletion(database, clock, authorization, deleters or {}, patience)
        others = (
            *authorization_provider.routes(database, clock, authorization, made.tenant_id),
            *operations.routes(database, ("Microsoft.Resources",)),
            *routes,
        )
        application = Application(
            (
                *others,
                *resources_provider.routes(
                    database, clock, authorization, made.tenant_id, deletion, resource_types(others)
                ),
            ),
            tokens,
            authorization,
            database=database,
            audiences=audiences,
            allowance=Allowance(clock, calls_per_second),
            surfaces=(
                Metadata(settings.suffixes),
                Login(database, tokens, audiences, clock),
                Graph(database, tokens, authorization, audiences, made.subscription_id, made.object_id, clock),
            ),
        )
        listener = await Listener.open(application.handle, authority.server_context(), 0)
        connector = aiohttp.TCPConnector(ssl=authority.client_context())
        async with aiohttp.ClientSession(connector=connector) as http:
            plane = ControlPlane(
                database,
                home,
                clock,
                made,
                tokens,
                authority,
                authorization,
                deletion,
                application,
                listener.port,
                http,
            )
            answer = await plane.log_in(made.client_id, made.client_secret)
            assert answer.status == 200, answer.text
            plane.token = answer.json["access_token"]
            try:
                yield plane
            finally:
                await deletion.close()
                await listener.close()
    finally:
        database.close()
