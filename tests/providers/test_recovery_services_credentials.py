"""Vault credentials: a certificate goes in, a principal that may do one thing comes out; only the newest is good."""

from __future__ import annotations

import base64
import shutil
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from sqlalchemy import select

from tests.arm.control_plane import Answer
from tests.providers.site import Site, site
from undercroft.errors import NotAuthorized
from undercroft.state import schema
from undercroft.vault import credentials, vaults

KeyType = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@pytest.fixture
async def here(prepared: Path, tmp_path: Path) -> AsyncIterator[Site]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    async with site(tmp_path) as made:
        await made.vault()
        yield made


def certificate(key: KeyType | None = None, *, start: int = -1, hours: int = 240) -> x509.Certificate:
    chosen = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Undercroft vault credentials safe")])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(chosen.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(hours=start))
        .not_valid_after(now + timedelta(hours=hours))
        .sign(chosen, None if isinstance(chosen, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )


def der(found: x509.Certificate) -> str:
    return base64.b64encode(found.public_bytes(Encoding.DER)).decode()


async def put(here: Site, text: str, name: str = "safe-vaultcredentials", **more: Any) -> Answer:
    body = {"properties": {"authType": "AAD", "certificate": text, **more}}
    return await here.send("PUT", f"{here.vault_id()}/certificates/{name}", body)


async def check(here: Site, answer: Answer) -> str:
    principal = answer.json["properties"]["servicePrincipalObjectId"]
    now = here.plane.clock.now()
    return await here.database.read(lambda connection: credentials.check(connection, principal, now))


async def test_the_answer_is_azures(here: Site) -> None:
    found = certificate()
    answer = await put(here, der(found))
    assert answer.status == 200, answer.text
    assert answer.json["type"] == "Microsoft.RecoveryServices/vaults/certificates"
    properties = answer.json["properties"]
    record = await here.database.read(lambda connection: vaults.require(connection, here.vault_id()))
    tenant = here.plane.deployment.tenant_id
    assert properties["resourceId"] == record.vault_id
    assert properties["aadTenantId"] == tenant
    assert properties["aadAudience"] == f"api://{tenant}/RecoveryServiceVault/we/safe/{record.vault_id}"
    assert properties["certificate"] == der(found)
    assert properties["thumbprint"] == found.fingerprint(hashes.SHA1()).hex().upper()
    end = datetime.fromisoformat(properties["validTo"])
    assert timedelta(hours=47) < end - datetime.now(UTC) <= timedelta(hours=48), (
        "as long as the setting says, not longer"
    )


async def test_the_key_of_the_certificate_logs_in_for_the_vault_and_nothing_else(here: Site) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    properties = (await put(here, der(certificate(key)))).json["properties"]
    client, now = properties["servicePrincipalClientId"], datetime.now(UTC)
    claims = {
        "iss": client,
        "sub": client,
        "aud": here.plane.url + here.plane.token_path,
        "iat": now,
        "exp": now + timedelta(minutes=5),
    }

    async def log_in(audience: str) -> Answer:
        form = {
            "grant_type": "client_credentials",
            "client_id": client,
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": jwt.encode({**claims, "jti": audience}, key, algorithm="ES256"),
            "scope": f"{audience}/.default",
        }
        return await here.plane.send("POST", here.plane.token_path, data=form, token="")

    good = await log_in(properties["aadAudience"])
    assert good.status == 200, good.text
    assert (await here.get(here.vault_id(), token=good.json["access_token"])).status == 401
    assert (await log_in(f"{here.plane.url}/")).status == 400


ENCODINGS: list[Callable[[x509.Certificate], str]] = [
    lambda found: base64.b64encode(der(found).encode()).decode(),
    lambda found: base64.b64encode(found.public_bytes(Encoding.PEM)).decode(),
]


@pytest.mark.parametrize("encode", ENCODINGS)
async def test_a_certificate_may_be_encoded_twice_or_as_pem(
    here: Site, encode: Callable[[x509.Certificate], str]
) -> None:
    found = certificate()
    answer = await put(here, encode(found))
    assert answer.status == 200, answer.text
    assert answer.json["properties"]["certificate"] == der(found)


async def test_only_the_newest_credentials_are_good(here: Site) -> None:
    first = await put(here, der(certificate()))
    assert await check(here, first) == here.vault_id().lower()
    same_name = await put(here, der(certificate()))
    other_name = await put(here, der(certificate()), "other")
    assert await check(here, other_name) == here.vault_id().lower()
    for old in (first, same_name):
        with pytest.raises(NotAuthorized) as caught:
            await check(here, old)
        assert caught.value.code == "UserErrorVaultCredentialsSuperseded"
        assert "newest" in caught.value.message
    query = select(schema.principals.c.object_id).where(schema.principals.c.kind == "VaultCredential")
    known = await here.database.read(lambda connection: set(connection.execute(query).scalars()))
    assert first.json["properties"]["servicePrincipalObjectId"] in known, (
        "it still logs in, and is told why it is no good"
    )


async def test_the_order_of_downloads_decides_even_when_the_clock_stands_still(here: Site) -> None:
    def work(name: str) -> None:
        def write(connection: Any) -> None:
            found = credentials.parse_certificate(der(certificate()), moment)
            credentials.store(connection, here.vault_id(), name, found, name, moment, moment + timedelta(hours=1))

        here.database.transact(write)

    moment = datetime.now(UTC)
    work("first")
    moment -= timedelta(minutes=5)  # and even when it was set back
    work("second")
    assert here.database.transact(lambda connection: credentials.check(connection, "second", moment))
    with pytest.raises(NotAuthorized):
        here.database.transact(lambda connection: credentials.check(connection, "first", moment))


async def test_sending_the_same_certificate_again_changes_nothing(here: Site) -> None:
    text = der(certificate())
    first, again = await put(here, text), await put(here, text)
    assert again.json == first.json
    await put(here, der(certificate()))
    later = await put(here, text)
    assert later.json["properties"]["servicePrincipalObjectId"] != first.json["properties"]["servicePrincipalObjectId"]
    assert await check(here, later)


async def test_a_certificate_that_ends_sooner_ends_sooner(here: Site) -> None:
    answer = await put(here, der(certificate(hours=2)))
    end = datetime.fromisoformat(answer.json["properties"]["validTo"])
    assert end - datetime.now(UTC) < timedelta(hours=2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: "not base64!", "base64"),
        (lambda: base64.b64encode(b"hello").decode(), "certificate"),
        (lambda: der(certificate(hours=-1, start=-9)), "expired"),
        (lambda: der(certificate(start=3)), "clock"),
        (lambda: der(certificate(ec.generate_private_key(ec.SECP384R1()))), "P-256"),
        (lambda: der(certificate(rsa.generate_private_key(65537, 1024))), "2048"),
        (lambda: der(certificate(ed25519.Ed25519PrivateKey.generate())), "P-256"),
        (
            lambda: base64.b64encode(
                ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            ).decode(),
            "private key",
        ),
    ],
)
async def test_a_bad_certificate_is_refused_saying_what_is_wrong(
    here: Site, make: Callable[[], str], said: str
) -> None:
    answer = await put(here, make())
    assert (answer.status, answer.code) == (400, "InvalidCertificate"), answer.text
    assert said in answer.message


async def test_other_ways_to_log_in_and_other_vaults(here: Site) -> None:
    text = der(certificate())
    refused = await put(here, text, authType="ACS")
    assert refused.status == 501
    assert "ACS" in refused.message
    body = {"properties": {"certificate": text}}
    missing = await here.send("PUT", f"{here.vault_id('nothing')}/certificates/c", body)
    assert (missing.status, missing.code) == (404, "ResourceNotFound")
    _, reader = await here.plane.principal("Reader")
    denied = await here.send("PUT", f"{here.vault_id()}/certificates/c", body, token=reader)
    assert denied.code == "AuthorizationFailed"


async def test_deleting_the_vault_ends_its_credentials(here: Site) -> None:
    await put(here, der(certificate()))
    await put(here, der(certificate()))
    assert (await here.send("DELETE", here.vault_id())).status == 204
    query = select(schema.principals.c.object_id).where(schema.principals.c.kind == "VaultCredential")
    assert (await here.database.read(lambda connection: connection.execute(query).all())) == []
