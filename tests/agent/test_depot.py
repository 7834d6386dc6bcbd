"""The depot over the wire: what is acknowledged is there once, what is refused is named, what breaks is tried again."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.agent.peer import ACCOUNT, Peer
from undercroft.agent.depot import Grants, VaultDepot
from undercroft.agent.identity import AgentHome
from undercroft.agent.messages import Grant, Item, OpenBackup
from undercroft.agent.registration import Registered, open_session
from undercroft.agent.session import Session
from undercroft.clock import SystemClock
from undercroft.errors import NotAuthenticated, NotAuthorized, NotFound, StorageFull, Unavailable

CLOCK = SystemClock()


@pytest.fixture
def session(peer: Peer, registered: Registered, home: AgentHome) -> Iterator[Session]:
    opened = open_session(home.load(), peer.names, CLOCK)
    yield opened
    opened.close()


def grants_of(peer: Peer, session: Session, permission: str = "c") -> Grants:
    body = {"item": Item("/srv", "files"), "formatVersion": 0}
    opened = session.call("prot1", "POST", "/v1/backups", OpenBackup, body=body)
    assert opened.grant is not None

    def renew() -> Grant:
        reply = session.call("prot1", "POST", f"/v1/backups/{opened.backup_id}/renew", OpenBackup)
        assert reply.grant is not None
        return reply.grant

    grant = opened.grant
    if permission == "r":
        grant = Grant(grant.account, grant.blob_host, grant.container, f"sp=r&sig={peer.secret}", grant.expires)
    return Grants(grant, renew)


@pytest.fixture
def depot(peer: Peer, session: Session) -> VaultDepot:
    return VaultDepot(session, "prot1", grants_of(peer, session), seconds=3)


def name(kind: str = "packs") -> str:
    return f"{kind}/{secrets.token_hex(16)}"


def test_parts_are_stored_as_one_blob_and_counted(peer: Peer, depot: VaultDepot) -> None:
    pack = name()
    depot.put(pack, [b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3]])
    (blobs,) = peer.blobs.values()
    assert blobs == {pack: b"abcdef"}
    assert (depot.sent, depot.stored) == (6, 6)


def test_putting_again_is_success_and_keeps_the_first(peer: Peer, depot: VaultDepot) -> None:
    pack = name()
    depot.put(pack, [b"first"])
    depot.put(pack, [b"first"])
    assert (depot.sent, depot.stored) == (10, 5)


def test_a_lost_acknowledgement_is_no_failure(peer: Peer, depot: VaultDepot) -> None:
    lost = peer.plan.add("PUT .*/packs/", 0, after=True)
    depot.put(name(), [b"x" * 3_000_000])
    assert lost.hit == 1


def test_a_connection_lost_before_is_tried_again_on_a_new_one(peer: Peer, depot: VaultDepot) -> None:
    depot.put(name(), [b"warm"])
    lost = peer.plan.add("PUT .*/packs/", 0, times=3)
    depot.put(name(), [b"x" * 3_000_000])
    assert lost.hit == 3


def test_a_refused_sas_is_renewed_once(peer: Peer, depot: VaultDepot) -> None:
    peer.secret = "rotated"
    depot.put(name(), [b"x"])
    refused = peer.plan.add("PUT .*/packs/", 403, "AuthenticationFailed", times=2)
    with pytest.raises(NotAuthorized):
        depot.put(name(), [b"x"])
    assert refused.hit == 2


def test_a_full_store_is_named_and_not_hammered(peer: Peer, depot: VaultDepot) -> None:
    peer.blob_capacity = 10
    with pytest.raises(StorageFull, match="The store is full"):
        depot.put(name(), [b"x" * 11])
    assert sum(request.startswith("PUT") for _, _, request in peer.seen) == 1


def test_what_stays_away_is_given_up_with_the_way_named(peer: Peer, depot: VaultDepot) -> None:
    del peer.names.table[f"{ACCOUNT}.blob.core.windows.net"]
    with pytest.raises(Unavailable, match="NXDOMAIN") as caught:
        depot.put(name(), [b"x"])
    assert ACCOUNT in caught.value.message


def test_an_endpoint_that_is_gone_ends_the_put_with_the_services_reason(peer: Peer, depot: VaultDepot) -> None:
    peer.plan.add("PUT .*/packs/", 0, times=1000)
    peer.registered = False
    with pytest.raises(NotAuthorized, match="not registered"):
        depot.put(name(), [b"x"])


def test_keys_and_indexes_are_listed_and_read_without_a_read_grant(depot: VaultDepot) -> None:
    first, second = name("indexes"), name("indexes")
    depot.put(first, [b"one"])
    depot.put(second, [b"three"])
    assert [(entry.name, entry.size) for entry in depot.objects("indexes")] == [(first, 3), (second, 5)]
    assert list(depot.objects("keys")) == []
    assert bytes(depot.get(second)) == b"three"
    assert bytes(depot.get(second, 1, 3)) == b"hre"
    with pytest.raises(NotFound):
        depot.get(name("indexes"))


def test_packs_are_read_by_range_with_a_read_grant(peer: Peer, session: Session, depot: VaultDepot) -> None:
    pack = name()
    depot.put(pack, [b"0123456789"])
    reader = VaultDepot(session, "rec2", grants_of(peer, session, "r"), readable=True, seconds=2)
    assert bytes(reader.get(pack)) == b"0123456789"
    assert bytes(reader.get(pack, 3, 4)) == b"3456"
    assert bytes(reader.get(pack, 8, 100)) == b"89"
    assert bytes(reader.get(pack, 7)) == b"789"
    assert bytes(reader.get(pack, 50, 4)) == b""
    assert bytes(reader.get(pack, 5, 0)) == b""
    assert reader.received == 10 + 4 + 2 + 3
    with pytest.raises(NotFound, match="gone"):
        reader.get(name())


def test_a_grant_to_write_does_not_read(depot: VaultDepot) -> None:
    pack = name()
    depot.put(pack, [b"0123456789"])
    with pytest.raises((NotAuthorized, NotAuthenticated)):
        depot.get(pack)
