"""What a resolver answers now, asked the way that clients do: recursion desired, EDNS, UDP and TCP where it does not fit.

Runs where the question is to be asked from: ``dns diff --from VM`` starts it inside the VM and reads its JSON.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from undercroft.errors import InvalidParameter

if TYPE_CHECKING:
    from dns.message import Message

__all__ = [
    "HOSTS_FILE",
    "OWN_NAMES",
    "Observation",
    "ResolverAddress",
    "ask",
    "ask_own_names",
    "observe",
    "own_resolvers",
]

OWN_NAMES = "own names"
"""Whom ``asked`` names when nobody in particular was: the hosts file, then the resolvers of resolv.conf, as programs see them."""
HOSTS_FILE = "the hosts file"
_SECONDS = 5.0
_NO_ANSWER = "no answer within"
_ATTEMPTS = 2
"""As the C library has it (resolv.conf(5)): who needs longer is no use to a program either."""
_PATIENCE = 2.0
"""Seconds until a person should be told what is being waited for: a name may take twenty."""
_SIGN_OF_LIFE = 1.0
"""Seconds for a question that a resolver need ask nobody else about."""

Outcome = Literal["answered", "nxdomain", "nodata", "failed", "silent"]


class Observation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One name, asked once."""

    name: str
    asked: str
    outcome: Outcome
    addresses: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    """CNAME targets on the way."""
    reason: str = ""
    """In the resolver's own words (extended errors of RFC 8914), or what failed about asking it."""
    unvalidated: bool = False
    """A failure that becomes an answer when the resolver is told not to validate (CD)."""


class ResolverAddress(msgspec.Struct, frozen=True):
    host: str
    port: int = 53

    @classmethod
    def parse(cls, text: str) -> ResolverAddress:
        """``10.0.0.5`` or ``10.0.0.5:5353``."""
        host, colon, port = text.partition(":")
        try:
            socket.inet_pton(socket.AF_INET, host)
            number = int(port) if colon else 53
            if not 1 <= number <= 65535:
                raise ValueError(port)
        except (OSError, ValueError) as error:
            raise InvalidParameter(f"'{text}' is not ADDRESS or ADDRESS:PORT.", target="--server") from error
        return cls(host, number)

    def __str__(self) -> str:
        return self.host if self.port == 53 else f"{self.host}:{self.port}"


def observe(
    names: Iterable[str],
    server: ResolverAddress | None,
    times: int,
    waiting: Callable[[str], None] = lambda _: None,
) -> list[Observation]:
    """Every name, ``times`` times, of the server; without one, of this host's own names and of each of its resolvers, unless the
    hosts file has the name: it wins over all of them. Raises ``InvalidParameter`` for what is no name, before anything is asked. ``waiting`` is told, from a thread, of each question
    that takes long."""
    names = tuple(names)
    for name in names:
        _query(name)
    resolvers = [server] if server is not None else own_resolvers()
    listed = hosts_file() if server is None else frozenset()
    found: list[Observation] = []
    gave_up: dict[tuple[str, str], Observation] = {}
    """By whom and domain, "" for all. Whoever was silent once is not asked again, and whoever was silent about one name not about
    others of its domain: a dozen names would take minutes."""

    def note(asked: str, name: str, question: Callable[[], Observation]) -> None:
        domain = name.partition(".")[2]
        for _ in range(times):
            known = gave_up.get((asked, "")) or gave_up.get((asked, domain))
            if known is None:
                with _told(waiting, f"waiting for what {_in_words(asked)} of {name}"):
                    said = question()
            else:
                said = msgspec.structs.replace(known, name=name)
            if said.outcome == "silent":
                gave_up[asked, ""] = said
            elif said.reason.startswith(_NO_ANSWER):
                gave_up[asked, domain] = said
            found.append(said)

    for name in names:
        if server is None:
            note(OWN_NAMES, name, partial(ask_own_names, name, HOSTS_FILE if name in listed else ""))
        if name not in listed:
            for resolver in resolvers:
                note(str(resolver), name, partial(ask, resolver, name))
    return found


@contextmanager
def _told(waiting: Callable[[str], None], what: str) -> Iterator[None]:
    timer = threading.Timer(_PATIENCE, waiting, (what,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _in_words(asked: str) -> str:
    return "this host's resolvers say" if asked == OWN_NAMES else f"{asked} says"


def hosts_file(path: Path = Path("/etc/hosts")) -> frozenset[str]:
    """The names that this host has in its hosts file, in lower case."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return frozenset()
    return frozenset(name.lower() for line in lines for name in line.partition("#")[0].split()[1:])


def own_resolvers(configuration: Path = Path("/etc/resolv.conf")) -> list[ResolverAddress]:
    """In the file's order; IPv6 ones are left out, no network here has IPv6."""
    found = []
    for line in configuration.read_text("utf-8", "replace").splitlines() if configuration.exists() else ():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver" and ":" not in words[1]:
            found.append(ResolverAddress(words[1]))
    return found


def ask_own_names(name: str, reason: str = "") -> Observation:
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except socket.gaierror as error:
        missing = error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
        return Observation(name, OWN_NAMES, "nxdomain" if missing else "silent", reason=error.strerror or "")
    addresses = tuple(sorted({str(entry[4][0]) for entry in found}))
    return Observation(name, OWN_NAMES, "answered", addresses, reason=reason)


def ask(resolver: ResolverAddress, name: str) -> Observation:
    import dns.flags
    import dns.rcode

    query = _query(name)
    reply = _exchange(resolver, query, _SECONDS)
    if isinstance(reply, str):
        said = Observation(name, str(resolver), "silent", reason=reply)
        # A validating resolver may look for a chain of trust for longer than any client waits.
        doubtful = reply.startswith(_NO_ANSWER)
    else:
        said = _observed(name, resolver, reply)
        doubtful = reply.rcode() == dns.rcode.SERVFAIL
    if doubtful:
        query.flags |= dns.flags.CD
        unchecked = _exchange(resolver, query, _SECONDS)
        if not isinstance(unchecked, str) and unchecked.rcode() == dns.rcode.NOERROR:
            return msgspec.structs.replace(said, outcome="failed", unvalidated=True)
    if said.outcome == "silent" and doubtful and _alive(resolver):
        reason = f"{said.reason}, although it answers other questions"
        return msgspec.structs.replace(said, outcome="failed", reason=reason)
    return said


def _query(name: str) -> Message:
    import dns.exception
    import dns.message

    try:
        return dns.message.make_query(name, "A", use_edns=0, payload=1232)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise InvalidParameter(f"'{name}' is not a host name: {error}", target="names") from error


def _alive(resolver: ResolverAddress) -> bool:
    """Whether the resolver answers at all, with a refusal if need be: it is not to ask anybody else."""
    import dns.flags

    query = _query("localhost")
    query.flags &= ~dns.flags.RD
    return not isinstance(_exchange(resolver, query, _SIGN_OF_LIFE), str)


def _exchange(resolver: ResolverAddress, query: Message, seconds: float) -> Message | str:
    """The reply, or what failed."""
    import dns.exception
    import dns.query

    failure = ""
    for _ in range(_ATTEMPTS):
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
                datagrams.setblocking(False)
                datagrams.connect((resolver.host, resolver.port))  # so that "nobody listens there" is heard at once
                reply, _ = dns.query.udp_with_fallback(
                    query, resolver.host, seconds, resolver.port, ignore_trailing=True, udp_sock=datagrams
                )
        except dns.exception.Timeout:
            failure = f"{_NO_ANSWER} {seconds:g} s"
        except (OSError, dns.exception.DNSException) as error:
            failure = getattr(error, "strerror", None) or str(error) or type(error).__name__
        else:
            return reply
    return failure


def _observed(name: str, resolver: ResolverAddress, reply: Message) -> Observation:
    import dns.edns
    import dns.rcode
    import dns.rdatatype

    addresses = sorted(
        record.address for answer in reply.answer if answer.rdtype == dns.rdatatype.A for record in answer
    )
    chain = tuple(
        record.target.to_text(omit_final_dot=True)
        for answer in reply.answer
        if answer.rdtype == dns.rdatatype.CNAME
        for record in answer
    )
    rcode = reply.rcode()
    outcome: Outcome = "answered" if addresses else "nodata"
    if rcode == dns.rcode.NXDOMAIN:
        outcome = "nxdomain"
    elif rcode != dns.rcode.NOERROR:
        outcome = "failed"
    errors = [option for option in reply.options if isinstance(option, dns.edns.EDEOption)]
    words = [option.text or dns.edns.EDECode(option.code).name.lower().replace("_", " ") for option in errors]
    if outcome == "failed":
        words.insert(0, dns.rcode.to_text(rcode))
    return Observation(name, str(resolver), outcome, tuple(addresses), chain, "; ".join(words))
