"""Security groups through the unmodified SDK (azure-mgmt-network), over a real listener."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.mgmt.network import NetworkManagementClient

from tests.providers.site import Site, site
from tests.providers.test_compute import body as machine

T = TypeVar("T")


class Token:
    def __init__(self, token: str) -> None:
        self._token = token

    def get_token(self, *_scopes: str, **_more: Any) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3600)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as made:
        yield made


async def test_a_round_trip_with_the_sdk(here: Site) -> None:
    """Group, rule, association, effective rules, and the refusal of what is in use, as objects of the SDK."""
    await here.make(here.machine_id(), machine(here))
    subscription, group = here.group.split("/")[2], here.group.split("/")[4]
    client = NetworkManagementClient(
        Token(here.plane.token),
        subscription,
        base_url=here.plane.url,
        connection_verify=str(here.plane.home.ca_bundle),
    )

    async def call(work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    allow: dict[str, Any] = {
        "priority": 100,
        "direction": "Outbound",
        "access": "Allow",
        "protocol": "Tcp",
        "sourceAddressPrefix": "*",
        "sourcePortRange": "*",
        "destinationAddressPrefix": "AzureActiveDirectory",
        "destinationPortRange": "443",
    }
    body: Any = {"location": "westeurope", "properties": {"securityRules": [{"name": "login", "properties": allow}]}}
    groups = client.network_security_groups
    made = await call(lambda: groups.begin_create_or_update(group, "nsg", body).result())
    assert (
        made.security_rules is not None and made.security_rules[0].destination_address_prefix == "AzureActiveDirectory"
    )
    assert len(made.default_security_rules or ()) == 6

    deny: Any = {"properties": allow | {"priority": 200, "access": "Deny", "destinationAddressPrefix": "Internet"}}
    rule = await call(lambda: client.security_rules.begin_create_or_update(group, "nsg", "internet", deny).result())
    assert (rule.access, rule.priority) == ("Deny", 200)
    assert [one.name for one in await call(lambda: list(client.security_rules.list(group, "nsg")))] == [
        "login",
        "internet",
    ]

    subnet = await call(lambda: client.subnets.get(group, "spoke", "work"))
    subnet.network_security_group = made
    changed = await call(lambda: client.subnets.begin_create_or_update(group, "spoke", "work", subnet).result())
    assert changed.network_security_group is not None and changed.network_security_group.id == made.id

    nics = client.network_interfaces
    found = await call(lambda: nics.begin_list_effective_network_security_groups(group, "web01-nic").result())
    (effective,) = list(found.value or [])
    names = [one.name for one in effective.effective_security_rules or ()]
    assert (
        names[:2] == ["securityRules/login", "securityRules/internet"]
        and "defaultSecurityRules/DenyAllOutBound" in names
    )

    nic = await call(lambda: nics.get(group, "web01-nic"))
    nic.network_security_group = made
    nic = await call(lambda: nics.begin_create_or_update(group, "web01-nic", nic).result())
    assert nic.network_security_group is not None

    with pytest.raises(HttpResponseError, match="InUseNetworkSecurityGroupCannotBeDeleted"):
        await call(lambda: groups.begin_delete(group, "nsg").result())
    nic.network_security_group = None
    await call(lambda: nics.begin_create_or_update(group, "web01-nic", nic).result())
    changed.network_security_group = None
    await call(lambda: client.subnets.begin_create_or_update(group, "spoke", "work", changed).result())
    await call(lambda: groups.begin_delete(group, "nsg").result())
    assert await call(lambda: list(groups.list(group))) == []
    client.close()
