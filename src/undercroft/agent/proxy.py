"""The explicit proxy: agents of locked-down networks reach everything through one (article: *if you're using proxy servers, you can
choose to bypass the proxy server or perform your backups through the proxy server*).

The agent asks it for a tunnel (CONNECT, RFC 9110 section 9.3.6) and speaks TLS with the vault inside, so the proxy sees names and no
content. **The proxy resolves the names itself**: its own network needs the zone links or records, this host's DNS is not asked
(reference: pains C5). What the bypass list names is reached directly, and is resolved here.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import msgspec

from undercroft.errors import CapabilityMissing, InvalidInput

from .resolve import Attempt, Connector, LegFailed, connect_failure

if TYPE_CHECKING:
    from undercroft.clock import Clock

__all__ = ["DIRECT", "PRIVATE_ZONES", "Bypass", "ProxySettings", "ThroughProxy", "from_environment", "parse_proxy"]

DIRECT = "direct"
"""Instead of a URL: no proxy, whatever the environment says."""
PRIVATE_ZONES = "private-zones"
"""In a bypass list: the names that private DNS zones answer for, that is the vault's private names and its storage accounts."""
CODE = "UserErrorInvalidProxy"
UNREACHABLE = "UserErrorProxyUnreachable"
UNANSWERED = "UserErrorProxyDoesNotAnswer"
REFUSED = "UserErrorProxyRefused"
UNAUTHENTICATED = "UserErrorProxyAuthenticationRequired"
DEFAULT_PORT = 3128
ANSWER_SECONDS = 20.0
NO_ADDRESS = frozenset({"ERR_DNS_FAIL", "ERR_CANNOT_FORWARD"})
"""What squid calls it (measured with 5.7: the second, with status 500, when a tunnel's name does not exist)."""
LARGEST_HEAD = 16 << 10
ENTRY = re.compile(r"\*|\*?\.?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?", re.IGNORECASE)


class ProxySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Kept in the agent's identity, which only its owner reads. ``url`` is ``http://host:port`` or ``direct``."""

    url: str
    user: str = ""
    password: str = ""
    bypass: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"ProxySettings({self.shown})"

    @property
    def direct(self) -> bool:
        return self.url == DIRECT

    @property
    def shown(self) -> str:
        """For people and logs: never the password."""
        user = f" as '{self.user}'" if self.user else ""
        return f"{self.url}{user}, not for {', '.join(self.bypass)}" if self.bypass else f"{self.url}{user}"

    @property
    def place(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or DEFAULT_PORT


def parse_proxy(text: str, bypass: Iterable[str] = (), password: str | None = None) -> ProxySettings:
    """``http://[user[:password]@]host[:port]``, ``host:port``, or ``direct``. ``InvalidInput`` says what is wrong with it, and never
    repeats the password."""
    entries = tuple(entry.strip() for entry in bypass if entry.strip())
    for entry in entries:
        if entry != PRIVATE_ZONES and not ENTRY.fullmatch(entry) and not _is_address(entry):
            raise InvalidInput(
                f"'{entry[:80]}' is nothing that a bypass list may name: a host, a domain such as .example.com, an address or range, "
                f"{PRIVATE_ZONES}, or *.",
                code=CODE,
                target="bypass",
            )
    if text == DIRECT:
        return ProxySettings(DIRECT)
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInput("The proxy is not a URL such as http://proxy.example:3128.", code=CODE) from error
    if parts.scheme.lower() != "http":
        raise CapabilityMissing(
            f"Proxies are spoken to by http:// and CONNECT only; '{parts.scheme[:20]}://' is not implemented.",
            target="proxy",
        )
    if not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidInput("The proxy is not a URL such as http://proxy.example:3128.", code=CODE, target="proxy")
    shown = f"[{host}]" if ":" in host else host
    secret = unquote(parts.password or "") if password is None else password
    user = unquote(parts.username or "")
    if (secret and not user) or ":" in user:
        raise InvalidInput("The proxy's user is missing, or has a colon in it.", code=CODE, target="proxy")
    return ProxySettings(f"http://{shown}:{port or DEFAULT_PORT}", user, secret, entries)


def from_environment(environment: Mapping[str, str] | None = None) -> ProxySettings | None:
    """``https_proxy`` and ``no_proxy``, lower case first, as curl reads them; entries of no_proxy that mean nothing to us are left out."""
    found = os.environ if environment is None else environment
    url = found.get("https_proxy") or found.get("HTTPS_PROXY")
    if not url:
        return None
    names = (found.get("no_proxy") or found.get("NO_PROXY") or "").split(",")
    known = [name.strip() for name in names if ENTRY.fullmatch(name.strip()) or _is_address(name.strip())]
    return parse_proxy(url, known)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Bypass:
    """Which hosts are reached without the proxy."""

    entries: tuple[str, ...]
    private_host: str = ""
    """Pattern of the vault's private names, with ``{svc}`` in it."""

    def __contains__(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        return any(self._names(entry.lower(), name) for entry in self.entries)

    def _names(self, entry: str, name: str) -> bool:
        if entry == "*":
            return True
        if entry == PRIVATE_ZONES:
            zone = self.private_host.lower().partition(".")[2].partition(":")[0]
            labels = name.split(".")
            return (bool(zone) and name.endswith(f".{zone}")) or (not {"blob", "queue"}.isdisjoint(labels[1:3]))
        if _is_address(name):
            return _is_address(entry) and ipaddress.ip_address(name) in ipaddress.ip_network(entry, strict=False)
        domain = entry.lstrip("*").strip(".")
        return bool(domain) and (name == domain or name.endswith(f".{domain}"))


class ThroughProxy:
    """A ``Connector`` around another one: everything but what is bypassed goes through the proxy's tunnel. Thread-safe."""

    def __init__(self, settings: ProxySettings, bypass: Bypass, direct: Connector, clock: Clock) -> None:
        self._settings = settings
        self._bypass = bypass
        self._direct = direct
        self._clock = clock

    def proxy_for(self, host: str) -> str:
        return "" if host in self._bypass else self._settings.url

    def attempts(self, host: str, port: int) -> Iterable[Attempt]:
        if host in self._bypass:
            return self._direct.attempts(host, port)
        return (Attempt(self._settings.place[0], self._settings.url, partial(self._tunnel, host, port)),)

    def _tunnel(self, host: str, port: int) -> socket.socket:
        plain = self._reach()
        try:
            status, said, headers = self._ask(plain, f"{host}:{port}")
        except OSError as error:
            plain.close()
            how = (
                f"did not answer within {ANSWER_SECONDS:.0f} s"
                if isinstance(error, TimeoutError)
                else connect_failure(error)
            )
            raise self._failed(
                f"the proxy {self._settings.url} took the connection and {how} when it was asked for {host}:{port}. It hangs, or "
                "what it resolved the name to does not answer it",
                UNANSWERED,
            ) from error
        except BaseException:
            plain.close()
            raise
        if 200 <= status < 300:
            return plain
        plain.close()
        raise self._refusal(host, port, status, said, headers)

    def _reach(self) -> socket.socket:
        host, port = self._settings.place
        failures = []
        try:
            for attempt in self._direct.attempts(host, port):
                try:
                    return attempt.open()
                except OSError as error:
                    failures.append(f"connection to {attempt.address}:{port} {connect_failure(error)}")
        except LegFailed as error:
            failures.append(error.message)
        raise self._failed(f"the proxy {self._settings.url} cannot be reached: {'; '.join(failures)}", UNREACHABLE)

    def _ask(self, plain: socket.socket, authority: str) -> tuple[int, str, dict[str, str]]:
        """Status, reason and headers of the answer to CONNECT."""
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        if self._settings.user:
            secret = f"{self._settings.user}:{self._settings.password}".encode()
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(secret).decode()}")
        plain.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        end = self._clock.monotonic() + ANSWER_SECONDS
        head = b""
        while b"\r\n\r\n" not in head:
            left = end - self._clock.monotonic()
            if left <= 0:
                raise TimeoutError
            plain.settimeout(left)
            # Not a byte of what comes behind the head of a 2xx: that would be the tunnel's.
            piece = plain.recv(1) if len(head) < 12 or head[9:10] == b"2" else plain.recv(4096)
            if not piece:
                raise ConnectionResetError
            head += piece
            if len(head) > LARGEST_HEAD or not head.startswith(b"HTTP/1."[: len(head)]):
                raise self._failed(f"what listens at {self._settings.url} is no HTTP proxy", UNANSWERED)
        first, *rest = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if len(words) < 2 or not (words[1].isascii() and words[1].isdigit()):
            raise self._failed(f"what listens at {self._settings.url} is no HTTP proxy", UNANSWERED)
        fields = (line.partition(":") for line in rest)
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        return int(words[1]), words[2] if len(words) > 2 else "", headers

    def _refusal(self, host: str, port: int, status: int, said: str, headers: Mapping[str, str]) -> LegFailed:
        url, detail = self._settings.url, headers.get("x-squid-error", "").split(" ")[0]
        answer = " ".join(part for part in (str(status), said[:80], detail[:40]) if part)
        if status == 407:
            return self._failed(
                f"the proxy {url} wants authentication ({answer}). {self._how_to_log_in(headers)}", UNAUTHENTICATED
            )
        if status < 500:
            return self._failed(
                f"the proxy {url} refuses a tunnel to {host}:{port} ({answer}): its rules have to allow CONNECT to port {port} of "
                "this host, from this one",
                REFUSED,
            )
        if detail.upper() in NO_ADDRESS:
            return LegFailed(
                f"{host}: the proxy {url} resolved the name itself and found no address ({answer})",
                leg="name",
                proxy=url,
            )
        return LegFailed(
            f"{host}: the proxy {url} resolved the name itself and could not connect to {host}:{port} ({answer})",
            leg="connect",
            proxy=url,
        )

    def _how_to_log_in(self, headers: Mapping[str, str]) -> str:
        offered = headers.get("proxy-authenticate", "")
        scheme = offered.partition(" ")[0]
        if scheme and scheme.lower() != "basic":
            return f"It offers {scheme[:20]}; this agent knows Basic: have it offer that, or allow this host by its address"
        if self._settings.user:
            return f"It does not accept the user '{self._settings.user}' with the password that is set"
        return "Name a user and the file of its password: 'undercroft agent proxy http://USER@HOST:PORT --password-file FILE'"

    def _failed(self, message: str, code: str) -> LegFailed:
        return LegFailed(message, leg="proxy", code=code, proxy=self._settings.url)
