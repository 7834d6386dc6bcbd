"""Which door the agent takes: the private name first, the public one only when that does not resolve or connect.

Names are resolved by the system (hosts file, then the resolvers of resolv.conf), because that is what the article tells an
administrator to configure; behind an explicit proxy, by the proxy (``proxy``). Every attempt is a *leg*; a leg that fails says which part failed: the name (which one, at which
resolver), the connection (to which address) or TLS. A resolver that does not answer is not NXDOMAIN and causes no fallback
(reference: pains B20); a wrong certificate causes none either, it would hide somebody who sits on the private address.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from undercroft.errors import Unavailable

__all__ = [
    "Attempt",
    "Connector",
    "Dialer",
    "Direct",
    "LegFailed",
    "Resolver",
    "Route",
    "SystemResolver",
    "Target",
    "connect_failure",
    "looks_private",
    "trust_only",
]

CONNECT_SECONDS = 8.0
PORT = 443
PathName = Literal["private", "public"]
Leg = Literal["name", "resolver", "connect", "tls", "proxy"]


class LegFailed(Unavailable):
    """One name could not be reached; ``leg`` says what part of the way failed."""

    default_code = "UserErrorVaultUnreachable"

    def __init__(self, message: str, *, leg: Leg, code: str | None = None, proxy: str = "") -> None:
        super().__init__(message, code=code)
        self.leg = leg
        self.proxy = proxy
        """The explicit proxy that was asked; empty when the way was direct."""


class Resolver(Protocol):
    def addresses(self, name: str) -> tuple[str, ...]:
        """IPv4 or IPv6 addresses in order of preference, at least one; ``LegFailed`` with leg ``name`` when the name does not
        exist (or has no address) and ``resolver`` when nobody answered."""


@dataclass(frozen=True, slots=True)
class SystemResolver:
    """getaddrinfo. ``configuration`` is only read to name the resolvers in messages."""

    configuration: Path = Path("/etc/resolv.conf")

    def addresses(self, name: str) -> tuple[str, ...]:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
                raise LegFailed(f"{name}: NXDOMAIN from {self.servers()}", leg="name") from error
            raise LegFailed(
                f"{name}: no answer to the DNS question from {self.servers()} ({error.strerror})", leg="resolver"
            ) from error
        except (UnicodeError, OSError) as error:
            raise LegFailed(f"{name}: not a name that can be resolved ({error})", leg="name") from error
        return tuple(dict.fromkeys(str(address[4][0]) for address in found))

    def servers(self) -> str:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            lines = [line.split() for line in self.configuration.read_text("utf-8").splitlines()]
            servers = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
            if servers:
                return f"resolver {', '.join(servers)}"
        return f"this machine's hosts file ({self.configuration} names no resolver)"


@dataclass(frozen=True, slots=True)
class Route:
    """The leg that worked. ``because`` is empty, or why the private name was not used."""

    host: str
    address: str
    port: int
    path: PathName
    because: str = ""
    proxy: str = ""
    """The explicit proxy that it went through, without user and password; then ``address`` is the proxy's."""

    def __str__(self) -> str:
        where = f"through the proxy {self.proxy}" if self.proxy else f"at {self.address}"
        text = f"{self.path} path: {self.host} {where}"
        return f"{text} ({self.because})" if self.because else text


@dataclass(frozen=True, slots=True)
class Target:
    """What to reach: the private name, the public one, or both. Either may carry ``:port``, which tests use."""

    private: str | None
    public: str | None


def trust_only(ca_bundle: str) -> ssl.SSLContext:
    """TLS 1.2 or newer, this deployment's CA and no other, names checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=ca_bundle)
    context.set_alpn_protocols(["http/1.1"])
    return context


def split_port(authority: str) -> tuple[str, int]:
    host, colon, port = authority.rpartition(":")
    return (host, int(port)) if colon and port.isdigit() else (authority, PORT)


def looks_private(address: str) -> bool:
    """Whether an address is one that is not routed on the internet. A label for messages only: a network may use any
    addresses inside, and the service records the door that really was used."""
    number = ipaddress.ip_address(address)
    if isinstance(number, ipaddress.IPv6Address):
        return number.is_loopback or number in ipaddress.ip_network("fc00::/7")
    ranges = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8")
    return any(number in ipaddress.ip_network(text) for text in ranges)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One thing to try on the way to a name."""

    address: str
    proxy: str
    """The explicit proxy's URL, or empty; then ``address`` is where the proxy is."""
    open: Callable[[], socket.socket]
    """A connection that leads to the name, ready for TLS; ``OSError`` when this attempt fails and another may work, ``LegFailed`` when
    it is decided."""

    def where(self, port: int) -> str:
        return f"through the proxy {self.proxy}" if self.proxy else f"to {self.address}:{port}"


class Connector(Protocol):
    """Opens connections to names. Implementations may wrap one another; thread-safe."""

    def attempts(self, host: str, port: int) -> Iterable[Attempt]:
        """In order of preference, at least one; ``LegFailed`` with leg ``name`` or ``resolver`` as a ``Resolver`` says it."""

    def proxy_for(self, host: str) -> str:
        """The proxy that a connection to this host goes through; empty when none."""


@dataclass(frozen=True, slots=True)
class Direct:
    """To the addresses that this host resolves the name to."""

    resolver: Resolver
    timeout: float = CONNECT_SECONDS

    def attempts(self, host: str, port: int) -> Iterable[Attempt]:
        try:
            addresses: tuple[str, ...] = (str(ipaddress.ip_address(host)),)
        except ValueError:
            addresses = self.resolver.addresses(host)
        return [Attempt(address, "", partial(self._open, address, port)) for address in addresses]

    def _open(self, address: str, port: int) -> socket.socket:
        plain = socket.create_connection((address, port), timeout=self.timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return plain

    def proxy_for(self, host: str) -> str:
        return ""


class Dialer:
    """Opens TLS connections by name and says how. Thread-safe: it keeps no connection."""

    def __init__(
        self,
        context: ssl.SSLContext,
        resolver: Resolver,
        *,
        public_fallback: bool = True,
        timeout: float = CONNECT_SECONDS,
        connector: Connector | None = None,
    ) -> None:
        self.context = context
        self.resolver = resolver
        self.public_fallback = public_fallback
        self.timeout = timeout
        self.connector: Connector = connector if connector is not None else Direct(resolver, timeout)

    def dial(self, target: Target) -> tuple[ssl.SSLSocket, Route]:
        """A connection to the target; ``LegFailed`` names every leg that was tried."""
        if target.private is None:
            assert target.public is not None
            return self.leg(target.public, "public")
        try:
            return self.leg(target.private, "private")
        except LegFailed as error:
            if target.public is None or error.leg not in ("name", "connect"):
                raise
            first = error
        if not self.public_fallback:
            raise LegFailed(
                f"{first.message}. The public name is not tried because publicFallback is off.",
                leg=first.leg,
                proxy=first.proxy,
            ) from first
        try:
            connection, route = self.leg(target.public, "public")
        except LegFailed as error:
            raise LegFailed(
                f"by the private name: {first.message}; by the public name: {error.message}",
                leg=error.leg,
                code=error.code,
                proxy=error.proxy,
            ) from error
        return connection, replace(route, because=first.message)

    def leg(self, authority: str, path: PathName) -> tuple[ssl.SSLSocket, Route]:
        """One name, all its addresses in turn."""
        host, port = split_port(authority)
        failures: list[str] = []
        for attempt in self.connector.attempts(host, port):
            try:
                plain = attempt.open()
            except OSError as error:
                failures.append(f"connection {attempt.where(port)} {connect_failure(error)}")
                continue
            try:
                plain.settimeout(self.timeout)
                secure = self.context.wrap_socket(plain, server_hostname=host)
                if secure.version() is not None:
                    return secure, Route(authority, attempt.address, port, path, proxy=attempt.proxy)
                # Reset so early that ssl found no peer any more, and made no handshake.
                secure.close()
                failures.append(f"connection {attempt.where(port)} was closed by the other side before TLS")
            except ssl.SSLCertVerificationError as error:
                plain.close()
                raise LegFailed(
                    f"{host}, connection {attempt.where(port)}: the TLS certificate is not this deployment's ({error.verify_message})",
                    leg="tls",
                    code="UserErrorServerCertificateInvalid",
                    proxy=attempt.proxy,
                ) from error
            except (ssl.SSLEOFError, ConnectionError, TimeoutError) as error:
                # An address that is nobody's door is reset before TLS (docs/protocol.md, section 1): no connection.
                plain.close()
                failures.append(f"connection {attempt.where(port)} {connect_failure(error)} before TLS")
            except OSError as error:
                plain.close()
                raise LegFailed(
                    f"{host}, connection {attempt.where(port)}: TLS failed ({error})", leg="tls", proxy=attempt.proxy
                ) from error
        raise LegFailed(f"{host}: {'; '.join(failures)}", leg="connect", proxy=self.connector.proxy_for(host))


def connect_failure(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, (ConnectionResetError, ssl.SSLEOFError)):
        return "was closed by the other side"
    names: dict[int, str] = {
        errno.ENETUNREACH: "has no route (network unreachable)",
        errno.EHOSTUNREACH: "has no route",
    }
    return names.get(error.errno or 0, f"failed ({error.strerror or error})")
