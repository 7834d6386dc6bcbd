"""The life of endpoints over packets: growing (article, 'DNS records for blobs and queues …'), several of them, a full subnet,
and the loss of approval (article, 'Approve private endpoints', 'Deleting private endpoints'). One deployment per driver;
the tests follow each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.article.estate import NETWORK, STORAGE_ZONES, Estate, estate
from tests.article.observer import Observer
from tests.deployment import GROUP, drivers
from undercroft.names import ResourceId

pytestmark = [pytest.mark.rootless, pytest.mark.slow, pytest.mark.xdist_group("article-lifecycle")]

ZONES = ("privatelink.we.backup.windowsazure.com", *STORAGE_ZONES, "privatelink.blob.storage.azure.net")
SETTINGS = "account_limit_bytes = 1000\nstart_with_two_members = true\nreconcile_seconds = 3600\n"
"""So that the second host that backs up gets an account of its own, and endpoints begin as small as Azure's were seen to. (The
eight from the start are in ``test_private_endpoints``.) And so that what happens here, happens because of what was asked for."""


class Place:
    """Vault ``safe`` with ``door`` in the network of ``web01`` and ``web02``, and ``tight`` in another one: a /28 for eleven
    addresses, of which a VM has one."""

    def __init__(self, site: Estate) -> None:
        self.site = site
        self.vault = site.vault("safe")
        self.spoke = site.network("spoke", "web01")
        site.machine("web02", self.spoke)
        self.narrow = site.network("narrow", "watch01")
        site.arm.put(f"{self.narrow}/subnets/small", {"properties": {"addressPrefix": "10.20.2.0/28"}})
        self.filler = site.machine("filler", self.narrow, subnet="small")
        self.door = site.endpoint("door", self.vault, self.spoke)
        site.integrate(self.door, self.spoke, *ZONES)
        self.tight = site.endpoint("tight", self.vault, self.narrow, subnet="small")
        site.deployment.passphrase.write_text("correct horse battery staple\n", "ascii")
        self.files = site.deployment.files("files", 3)

    def register(self, vm: str) -> None:
        deployment = self.site.deployment
        deployment.inside(vm, "agent", "register", "--credentials", deployment.credentials("safe"))

    def back_up(self, vm: str) -> None:
        deployment = self.site.deployment
        deployment.inside(vm, "agent", "backup", self.files, "--passphrase-file", deployment.passphrase)

    def health(self, endpoint: ResourceId) -> dict[str, object]:
        found: dict[str, object] = self.site.arm.get(endpoint)["properties"]["health"]
        return found


@pytest.fixture(scope="module", params=drivers())
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with estate(tmp_path_factory.mktemp("lifecycle"), request.param, SETTINGS) as site:
        yield Place(site)


@pytest.fixture
def web01(place: Place) -> Iterator[Observer]:
    with Observer(place.site.deployment, "web01") as observer:
        yield observer


def grow(place: Place, observer: Observer, work: Callable[[], None]) -> list[str]:
    """Do ``work`` and meanwhile ask ARM without a pause; every name that becomes visible is looked at in that moment."""
    known = set(place.site.names(place.door))
    interface = place.site.arm.get(place.door)["properties"]["networkInterfaces"][0]["id"]
    new: list[str] = []
    rounds, last = 0, False
    with ThreadPoolExecutor(1) as worker:
        working = worker.submit(work)
        while not last:
            last = working.done()
            shown = place.site.names(place.door)
            for name in sorted(set(shown) - known):
                seen = observer.look(name, shown[name])
                assert (seen.rcode, seen.addresses) == ("NOERROR", (shown[name],)), (
                    f"{name} was shown before its record"
                )
                assert seen.status in ("200", "400"), f"{name} was shown before its door"
                known.add(name)
                new.append(name)
            configurations = place.site.arm.get(interface)["properties"]["ipConfigurations"]
            seen_there = {one["properties"]["privateLinkConnectionProperties"]["fqdns"][0] for one in configurations}
            for name in seen_there - known:
                assert observer.look(name).rcode == "NOERROR", f"{name} was on the interface before its record"
            rounds += 1
        working.result()
    print(f"looked {rounds} times")
    return new


def test_dns_records_after_the_first_registration_nothing_is_shown_before_it_is_whole(
    place: Place, web01: Observer
) -> None:
    first = place.site.names(place.door)
    assert [name.split(".")[0].rpartition("-")[2] for name in first] == ["rec2", "id1"]
    assert [web01.look(*one).status for one in first.items()] == ["200"] * 2
    new = grow(place, web01, lambda: place.register("web01"))
    accounts = sorted(name for name in new if "windowsazure" not in name)
    assert [name.split(".")[1] for name in accounts] == ["blob", "queue"]
    assert all("ecs01." in name for name in accounts)
    assert len(new) - len(accounts) == 6, "the other services"


def test_dns_records_after_the_first_backup_nothing_is_shown_before_it_is_whole(place: Place, web01: Observer) -> None:
    (name,) = grow(place, web01, lambda: place.back_up("web01"))
    assert name.endswith("prot01.blob.core.windows.net")


def test_storage_accounts_that_come_later_are_under_storage_azure_net(place: Place, web01: Observer) -> None:
    """The account is full, so the next host gets another; its name needs the fourth zone of the article's table (pains B9)."""

    def another() -> None:
        place.register("web02")
        place.back_up("web02")

    (name,) = grow(place, web01, another)
    account, partition, *rest = name.split(".")
    assert account.endswith("prot02") and partition[0] == "z" and ".".join(rest) == "blob.storage.azure.net"
    zone = place.site.arm.id(GROUP, NETWORK, "privateDnsZones", ZONES[3])
    assert [one["name"] for one in place.site.arm.list(zone, "A")] == [f"{account}.{partition}"]


def test_several_endpoints_a_full_subnet_degrades_that_endpoint_only(place: Place) -> None:
    """Eleven addresses, less a VM's: eight services, two of the first account; two accounts more find no room."""
    assert place.health(place.door)["state"] == "Healthy"
    assert len(place.site.names(place.door)) == 12
    full = place.health(place.tight)
    assert (full["state"], full["missingAddresses"], full["freeAddresses"]) == ("Degraded", 2, 0)
    assert len(place.site.names(place.tight)) == 10
    link = place.site.arm.get(place.tight)["properties"]["privateLinkServiceConnections"][0]["properties"]
    assert "2 more free addresses" in link["privateLinkServiceConnectionState"]["actionsRequired"]
    with Observer(place.site.deployment, "watch01") as there:
        name, address = place.site.named(place.tight, "-id1.")
        assert there.look(name, address).status == "200", "what it has, works"
        place.site.arm.delete(place.filler)
        until = time.monotonic() + 60
        while place.health(place.tight)["missingAddresses"] != 1 and time.monotonic() < until:
            time.sleep(0.05)
        name, address = place.site.named(place.tight, "prot01.")
        assert address == "10.20.2.4", "the address of the VM that went"
        assert there.look(name, address).status == "400"
    assert place.health(place.tight)["missingAddresses"] == 1


def test_several_endpoints_of_several_vaults_stand_in_one_subnet(place: Place, web01: Observer) -> None:
    other = place.site.endpoint("door-other", place.site.vault("other"), place.spoke)
    zones = [place.site.arm.id(GROUP, NETWORK, "privateDnsZones", name) for name in ZONES]
    place.site.integrate(other, place.spoke, *(zone.name for zone in zones))
    ours, theirs = place.site.names(place.door), place.site.names(other)
    assert not set(ours.values()) & set(theirs.values())
    for name, address in (next(iter(ours.items())), next(iter(theirs.items()))):
        seen = web01.look(name, address)
        assert (seen.addresses, seen.status) == ((address,), "200")
    crossed = web01.look(next(iter(ours)), next(iter(theirs.values())))
    assert crossed.status == "421", "a door answers for its own vault's name only"
    place.site.arm.delete(other)
    assert web01.look(*next(iter(ours.items()))).status == "200"


def test_several_endpoints_of_one_vault_in_one_zone_overwrite_each_other(place: Place, web01: Observer) -> None:
    """Pains B13, as in Azure: the last to write has the record, in both networks; and either's end takes it from both."""
    name, address = place.site.named(place.door, "-id1.")
    assert web01.look(name).addresses == (address,)
    place.site.integrate(place.tight, place.narrow, *ZONES)
    elsewhere = place.site.names(place.tight)[name]
    seen = web01.look(name, elsewhere)
    assert seen.addresses == (elsewhere,) and seen.status != "200", (
        "an address of the other network, which is not reached"
    )
    group = place.tight.child("privateDnsZoneGroups", "default")
    place.site.arm.delete(group)
    assert web01.look(name).rcode == "NXDOMAIN", "the record was one"
    again(place)
    assert web01.look(*place.site.named(place.door, "-id1.")).status == "200"


def test_address_demand_is_told_before_and_at_creation(place: Place) -> None:
    """The subnet of ``tight`` has no room; one with eleven addresses less a VM's will be too small when the vault is used."""
    run = place.site.deployment.run
    where = ("-g", GROUP, "--vnet-name", "narrow", "--subnet")
    said = run("endpoint", "forecast", *where, "small", "--hosts", "20", expect=1).out
    assert said.startswith("Refused") and "/26" in said
    assert run("endpoint", "forecast", *where, "work", "--vault", "other", "--hosts", "20").out.startswith("Fits")
    place.site.arm.put(f"{place.narrow}/subnets/slim", {"properties": {"addressPrefix": "10.20.3.0/28"}})
    place.site.machine("neighbour", place.narrow, subnet="slim")
    made = run("endpoint", "create", "slim", *where, "slim", "--vault", "other")
    assert made.err.startswith("Warning: slim is AtRisk: it will need 9 more addresses and the subnet has 8")


def reject(place: Place, endpoint: ResourceId) -> None:
    place.site.decide(endpoint, place.vault, "Rejected")


def remove(place: Place, endpoint: ResourceId) -> None:
    place.site.arm.delete(place.site.connection(endpoint, place.vault)["id"])


def delete(place: Place, endpoint: ResourceId) -> None:
    place.site.arm.delete(endpoint)


@pytest.mark.parametrize(
    ("lose", "left"),
    [(reject, "Rejected"), (remove, "Disconnected"), (delete, None)],
    ids=["reject", "remove", "delete"],
)
def test_reject_remove_and_delete_end_a_running_backup_and_idle_connections(
    place: Place, web01: Observer, lose: Callable[[Place, ResourceId], None], left: str | None
) -> None:
    """Design: within a second; below 50 ms on a quiet machine, and printed. What is held to is the cause: nothing else ends them
    within the 20 s that they are waited for, as the service leaves whoever is silent a minute and looks by itself every hour."""
    name, address = place.site.named(place.door, "-prot1.")
    with ExitStack() as then:
        then.callback(again, place)
        web01.hold(f"idle {left}", name, address)
        assert web01.upload(f"backup-{left}") == place.site.named(place.door, "prot01.")[1]
        started = time.monotonic()
        lose(place, place.door)
        ends = web01.ends(f"idle {left}", f"backup-{left}")
        for what, end in ends.items():
            assert end is not None, f"{what} was left open"
            print(f"{what}: {end[1]} {(end[0] - started) * 1000:.0f} ms after it was asked for")
            assert end[0] > started, f"{what} was over before"
        seen = web01.look(name, address)
        assert seen.rcode == "NXDOMAIN" and seen.status not in ("200", "400", "421")
        if left is not None:
            assert place.site.status(place.door) == left and place.site.names(place.door) == {}


def again(place: Place) -> None:
    """The endpoint anew; ``tight`` stays meanwhile, so that no host must register again."""
    place.site.arm.delete(place.door)
    place.door = place.site.endpoint("door", place.vault, place.spoke)
    place.site.integrate(place.door, place.spoke, *ZONES)


def test_removed_endpoints_the_last_one_leaves_containers_to_register_again(place: Place) -> None:
    def states() -> set[str]:
        rows = place.site.arm.list(place.vault, "backupProtectionContainers")
        return {row["properties"]["registrationStatus"] for row in rows}

    place.site.arm.delete(place.tight)
    assert states() == {"Registered"}
    place.site.arm.delete(place.door)
    assert states() == {"NotRegistered"}
    place.door = place.site.endpoint("door", place.vault, place.spoke)
    place.site.integrate(place.door, place.spoke, *ZONES)
    assert len(place.site.names(place.door)) == 12, "a new endpoint has every account from the start"
    place.register("web01")
    assert "Registered" in states()
