"""Microsoft.RecoveryServices/vaults/certificates: vault credentials. The client makes the key and sends the certificate."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.clock import timestamp
from undercroft.errors import CapabilityMissing
from undercroft.identity import principals
from undercroft.names import region
from undercroft.providers.collaborators import Collaborators, Echo
from undercroft.vault import credentials, vaults
from undercroft.vault.credentials import Certificate
from undercroft.vault.vaults import VaultRecord

__all__ = ["routes"]

_ENTRA = ("aad", "azureactivedirectory")


class CertificateProperties(Echo, frozen=True):
    certificate: str
    auth_type: str | None = None


class CertificateBody(Echo, frozen=True):
    properties: CertificateProperties


def _issue(
    connection: Connection, parts: Collaborators, vault: VaultRecord, name: str, certificate: Certificate
) -> tuple[principals.Principal, datetime]:
    """The principal of these credentials and their end. Sending the newest certificate again changes nothing."""
    now = parts.clock.now()
    known = credentials.newest(connection, vault.key, certificate)
    if known is not None:
        principal = principals.find_by_object_id(connection, known[0])
        end = datetime.fromisoformat(known[1])
        if principal is not None and end > now:
            return principal, end
    end = min(certificate.valid_to, now + timedelta(hours=parts.settings.vault_credentials_hours)).astimezone(UTC)
    principal = principals.create(
        connection,
        display_name=name,
        now=now,
        kind=credentials.PRINCIPAL_KIND,
        public_key=certificate.public_key,
        audience=_audience(parts, vault),
        vault_key=vault.key,
        not_after=end,
    )
    credentials.store(connection, vault.key, name, certificate, principal.object_id, now, end)
    return principal, end


def _audience(parts: Collaborators, vault: VaultRecord) -> str:
    return credentials.audience(parts.tenant_id, region(vault.region).geo_code, vault.name, vault.vault_id)


def _show(
    parts: Collaborators,
    vault: VaultRecord,
    name: str,
    certificate: Certificate,
    principal: principals.Principal,
    end: datetime,
) -> dict[str, Any]:
    suffixes = parts.settings.suffixes
    return {
        "id": f"{vault.id}/certificates/{name}",
        "name": name,
        "type": "Microsoft.RecoveryServices/vaults/certificates",
        "properties": {
            "authType": "AzureActiveDirectory",
            "certificate": base64.b64encode(certificate.der).decode("ascii"),
            "resourceId": vault.vault_id,
            "aadAuthority": f"https://{suffixes.login}",
            "aadTenantId": parts.tenant_id,
            "servicePrincipalClientId": principal.client_id,
            "servicePrincipalObjectId": principal.object_id,
            "azureManagementEndpointAudience": f"https://{suffixes.management}/",
            "aadAudience": _audience(parts, vault),
            "subject": certificate.subject,
            "issuer": certificate.issuer,
            "friendlyName": "",
            "thumbprint": certificate.thumbprint,
            "validFrom": timestamp(certificate.valid_from),
            "validTo": timestamp(end),
        },
    }


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def put(call: Call) -> Reply:
        properties = parse(call.body, CertificateBody).properties
        if (properties.auth_type or "AAD").lower() not in _ENTRA:
            raise CapabilityMissing(
                f"authType '{properties.auth_type}' is not implemented: vault credentials log in with their certificate. Use "
                "'AAD'.",
                target="properties.authType",
            )
        certificate = credentials.parse_certificate(properties.certificate, parts.clock.now())
        vault_id = call.id.parent
        assert vault_id is not None

        def write(connection: Connection) -> dict[str, Any]:
            vault = vaults.require(connection, vault_id.key)
            principal, end = _issue(connection, parts, vault, call.id.name, certificate)
            return _show(parts, vault, call.id.name, certificate, principal, end)

        return Reply(200, await parts.database.write(write))

    base = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.RecoveryServices/vaults/{vault}"
    return (
        Route(
            "PUT", f"{base}/certificates/{{certificate}}", "Microsoft.RecoveryServices/Vaults/certificates/write", put
        ),
    )
