"""Asking upstream resolvers: in turn, in bounded time, the same question once at a time.

Every attempt has a socket of its own, connected (so that nobody else's datagram is read, the kernel picks a random port, and a closed
port is noticed at once instead of after the timeout) and turns to TCP when the answer was cut. An upstream that failed is asked last for
a while, longer each time, and then tried by one question while the others go on to the next. What came back is remembered for as long as its smallest TTL, and handed out with TTLs that have aged.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import dns.asyncbackend
import dns.asyncquery
import dns.message
import dns.name
from dns.exception import DNSException
from dns.rcode import Rcode
from dns.rdatatype import NS, SOA, RdataType
from dns.rrset import RRset

from undercroft.capacity import scarce
from undercroft.clock import Clock
from undercroft.dns.answers import Denial, Inquiry, Placed, RecordSet, UpstreamReply
from undercroft.dns.labels import of_name
from undercroft.dns.records import of_rdatas, soa_of
from undercroft.errors import InvalidParameter

__all__ = ["Forwarder", "UpstreamAddress"]

_ATTEMPT_SECONDS = 1.5
_TOTAL_SECONDS = 4.0
"""Below the five seconds after which glibc, dig and nslookup ask again: they see our SERVFAIL, not silence."""
_REST_SECONDS = 5.0
_LONGEST_REST_SECONDS = 60.0
"""How long an upstream that failed is asked last: doubled with each failure in a row."""
_AT_ONCE = 1024
"""Questions, each with a socket of its own; of one network the server lets fewer wait."""
_REMEMBERED = 4096
_LONGEST_MEMORY = 300
_PAYLOAD = 1232


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    address: IPv4Address | IPv6Address
    port: int = 53

    @classmethod
    def parse(cls, text: str) -> UpstreamAddress:
        """``10.0.0.2``, ``10.0.0.2:5353``, ``2001:db8::1`` or ``[2001:db8::1]:5353``."""
        host, port = text, "53"
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            port = rest.removeprefix(":") if rest else "53" if bracket else ""
        elif text.count(":") == 1:
            host, _, port = text.partition(":")
        try:
            number = int(port) if port.isascii() and port.isdigit() else 0
            if not 1 <= number <= 65535:
                raise ValueError(f"'{port}' is not a port")
            return cls(ip_address(host), number)
        except ValueError as error:
            raise InvalidParameter(
                f"'{text}' is not an upstream resolver: {error}. Give an IP address, or address:port.",
                target="forward_dns_to",
            ) from error

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class _Rest:
    """``seconds`` long, until ``until`` on the clock."""

    seconds: float
    until: float


@dataclass(frozen=True, slots=True)
class _Memory:
    reply: UpstreamReply
    since: float
    until: float


class Forwarder:
    """``ask`` always answers within ``total_seconds``: an upstream's reply, or SERVFAIL with the reason. It never raises."""

    def __init__(
        self,
        clock: Clock,
        upstreams: Sequence[UpstreamAddress],
        *,
        attempt_seconds: float = _ATTEMPT_SECONDS,
        total_seconds: float = _TOTAL_SECONDS,
    ) -> None:
        self._clock = clock
        self._upstreams = tuple(upstreams)
        self._attempt_seconds = attempt_seconds
        self._total_seconds = total_seconds
        self._resting: dict[UpstreamAddress, _Rest] = {}
        self._asking: dict[Inquiry, asyncio.Task[UpstreamReply]] = {}
        self._memory: dict[Inquiry, _Memory] = {}

    async def ask(self, inquiry: Inquiry) -> UpstreamReply:
        remembered = self.recall(inquiry)
        if remembered is not None:
            return remembered
        task = self._asking.get(inquiry)
        if task is None:
            if len(self._asking) >= _AT_ONCE:
                reason = f"{_AT_ONCE} questions already wait for the upstream resolvers"
                return UpstreamReply(Rcode.SERVFAIL, reason=reason)
            task = asyncio.create_task(self._ask_in_turn(inquiry))
            self._asking[inquiry] = task
            task.add_done_callback(lambda _: self._asking.pop(inquiry, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        tasks = tuple(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask_in_turn(self, inquiry: Inquiry) -> UpstreamReply:
        deadline = asyncio.get_running_loop().time() + self._total_seconds
        troubles: list[str] = []
        for upstream in self._order():
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            before = self._resting.get(upstream)
            if before is not None:  # tried again: by this question alone
                self._rest(upstream)
            try:
                async with asyncio.timeout(min(self._attempt_seconds, left)):
                    response = await _exchange(upstream, inquiry)
            except TimeoutError:
                troubles.append(f"{upstream} did not answer")
            except (OSError, EOFError, DNSException) as error:
                if isinstance(error, OSError) and scarce(
                    error
                ):  # ours: it was not asked, and neither would the next be
                    if before is not None:
                        self._resting[upstream] = before
                    troubles.append(f"there is no room for a question to {upstream} ({error.strerror})")
                    break
                troubles.append(f"{upstream}: {error or type(error).__name__}")
            else:
                self._resting.pop(upstream, None)  # it is alive, whatever it says about this question
                trouble = _trouble(response)
                if trouble is None:
                    reply = _reply(response)
                    self._remember(inquiry, reply)
                    return reply
                troubles.append(f"{upstream} {trouble}")
                continue
            self._rest(upstream)
        return UpstreamReply(Rcode.SERVFAIL, reason="; ".join(troubles))

    def _rest(self, upstream: UpstreamAddress) -> None:
        before = self._resting.get(upstream)
        now = self._clock.monotonic()
        if before is None:
            seconds = _REST_SECONDS
        elif now < before.until:
            return  # it rests already, for another question's sake
        else:
            seconds = min(before.seconds * 2, _LONGEST_REST_SECONDS)
        self._resting[upstream] = _Rest(seconds, now + seconds)

    def _order(self) -> list[UpstreamAddress]:
        """As configured, but those that failed lately last."""
        now = self._clock.monotonic()
        resting = {upstream for upstream, rest in self._resting.items() if rest.until > now}
        return sorted(self._upstreams, key=resting.__contains__)

    def recall(self, inquiry: Inquiry) -> UpstreamReply | None:
        """What an upstream said lately, with TTLs that have aged."""
        memory = self._memory.get(inquiry)
        if memory is None:
            return None
        now = self._clock.monotonic()
        if now >= memory.until:
            del self._memory[inquiry]
            return None
        return _aged(memory.reply, int(now - memory.since))

    def _remember(self, inquiry: Inquiry, reply: UpstreamReply) -> None:
        ttls = [records.ttl for _, records in reply.answer]
        if reply.denial is not None:
            ttls.append(reply.denial.soa.ttl)
        seconds = min(ttls, default=0)
        if seconds <= 0:
            return
        while len(self._memory) >= _REMEMBERED:
            del self._memory[next(iter(self._memory))]
        now = self._clock.monotonic()
        self._memory[inquiry] = _Memory(reply, now, now + min(seconds, _LONGEST_MEMORY))


async def _exchange(upstream: UpstreamAddress, inquiry: Inquiry) -> dns.message.Message:
    name = dns.name.from_wire(inquiry.name, 0)[0]
    query = dns.message.make_query(name, RdataType.make(inquiry.type), use_edns=0, payload=_PAYLOAD)
    family = socket.AF_INET6 if upstream.address.version == 6 else socket.AF_INET
    where = str(upstream.address)
    backend = dns.asyncbackend.get_backend("asyncio")
    connect: Callable[..., Awaitable[Any]] = backend.make_socket  # unannotated there
    sock = await connect(family, socket.SOCK_DGRAM, 0, None, (where, upstream.port))
    async with sock:
        response, _ = await dns.asyncquery.udp_with_fallback(
            query,
            where,
            port=upstream.port,
            ignore_unexpected=True,
            ignore_errors=True,
            udp_sock=sock,
            backend=backend,
        )
    return response


def _trouble(response: dns.message.Message) -> str | None:
    """Why this is no answer, so that the next upstream is asked; None when it is one."""
    rcode = response.rcode()
    if rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
        return f"answered {rcode.name}"
    if rcode == Rcode.NOERROR and not response.answer:
        kinds = {rrset.rdtype for rrset in response.authority}
        if NS in kinds and SOA not in kinds:
            return "is no resolver: it referred to other servers"  # a lame one, or one that does not recurse for us
    return None


def _reply(response: dns.message.Message) -> UpstreamReply:
    denial = None
    for rrset in response.authority:
        if rrset.rdtype == SOA:
            denial = soa_of(*_placed(rrset))
    return UpstreamReply(response.rcode(), tuple(map(_placed, response.answer)), denial)


def _placed(rrset: RRset) -> Placed:
    return of_name(rrset.name), of_rdatas(rrset.rdtype, rrset.ttl, list(rrset))


def _aged(reply: UpstreamReply, seconds: int) -> UpstreamReply:
    answer = tuple((owner, _older(records, seconds)) for owner, records in reply.answer)
    denial = reply.denial and Denial(reply.denial.owner, _older(reply.denial.soa, seconds))
    return UpstreamReply(reply.rcode, answer, denial, reply.reason)


def _older(records: RecordSet, seconds: int) -> RecordSet:
    return replace(records, ttl=max(0, records.ttl - seconds))
