"""Vault credentials: which certificates are taken, and which of them are still good."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from sqlalchemy import Connection

from tests.vnet import world
from undercroft.errors import InvalidParameter, NotAuthorized
from undercroft.state.database import Database
from undercroft.vault import credentials

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Database]:
    with world.database(tmp_path) as opened:
        yield opened


def certificate(key: Key, start: datetime = world.NOW, days: float = 2) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Undercroft Tools")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


def encoded(der: bytes, times: int = 1) -> str:
    for _ in range(times):
        der = base64.b64encode(der)
    return der.decode("ascii")


P256 = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize("key", [P256, RSA])
@pytest.mark.parametrize("times", [1, 2])
def test_ec_and_rsa_certificates_are_taken(key: Key, times: int) -> None:
    found = credentials.parse_certificate(encoded(certificate(key), times), world.NOW)
    assert found.subject == "CN=Undercroft Tools" and found.public_key.startswith("-----BEGIN PUBLIC KEY-----")
    assert found.valid_to == world.NOW + timedelta(days=2) and len(found.thumbprint) == 40


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("%%%", "not base64"),
        (base64.b64encode(b"nothing").decode(), "not base64 of a DER certificate"),
        (encoded(certificate(ec.generate_private_key(ec.SECP384R1()))), "secp384r1"),
        (encoded(certificate(rsa.generate_private_key(65537, 1024))), "1024 bits"),
        (encoded(certificate(ed25519.Ed25519PrivateKey.generate())), "EC P-256 or RSA"),
        (encoded(certificate(P256, world.NOW - timedelta(days=3))), "expired"),
        (encoded(certificate(P256, world.NOW + timedelta(days=1))), "clock"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said(text: str, why: str) -> None:
    with pytest.raises(InvalidParameter, match=why) as caught:
        credentials.parse_certificate(text, world.NOW)
    assert caught.value.code == "InvalidCertificate"


def test_only_the_newest_credentials_are_good_and_only_for_their_time(state: Database) -> None:
    def check(connection: Connection) -> None:
        vault = world.vault(connection)
        found = credentials.parse_certificate(encoded(certificate(P256)), world.NOW)

        def issue(principal: str, at: datetime) -> None:
            end = at + timedelta(hours=48)
            credentials.store(connection, vault.key, f"cert-{principal}", found, principal, at, end)

        issue("first", world.NOW)
        assert credentials.check(connection, "first", world.NOW) == vault.key
        with pytest.raises(NotAuthorized, match="expired") as expired:
            credentials.check(connection, "first", world.NOW + timedelta(hours=48))
        assert expired.value.code == "UserErrorVaultCredentialsExpired"
        issue("second", world.NOW + timedelta(minutes=1))
        with pytest.raises(NotAuthorized, match="newest") as superseded:
            credentials.check(connection, "first", world.NOW + timedelta(minutes=2))
        assert superseded.value.code == "UserErrorVaultCredentialsSuperseded"
        assert credentials.check(connection, "second", world.NOW + timedelta(minutes=2)) == vault.key
        with pytest.raises(NotAuthorized):
            credentials.check(connection, "stranger", world.NOW)

    state.transact(check)


def test_the_audience_names_the_vault() -> None:
    assert credentials.audience("t", "we", "vault1", 7) == "api://t/RecoveryServiceVault/we/vault1/7"
