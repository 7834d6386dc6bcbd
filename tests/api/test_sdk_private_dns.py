"""Private zones through the unmodified azure-mgmt-privatedns, and what a resolver then gets for each type of record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import dns.rdatatype
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline.transport import RequestsTransport
from azure.mgmt.privatedns import PrivateDnsManagementClient
from sqlalchemy import Connection

from tests.dns.loopback import Served, sockets
from tests.providers.site import Site, site
from undercroft.clock import SystemClock
from undercroft.dns.server import NameServer
from undercroft.dns.views import NetworkView, PublicNames, RecordSetView, ZoneView
from undercroft.vnet import zones

GROUP, ZONE = "rg", "corp.example"
RECORDS: Mapping[str, tuple[str, Any, list[str]]] = {
    "A": ("a_records", [{"ipv4Address": "10.1.1.4"}, {"ipv4Address": "10.1.1.5"}], ["10.1.1.4", "10.1.1.5"]),
    "AAAA": ("aaaa_records", [{"ipv6Address": "fd00::4"}], ["fd00::4"]),
    "CNAME": ("cname_record", {"cname": "a.corp.example"}, ["a.corp.example."]),
    "MX": ("mx_records", [{"preference": 10, "exchange": "mail.corp.example"}], ["10 mail.corp.example."]),
    "PTR": ("ptr_records", [{"ptrdname": "host.corp.example"}], ["host.corp.example."]),
    "SRV": (
        "srv_records",
        [{"priority": 1, "weight": 2, "port": 443, "target": "host.corp.example"}],
        ["1 2 443 host.corp.example."],
    ),
    "TXT": ("txt_records", [{"value": ['say "hi"', "back\\slash"]}], ['"say \\"hi\\"" "back\\\\slash"']),
}


class Owner:
    """A credential as the SDK wants one."""

    def __init__(self, token: str) -> None:
        self._token = token

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3000)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as made:
        yield made


def client(here: Site) -> PrivateDnsManagementClient:
    plane = here.plane
    return PrivateDnsManagementClient(
        Owner(plane.token),
        plane.deployment.subscription_id,
        base_url=plane.url,
        credential_scopes=[f"{plane.url}/.default"],
        transport=RequestsTransport(connection_verify=str(plane.home.ca_bundle)),
        polling_interval=0,
    )


def work(sdk: Any, network: str) -> None:
    """What an owner does; untyped, as the SDK takes bodies as they travel."""
    made = sdk.private_zones.begin_create_or_update(GROUP, ZONE, {"location": "global"}).result()
    assert made.number_of_record_sets == 1 and made.max_number_of_record_sets == 25000
    link = {"location": "global", "properties": {"virtualNetwork": {"id": network}, "registrationEnabled": True}}
    linked = sdk.virtual_network_links.begin_create_or_update(GROUP, ZONE, "auto", link).result()
    assert linked.registration_enabled is True and linked.virtual_network_link_state == "Completed"
    for kind, (field, records, _) in RECORDS.items():
        name = f"h-{kind.lower()}"
        wire = "".join([part if n == 0 else part.title() for n, part in enumerate(field.split("_"))])
        body = {"properties": {"ttl": 300, wire: records}}
        sdk.record_sets.create_or_update(GROUP, ZONE, kind, name, body)
        found = sdk.record_sets.get(GROUP, ZONE, kind, name)
        assert found.ttl == 300 and found.fqdn == f"{name}.{ZONE}." and getattr(found, field)
        assert found.is_auto_registered is False
    soa = sdk.record_sets.update(GROUP, ZONE, "SOA", "@", {"properties": {"soaRecord": {"minimumTtl": 7}}})
    assert soa.soa_record is not None and soa.soa_record.minimum_ttl == 7
    assert len(list(sdk.record_sets.list(GROUP, ZONE))) == len(RECORDS) + 1
    assert [one.name for one in sdk.record_sets.list_by_type(GROUP, ZONE, "MX")] == ["h-mx"]
    with pytest.raises(HttpResponseError) as caught:
        sdk.private_zones.begin_create_or_update(GROUP, "core.windows.net", {"location": "global"}).result()
    assert caught.value.error is not None and caught.value.error.code == "ReservedZoneName"


async def test_every_type_of_record_is_written_by_the_sdk_and_answered_to_a_resolver(here: Site) -> None:
    sdk = client(here)
    await asyncio.to_thread(work, sdk, here.spoke)

    def read(connection: Connection) -> ZoneView:
        key = f"{here.network}/privateDnsZones/{ZONE}".lower()
        found = zones.list_record_sets(connection, key)
        return ZoneView(ZONE, {(one.name, one.type): RecordSetView(one.ttl, one.values) for one in found})

    view = await here.database.read(read)
    server = NameServer(SystemClock())
    udp, tcp = sockets()
    await server.serve("spoke", udp, tcp)
    try:
        server.publish_public(PublicNames())
        server.publish("spoke", NetworkView((view,)))
        served = Served(server, "spoke", udp.getsockname()[1])
        for kind, (_, _, expected) in RECORDS.items():
            reply = await served.ask(f"h-{kind.lower()}.{ZONE}", kind)
            assert sorted(str(one) for one in reply.answer[0]) == expected, kind
            assert reply.answer[0].ttl == 300 and reply.answer[0].rdtype == dns.rdatatype.from_text(kind)
        assert (await served.ask(f"none.{ZONE}")).authority[0].ttl == 7, "the SOA's minimum as the SDK set it"
    finally:
        await server.close()

    def delete() -> None:
        for kind in RECORDS:
            sdk.record_sets.delete(GROUP, ZONE, kind, f"h-{kind.lower()}")
        sdk.virtual_network_links.begin_delete(GROUP, ZONE, "auto").result()
        sdk.private_zones.begin_delete(GROUP, ZONE).result()
        sdk.close()

    await asyncio.to_thread(delete)
    assert (await here.get(f"{here.network}/privateDnsZones/{ZONE}")).status == 404
