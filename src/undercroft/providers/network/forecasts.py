"""``…/subnets/{subnet}/privateEndpointForecast``: ours, not Azure's. Whether a private endpoint has room in the subnet, asked before
it is made; nothing is changed or reserved."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from undercroft.arm.call import Call, Reply, Route, parse
from undercroft.errors import InvalidParameter, NotFound, UndercroftError
from undercroft.names import BACKUP_SERVICES, FIRST_SERVICES, ResourceId
from undercroft.providers.collaborators import Collaborators, Echo
from undercroft.vault import connections, demand, eligibility, vaults
from undercroft.vault.connections import Status
from undercroft.vault.demand import Demand
from undercroft.vault.vaults import VaultRecord
from undercroft.vnet import allocations, endpoints, networks
from undercroft.vnet.endpoints import Group
from undercroft.vnet.forecast import Forecast, Verdict, forecast
from undercroft.vnet.networks import SubnetRecord

__all__ = ["routes"]

READ_VAULT = "Microsoft.RecoveryServices/Vaults/read"
_MOST_HOSTS = 100_000


class ForecastBody(Echo, frozen=True):
    private_link_service_id: str | None = None
    """The vault; a new one is assumed when it is left out."""
    group_ids: tuple[str, ...] = ("AzureBackup",)
    hosts: int = 1


def claims(connection: Connection, subnet: SubnetRecord) -> int:
    """What the endpoints that stand in the subnet will still need, if every one of their vaults is used. One that was rejected or
    disconnected gets no more."""
    claimed = 0
    for owner in allocations.subnet_owners(connection, subnet.key):
        endpoint = endpoints.get(connection, owner)
        state = connections.of_endpoint(connection, owner)
        if endpoint is not None and state is not None and state.status in (Status.PENDING, Status.APPROVED):
            value = endpoint.value
            claimed += value.missing_addresses + demand.of_vault(connection, value.vault_key, value.group).soon
    return claimed


def _refusal(
    connection: Connection, subnet: SubnetRecord, vault: VaultRecord | None, group: Group
) -> UndercroftError | None:
    """What would refuse the endpoint however large the subnet is: its region, or the vault's past."""
    network = networks.get(connection, subnet.network_key)
    if vault is None or network is None:
        return None
    try:
        endpoints.check_regions(group, network.region, network.region, vault.region)
        eligibility.check_approval(connection, vault, group)
    except UndercroftError as error:
        return error
    return None


def _show(subnet: SubnetRecord, wanted: Demand, found: Forecast, refusal: UndercroftError | None) -> dict[str, Any]:
    steps = (
        ("creation", wanted.creation),
        ("firstRegistration", wanted.registration),
        ("firstBackup", wanted.first_backup),
        ("furtherHosts", wanted.further_hosts),
    )
    verdict = found.verdict if refusal is None else Verdict.REFUSED
    blocked = {} if refusal is None else {"blockedBy": refusal.code}
    return {
        "verdict": verdict.value,
        **blocked,
        "message": _message(subnet, wanted, found) if refusal is None else refusal.message,
        "addressPrefix": subnet.value.address_prefix,
        "capacity": found.capacity,
        "freeAddresses": found.free,
        "claimedByOthers": found.claimed,
        "addressesNeeded": wanted.total,
        "steps": [{"when": when, "addresses": number} for when, number in steps],
        "smallestPrefixLength": found.smallest,
        "recommendedPrefixLength": found.recommended,
    }


def _message(subnet: SubnetRecord, wanted: Demand, found: Forecast) -> str:
    have = f"{found.free} of {found.capacity} addresses of {subnet.value.address_prefix} are free"
    if found.claimed:
        have += f", of which endpoints that stand there will need {found.claimed}"
    need = f"the endpoint needs {wanted.creation} at once and {wanted.total} in the end"
    advice = f"A /{found.recommended} is recommended (the smallest with room is a /{found.smallest})."
    match found.verdict:
        case Verdict.FITS:
            return f"It fits: {have}, and {need}."
        case Verdict.AT_RISK:
            return f"It can be created, and will be degraded when the vault grows: {have}, and {need}. {advice}"
        case Verdict.REFUSED:
            return f"It cannot be created here: {have}, and {need}. {advice}"


def routes(parts: Collaborators) -> tuple[Route, ...]:
    async def tell(call: Call) -> Reply:
        body = parse(call.body, ForecastBody)
        group = endpoints.parse_group(body.group_ids)
        if not 1 <= body.hosts <= _MOST_HOSTS:
            raise InvalidParameter(f"'hosts' is {body.hosts}; 1 to {_MOST_HOSTS} are possible.", target="hosts")
        vault_id: ResourceId | None = None
        if body.private_link_service_id is not None:
            vault_id = endpoints.parse_target(body.private_link_service_id)
            await call.rights.require(READ_VAULT, vault_id)

        def read(connection: Connection) -> dict[str, Any]:
            subnet = networks.get_subnet(connection, call.id.key)
            if subnet is None:
                raise NotFound(f"The subnet {call.id} was not found.")
            vault = None if vault_id is None else vaults.require(connection, vault_id.key)
            if vault is None:
                few = len(FIRST_SERVICES if parts.settings.start_with_two_members else BACKUP_SERVICES)
                wanted = demand.of_new_vault(group, body.hosts, few)
            else:
                wanted = demand.of_vault(connection, vault.key, group, body.hosts)
            prefix = subnet.value.prefix
            used = allocations.capacity(prefix) - allocations.free_count(connection, subnet)
            found = forecast(prefix, used, claims(connection, subnet), wanted.creation, wanted.total)
            return _show(subnet, wanted, found, _refusal(connection, subnet, vault, group))

        return Reply(200, await parts.database.read(read))

    base = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/virtualNetworks/{network}/subnets"
    return (
        Route(
            "POST", f"{base}/{{subnet}}/privateEndpointForecast", "Microsoft.Network/virtualNetworks/subnets/read", tell
        ),
    )
