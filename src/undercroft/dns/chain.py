"""Who is asked for a name, in which order, and how a CNAME is followed. Rules only; no socket is touched here.

``resolution`` is a generator: it yields an ``Inquiry`` when only an upstream resolver can say and is sent its ``UpstreamReply``; a
question that published records answer never yields, so it costs no task.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

import dns.rdatatype
from dns.edns import EDECode
from dns.rcode import Rcode

from undercroft.dns.answers import Absent, Alias, Answer, Inquiry, Outcome, Placed, Question, Records, UpstreamReply
from undercroft.dns.labels import ROOT, above, shown
from undercroft.dns.publicside import PublicSide, ReverseNames
from undercroft.dns.records import denial_at
from undercroft.dns.zones import Zone
from undercroft.errors import InvalidParameter

__all__ = ["Handler", "LinkedZones", "Nobody", "Upstream", "chain", "resolution"]

_LONGEST_CHAIN = 16
"""CNAMEs followed for one question; real ones stay below six. A loop ends here."""
_CNAME = int(dns.rdatatype.CNAME)
_REDIRECTED = frozenset(map(int, (dns.rdatatype.A, dns.rdatatype.AAAA, dns.rdatatype.CNAME)))
"""What NxDomainRedirect applies to (azure-facts section 4)."""


class Handler(Protocol):
    """One source of names. Names are keys (see ``labels``)."""

    def look_up(self, name: bytes, kind: int) -> Outcome | None:
        """None passes the name on to the next handler."""

    def owns(self, name: bytes) -> bool:
        """Whether the name is this handler's to decide, so that an upstream's word about it does not count."""


class LinkedZones:
    """The private zones linked to the network, the longest suffix deciding alone (our decision, DESIGN section 8)."""

    def __init__(self, zones: Sequence[tuple[Zone, bool]]) -> None:
        """Each zone, and whether its link says NxDomainRedirect. Raises ``InvalidParameter`` for two of one name."""
        self._zones: dict[bytes, tuple[Zone, bool]] = {}
        for zone, redirects in zones:
            if zone.name in self._zones:
                raise InvalidParameter(
                    f"Two zones '{shown(zone.name)}' are linked to one network; unlink one.", target="zones"
                )
            self._zones[zone.name] = (zone, redirects)
        self.above = frozenset(name for zone in self._zones for name in above(zone))

    def _zone(self, name: bytes) -> tuple[Zone, bool] | None:
        zones = self._zones
        at = 0
        while size := name[at]:
            found = zones.get(name[at:])
            if found is not None:
                return found
            at += size + 1
        return None

    def owns(self, name: bytes) -> bool:
        return self._zone(name) is not None

    def look_up(self, name: bytes, kind: int) -> Outcome | None:
        found = self._zone(name)
        if found is None:
            return None
        zone, redirects = found
        outcome = zone.look_up(name, kind)
        redirected = redirects and kind in _REDIRECTED
        return None if redirected and isinstance(outcome, Absent) and not outcome.exists else outcome


class Upstream:
    """Everything else, when the deployment has upstream resolvers."""

    def owns(self, name: bytes) -> bool:
        return False

    def look_up(self, name: bytes, kind: int) -> Outcome:
        return Inquiry(name, kind)


class Nobody:
    """Everything else, when it has none: NXDOMAIN, not REFUSED.

    Without an upstream the names of the deployment are all the names there are, so "no such name" is the truth. It is also what
    people can use: nslookup prints it at once; on REFUSED it and glibc go on to the next server, wait, and then report a
    temporary failure; and an agent tries the public name only after NXDOMAIN (DESIGN section 6, rule 6). A name above one that
    exists is not denied: a resolver may take NXDOMAIN to cover all that is below it (RFC 8020).
    """

    def __init__(self, zones: LinkedZones, public: PublicSide) -> None:
        self._above = (zones.above, public.above)
        self._denial = denial_at(ROOT)

    def owns(self, name: bytes) -> bool:
        return False

    def look_up(self, name: bytes, kind: int) -> Outcome:
        exists = name == ROOT or any(name in above for above in self._above)
        return Absent(exists, self._denial, "no linked zone or public name, and no upstream resolver is configured")


def chain(zones: LinkedZones, hosts: ReverseNames, public: PublicSide, *, forwards: bool) -> tuple[Handler, ...]:
    """The handlers of one network, in order."""
    return (
        # First, because shadowing everybody else's names is what a private zone is for; a zone without the name says NXDOMAIN.
        zones,
        # After the zones, because a linked reverse zone is somebody's own word about the addresses; it says nothing of others.
        hosts,
        # Before the upstream, because under Azure's own suffixes the internet has other answers for these names.
        public,
        # Last, because it has an opinion on every name.
        Upstream() if forwards else Nobody(zones, public),
    )


def _first(handlers: Sequence[Handler], name: bytes, kind: int) -> Outcome:
    for handler in handlers:
        outcome = handler.look_up(name, kind)
        if outcome is not None:
            return outcome
    raise AssertionError("the last handler of a chain decides every name")


def resolution(handlers: Sequence[Handler], question: Question) -> Generator[Inquiry, UpstreamReply, Answer]:
    """The answer to a question; each CNAME's target is looked up again from the first handler on."""
    name, key = question.name, question.key
    found: list[Placed] = []
    lasting = True
    while len(found) <= _LONGEST_CHAIN:
        outcome = _first(handlers, key, question.type)
        if isinstance(outcome, Records):
            return Answer(Rcode.NOERROR, (*found, (name, outcome.records)), lasting=lasting)
        if isinstance(outcome, Alias):
            found.append((name, outcome.records))
            name = outcome.records.target
        elif isinstance(outcome, Absent):
            rcode = Rcode.NOERROR if outcome.exists else Rcode.NXDOMAIN
            return Answer(rcode, tuple(found), outcome.denial, (EDECode.OTHER, outcome.reason), lasting)
        elif not question.recursion_desired:
            return Answer(Rcode.NOERROR if found else Rcode.REFUSED, tuple(found))
        else:
            lasting = False
            reply = yield outcome
            ended, name = _adopt(handlers, reply, name, question.type, found)
            if ended is not None:
                return ended
        key = name.lower()
    loop = (EDECode.OTHER, f"more than {_LONGEST_CHAIN} CNAMEs lead on from {shown(question.name)}")
    return Answer(Rcode.SERVFAIL, error=loop, lasting=lasting)


def _adopt(
    handlers: Sequence[Handler], reply: UpstreamReply, name: bytes, kind: int, found: list[Placed]
) -> tuple[Answer | None, bytes]:
    """Take what the upstream says about ``name``, up to the first CNAME target that is ours to decide.

    That is how a storage account on the internet, whose public name leads to ``privatelink``, is reached through the network's
    private zone. Returns the answer, or None and the name to go on with.
    """
    if reply.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
        return Answer(Rcode.SERVFAIL, error=_trouble(reply), lasting=False), name
    by_owner = {(owner.lower(), records.type): records for owner, records in reply.answer}
    followed = False
    while len(found) <= _LONGEST_CHAIN:
        records = by_owner.get((name.lower(), kind))
        if records is not None:
            return Answer(Rcode.NOERROR, (*found, (name, records)), lasting=False), name
        alias = by_owner.get((name.lower(), _CNAME))
        if alias is None:
            break
        found.append((name, alias))
        name, followed = alias.target, True
        if any(handler.owns(name.lower()) for handler in handlers):
            return None, name
    dangling = followed and reply.rcode == Rcode.NOERROR and reply.denial is None
    if dangling:
        return None, name  # the upstream left its last CNAME to us
    return Answer(reply.rcode, tuple(found), reply.denial, lasting=False), name


def _trouble(reply: UpstreamReply) -> tuple[EDECode, str]:
    return EDECode.NO_REACHABLE_AUTHORITY, reply.reason or f"the upstream resolver answered {reply.rcode.name}"
