"""Vault credentials: a certificate, whose key was made by the client, that may do one thing, register.

Good for a time the server decides (48 hours by default), and only the newest of a vault is good (pains D1). Older rows are
kept a while, so that who still has such a file is told what is wrong with it.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection, delete, func, insert, select

from undercroft.clock import timestamp
from undercroft.errors import InvalidParameter, NotAuthorized
from undercroft.state.schema import principals, vault_credentials

__all__ = ["PRINCIPAL_KIND", "Certificate", "audience", "check", "newest", "parse_certificate", "store"]

PRINCIPAL_KIND = "VaultCredential"

_TARGET = "properties.certificate"
_CODE = "InvalidCertificate"
_KEEP = timedelta(days=30)
_SKEW = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Certificate:
    pem: str
    public_key: str
    """PEM, SubjectPublicKeyInfo."""
    der: bytes
    subject: str
    issuer: str
    thumbprint: str
    valid_from: datetime
    valid_to: datetime


def parse_certificate(text: str, now: datetime) -> Certificate:
    """The ``certificate`` of the request: base64 of DER, or (as Azure's own example has it) base64 of that text once more, or
    base64 of PEM."""
    try:
        data = base64.b64decode(text, validate=True)
        if b"PRIVATE KEY" in data:
            raise InvalidParameter(
                "The certificate was sent with its private key. Send the certificate only, and make a new key: this one is "
                "no secret any more.",
                code=_CODE,
                target=_TARGET,
            )
        if data[:3] == b"MII":
            data = base64.b64decode(data, validate=True)
        if data.lstrip().startswith(b"-----BEGIN CERTIFICATE-----"):
            data = x509.load_pem_x509_certificate(data).public_bytes(Encoding.DER)
        found = x509.load_der_x509_certificate(data)
        key = found.public_key()
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidParameter(
            f"The certificate is not base64 of a DER certificate ({error}). Only the certificate is sent, never its key.",
            code=_CODE,
            target=_TARGET,
        ) from error
    except Exception as error:  # cryptography.exceptions.UnsupportedAlgorithm, and what its parser may add
        if type(error).__name__ != "UnsupportedAlgorithm":
            raise
        raise InvalidParameter(
            f"The certificate's key is of no known kind ({error}).", code=_CODE, target=_TARGET
        ) from error
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1):
            raise InvalidParameter(
                f"The certificate's key is on the curve {key.curve.name}; P-256 is needed.", code=_CODE, target=_TARGET
            )
    elif isinstance(key, rsa.RSAPublicKey):
        if key.key_size < 2048:
            raise InvalidParameter(
                f"The certificate's RSA key has {key.key_size} bits; 2048 are needed at least.",
                code=_CODE,
                target=_TARGET,
            )
    else:
        raise InvalidParameter("The certificate's key must be EC P-256 or RSA.", code=_CODE, target=_TARGET)
    if found.not_valid_after_utc <= now:
        raise InvalidParameter(
            f"The certificate expired at {timestamp(found.not_valid_after_utc)}.", code=_CODE, target=_TARGET
        )
    if found.not_valid_before_utc > now + _SKEW:
        raise InvalidParameter(
            f"The certificate is valid only from {timestamp(found.not_valid_before_utc)}; the server's time is "
            f"{timestamp(now)}. Check this machine's clock.",
            code=_CODE,
            target=_TARGET,
        )
    return Certificate(
        found.public_bytes(Encoding.PEM).decode("ascii"),
        key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii"),
        data,
        found.subject.rfc4514_string(),
        found.issuer.rfc4514_string(),
        found.fingerprint(hashes.SHA1()).hex().upper(),
        found.not_valid_before_utc,
        found.not_valid_after_utc,
    )


def audience(tenant: str, geo_code: str, vault_name: str, vault_id: int) -> str:
    """The only audience a vault's credentials and containers may ask tokens for."""
    return f"api://{tenant}/RecoveryServiceVault/{geo_code}/{vault_name}/{vault_id}"


def store(
    connection: Connection,
    vault_key: str,
    name: str,
    certificate: Certificate,
    principal_id: str,
    now: datetime,
    not_after: datetime,
) -> None:
    """Make these the vault's credentials; ``principal_id`` is the principal made for them in the same transaction.

    Principals of older ones stay for a while even when the name is taken over (a name is one of a day): they may still log in,
    and are told by ``check`` that newer credentials took their place.
    """
    table = vault_credentials
    vault_key = vault_key.lower()
    key = f"{vault_key}/certificates/{name}".lower()
    old = timestamp(now - _KEEP)
    before = _last(connection, vault_key)
    if before is not None and before >= timestamp(now):  # the order decides which are good, whatever the clock does
        now = datetime.fromisoformat(before) + timedelta(microseconds=1)
    connection.execute(
        delete(table).where(table.c.vault_key == vault_key, (table.c.key == key) | (table.c.not_after < old))
    )
    connection.execute(
        delete(principals).where(
            principals.c.vault_key == vault_key, principals.c.kind == PRINCIPAL_KIND, principals.c.not_after < old
        )
    )
    connection.execute(
        insert(table).values(
            key=key,
            vault_key=vault_key,
            name=name,
            certificate=certificate.pem,
            principal_id=principal_id,
            issued=timestamp(now),
            not_after=timestamp(not_after),
        )
    )


def newest(connection: Connection, vault_key: str, certificate: Certificate) -> tuple[str, str] | None:
    """Principal and end of the vault's newest credentials, if they are of this certificate (the request is a repetition)."""
    row = connection.execute(
        select(vault_credentials)
        .where(vault_credentials.c.vault_key == vault_key.lower())
        .order_by(vault_credentials.c.issued.desc())
        .limit(1)
    ).first()
    return None if row is None or row.certificate != certificate.pem else (row.principal_id, row.not_after)


def _last(connection: Connection, vault_key: str) -> str | None:
    """When the newest credentials of the vault were issued."""
    query = select(func.max(vault_credentials.c.issued)).where(vault_credentials.c.vault_key == vault_key)
    return connection.execute(query).scalar()


def check(connection: Connection, principal_id: str, now: datetime) -> str:
    """The key of the vault that this principal's credentials may register with; NotAuthorized says what is wrong else."""
    row = connection.execute(
        select(vault_credentials).where(vault_credentials.c.principal_id == principal_id)
    ).one_or_none()
    if row is None:
        raise NotAuthorized(
            "These vault credentials were superseded by newer ones: only the newest of a vault are good. Use the newest file, or "
            "download the vault credentials again.",
            code="UserErrorVaultCredentialsSuperseded",
        )
    if row.not_after <= timestamp(now):
        raise NotAuthorized(
            f"These vault credentials expired at {row.not_after}. Download the vault credentials again.",
            code="UserErrorVaultCredentialsExpired",
        )
    newer = connection.execute(
        select(vault_credentials.c.issued)
        .where(vault_credentials.c.vault_key == row.vault_key, vault_credentials.c.issued > row.issued)
        .limit(1)
    ).scalar()
    if newer is not None:
        raise NotAuthorized(
            f"These vault credentials (of {row.issued}) were superseded by newer ones (of {newer}): only the newest of a vault "
            "are good. Use the newest file.",
            code="UserErrorVaultCredentialsSuperseded",
        )
    vault_key: str = row.vault_key
    return vault_key
