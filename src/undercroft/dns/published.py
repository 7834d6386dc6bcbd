"""What the name server's process was told, piece by piece, and the views that follow from it.

A zone is held once, however many networks see it: a record that changes is one change here, and the views of the networks that are
linked to its zone share the mapping. A record set that cannot be served is left out and named; its zone and its network stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from undercroft.dns.server import NameServer
from undercroft.dns.views import (
    AccountNames,
    NetworkView,
    PublicNames,
    RecordSetView,
    ZoneChange,
    ZoneLink,
    ZoneView,
)
from undercroft.dns.zones import Zone
from undercroft.errors import InvalidInput

__all__ = ["Published"]

Key = tuple[str, str]


class Published:
    """Applies changes to a ``NameServer`` at once: when a method returns, the next question sees it."""

    def __init__(self, names: NameServer) -> None:
        self._names = names
        self._zones: dict[str, Mapping[Key, RecordSetView]] = {}
        self._links: dict[str, tuple[ZoneLink, ...]] = {}
        self._public: PublicNames | None = None
        self._accounts: dict[str, AccountNames] = {}

    @property
    def networks(self) -> frozenset[str]:
        return frozenset(self._links)

    def put_zone(self, change: ZoneChange) -> tuple[str, ...]:
        """Returns the record sets that were refused, in words."""
        before = self._zones.get(change.zone, {})
        changed = {
            (one.name, one.type): one.records
            for one in change.records
            if one.records is not None and one.records != before.get((one.name, one.type))
        }
        refused = _refused(change.name, changed)
        after: dict[Key, RecordSetView] = {} if change.whole else dict(before)
        for one in change.records:
            key = (one.name, one.type)
            if one.records is None:
                after.pop(key, None)
            elif key in changed and key not in refused:
                after[key] = one.records
            elif key in before:  # unchanged, or what is new cannot be served
                after[key] = before[key]
        if after == before:
            return tuple(refused.values())
        try:
            self._put_zone(change.zone, after)
        except (
            InvalidInput
        ) as error:  # each can be served, and not beside what is there: nothing of the change is taken
            self._put_zone(change.zone, before)
            return (*refused.values(), error.message)
        return tuple(refused.values())

    def _put_zone(self, zone: str, records: Mapping[Key, RecordSetView]) -> None:
        if records:
            self._zones[zone] = records
        else:
            self._zones.pop(zone, None)
        self._show(network for network, links in self._links.items() if any(link.zone == zone for link in links))

    def keep_zones(self, zones: frozenset[str]) -> None:
        for zone in self._zones.keys() - zones:
            self.put_zone(ZoneChange(zone, zone.rpartition("/")[2], (), whole=True))

    def put_links(self, network: str, links: tuple[ZoneLink, ...]) -> None:
        """Raises ``InvalidParameter`` for links that cannot be; then the old ones stay."""
        before = self._links.get(network)
        if before == links:
            return
        self._links[network] = links
        try:
            self._show((network,))
        except InvalidInput:
            if before is None:
                del self._links[network]
            else:
                self._links[network] = before
            raise

    def forget(self, network: str) -> None:
        self._links.pop(network, None)
        self._names.withdraw(network)

    def put_public(self, names: PublicNames) -> None:
        self._republish(lambda: setattr(self, "_public", names))

    def put_accounts(self, accounts: Mapping[str, AccountNames], *, whole: bool) -> None:
        wanted = dict(accounts) if whole else {**self._accounts, **accounts}
        wanted = {vault: names for vault, names in wanted.items() if names.addresses or names.aliases}
        self._republish(lambda: setattr(self, "_accounts", wanted))

    def _republish(self, change: Callable[[], None]) -> None:
        before = self._public, self._accounts
        change()
        if self._public is None or before == (self._public, self._accounts):
            return
        addresses, aliases = dict(self._public.addresses), dict(self._public.aliases)
        for names in self._accounts.values():
            addresses |= names.addresses
            aliases |= names.aliases
        try:
            self._names.publish_public(PublicNames(addresses, aliases, self._public.suffixes))
        except InvalidInput:
            self._public, self._accounts = before
            raise

    def _show(self, networks: Iterable[str]) -> None:
        for network in networks:
            links = self._links[network]
            zones = (ZoneView(link.name, self._zones.get(link.zone, {}), link.nxdomain_redirect) for link in links)
            hosts = {address: f"{host}.{link.name}" for link in links for address, host in link.hosts}
            self._names.publish(network, NetworkView(tuple(zones), hosts))


def _refused(zone: str, records: Mapping[Key, RecordSetView]) -> dict[Key, str]:
    """Those that cannot be served, and why. Looked at one by one only when there is one among them."""
    try:
        Zone(ZoneView(zone, records))
    except InvalidInput:
        pass
    else:
        return {}
    found: dict[Key, str] = {}
    for key, one in records.items():
        try:
            Zone(ZoneView(zone, {key: one}))
        except InvalidInput as error:
            found[key] = error.message
    return found
