"""A small honest peer: the calls of docs/protocol.md that the agent makes, over real TLS sockets on loopback.

It checks what a service checks (assertions are verified, SAS compared, names and overwrites refused, commits complete), keeps
objects in memory, and listens twice: a private door and a public one. ``Plan`` says what goes wrong, and how often.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import socket
import ssl
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from cryptography.x509.oid import NameOID
from joserfc import jwt
from joserfc.jwk import ECKey

from undercroft.agent.resolve import LegFailed

VAULT_ID = "1132794570626989392"
TENANT = "11111111-2222-3333-4444-555555555555"
AUDIENCE = f"api://{TENANT}/RecoveryServiceVault/eus/vault1/{VAULT_ID}"
PRIVATE = f"{VAULT_ID}-ab-pod01-{{svc}}.privatelink.eus.backup.windowsazure.com"
PUBLIC = "pod01-{svc}.eus.backup.windowsazure.com"
LOGIN = "login.undercroft.internal"
ACCOUNT = "0a1b2c3dprot01"
COMMUNICATION = "0a1b2c3decs01"
NAME = re.compile(r"(packs|indexes|manifests|keys)/[0-9a-f]{32}")
LOG = re.compile(r"jobs/[0-9a-f-]{36}/agent\.log")


@dataclass
class Fault:
    """The next ``times`` requests whose 'METHOD path' matches get this instead. ``status`` 0 hangs up without an answer, after
    the request was carried out when ``after`` is set."""

    pattern: str
    status: int
    code: str = ""
    times: int = 1
    after: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    hit: int = 0


@dataclass
class Plan:
    faults: list[Fault] = field(default_factory=list)

    def add(self, pattern: str, status: int, code: str = "", **rest: Any) -> Fault:
        self.faults.append(Fault(pattern, status, code, **rest))
        return self.faults[-1]

    def take(self, request: str) -> Fault | None:
        for fault in self.faults:
            if fault.hit < fault.times and re.search(fault.pattern, request):
                fault.hit += 1
                return fault
        return None


@dataclass
class Names:
    """A resolver over a table; a name that is not in it does not exist, one with no addresses is not answered."""

    table: dict[str, tuple[str, ...]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def addresses(self, name: str) -> tuple[str, ...]:
        self.asked.append(name)
        if name not in self.table:
            raise LegFailed(f"{name}: NXDOMAIN from resolver 168.63.129.16", leg="name")
        if not self.table[name]:
            raise LegFailed(f"{name}: no answer to the DNS question from resolver 168.63.129.16", leg="resolver")
        return self.table[name]


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str = "refused by the peer", **more: Any) -> None:
        super().__init__(code)
        self.status, self.code, self.text, self.more = status, code, message, more


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, peer: Peer, door: str, context: ssl.SSLContext, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.peer, self.door, self.context = peer, door, context
        self.open: set[Any] = set()

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        self.open.add(connection)
        return connection, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(20)
        try:
            secure = self.context.wrap_socket(request, server_side=True)
        except OSError:
            return
        self.open.add(secure)
        try:
            super().finish_request(secure, client_address)
        except OSError:
            pass
        finally:
            self.open.discard(secure)
            secure.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        raise


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.serve("GET")

    def do_POST(self) -> None:
        self.serve("POST")

    def do_PUT(self) -> None:
        self.serve("PUT")

    def serve(self, method: str) -> None:
        peer = self.server.peer
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        parts = urlsplit(self.path)
        request = f"{method} {parts.path}"
        peer.seen.append((self.server.door, self.headers["Host"], request))
        fault = peer.plan.take(request)
        more: dict[str, str] = {}
        try:
            if fault is not None and fault.status == 0 and not fault.after:
                self.close_connection = True
                return
            if fault is not None and not fault.after:
                more = fault.headers
                raise Refused(fault.status, fault.code)
            host = self.headers["Host"].split(":")[0]
            with peer.lock:
                status, answer, more = peer.handle(self, self.server.door, host, method, parts.path, parts.query, body)
        except Refused as error:
            status = error.status
            answer = json.dumps({"error": {"code": error.code, "message": error.text}, **error.more}).encode()
            if ".blob." in self.headers["Host"]:
                answer = f"<Error><Code>{error.code}</Code><Message>{error.text}</Message></Error>".encode()
                more = {**more, "x-ms-error-code": error.code}
        if fault is not None and fault.status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@dataclass
class Backup:
    id: str
    container: str
    item: dict[str, str]
    status: str = "Open"
    progress: list[dict[str, int]] = field(default_factory=list)
    failure: dict[str, str] = field(default_factory=dict)
    point: dict[str, Any] | None = None
    renewals: int = 0


class Peer:
    """One vault. Start with ``with``; ``names`` resolves its hosts to it."""

    def __init__(self) -> None:
        self.authority = trustme.CA()
        leaf = self.authority.issue_cert(
            PRIVATE.replace(f"{VAULT_ID}-ab-pod01-{{svc}}", "*"),
            PUBLIC.replace("pod01-{svc}", "*"),
            LOGIN,
            "*.blob.core.windows.net",
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        self.lock = threading.RLock()
        self.plan = Plan()
        self.seen: list[tuple[str, str, str]] = []
        self.context = context
        self.servers = {door: Server(self, door, context) for door in ("private", "public")}
        self.keys: dict[str, str] = {}
        self.tokens: dict[str, str] = {}
        self.containers: dict[str, str] = {}
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.backups: dict[str, Backup] = {}
        self.restores: dict[str, dict[str, Any]] = {}
        self.pending = {"container": 0, "backup": 0}
        self.public_access = True
        self.registered = True
        self.secret = secrets.token_hex(8)
        self.token_seconds = 3600
        self.names = Names()
        self.blob_capacity: int | None = None
        self.logs: dict[str, str] = {}
        self.told: list[dict[str, str]] = []

    def __enter__(self) -> Peer:
        for server in self.servers.values():
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for service in ("id1", "fc1", "prot1", "rec2"):
            self.names.table[PRIVATE.replace("{svc}", service)] = ("127.0.0.1",)
            self.names.table[PUBLIC.replace("{svc}", service)] = ("127.0.0.1",)
        for host in (LOGIN, f"{ACCOUNT}.blob.core.windows.net", f"{COMMUNICATION}.blob.core.windows.net"):
            self.names.table[host] = ("127.0.0.1",)
        self.names.table[f"{COMMUNICATION}.queue.core.windows.net"] = ("127.0.0.1",)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers.values():
            server.shutdown()
            server.server_close()
            for connection in list(server.open):
                connection.close()

    def stop(self, door: str) -> None:
        """As if this door's process was killed: connections break, the port refuses."""
        server = self.servers[door]
        server.shutdown()
        server.server_close()
        for connection in list(server.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def start_again(self, door: str) -> None:
        self.servers[door] = Server(self, door, self.context, self.port(door))
        threading.Thread(target=self.servers[door].serve_forever, args=(0.02,), daemon=True).start()

    def port(self, door: str) -> int:
        return int(self.servers[door].server_address[1])

    def hide_private_names(self) -> None:
        for name in [name for name in self.names.table if "privatelink" in name]:
            del self.names.table[name]

    def credentials(self, path: Path, **changes: Any) -> Path:
        """A vault credentials file for this vault, as ``undercroft vault credentials`` writes it."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vault1")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + timedelta(hours=48))
            .sign(key, hashes.SHA256())
        )
        client = str(uuid.uuid4())
        self.keys[client] = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        document = {
            "version": 1,
            "vaultName": "vault1",
            "vaultId": VAULT_ID,
            "resourceId": "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/vault1",
            "subscriptionId": "s",
            "tenantId": TENANT,
            "region": "eastus",
            "geoCode": "eus",
            "audience": AUDIENCE,
            "loginEndpoint": f"https://{LOGIN}:{self.port('public')}",
            "clientId": client,
            "certificate": certificate.public_bytes(Encoding.PEM).decode(),
            "privateKey": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            "caBundle": self.authority.cert_pem.bytes().decode(),
            "privateHost": f"{PRIVATE}:{self.port('private')}",
            "publicHost": f"{PUBLIC}:{self.port('public')}",
            "issued": now.isoformat(),
            "notAfter": (now + timedelta(hours=48)).isoformat(),
        }
        document.update(changes)
        path.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))
        path.chmod(0o600)
        return path

    # What the service does. Everything below runs under the lock.

    def handle(
        self, handler: Handler, door: str, host: str, method: str, path: str, query: str, body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        if host == LOGIN:
            return self.token(handler, path, body)
        if ".blob." in host:
            return self.blob(handler, method, path, query, body)
        if ("privatelink" in host) != (door == "private"):
            raise Refused(421, "MisdirectedRequest")
        caller = self.tokens.get(handler.headers.get("Authorization", "").removeprefix("Bearer "))
        if caller is None:
            raise Refused(401, "AuthenticationFailed")
        if door == "public" and not self.public_access:
            raise Refused(403, "UserErrorPublicNetworkAccessDenied", "The vault denies public network access.")
        document = json.loads(body) if body else {}
        for pattern, call in self.calls.items():
            match = re.fullmatch(pattern, f"{method} {path}")
            if match:
                answer = call(self, caller, document, parse_qs(query), *match.groups())
                if answer is None:
                    return 204, b"", {}
                return 200, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), {}
        raise Refused(404, "NotFound", path)

    def token(self, handler: Handler, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        key = self.keys.get(form["client_id"])
        if key is None or form["grant_type"] != "client_credentials" or form["scope"] != f"{AUDIENCE}/.default":
            return 401, b'{"error":"invalid_client","error_description":"unknown client"}', {}
        claims = jwt.decode(form["client_assertion"], ECKey.import_key(key), algorithms=["ES256"]).claims
        assert claims["iss"] == claims["sub"] == form["client_id"]
        assert claims["aud"] == f"https://{handler.headers['Host']}{path}"
        assert path == f"/{TENANT}/oauth2/v2.0/token"
        assert 0 < claims["exp"] - claims["iat"] <= 600
        token = secrets.token_hex(16)
        self.tokens[token] = form["client_id"]
        answer = {"access_token": token, "expires_in": self.token_seconds, "token_type": "Bearer"}
        return 200, json.dumps(answer).encode(), {}

    def blob(
        self, handler: Handler, method: str, path: str, query: str, body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        container, _, name = unquote(path).lstrip("/").partition("/")
        wanted = {"PUT": "c", "GET": "r"}[method]
        if parse_qs(query) != {"sp": [wanted], "sig": [self.secret]}:
            raise Refused(403, "AuthenticationFailed", "Server failed to authenticate the request.")
        if handler.headers["Host"].startswith(COMMUNICATION):
            assert method == "PUT" and LOG.fullmatch(name)
            self.logs[name] = body.decode()
            return 201, b"", {}
        if not NAME.fullmatch(name):
            raise Refused(400, "InvalidResourceName")
        blobs = self.blobs.setdefault(container, {})
        if method == "PUT":
            assert handler.headers["x-ms-blob-type"] == "BlockBlob" and handler.headers["x-ms-version"]
            if name in blobs:
                raise Refused(409, "BlobAlreadyExists")
            if self.blob_capacity is not None and sum(map(len, blobs.values())) + len(body) > self.blob_capacity:
                raise Refused(507, "InsufficientStorage", "The store is full.")
            blobs[name] = body
            return 201, b"", {"ETag": '"1"'}
        if name not in blobs:
            raise Refused(404, "BlobNotFound")
        wanted_range = handler.headers.get("x-ms-range")
        if wanted_range is None:
            return 200, blobs[name], {}
        first, last = wanted_range.removeprefix("bytes=").split("-")
        if int(first) >= len(blobs[name]):
            raise Refused(416, "InvalidRange")
        return 206, blobs[name][int(first) : int(last) + 1 if last else None], {}

    def register(self, caller: str, document: dict[str, Any], query: Any) -> dict[str, Any]:
        assert set(document) == {"machineName", "agentVersion", "operatingSystem", "publicKey"}
        load_pem_public_key(document["publicKey"].encode())
        name = document["machineName"]
        if not re.fullmatch(r"[A-Za-z0-9.-]{1,64}", name):
            raise Refused(400, "UserErrorInvalidMachineName", f"'{name}' is not a machine name.")
        container = self.containers.setdefault(name, str(uuid.uuid4()))
        self.keys[container] = document["publicKey"]
        self.registered = True
        return {
            "containerId": container,
            "containerName": name,
            "vaultName": "vault1",
            "serverTime": datetime.now(UTC).isoformat(),
        }

    def container(self, caller: str, document: Any, query: Any) -> dict[str, Any]:
        port = self.port("private")
        self.pending["container"] = max(self.pending["container"] - 1, 0)
        accounts = {
            "name": COMMUNICATION,
            "purpose": "ecs",
            "blobHost": f"{COMMUNICATION}.blob.core.windows.net:{port}",
            "queueHost": f"{COMMUNICATION}.queue.core.windows.net:{port}",
        }
        return {
            "containerId": caller,
            "containerName": "web01",
            "vaultName": "vault1",
            "registration": "Registered" if self.registered else "NotRegistered",
            "lastDoor": None,
            "accounts": [] if self.pending["container"] else [accounts],
            "pending": self.pending["container"],
        }

    def paths(self, caller: str, document: dict[str, Any], query: Any) -> None:
        assert set(document) <= {"legs", "jobId"}
        assert all(set(leg) == {"leg", "because", "proxy"} for leg in document["legs"])
        self.told += document["legs"]

    def must_be_registered(self) -> None:
        if not self.registered:
            raise Refused(403, "UserErrorContainerNotRegistered", "The container is not registered.")

    def objects(self, caller: str, document: Any, query: dict[str, list[str]]) -> dict[str, Any]:
        self.must_be_registered()
        kind = query["kind"][0]
        assert kind in ("keys", "indexes")
        found = [
            {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in self.blobs.get(caller, {}).items()
            if name.startswith(f"{kind}/")
        ]
        start = int(query.get("after", ["0"])[0])
        more = str(start + 2) if len(found) > start + 2 else None
        return {"objects": found[start : start + 2], "next": more}

    def object(self, caller: str, document: Any, query: Any, name: str) -> bytes:
        self.must_be_registered()
        if not name.startswith(("keys/", "indexes/")):
            raise Refused(403, "AuthorizationFailed")
        if name not in self.blobs.get(caller, {}):
            raise Refused(404, "ResourceNotFound", name)
        return self.blobs[caller][name]

    def log_grant(self, container: str) -> dict[str, str]:
        return {
            "account": COMMUNICATION,
            "blobHost": f"{COMMUNICATION}.blob.core.windows.net:{self.port('private')}",
            "container": container,
            "sas": f"sp=c&sig={self.secret}",
            "expires": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        }

    def grant(self, container: str, permission: str) -> dict[str, str] | None:
        if self.pending["backup"]:
            self.pending["backup"] -= 1
            return None
        return {
            "account": ACCOUNT,
            "blobHost": f"{ACCOUNT}.blob.core.windows.net:{self.port('private')}",
            "container": container,
            "sas": f"sp={permission}&sig={self.secret}",
            "expires": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        }

    def opened(self, backup: Backup) -> dict[str, Any]:
        grant = self.grant(backup.container, "c")
        return {
            "backupId": backup.id,
            "jobId": str(uuid.uuid4()),
            "leaseUntil": (datetime.now(UTC) + timedelta(minutes=10)).isoformat(),
            "pending": 0 if grant else 1,
            "grant": grant,
            "logGrant": self.log_grant(backup.container),
        }

    def open_backup(self, caller: str, document: dict[str, Any], query: Any) -> dict[str, Any]:
        self.must_be_registered()
        assert set(document) == {"item", "formatVersion"} and set(document["item"]) == {"name", "kind"}
        for older in self.backups.values():
            if older.container == caller and older.item == document["item"] and older.status == "Open":
                older.status = "Expired"
        backup = Backup(str(uuid.uuid4()), caller, document["item"])
        self.backups[backup.id] = backup
        return self.opened(backup)

    def find(self, identity: str, *, may_be_committed: bool = False) -> Backup:
        self.must_be_registered()
        backup = self.backups[identity]
        if backup.status != "Open" and not (may_be_committed and backup.status == "Committed"):
            raise Refused(409, "UserErrorBackupNotOpen", f"The backup is {backup.status}.")
        return backup

    def renew_backup(self, caller: str, document: Any, query: Any, identity: str) -> dict[str, Any]:
        backup = self.find(identity)
        backup.renewals += 1
        return self.opened(backup)

    def progress(self, caller: str, document: dict[str, int], query: Any, identity: str) -> None:
        assert set(document) == {"filesDone", "bytesRead", "bytesSent"}
        self.find(identity).progress.append(document)

    def commit(self, caller: str, document: dict[str, Any], query: Any, identity: str) -> dict[str, Any]:
        backup = self.find(identity, may_be_committed=True)
        assert set(document) == {"manifest", "packs", "indexes", "statistics"}
        counts = {"files", "directories", "bytesRead", "bytesSent", "bytesStored", "unreadable", "sourceBytes"}
        assert set(document["statistics"]) == counts
        if backup.point is None:
            needed = [document["manifest"], *document["packs"], *document["indexes"]]
            missing = [name for name in needed if name not in self.blobs.get(caller, {})]
            if missing:
                raise Refused(409, "UserErrorObjectsMissing", "Objects are missing.", missing=missing)
            backup.status = "Committed"
            backup.point = {
                "id": str(uuid.uuid4()),
                "time": datetime.now(UTC).isoformat(),
                "item": backup.item,
                "statistics": document["statistics"],
                "formatVersion": 0,
                "commit": document,
            }
        return {"recoveryPointId": backup.point["id"], "time": backup.point["time"]}

    def fail(self, caller: str, document: dict[str, str], query: Any, identity: str) -> None:
        assert set(document) == {"code", "message"}
        backup = self.find(identity)
        backup.status, backup.failure = "Failed", document

    def point_list(self, caller: str) -> list[dict[str, Any]]:
        return [b.point for b in self.backups.values() if b.point is not None and b.container == caller][::-1]

    def points(self, caller: str, document: Any, query: dict[str, list[str]]) -> dict[str, Any]:
        self.must_be_registered()
        item = query.get("item", [None])[0]
        shown = [
            {key: value for key, value in point.items() if key != "commit"}
            for point in self.point_list(caller)
            if item is None or item == point["item"]["name"]
        ]
        start = int(query.get("after", ["0"])[0])  # a page of two
        more = str(start + 2) if len(shown) > start + 2 else None
        return {"points": shown[start : start + 2], "next": more}

    def open_restore(self, caller: str, document: dict[str, str], query: Any) -> dict[str, Any]:
        self.must_be_registered()
        for point in self.point_list(caller):
            if point["id"] == document["recoveryPointId"]:
                identity = str(uuid.uuid4())
                self.restores[identity] = {"id": identity, "point": point, "container": caller, "done": None}
                return self.plan_of(self.restores[identity])
        raise Refused(404, "UserErrorRecoveryPointNotFound", "There is no such recovery point.")

    def plan_of(self, restore: dict[str, Any]) -> dict[str, Any]:
        point = restore["point"]
        grant = self.grant(restore["container"], "r")
        return {
            "restoreId": restore["id"],
            "jobId": str(uuid.uuid4()),
            "point": {key: value for key, value in point.items() if key != "commit"},
            "manifest": point["commit"]["manifest"],
            "packs": point["commit"]["packs"],
            "indexes": point["commit"]["indexes"],
            "grant": grant,
            "logGrant": self.log_grant(restore["container"]),
            "pending": 0 if grant else 1,
        }

    def renew_restore(self, caller: str, document: Any, query: Any, identity: str) -> dict[str, Any]:
        return self.plan_of(self.restores[identity])

    def complete_restore(self, caller: str, document: dict[str, Any], query: Any, identity: str) -> None:
        assert set(document) == {"status", "files", "bytes", "message"}
        assert document["status"] in ("Completed", "CompletedWithWarnings", "Failed")
        self.restores[identity]["done"] = document

    calls: ClassVar[dict[str, Callable[..., Any]]] = {
        "POST /v1/register": register,
        "GET /v1/container": container,
        "POST /v1/paths": paths,
        "GET /v1/objects": objects,
        "GET /v1/objects/(.+)": object,
        "POST /v1/backups": open_backup,
        "POST /v1/backups/([^/]+)/renew": renew_backup,
        "POST /v1/backups/([^/]+)/progress": progress,
        "POST /v1/backups/([^/]+)/commit": commit,
        "POST /v1/backups/([^/]+)/fail": fail,
        "GET /v1/points": points,
        "POST /v1/restores": open_restore,
        "POST /v1/restores/([^/]+)/renew": renew_restore,
        "POST /v1/restores/([^/]+)/complete": complete_restore,
    }
