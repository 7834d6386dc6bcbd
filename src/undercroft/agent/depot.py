"""The engine's ``Depot`` over the protocol: objects are put as block blobs with the grant's SAS, packs and manifests are read back
with a restore's grant, keys and indexes are listed and read through ``/v1/objects``.

Grants end; ``Grants`` keeps the newest, which the heartbeat renews in time, and which a refused put renews at once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Protocol
from urllib.parse import quote

from undercroft.engine.repository import Bytes, ObjectEntry
from undercroft.errors import (
    Conflict,
    DamagedData,
    NotAuthenticated,
    NotAuthorized,
    NotFound,
    PeerMisbehaved,
    Throttled,
    Unavailable,
    UndercroftError,
)

from .exchange import Answer
from .messages import Grant, StoredObjects
from .resolve import LegFailed, Target
from .session import Patience, Session, refusal, retry_after

__all__ = ["Grants", "VaultDepot"]

STORAGE_VERSION = "2020-12-06"
PUT_SECONDS = 180.0
BY_SERVICE = ("keys/", "indexes/")


class Renew(Protocol):
    def __call__(self) -> Grant:
        """A new grant from the service; raises what the service says against it."""


class Grants:
    """The newest grant. Thread-safe; one renewal at a time."""

    def __init__(self, first: Grant, renew: Renew) -> None:
        self._grant = first
        self._renew = renew
        self._lock = threading.Lock()

    @property
    def grant(self) -> Grant:
        return self._grant

    def renew(self, seen: Grant | None = None) -> Grant:
        """A newer grant than ``seen``: when another thread has renewed it meanwhile, that one."""
        with self._lock:
            if seen is None or self._grant is seen:
                self._grant = self._renew()
            return self._grant


class VaultDepot:
    """Implements ``engine.repository.Depot``. Counts what it sent and received."""

    def __init__(
        self,
        session: Session,
        service: str,
        grants: Grants | None,
        *,
        readable: bool = False,
        seconds: float = PUT_SECONDS,
    ) -> None:
        self.session = session
        self.grants = grants
        self.sent = 0
        self.stored = 0
        self.received = 0
        self._service = service
        self._readable = readable
        self._seconds = seconds
        self._lock = threading.Lock()

    def put(self, name: str, parts: Sequence[Bytes]) -> None:
        size = sum(memoryview(part).nbytes for part in parts)
        headers = {
            "x-ms-blob-type": "BlockBlob",
            "x-ms-version": STORAGE_VERSION,
            "If-None-Match": "*",
            "Content-Type": "application/octet-stream",
        }
        try:
            self._ask("PUT", name, headers, parts)
            stored = size
        except Conflict as error:
            if error.code not in (
                "BlobAlreadyExists",
                "UnauthorizedBlobOverwrite",
                "ConditionNotMet",
                "PreconditionFailed",
            ):
                raise
            stored = 0  # it arrived before: an earlier attempt or an interrupted run
        with self._lock:
            self.sent += size
            self.stored += stored

    def get(self, name: str, offset: int = 0, length: int | None = None) -> Bytes:
        if name.startswith(BY_SERVICE) and not (self._readable and name.startswith("indexes/")):
            body = self.session.fetch(self._service, f"/v1/objects/{quote(name)}")
            found: Bytes = memoryview(body)[offset : None if length is None else offset + length]
        else:
            found = self._get_blob(name, offset, length)
        with self._lock:
            self.received += memoryview(found).nbytes
        return found

    def objects(self, kind: str) -> Iterable[ObjectEntry]:
        query, found = {"kind": kind}, []
        while True:
            page = self.session.call(self._service, "GET", "/v1/objects", StoredObjects, query=query)
            found += [ObjectEntry(entry.name, entry.size) for entry in page.objects]
            if page.next is None or not page.objects:
                return found
            query["after"] = page.next

    def _get_blob(self, name: str, offset: int, length: int | None) -> bytes:
        if length == 0:
            return b""
        headers = {"x-ms-version": STORAGE_VERSION}
        if offset or length is not None:
            last = "" if length is None else str(offset + length - 1)
            headers["x-ms-range"] = f"bytes={offset}-{last}"
        try:
            answer = self._ask("GET", name, headers, ())
        except RangeGone:
            return b""
        body = answer.body
        if answer.status == 200 and "x-ms-range" in headers and (offset or length is not None):
            body = body[offset : None if length is None else offset + length]
        if length is not None and len(body) > length:
            raise PeerMisbehaved(f"{answer.route.host} sent {len(body)} bytes of {name} where {length} were asked for.")
        return body

    def _ask(self, method: str, name: str, headers: dict[str, str], parts: Sequence[Bytes]) -> Answer:
        """One storage operation with patience. A SAS that is refused is renewed once; connections that keep breaking make us
        ask the service whether the job is still wanted, because a refusal of a large body may reach us as a broken connection."""
        if self.grants is None:
            raise DamagedData(f"{name} is not there to read.", target=name)
        patience = Patience(self.session.clock, self._seconds, self.session.stop)
        renewed = False
        while True:
            grant = self.grants.grant
            path = f"/{quote(grant.container)}/{quote(name)}?{grant.sas.lstrip('?')}"
            failed: UndercroftError
            asked: float | None = None
            try:
                answer = self.session.exchange.send(Target(grant.blob_host, None), method, path, parts, headers)
            except LegFailed as error:
                failed = error
                if error.leg == "tls" or not patience.wait():
                    raise self._unreachable(grant, error) from error
                self.grants.renew(grant)
                continue
            if answer.status < 400:
                return answer
            failed, asked = storage_refusal(answer, name), retry_after(answer)
            if isinstance(failed, (NotAuthenticated, NotAuthorized)) and not renewed:
                renewed = True
                self.grants.renew(grant)
                continue
            if (
                isinstance(failed, (Unavailable, Throttled))
                and not isinstance(failed, LegFailed)
                and patience.wait(asked)
            ):
                continue
            raise failed

    def _unreachable(self, grant: Grant, error: LegFailed) -> UndercroftError:
        return LegFailed(
            f"The vault's storage account '{grant.account}' cannot be reached any more: {error.message}. What arrived is kept; "
            "run the command again when the way is open.",
            leg=error.leg,
            code="UserErrorStorageAccountUnreachable",
            proxy=error.proxy,
        )


class RangeGone(NotFound):
    """416: the blob ends before the range; the engine names the damage."""

    default_code = "InvalidRange"


def storage_refusal(answer: Answer, name: str) -> UndercroftError:
    """As ``refusal``, with storage's own error code, which Azure also gives in a header."""
    code = answer.headers.get("x-ms-error-code", "")
    if not code and b"<Code>" in answer.body:
        code = answer.body.split(b"<Code>", 1)[1].split(b"</Code>", 1)[0].decode("ascii", "replace")
    failed = refusal(answer, code)
    kind: type[UndercroftError] = type(failed)
    message = failed.message
    if answer.status == 416:
        kind = RangeGone
    elif answer.status == 412:
        kind, code = Conflict, code or "ConditionNotMet"
    elif answer.status == 404:
        message = f"{name} is gone. {message}"
    if kind is LegFailed:
        return failed
    return kind(message, code=code or None, target=name)
