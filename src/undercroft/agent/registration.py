"""Registration: vault credentials buy this host an identity of its own (docs/protocol.md, sections 3 and 4)."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable
from dataclasses import dataclass

from undercroft import __version__
from undercroft.clock import Clock
from undercroft.errors import LocalProblem, Unavailable

from .accounts import await_accounts, unreachable_hosts
from .credentials import CredentialsFile, VaultCredentials
from .exchange import Exchange
from .identity import AgentHome, Identity
from .lock import only_one
from .messages import Registration
from .paths import Ways
from .proxy import Bypass, ProxySettings, ThroughProxy, from_environment
from .resolve import Connector, Dialer, Direct, Resolver, trust_only
from .session import Session, VaultHosts
from .tokens import Caller, Tokens

__all__ = ["Registered", "default_machine_name", "open_session", "register"]

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Registered:
    identity: Identity
    accounts: tuple[str, ...]
    warnings: tuple[str, ...]


def default_machine_name() -> str:
    return os.environ.get("UNDERCROFT_VM") or socket.gethostname()


def user_agent() -> str:
    return f"undercroft-agent/{__version__}"


def connect(
    ca_bundle: str,
    resolver: Resolver,
    public_fallback: bool,
    hosts: VaultHosts,
    caller: Caller,
    clock: Clock,
    proxy: ProxySettings | None,
) -> Session:
    """``proxy`` None: what the environment says."""
    way: Connector = Direct(resolver)
    used = proxy or from_environment()
    if used is not None and not used.direct:
        way = ThroughProxy(used, Bypass(used.bypass, hosts.private), way, clock)
    dialer = Dialer(trust_only(ca_bundle), resolver, public_fallback=public_fallback, connector=way)
    exchange = Exchange(dialer, user_agent(), clock)
    return Session(hosts, exchange, Tokens(caller, exchange, clock), clock)


def open_session(identity: Identity, resolver: Resolver, clock: Clock, *, public_fallback: bool = True) -> Session:
    """A registered container's session. Public names are used only when neither the identity nor the caller forbids it."""
    return connect(
        identity.ca_bundle,
        resolver,
        public_fallback and identity.public_fallback,
        VaultHosts(identity.vault_name, identity.private_host, identity.public_host),
        Caller(
            identity.container_id, identity.private_key, identity.tenant_id, identity.audience, identity.login_endpoint
        ),
        clock,
        identity.proxy,
    )


def credentials_session(
    vault: VaultCredentials, resolver: Resolver, clock: Clock, public_fallback: bool, proxy: ProxySettings | None
) -> Session:
    return connect(
        vault.ca_bundle,
        resolver,
        public_fallback and vault.public_fallback,
        VaultHosts(vault.vault_name, vault.private_host, vault.public_host),
        Caller(vault.client_id, vault.private_key, vault.tenant_id, vault.audience, vault.login_endpoint),
        clock,
        proxy,
    )


def new_key() -> tuple[str, str]:
    """A P-256 key: the private half for the identity, the public half for the service. PEM."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


def kept_proxy(home: AgentHome) -> ProxySettings | None:
    try:
        return home.load().proxy
    except LocalProblem:  # nothing there, or damaged: which registering again mends
        return None


def register(
    home: AgentHome,
    credentials: CredentialsFile,
    machine_name: str,
    resolver: Resolver,
    clock: Clock,
    say: Say,
    *,
    public_fallback: bool = True,
    proxy: ProxySettings | None = None,
    account_seconds: float = 60.0,
) -> Registered:
    """Registers, writes the identity, and then waits for the communication account. An account that is not there in time,
    or whose name does not resolve here, is a warning: the registration itself holds, and a backup will name it again.

    ``proxy`` None: the one of the registration before, if there was one."""
    vault = credentials.vault
    home.prepare()
    with only_one(home.lock_file, "agent register"):
        proxy = proxy or kept_proxy(home)
        session = credentials_session(vault, resolver, clock, public_fallback, proxy)
        private_key, public_key = new_key()
        try:
            body = {
                "machineName": machine_name,
                "agentVersion": __version__,
                "operatingSystem": platform.system(),
                "publicKey": public_key,
            }
            reply = session.call("id1", "POST", "/v1/register", Registration, body=body)
            route = session.routes["id1"]
        finally:
            session.close()
        identity = Identity(
            version=1,
            container_id=reply.container_id,
            container_name=reply.container_name,
            machine_name=machine_name,
            vault_name=vault.vault_name,
            vault_id=vault.vault_id,
            resource_id=vault.resource_id,
            tenant_id=vault.tenant_id,
            region=vault.region,
            audience=vault.audience,
            login_endpoint=vault.login_endpoint,
            private_host=vault.private_host,
            public_host=vault.public_host,
            public_fallback=vault.public_fallback and public_fallback,
            registered=reply.server_time,
            private_key=private_key,
            ca_bundle=vault.ca_bundle,
            proxy=proxy,
        )
        home.save(identity)
    say(f"Registered '{machine_name}' with vault '{vault.vault_name}' by the {route}.")
    return _with_accounts(home, identity, resolver, clock, public_fallback, account_seconds)


def _with_accounts(
    home: AgentHome, identity: Identity, resolver: Resolver, clock: Clock, public_fallback: bool, seconds: float
) -> Registered:
    session = open_session(identity, resolver, clock, public_fallback=public_fallback)
    warnings: list[str] = []
    names: tuple[str, ...] = ()
    try:
        container = await_accounts(session, seconds)
        names = tuple(account.name for account in container.accounts)
        warnings += unreachable_hosts(session.exchange.dialer, container.accounts)
        Ways(session, home, warnings.append).tell()
    except Unavailable as error:
        warnings.append(error.message)
    finally:
        session.close()
    return Registered(identity, names, tuple(warnings))
