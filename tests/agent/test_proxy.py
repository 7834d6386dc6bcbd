"""The agent through an explicit proxy: what the proxy answers decides what is said, and nothing is sent around it."""

from __future__ import annotations

import base64
import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.agent.peer import LOGIN, PRIVATE, PUBLIC, Names, Peer
from tests.agent.test_commands import Agent
from undercroft.agent import proxy as proxies
from undercroft.agent.identity import AgentHome
from undercroft.agent.proxy import Bypass, ProxySettings, ThroughProxy, from_environment, parse_proxy
from undercroft.agent.resolve import Dialer, Direct, LegFailed, Target, trust_only
from undercroft.clock import SystemClock
from undercroft.errors import CapabilityMissing, InvalidInput

CLOCK = SystemClock()


class Proxy:
    """A CONNECT proxy on loopback that resolves by a table of its own and answers as ``says``, when that is set."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self.says: bytes | None = None
        self.silent = False
        self.asked: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._end = threading.Event()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._end.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._open.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and (piece := client.recv(4096)):
                head += piece
            self.asked.append(head)
            if self.silent:
                return
            if self.says is not None:
                client.sendall(self.says)
                client.close()
                return
            host, _, port = head.split()[1].decode().rpartition(":")
            if host not in self.names:
                client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nX-Squid-Error: ERR_DNS_FAIL 0\r\n\r\n")
                client.close()
                return
            with socket.create_connection((self.names[host], int(port))) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self._pump(client, server)

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(one, selectors.EVENT_READ, other)
            ready.register(other, selectors.EVENT_READ, one)
            while not self._end.is_set():
                for key, _ in ready.select(0.2):
                    data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                    if not data:
                        return
                    key.data.sendall(data)


@pytest.fixture
def proxy(peer: Peer) -> Iterator[Proxy]:
    made = Proxy(dict.fromkeys(peer.names.table, "127.0.0.1"))
    yield made
    made.close()


@pytest.fixture
def target(peer: Peer) -> Target:
    return Target(
        f"{PRIVATE}:{peer.port('private')}".replace("{svc}", "fc1"),
        f"{PUBLIC}:{peer.port('public')}".replace("{svc}", "fc1"),
    )


def dialer(peer: Peer, settings: ProxySettings, names: Names | None = None, *, fallback: bool = True) -> Dialer:
    resolver = names or Names()  # this host resolves nothing
    way = ThroughProxy(settings, Bypass(settings.bypass, PRIVATE), Direct(resolver, 2), CLOCK)
    context = trust_only(peer.authority.cert_pem.bytes().decode())
    return Dialer(context, resolver, public_fallback=fallback, timeout=2, connector=way)


def test_the_proxy_resolves_and_this_host_is_not_asked(peer: Peer, proxy: Proxy, target: Target) -> None:
    names = Names()
    connection, route = dialer(peer, parse_proxy(proxy.url), names).dial(target)
    connection.close()
    assert (route.path, route.proxy, route.because, names.asked) == ("private", proxy.url, "", [])
    assert "through the proxy" in str(route)


def test_a_name_that_the_proxy_does_not_find_leads_to_the_public_one_and_says_whose_dns_it_was(
    peer: Peer, proxy: Proxy, target: Target
) -> None:
    proxy.names = {name: address for name, address in proxy.names.items() if "privatelink" not in name}
    connection, route = dialer(peer, parse_proxy(proxy.url)).dial(target)
    connection.close()
    assert route.path == "public" and "privatelink" in route.because
    assert f"the proxy {proxy.url} resolved the name itself and found no address" in route.because
    with pytest.raises(LegFailed, match="publicFallback is off") as caught:
        dialer(peer, parse_proxy(proxy.url), fallback=False).dial(target)
    assert (caught.value.leg, caught.value.proxy) == ("name", proxy.url)


def test_what_is_bypassed_is_resolved_and_reached_by_this_host(peer: Peer, proxy: Proxy, target: Target) -> None:
    settings = parse_proxy(proxy.url, ["private-zones"])
    connection, route = dialer(peer, settings, peer.names).dial(target)
    connection.close()
    assert (route.path, route.proxy, proxy.asked) == ("private", "", [])


def test_user_and_password_go_to_the_proxy_and_nowhere_else(peer: Peer, proxy: Proxy, target: Target) -> None:
    settings = parse_proxy(f"http://backup:p%40ss%2Fword@127.0.0.1:{proxy.port}")
    connection, route = dialer(peer, settings).dial(target)
    connection.close()
    (head,) = proxy.asked
    assert base64.b64encode(b"backup:p@ss/word") in head
    assert "p@ss" not in repr(settings) + settings.shown + str(route) + route.proxy


REFUSALS = [
    (b'407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="x"', "UserErrorProxyAuthenticationRequired",
     "--password-file"),
    (b"407 Proxy Authentication Required\r\nProxy-Authenticate: Negotiate", "UserErrorProxyAuthenticationRequired",
     "this agent knows Basic"),
    (b"403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0", "UserErrorProxyRefused", "403 Forbidden ERR_ACCESS_DENIED"),
    (b"405 Method Not Allowed", "UserErrorProxyRefused", "allow CONNECT"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "code", "said"), REFUSALS)
def test_a_refusal_is_named_and_never_hidden_by_the_public_name(
    peer: Peer, proxy: Proxy, target: Target, answer: bytes, code: str, said: str
) -> None:
    proxy.says = b"HTTP/1.1 " + answer + b"\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(LegFailed) as caught:
        dialer(peer, parse_proxy(proxy.url)).dial(target)
    assert (caught.value.leg, caught.value.code) == ("proxy", code)
    assert said in caught.value.message and proxy.url in caught.value.message
    assert len(proxy.asked) == 1


def test_a_wrong_password_is_told_from_none(peer: Peer, proxy: Proxy, target: Target) -> None:
    proxy.says = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\n\r\n"
    with pytest.raises(LegFailed, match="does not accept the user 'backup'") as caught:
        dialer(peer, parse_proxy(f"http://backup:secretive@127.0.0.1:{proxy.port}")).dial(target)
    assert "secretive" not in caught.value.message


def test_a_proxy_that_could_not_connect(peer: Peer, proxy: Proxy, target: Target) -> None:
    proxy.says = b"HTTP/1.1 503 Service Unavailable\r\nX-Squid-Error: ERR_CONNECT_FAIL 111\r\n\r\n"
    with pytest.raises(LegFailed, match=r"could not connect to .*ERR_CONNECT_FAIL") as caught:
        dialer(peer, parse_proxy(proxy.url)).dial(target)
    assert caught.value.leg == "connect"
    assert len(proxy.asked) == 2, "as when it does not connect directly, the public name is tried"


def test_a_dead_proxy(peer: Peer, proxy: Proxy, target: Target) -> None:
    proxy.close()
    with pytest.raises(LegFailed, match=r"cannot be reached: connection to 127\.0\.0\.1:.* refused") as caught:
        dialer(peer, parse_proxy(proxy.url)).dial(target)
    assert (caught.value.leg, caught.value.code) == ("proxy", "UserErrorProxyUnreachable")
    with pytest.raises(LegFailed, match=r"proxy\.example: NXDOMAIN") as caught:
        dialer(peer, parse_proxy("proxy.example:3128")).dial(target)
    assert (caught.value.leg, caught.value.code) == ("proxy", "UserErrorProxyUnreachable")


def test_a_hanging_proxy_costs_a_bounded_time(
    peer: Peer, proxy: Proxy, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxies, "ANSWER_SECONDS", 0.3)
    proxy.silent = True
    with pytest.raises(LegFailed, match="It hangs, or what it resolved the name to") as caught:
        dialer(peer, parse_proxy(proxy.url)).dial(target)
    assert (caught.value.leg, caught.value.code) == ("proxy", "UserErrorProxyDoesNotAnswer")


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 x y\r\n\r\n", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n" + b"a" * 20_000],
)
def test_what_is_no_proxy_is_said_to_be_none(peer: Peer, proxy: Proxy, target: Target, answer: bytes) -> None:
    proxy.says = answer
    with pytest.raises(LegFailed) as caught:
        dialer(peer, parse_proxy(proxy.url)).dial(target)
    assert (caught.value.leg, caught.value.code) == ("proxy", "UserErrorProxyDoesNotAnswer")


@pytest.mark.parametrize(
    ("text", "url", "user"),
    [
        ("http://proxy.example:8080", "http://proxy.example:8080", ""),
        ("proxy.example", "http://proxy.example:3128", ""),
        ("http://us%20er:p@10.1.0.5:3128/", "http://10.1.0.5:3128", "us er"),
        ("direct", "direct", ""),
    ],
)
def test_how_a_proxy_is_written(text: str, url: str, user: str) -> None:
    found = parse_proxy(text)
    assert (found.url, found.user) == (url, user)


@pytest.mark.parametrize(
    "text", ["", "http://", "http://x:99999", "http://x/path", "http://x?y", "http://:secret@x", "http://[::1"]
)
def test_what_is_no_proxy_url_is_refused_without_repeating_a_password(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_proxy(text)
    assert "secret" not in caught.value.message and caught.value.code == "UserErrorInvalidProxy"


def test_other_kinds_of_proxy_are_refused_by_name() -> None:
    for text in ("https://x:3128", "socks5://x"):
        with pytest.raises(CapabilityMissing, match="CONNECT only"):
            parse_proxy(text)
    with pytest.raises(InvalidInput, match="bypass list"):
        parse_proxy("x", ["a b"])


@pytest.mark.parametrize(
    ("entries", "bypassed", "not_bypassed"),
    [
        (
            "private-zones",
            (PRIVATE.replace("{svc}", "id1"), "0aprot01.blob.core.windows.net", "0aprot02.z01.blob.storage.azure.net"),
            (PUBLIC, LOGIN),
        ),
        (".backup.windowsazure.com,login.undercroft.internal", (PUBLIC, LOGIN), ("xlogin.undercroft.internal",)),
        ("*.core.windows.net", ("a.queue.core.windows.net",), ("core.windows.net.example",)),
        ("*", (LOGIN,), ()),
        ("10.0.0.0/8", ("10.1.2.3",), ("11.0.0.1", LOGIN)),
        ("", (), (LOGIN,)),
    ],
)
def test_the_bypass_list(entries: str, bypassed: tuple[str, ...], not_bypassed: tuple[str, ...]) -> None:
    bypass = Bypass(parse_proxy("x", entries.split(",")).bypass, PRIVATE)
    assert all(host in bypass and host.upper() in bypass for host in bypassed)
    assert not any(host in bypass for host in not_bypassed)


def test_the_environment_is_read_as_curl_reads_it() -> None:
    found = from_environment(
        {"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:2", "NO_PROXY": "x.example, .y ,10.0.0.0/8,[,"}
    )
    assert found is not None
    assert (found.url, found.bypass) == ("http://b:2", ("x.example", ".y", "10.0.0.0/8"))
    assert from_environment({"HTTP_PROXY": "http://a:1"}) is None


@pytest.fixture
def agent(peer: Peer, tmp_path: Path) -> Agent:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "one").write_bytes(b"something")
    return Agent(peer, tmp_path)


def test_register_back_up_and_restore_through_it(agent: Agent, proxy: Proxy, tmp_path: Path) -> None:
    """Nothing of the agent resolves a name here, and the setting stays with the identity, readable by its owner only."""
    agent.peer.names.table.clear()
    secret = tmp_path / "secret"
    secret.write_text("hidden-word\n")
    secret.chmod(0o600)
    credentials = agent.peer.credentials(tmp_path / "vault.json")
    out, err = agent.run("register", "--credentials", credentials, "--proxy", f"http://me@127.0.0.1:{proxy.port}",
                         "--proxy-password-file", secret)  # fmt: skip
    assert f"through the proxy {proxy.url}" in out and "warning" not in err
    agent.back_up()
    agent.run("restore", "latest", "--to", tmp_path / "out", "--passphrase-file", agent.passphrase)
    status, _ = agent.run("status")
    shown, _ = agent.run("proxy")
    assert f"{proxy.url} as 'me' (set here)" in shown
    assert f"through the proxy {proxy.url}, which resolves its name itself" in status
    home = AgentHome(tmp_path / "home")
    identity = home.load()
    assert identity.proxy is not None and identity.proxy.password == "hidden-word"
    assert "hidden-word" not in out + err + status + shown + repr(identity)
    assert {leg["proxy"] for leg in agent.peer.told} == {proxy.url}
    assert len({head.split()[1] for head in proxy.asked}) > 4  # login, services, accounts


def test_registering_again_keeps_it(agent: Agent, proxy: Proxy, tmp_path: Path) -> None:
    """As the hosts of a vault must when its last endpoint went; in a locked-down network there is no other way out."""
    agent.peer.names.table.clear()
    credentials = agent.peer.credentials(tmp_path / "vault.json")
    agent.run("register", "--credentials", credentials, "--proxy", proxy.url, "--bypass", "other.example")
    out, _ = agent.run("register", "--credentials", credentials)
    assert f"through the proxy {proxy.url}" in out
    assert f"{proxy.url}, not for other.example (set here)" in agent.run("proxy")[0]
    (tmp_path / "home" / "identity.json").write_text("damaged")
    assert "cannot be reached" in agent.run("register", "--credentials", credentials, expect=1)[1]


def test_changing_it_later(agent: Agent, proxy: Proxy) -> None:
    agent.register()
    assert "proxy: none" in agent.run("proxy")[0]
    assert "'direct' or" not in agent.run("proxy", "http://127.0.0.1:9", "--bypass", "private-zones")[0]
    said = agent.run("status", expect=1)[0]
    assert "the proxy http://127.0.0.1:9 cannot be reached" in said and "undercroft agent proxy" in said
    agent.run("proxy", proxy.url)
    assert "through the proxy" in agent.run("status")[0]
    assert "direct" in agent.run("proxy", "direct")[0]
    assert "through the proxy" not in agent.run("status")[0]
    assert "proxy: none" in agent.run("proxy", "environment")[0]
    assert "command line" in agent.run("proxy", "http://me:word@x")[1]
    assert "not a URL" in agent.run("proxy", "http://x/y", expect=2)[1]
    assert "name it" in agent.run("register", "--credentials", "x", "--proxy-bypass", "y", expect=2)[1]
