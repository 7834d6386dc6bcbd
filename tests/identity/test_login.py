"""Logging in: secrets and assertions, over the real wire, and by the clients people use."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from tests.arm.control_plane import API, Answer, ControlPlane, control_plane
from undercroft.clock import ManualClock
from undercroft.identity import principals
from undercroft.identity.audiences import Audiences
from undercroft.identity.client_assertions import ASSERTIONS_EACH, Assertions
from undercroft.identity.login_errors import LoginRefused
from undercroft.identity.principals import Principal
from undercroft.names import NameSuffixes

ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
VAULT = "api://tenant/RecoveryServiceVault/weu/vault1/1234567890123456"


class Holder:
    """A principal with a key of its own."""

    def __init__(self, plane: ControlPlane, algorithm: str = "ES256") -> None:
        self.plane = plane
        self.algorithm = algorithm
        private = (
            ec.generate_private_key(ec.SECP256R1()) if algorithm == "ES256" else rsa.generate_private_key(65537, 2048)
        )
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.key = ECKey.import_key(pem) if algorithm == "ES256" else RSAKey.import_key(pem)
        self.public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    async def enroll(self, **more: Any) -> Principal:
        now = self.plane.clock.now()
        self.principal = await self.plane.database.write(
            lambda c: principals.create(c, display_name="holder", now=now, public_key=self.public, **more)
        )
        return self.principal

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(self.plane.clock.now().timestamp())
        client = self.principal.client_id
        audience = f"{self.plane.url}{self.plane.token_path}"
        claims = {"iss": client, "sub": client, "aud": audience, "iat": now, "exp": now + 600, "jti": str(uuid.uuid4())}
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def sign(self, **changes: Any) -> str:
        return jwt.encode({"alg": self.algorithm}, self.claims(**changes), self.key, algorithms=[self.algorithm])

    async def log_in(self, assertion: str, audience: str = VAULT, **form: str) -> Answer:
        sent = {
            "grant_type": "client_credentials",
            "client_id": self.principal.client_id,
            "client_assertion_type": ASSERTION,
            "client_assertion": assertion,
            "scope": f"{audience}/.default",
        }
        return await self.plane.send("POST", self.plane.token_path, data=sent | form, token="")


@pytest.fixture
async def holder(plane: ControlPlane) -> AsyncIterator[Holder]:
    made = Holder(plane)
    await made.enroll(kind="Container", audience=VAULT, vault_key="/the/vault")
    yield made


async def test_a_secret_gives_a_token_that_works(plane: ControlPlane) -> None:
    answer = await plane.log_in(plane.deployment.client_id, plane.deployment.client_secret)
    assert (answer.status, answer.json["token_type"], answer.json["expires_in"]) == (200, "Bearer", 3600)
    assert answer.headers["Cache-Control"] == "no-store"
    assert (await plane.get(f"/subscriptions?{API}", token=answer.json["access_token"])).status == 200


async def test_every_name_and_spelling_of_the_resource_manager_is_one_audience(plane: ControlPlane) -> None:
    for audience in (
        plane.url,
        f"{plane.url}/",
        "https://management.azure.com/",
        "https://management.azure.com",
        "https://management.core.windows.net/",
        "https://management.undercroft.internal/",
        "https://127.0.0.1:1/",
    ):
        answer = await plane.log_in(plane.deployment.client_id, plane.deployment.client_secret, audience)
        assert answer.status == 200, answer.text
        assert (await plane.get(f"/subscriptions?{API}", token=answer.json["access_token"])).status == 200


@pytest.mark.parametrize(
    ("changes", "status", "number"),
    [
        ({"client_secret": "wrong"}, 401, 7000215),
        ({"client_secret": ""}, 401, 7000216),
        ({"client_id": "00000000-0000-4000-8000-000000000001"}, 400, 700016),
        ({"grant_type": "password"}, 400, 70003),
        ({"grant_type": ""}, 400, 900144),
        ({"scope": ""}, 400, 900144),
        ({"scope": "https://localhost/"}, 400, 1002012),
        ({"scope": "https://localhost/.default openid"}, 400, 1002012),
        ({"scope": "https://elsewhere.example/.default"}, 400, 500011),
        ({"scope": "api://x/.default"}, 400, 500011),
        ({"scope": "https://localhost@evil.example//.default"}, 400, 500011),
        ({"scope": "https://localhost:x//.default"}, 400, 500011),
    ],
)
async def test_refusals_have_entras_form(
    plane: ControlPlane, changes: dict[str, str], status: int, number: int
) -> None:
    form = {
        "grant_type": "client_credentials",
        "client_id": plane.deployment.client_id,
        "client_secret": plane.deployment.client_secret,
        "scope": f"{plane.url}//.default",
    }
    answer = await plane.send("POST", plane.token_path, data=form | changes, token="")
    assert (answer.status, answer.json["error_codes"]) == (status, [number])
    assert answer.json["error_description"].startswith(f"AADSTS{number}: ")
    assert plane.deployment.client_secret not in answer.text


async def test_another_tenant_is_not_found(plane: ControlPlane) -> None:
    answer = await plane.send("POST", "/contoso/oauth2/v2.0/token", data={"grant_type": "x"}, token="")
    assert (answer.status, answer.json["error_codes"]) == (400, [90002])


async def test_a_form_must_be_a_form(plane: ControlPlane) -> None:
    answer = await plane.send("POST", plane.token_path, json={"grant_type": "client_credentials"}, token="")
    assert (answer.status, answer.json["error_codes"]) == (400, [900144])
    answer = await plane.get(plane.token_path, token="")
    assert (answer.status, answer.json["error"]) == (405, "invalid_request")


async def test_the_older_urls(plane: ControlPlane) -> None:
    secret = {"client_id": plane.deployment.client_id, "client_secret": plane.deployment.client_secret}
    form = {"grant_type": "client_credentials", **secret, "resource": "https://management.azure.com/"}
    answer = await plane.send("POST", f"/{plane.deployment.tenant_id}/oauth2/token", data=form, token="")
    assert (answer.status, answer.json["expires_in"], answer.json["resource"]) == (200, "3600", form["resource"])
    form = {"grant_type": "client_credentials", **secret, "scope": f"{plane.url}//.default"}
    assert (await plane.send("POST", "/adfs/oauth2/token", data=form, token="")).status == 200


async def test_discovery_leads_to_what_it_names(plane: ControlPlane) -> None:
    tenant = plane.deployment.tenant_id
    for root in (f"/{tenant}/v2.0", f"/{tenant}", "/adfs", "/organizations/v2.0"):
        document = (await plane.get(f"{root}/.well-known/openid-configuration", token="")).json
        assert document["token_endpoint"].startswith(plane.url)
        keys = await plane.get(document["jwks_uri"], token="")
        assert {"kid", "n", "e", "kty"} <= set(keys.json["keys"][0])
        assert not {"d", "p", "q"} & set(keys.json["keys"][0])
    document = (await plane.get(f"/{tenant}/v2.0/.well-known/openid-configuration", token="")).json
    head = plane.token.split(".")[0]
    assert document["issuer"] == f"{plane.url}/{tenant}/v2.0" and head


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
async def test_an_assertion_gives_a_token_for_its_audience_only(plane: ControlPlane, algorithm: str) -> None:
    holder = Holder(plane, algorithm)
    principal = await holder.enroll(kind="Container", audience=VAULT, vault_key="/the/vault")
    answer = await holder.log_in(holder.sign())
    assert answer.status == 200, answer.text
    claims = plane.tokens.verify(answer.json["access_token"], {VAULT})
    assert (claims.object_id, claims.client_id) == (principal.object_id, principal.client_id)
    assert (claims.kind, claims.vault_key) == ("Container", "/the/vault")
    refused = await holder.log_in(holder.sign(), f"{plane.url}/")
    assert (refused.status, refused.json["error_codes"]) == (400, [500011])
    answer = await plane.get(f"/subscriptions?{API}", token=answer.json["access_token"])
    assert (answer.status, answer.code) == (401, "InvalidAuthenticationTokenAudience")


async def test_the_token_url_may_be_named_by_any_of_our_names(plane: ControlPlane, holder: Holder) -> None:
    for host in (NameSuffixes().login, NameSuffixes().management, "127.0.0.1:9", "localhost"):
        assert (await holder.log_in(holder.sign(aud=f"https://{host}{plane.token_path}"))).status == 200


async def test_an_assertion_works_once(holder: Holder) -> None:
    assertion = holder.sign()
    assert (await holder.log_in(assertion)).status == 200
    again = await holder.log_in(assertion)
    assert (again.status, again.json["error_codes"]) == (401, [700027])
    assert "used before" in again.json["error_description"]


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"iss": "someone"}, 700021),
        ({"sub": "someone"}, 700021),
        ({"aud": "https://login.microsoftonline.com/x/oauth2/v2.0/token"}, 700023),
        ({"aud": "https://localhost/subscriptions"}, 700023),
        ({"jti": None}, 50027),
        ({"jti": ""}, 50027),
        ({"iat": None}, 50027),
        ({"exp": "soon"}, 50027),
        ({"exp": float("inf")}, 50027),
        ({"exp": float("nan")}, 50027),
        ({"exp": 1}, 700024),
    ],
)
async def test_what_an_assertion_must_say(holder: Holder, changes: dict[str, Any], number: int) -> None:
    answer = await holder.log_in(holder.sign(**changes))
    assert (answer.status, answer.json["error_codes"]) == (401, [number]), answer.text


async def test_an_assertion_lives_ten_minutes_at_most(holder: Holder) -> None:
    now = int(holder.plane.clock.now().timestamp())
    for changes in ({"exp": now + 700}, {"iat": now - 500, "exp": now + 500}, {"iat": now + 400, "exp": now + 900}):
        answer = await holder.log_in(holder.sign(**changes))
        assert (answer.status, answer.json["error_codes"]) == (401, [700024])


async def test_an_assertion_by_another_key(plane: ControlPlane, holder: Holder) -> None:
    stranger = Holder(plane)
    stranger.principal = holder.principal
    assert (await holder.log_in(stranger.sign())).json["error_codes"] == [700027]
    unsigned = holder.sign().rsplit(".", 1)[0] + "."
    assert (await holder.log_in(unsigned)).json["error_codes"] == [700027]
    assert (await holder.log_in(holder.sign(), client_assertion_type="x")).json["error_codes"] == [90014]


async def test_a_credential_that_ended(tmp_path: Path) -> None:
    clock = ManualClock()
    async with control_plane(tmp_path, clock=clock) as plane:
        holder = Holder(plane)
        await holder.enroll(kind="VaultCredential", audience=VAULT, not_after=clock.now() + timedelta(minutes=10))
        answer = await holder.log_in(holder.sign())
        assert answer.json["expires_in"] == 600  # no longer than the credential
        clock.advance(timedelta(minutes=11))
        answer = await holder.log_in(holder.sign())
        assert (answer.status, answer.json["error_codes"]) == (401, [7000222])


async def test_the_azure_identity_library(plane: ControlPlane) -> None:
    from azure.core.pipeline.transport import AioHttpTransport
    from azure.identity.aio import ClientSecretCredential

    credential = ClientSecretCredential(
        plane.deployment.tenant_id,
        plane.deployment.client_id,
        plane.deployment.client_secret,
        authority=plane.url,
        disable_instance_discovery=True,
        transport=AioHttpTransport(session=plane.http, session_owner=False),
    )
    async with credential:
        token = await credential.get_token(f"{plane.url}//.default")
    assert (await plane.get(f"/subscriptions?{API}", token=token.token)).status == 200


async def test_metadata_is_an_object_or_a_list_by_version(plane: ControlPlane) -> None:
    document = (await plane.get("/metadata/endpoints?api-version=2022-09-01", token="")).json
    assert document["authentication"]["loginEndpoint"] == document["resourceManager"] == plane.url
    assert document["authentication"]["audiences"][0] == f"{plane.url}/"
    assert {"storage", "keyVaultDns", "sqlServerHostname", "acrLoginServer"} <= set(document["suffixes"])
    assert (await plane.get("/metadata/endpoints?api-version=2019-05-01", token="")).json == [document]
    assert (await plane.get("/metadata/endpoints", token="")).code == "MissingApiVersionParameter"
    assert (await plane.send("POST", "/metadata/endpoints?api-version=2022-09-01", token="")).status == 405


async def test_a_flood_of_logins_is_told_to_come_again(plane: ControlPlane) -> None:
    answers = await asyncio.gather(*(plane.log_in(plane.deployment.client_id, "wrong") for _ in range(90)))
    assert {answer.status for answer in answers} == {401, 429}
    assert (await plane.log_in(plane.deployment.client_id, plane.deployment.client_secret)).status == 200


async def test_one_host_that_logs_in_without_end_stops_nobody_else(holder: Holder) -> None:
    """It has a good key; what is remembered of its assertions must not crowd out the others'."""
    plane = holder.plane
    rules = Assertions(Audiences.of(NameSuffixes()), plane.deployment.tenant_id, plane.clock)
    for _ in range(ASSERTIONS_EACH):
        rules.verify(holder.sign(), holder.principal)
    with pytest.raises(LoginRefused) as refused:
        rules.verify(holder.sign(), holder.principal)
    assert refused.value.http_status == 429
    other = Holder(plane)
    await other.enroll(kind="Container", audience=VAULT, vault_key="/the/vault")
    rules.verify(other.sign(), other.principal)


async def test_a_form_is_small(plane: ControlPlane) -> None:
    """Nobody is known yet: what is read into memory of anybody must be little."""
    answer = await plane.log_in(plane.deployment.client_id, "x" * 300_000)
    assert answer.status == 413, answer.text
