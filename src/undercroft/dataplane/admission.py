"""Admission (protocol.md section 2): pure rules over values, in their order. Each raises what the wire then renders.

    1 ``address``     server name, Host and door belong together             otherwise 421
    2 ``credential``  there is a token or SAS (whoever reads it says whose)  otherwise 401; storage without any: 400
    3 ``enter``       the caller's vault is the door's                       otherwise 403
    4 ``enter``       the vault's network rule                               otherwise 403, and the vault was not opened
    5 ``enter``       the caller is of the kind this call is for             otherwise 403
    6 ``secondary``   the door's region serves this call                     otherwise 403, or 501 for what it will serve

3 and 4 stand before 5: who is outside hears nothing about what he could do inside. None of 1 to 6 is an attempt.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from undercroft.dataplane.hosts import Host, Hosts, without_port
from undercroft.errors import (
    CapabilityMissing,
    InvalidInput,
    Misdirected,
    NotAuthenticated,
    NotAuthorized,
    RefusedByNetworkRule,
)
from undercroft.vnet.doors import Door

__all__ = [
    "Bearer",
    "Caller",
    "SignedQuery",
    "VaultAudience",
    "VaultRule",
    "address",
    "credential",
    "enter",
    "secondary",
]


@dataclass(frozen=True, slots=True)
class Bearer:
    token: str


@dataclass(frozen=True, slots=True)
class SignedQuery:
    """The query of the request holds a SAS."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who it is, once token or SAS verified. ``principal`` is for the log."""

    kind: str
    """``VaultCredential`` or ``Container`` (as the token says), or ``Sas``."""
    principal: str
    vault_key: str
    audience: str = ""


@dataclass(frozen=True, slots=True)
class VaultRule:
    """What admission needs to know of the caller's vault."""

    key: str
    vault_id: int
    geo: str
    public_access: bool
    paired_geo: str | None = None
    """Of the region in which the vault's secondary endpoints stand."""


class VaultAudience(Container[str]):
    """The audiences of this tenant's vaults: ``api://{tenant}/RecoveryServiceVault/{geo}/{vaultName}/{vaultId}``.

    Which vault it is, is compared by ``enter`` with the vault that the verified token names.
    """

    def __init__(self, tenant: str) -> None:
        self._prefix = f"api://{tenant}/RecoveryServiceVault/"

    def __contains__(self, audience: object) -> bool:
        return isinstance(audience, str) and audience.startswith(self._prefix) and audience.count("/") == 6


def address(door: Door, server_name: str | None, host_header: str | None, hosts: Hosts) -> Host:
    """The host that this request is for, or ``Misdirected``."""
    if not host_header:
        raise Misdirected("The request has no Host header. Say which host it is for.")
    name = without_port(host_header)
    if server_name is None or without_port(server_name) != name:
        raise Misdirected(
            f"The TLS server name ({server_name or 'none'}) and the Host header ({name}) differ. Connect with the name that is asked."
        )
    host = hosts.parse(name)
    if host is None:
        raise Misdirected(f"'{name}' is no host of this deployment.")
    if door.public:
        if not door.serves(host.service) or host.vault_id is not None:
            raise Misdirected(f"'{name}' is not served at this public address ({door.service}).")
    elif door.fqdn is None or without_port(door.fqdn) != name:
        raise Misdirected(f"'{name}' is not served at this address, which is the private endpoint's for '{door.fqdn}'.")
    return host


def credential(service: str, headers: Mapping[str, str], query: Mapping[str, str]) -> Bearer | SignedQuery:
    authorization = headers.get("Authorization")
    if service == "backup":
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise NotAuthenticated("This call needs a bearer token for the vault. Get one from the login endpoint.")
        return Bearer(token.strip())
    if authorization is None and "sig" not in query:
        raise InvalidInput(
            "Authentication information is not given in the correct format: the request carries neither a SAS nor an "
            "Authorization header.",
            code="InvalidAuthenticationInfo",
        )
    if authorization is not None or "sig" not in query:
        scheme = (authorization or "").split(" ", 1)[0][:30]
        raise NotAuthenticated(
            f"Server failed to authenticate the request: '{scheme}' is not accepted here; send a SAS."
        )
    return SignedQuery()


def enter(door: Door, host: Host, caller: Caller, vault: VaultRule | None, kinds: Container[str]) -> None:
    """Let the caller in, or say why not."""
    if vault is None or vault.key != caller.vault_key:
        raise NotAuthorized("The vault of this token does not exist any more.")
    if not door.public and door.vault_key != vault.key:
        raise NotAuthorized(
            "The private endpoint by which this call came belongs to another vault. Use an endpoint of your own vault."
        )
    if door.public and not vault.public_access:
        raise RefusedByNetworkRule(
            "Public network access of the vault is disabled, and this call came by the public side. Use a network with an "
            "approved private endpoint of the vault, and its private name."
        )
    if caller.audience and not caller.audience.endswith(f"/{vault.vault_id}"):
        raise NotAuthorized("The token's audience is another vault's.")
    geo = vault.paired_geo if door.secondary else vault.geo
    if host.geo is not None and host.geo != geo:
        raise NotAuthorized(f"The vault is in the region with the code '{geo}', and this host serves '{host.geo}'.")
    if caller.kind not in kinds:
        raise NotAuthorized(f"A caller of kind {caller.kind} may not make this call.")


def secondary(door: Door, reads_points: bool) -> None:
    """What a vault's secondary endpoint does not serve: it stands in the paired region, where data is only read from.

    ``reads_points``: the call is one of cross-region restore, which needs replicated data.
    """
    if not door.secondary:
        return
    if reads_points:
        raise CapabilityMissing(
            "Cross-region restore is not implemented yet: the vault's recovery points are not replicated to the paired region, so "
            "its secondary private endpoint has none to list or restore. Restore by an AzureBackup endpoint, in the vault's region."
        )
    raise NotAuthorized(
        "This call came by a secondary private endpoint (AzureBackup_secondary), which stands in the paired region and serves "
        "cross-region restore only. Register and back up by an AzureBackup endpoint, in the vault's own region.",
        code="UserErrorAccessThroughSecondaryEndpoint",
    )
