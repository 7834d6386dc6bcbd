"""The vault credentials file (docs/protocol.md, section 3): parsed strictly, every fault named.

Whether a file is still good is the server's decision; an old one is only warned of here, because this machine's clock may be
wrong (reference: pains D1, D10)."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from undercroft.errors import InvalidInput, LocalProblem

if TYPE_CHECKING:
    from undercroft.clock import Clock

__all__ = ["CredentialsFile", "VaultCredentials", "read_credentials"]

VERSION = 1
LARGEST = 256 * 1024
CODE = "UserErrorInvalidVaultCredentials"
FRESH = "Download a new file for this vault with 'undercroft vault credentials'."


class VaultCredentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    version: int
    vault_name: str
    vault_id: str
    resource_id: str
    subscription_id: str
    tenant_id: str
    region: str
    geo_code: str
    audience: str
    login_endpoint: str
    client_id: str
    certificate: str
    private_key: str
    ca_bundle: str
    private_host: str
    public_host: str
    issued: datetime
    not_after: datetime
    public_fallback: bool = True


@dataclass(frozen=True, slots=True)
class CredentialsFile:
    vault: VaultCredentials
    warnings: tuple[str, ...]


def read_credentials(path: Path, clock: Clock) -> CredentialsFile:
    """Raises ``LocalProblem`` when the file cannot be read and ``InvalidInput`` when it is not vault credentials."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise LocalProblem(f"The vault credentials file {path} cannot be read: {error.strerror}.") from error
    if len(data) > LARGEST:
        raise _invalid(path, f"it is larger than {LARGEST // 1024} KiB")
    vault = _parse(path, data)
    _check(path, vault)
    warnings = []
    if mode & 0o077:
        warnings.append(
            f"{path} can be read by other users of this machine (mode {mode:04o}) and holds a private key: chmod 600 it, "
            "and delete it after registration."
        )
    now = clock.now()
    if now > vault.not_after:
        hours = (now - vault.issued).total_seconds() / 3600
        warnings.append(
            f"{path} was issued {hours:.0f} hours ago for vault '{vault.vault_name}' and was good until "
            f"{vault.not_after:%Y-%m-%d %H:%M} UTC by this machine's clock. The service decides. {FRESH}"
        )
    return CredentialsFile(vault, tuple(warnings))


def _invalid(path: Path, what: str) -> InvalidInput:
    return InvalidInput(f"{path} is not a usable vault credentials file: {what}. {FRESH}", code=CODE, target=str(path))


def _parse(path: Path, data: bytes) -> VaultCredentials:
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _invalid(path, f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise _invalid(path, "it is JSON but not an object")
    version = document.get("version")
    if version != VERSION or isinstance(version, bool):
        found = "has no version" if version is None else f"has version {version!r}"
        raise _invalid(path, f"it {found}, this agent reads version {VERSION}")
    try:
        return msgspec.convert(document, VaultCredentials, strict=True)
    except msgspec.ValidationError as error:
        raise _invalid(path, str(error)) from error


def _check(path: Path, vault: VaultCredentials) -> None:
    """What the types do not say."""
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if not (vault.vault_id.isascii() and vault.vault_id.isdigit()):
        raise _invalid(path, f"vaultId {vault.vault_id!r} is not a string of digits")
    for name, pattern in (("privateHost", vault.private_host), ("publicHost", vault.public_host)):
        if "{svc}" not in pattern or any(letter in pattern for letter in "/ @"):
            raise _invalid(path, f"{name} {pattern!r} is not a host pattern with {{svc}} in it")
    login = urlsplit(vault.login_endpoint)
    if login.scheme != "https" or not login.hostname:
        raise _invalid(path, f"loginEndpoint {vault.login_endpoint!r} is not an https URL")
    for name, moment in (("issued", vault.issued), ("notAfter", vault.not_after)):
        if moment.tzinfo is None:
            raise _invalid(path, f"{name} has no time zone")
    try:
        certificate = x509.load_pem_x509_certificate(vault.certificate.encode())
    except ValueError as error:
        raise _invalid(path, "its certificate is not PEM") from error
    try:
        key = load_pem_private_key(vault.private_key.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise _invalid(path, "its privateKey is not an unencrypted PEM key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _invalid(path, "its privateKey is not a P-256 key")
    if certificate.public_key() != key.public_key():
        raise _invalid(path, "its privateKey does not belong to its certificate")
    try:
        ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=vault.ca_bundle)
    except (ssl.SSLError, ValueError) as error:
        raise _invalid(path, "its caBundle holds no PEM certificate") from error
