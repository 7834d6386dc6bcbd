"""vault: create, set its network rule, download its credentials, see what is in it; all through ARM."""

from __future__ import annotations

import base64
import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter

from undercroft.cli.local import HomeOption, home_of
from undercroft.cli.management import Arm, GroupOption, JsonOption, LocationOption, connect, plain, show, table
from undercroft.clock import SystemClock
from undercroft.errors import InvalidInput
from undercroft.names import region

__all__ = ["mount", "write_private"]

VAULTS = ("Microsoft.RecoveryServices", "vaults")

AccessOption = Annotated[
    str,
    Parameter(
        name="--public-network-access", help="Enable, or Disable (the portal's Deny): data by private endpoints only."
    ),
]

_vault = App(name="vault", help="Recovery Services vaults.")


def mount(app: App) -> None:
    app.command(_vault)


@_vault.command(name="create")
def create(
    name: str,
    *,
    group: GroupOption,
    home: HomeOption,
    location: LocationOption = None,
    public_network_access: AccessOption = "Enable",
) -> None:
    """Create a vault."""
    arm = connect(home)
    body = {
        "location": location or arm.location_of(group),
        "sku": {"name": "Standard"},
        "properties": {"publicNetworkAccess": _access(public_network_access)},
    }
    show(arm.put(arm.id(group, *VAULTS, name), body))


@_vault.command(name="update")
def update(name: str, *, group: GroupOption, home: HomeOption, public_network_access: AccessOption) -> None:
    """Set public network access: Enable, or Disable (the portal's Deny)."""
    arm = connect(home)
    body = {"properties": {"publicNetworkAccess": _access(public_network_access)}}
    show(arm.patch(arm.id(group, *VAULTS, name), body))


@_vault.command(name="show")
def show_(name: str, *, group: GroupOption, home: HomeOption) -> None:
    """Show a vault."""
    arm = connect(home)
    show(arm.get(arm.id(group, *VAULTS, name)))


@_vault.command(name="list")
def list_(*, home: HomeOption, as_json: JsonOption = False) -> None:
    """List vaults."""
    arm = connect(home)
    vaults = arm.list(arm.id(), f"providers/{VAULTS[0]}/{VAULTS[1]}")
    columns = (
        ("Name", "name"),
        ("Location", "location"),
        ("Public access", "properties.publicNetworkAccess"),
        ("Endpoints", "properties.privateEndpointStateForBackup"),
    )
    show(vaults) if as_json else table(vaults, columns)


@_vault.command(name="delete")
def delete(name: str, *, group: GroupOption, home: HomeOption) -> None:
    """Delete a vault that holds nothing any more."""
    arm = connect(home)
    arm.delete(arm.id(group, *VAULTS, name))


@_vault.command(name="credentials")
def credentials(
    name: str,
    *,
    group: GroupOption,
    home: HomeOption,
    out: Annotated[Path, Parameter(name="--out", help="Where to write the file, readable by you only.")],
) -> None:
    """Download vault credentials: a file that lets one agent register, within 48 hours. Only the newest file is good.

    The key is made here and stays in the file; the vault learns the certificate only.
    """
    arm = connect(home)
    settings = home_of(home).settings()
    vault = arm.get(arm.id(group, *VAULTS, name))
    now = SystemClock().now()
    certificate, key = _certificate(name, now, now + timedelta(hours=settings.vault_credentials_hours))
    certificate_name = f"{name}{arm.connection.subscription_id}-{now:%m-%d-%Y}-vaultcredentials"
    body = {"properties": {"authType": "AAD", "certificate": base64.b64encode(_der(certificate)).decode()}}
    answer = arm.put(arm.id(group, *VAULTS, name, "certificates", certificate_name), body)["properties"]
    place = region(vault["location"])
    suffixes = settings.suffixes
    vault_id = int(answer["resourceId"])
    file = {
        "version": 1,
        "vaultName": vault["name"],
        "vaultId": str(vault_id),
        "resourceId": vault["id"],
        "subscriptionId": arm.connection.subscription_id,
        "tenantId": answer["aadTenantId"],
        "region": place.name,
        "geoCode": place.geo_code,
        "audience": answer["aadAudience"],
        "loginEndpoint": f"https://{suffixes.login}",
        "clientId": answer["servicePrincipalClientId"],
        "certificate": certificate,
        "privateKey": key,
        "caBundle": Path(arm.connection.ca_bundle).read_text("ascii"),
        "privateHost": suffixes.backup_member(vault_id, "{svc}", place.geo_code),
        "publicHost": suffixes.public_backup("{svc}", place.geo_code),
        "publicFallback": settings.public_fallback,
        "issued": now.isoformat(),
        "notAfter": answer["validTo"],
    }
    write_private(out, msgspec.json.format(msgspec.json.encode(file)))
    print(f"{out}: good until {answer['validTo']}, for the vault {vault['name']} ({vault_id})")


@_vault.command(name="containers")
def containers(name: str, *, group: GroupOption, home: HomeOption, as_json: JsonOption = False) -> None:
    """List the hosts registered with a vault, and the path that each leg took last; (!) is a wrong one, explained below."""
    arm = connect(home)
    rows = arm.list(arm.id(group, *VAULTS, name), "backupProtectionContainers")
    if as_json:
        show(rows)
        return
    for row in rows:
        row["paths"] = "; ".join(_path(path) for path in row["properties"]["extendedInfo"]["paths"]) or "none yet"
        if row["properties"]["containerHealthState"] != "Healthy":
            row["paths"] += "  (!)"
    columns = (("Name", "properties.friendlyName"), ("Status", "properties.registrationStatus"), ("Last path", "paths"))
    table(rows, columns)
    for row in rows:
        for detail in row["properties"]["mabContainerHealthDetails"]:
            said = f"{row['properties']['friendlyName']}: {detail['message']} {' '.join(detail['recommendations'])}"
            print(f"(!) {plain(said)}")


def _path(path: dict[str, Any]) -> str:
    """``backup private by door`` and, where it happened, how often not."""
    endpoint = str(path["endpoint"] or "").rpartition("/")[2]
    text = f"{path['leg']} {path['path']}" + (f" by {endpoint}" if endpoint else "")
    if path["proxy"]:
        text += f" through {path['proxy']}"
    return text + (f", {path['fallbacks']} fallbacks" if path["fallbacks"] else "")


@_vault.command(name="jobs")
def jobs(name: str, *, group: GroupOption, home: HomeOption, as_json: JsonOption = False) -> None:
    """List a vault's jobs, newest first."""
    arm: Arm = connect(home)
    rows: list[dict[str, Any]] = arm.list(arm.id(group, *VAULTS, name), "backupJobs")
    columns = (
        ("Operation", "properties.operation"),
        ("Status", "properties.status"),
        ("Item", "properties.entityFriendlyName"),
        ("Started", "properties.startTime"),
    )
    show(rows) if as_json else table(rows, columns)


def _access(text: str) -> str:
    """``az`` says Enable and Disable, ARM says Enabled and Disabled, the portal says Allow and Deny."""
    words = {"enable": "Enabled", "enabled": "Enabled", "allow": "Enabled"}
    words |= {"disable": "Disabled", "disabled": "Disabled", "deny": "Disabled"}
    if text.lower() not in words:
        raise InvalidInput(f"'{text}' is not Enable or Disable.", target="--public-network-access")
    return words[text.lower()]


def _certificate(vault: str, start: Any, end: Any) -> tuple[str, str]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Undercroft vault credentials {vault}"[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(minutes=10))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), text.decode()


def _der(pem: str) -> bytes:
    return base64.b64decode("".join(pem.strip().splitlines()[1:-1]))


def write_private(path: Path, content: bytes) -> None:
    """Secrets are written 0600 from the first byte on, and the file is whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
