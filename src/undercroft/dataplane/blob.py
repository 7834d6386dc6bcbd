"""The Blob service (protocol.md section 6): block blobs, whole or by blocks, ranges, listing.

A call is (method, ``comp``, about a container or a blob); the table below is all there is. What Azure has beyond it is refused
by its name. Blobs are objects of the store ``{region}/blobs/{account}/{container}/{blob}``, written once: no permission of a
SAS overwrites one. Blocks wait under ``{region}/staged/…`` until a Put Block List makes a blob of them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary
from xml.sax.saxutils import escape

from aiohttp import web

from undercroft.dataplane import wire
from undercroft.dataplane.exchange import Exchange
from undercroft.dataplane.sas import PARAMETERS, Sas
from undercroft.errors import (
    CapabilityMissing,
    Conflict,
    InvalidInput,
    InvalidParameter,
    LengthRequired,
    NotAuthorized,
    NotFound,
    PreconditionFailed,
    TooLarge,
    UnknownField,
)
from undercroft.store.store import ObjectInfo, Store
from undercroft.vault.accounts import COMMUNICATION

__all__ = ["BlobService", "Target", "operation_name"]

_PROTECTED = re.compile(r"(?:packs|indexes|manifests|keys)/[0-9a-f]{32}")
_LOGGED = re.compile(r"jobs/[A-Za-z0-9_-][A-Za-z0-9._-]{0,100}(?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,100}){0,4}")
_CONTAINER = re.compile(r"[a-z0-9](?:-?[a-z0-9]){2,62}")
_PREFIX = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._/-]*|")
_BLOCKS = 50_000
_BLOCK_LIST = 8 << 20
_LARGEST = 5000 << 20
"""Of one Put Blob or Put Block: Azure's own limit is 5000 and 4000 MiB."""
_PAGE = 5000


@dataclass(frozen=True, slots=True)
class Target:
    """What the path names, in an account whose SAS was verified. ``region`` is where the account's store begins."""

    region: str
    account: str
    purpose: str
    container: str
    blob: str | None

    @property
    def folder(self) -> str:
        return f"{self.region}/blobs/{self.account}/{self.container}/"

    @property
    def object(self) -> str:
        return f"{self.folder}{self.blob}"

    @property
    def staged(self) -> str:
        return f"{self.region}/staged/{self.account}/{self.container}/{self.blob}/"


Handler = Callable[["BlobService", Exchange, Target], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Operation:
    name: str
    permissions: str
    """Any one of them suffices."""
    handler: Handler
    query: frozenset[str] = frozenset()


_UNBUILT_BLOB = {
    "metadata": "Set Blob Metadata",
    "properties": "Set Blob Properties",
    "lease": "Lease Blob",
    "snapshot": "Snapshot Blob",
    "page": "Put Page",
    "pagelist": "Get Page Ranges",
    "appendblock": "Append Block",
    "tags": "Blob Tags",
    "tier": "Set Blob Tier",
    "copy": "Abort Copy Blob",
    "undelete": "Undelete Blob",
    "query": "Query Blob Contents",
    "seal": "Append Blob Seal",
    "expiry": "Set Blob Expiry",
    "immutabilityPolicies": "Set Blob Immutability Policy",
    "legalhold": "Set Blob Legal Hold",
    "incrementalcopy": "Incremental Copy Blob",
    "blocklist": "Get Block List",
}
_UNBUILT_CONTAINER = {
    "": "Create, Delete and Get Container",
    "metadata": "Set Container Metadata",
    "acl": "Container ACL",
    "lease": "Lease Container",
    "blobs": "Find Blobs by Tags in Container",
    "batch": "Blob Batch",
    "undelete": "Restore Container",
    "rename": "Rename Container",
}


def operation_name(method: str, comp: str, blob: bool) -> str:
    """Azure's name of a call that is not built."""
    known = _UNBUILT_BLOB if blob else _UNBUILT_CONTAINER
    return known.get(comp, f"{method} {'comp=' + comp[:40] if comp else 'without comp'}")


class BlobService:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._listing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """One per container while somebody sends a block list: a list is large in memory, and a host waits for itself."""

    async def serve(self, exchange: Exchange, target: Target, sas: Sas, query: Mapping[str, str]) -> web.StreamResponse:
        """The SAS is verified; what it permits is compared here, with the operation."""
        request = exchange.request
        comp = query.get("comp", "")
        operation = OPERATIONS.get((request.method, comp, target.blob is not None))
        if operation is None:
            name = operation_name(request.method, comp, target.blob is not None)
            raise CapabilityMissing(f"The operation '{name}' is not implemented by this service.", target=name)
        if not sas.permissions.intersection(operation.permissions):
            raise NotAuthorized(
                f"This SAS does not permit {operation.name}: it has '{''.join(sorted(sas.permissions))}', and one of "
                f"'{operation.permissions}' is needed.",
                code="AuthorizationPermissionMismatch",
            )
        for name in query:
            if name not in operation.query and name not in PARAMETERS and name not in ("comp", "timeout"):
                raise UnknownField(
                    f"The query parameter '{name[:80]}' is not understood by {operation.name}.",
                    code="UnsupportedQueryParameter",
                )
        wire.version(request.headers)
        wire.check_headers(request.headers)
        if _CONTAINER.fullmatch(target.container) is None:
            raise InvalidParameter(
                f"'{target.container[:80]}' is not the name of a container.", code="InvalidResourceName"
            )
        if target.blob is not None:
            _check_name(target)
        return await operation.handler(self, exchange, target)

    # --- writing -------------------------------------------------------------------------------------------------

    async def put_blob(self, exchange: Exchange, target: Target) -> web.StreamResponse:
        headers = exchange.request.headers
        kind = headers.get("x-ms-blob-type")
        if kind is None:
            raise InvalidInput("The header x-ms-blob-type is missing; send BlockBlob.", code="MissingRequiredHeader")
        if kind != "BlockBlob":
            raise CapabilityMissing(
                f"Blobs of type '{kind[:40]}' are not implemented; send BlockBlob.", target="x-ms-blob-type"
            )
        _check_conditions(headers, ("*",))
        _check_length(exchange)
        await self._refuse_taken(target)
        info = await self._put(target.object, exchange)
        return _created(info)

    async def put_block(self, exchange: Exchange, target: Target) -> web.StreamResponse:
        _check_length(exchange)
        await self._refuse_taken(target)
        name = target.staged + _block_id(exchange.request.query.get("blockid", ""))
        await self._put(name, exchange, replace=True)
        return web.Response(status=201, headers=_common())

    async def put_block_list(self, exchange: Exchange, target: Target) -> web.StreamResponse:
        _check_conditions(exchange.request.headers, ("*",))
        if exchange.request.headers.get("x-ms-blob-content-md5"):
            raise CapabilityMissing(
                "x-ms-blob-content-md5 with Put Block List is not implemented.", target="x-ms-blob-content-md5"
            )
        expected = wire.body_md5(exchange.request.headers)
        await self._refuse_taken(target)
        lock = self._listing.setdefault(target.folder, asyncio.Lock())
        async with lock:
            info = await self._compose(exchange, target, expected)
        async for staged in self._store.list(target.staged):
            await self._store.delete(staged.name)
        return _created(info)

    async def _compose(self, exchange: Exchange, target: Target, expected: tuple[bytes, ...]) -> ObjectInfo:
        body = await exchange.read(_BLOCK_LIST)
        _compare_md5(hashlib.md5(body).digest(), expected)
        parts = tuple(target.staged + each for each in _block_list(body))
        try:
            return await self._store.compose(target.object, parts)
        except NotFound as error:
            raise InvalidInput(
                "The specified block list is invalid: it names a block that was not sent, or not lately. Send it again.",
                code="InvalidBlockList",
            ) from error

    async def _put(self, name: str, exchange: Exchange, *, replace: bool = False) -> ObjectInfo:
        expected = wire.body_md5(exchange.request.headers)
        body = _verified(exchange.body(), expected) if expected else exchange.body()
        return await self._store.put(name, body, replace=replace)

    async def _refuse_taken(self, target: Target) -> None:
        """Said before the body is read; whoever comes between is stopped by the store."""
        try:
            await self._store.info(target.object)
        except NotFound:
            return
        raise Conflict(
            "The specified blob already exists, and a committed blob is never overwritten.", code="BlobAlreadyExists"
        )

    # --- reading -------------------------------------------------------------------------------------------------

    async def get_blob(self, exchange: Exchange, target: Target) -> web.StreamResponse:
        info = await self._find(exchange, target)
        if _known(exchange, info):
            return web.Response(status=304, headers=_common() | {"ETag": _etag(info)})
        part = wire.parse_range(exchange.request.headers, info.size)
        headers = _properties(info)
        if part is None:
            response = web.StreamResponse(status=200, headers=headers)
            response.content_length = info.size
            return await exchange.send(response, self._store.get(target.object))
        headers["Content-Range"] = f"bytes {part.offset}-{part.offset + part.length - 1}/{info.size}"
        response = web.StreamResponse(status=206, headers=headers)
        response.content_length = part.length
        return await exchange.send(response, self._store.get(target.object, part.offset, part.length))

    async def get_properties(self, exchange: Exchange, target: Target) -> web.StreamResponse:
        info = await self._find(exchange, target)
        if _known(exchange, info):
            return web.Response(status=304, headers=_common() | {"ETag": _etag(info)})
        response = web.StreamResponse(status=200, headers=_properties(info))
        response.content_length = info.size
        await exchange.start(response)
        await response.write_eof()
        return response

    async def list_blobs(self, exchange: Exchange, target: Target) -> web.StreamResponse:
        query = exchange.request.query
        if query.get("restype") != "container":
            raise CapabilityMissing("The operation 'List Containers' is not implemented by this service.")
        if query.get("include"):
            raise CapabilityMissing("include of List Blobs is not implemented by this service.", target="include")
        prefix, delimiter, marker = query.get("prefix", ""), query.get("delimiter", ""), query.get("marker", "")
        if delimiter not in ("", "/"):
            raise CapabilityMissing("Only '/' is implemented as the delimiter of List Blobs.", target="delimiter")
        most = _most(query.get("maxresults"))
        page = await self._page(target.folder, prefix, delimiter, marker, most)
        blobs = "".join(_listed(each) for each in page.entries)
        text = (
            f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="https://{exchange.host.name}/" '
            f'ContainerName="{target.container}"><Prefix>{escape(prefix)}</Prefix><Marker>{escape(marker)}</Marker>'
            f"<MaxResults>{most}</MaxResults><Delimiter>{delimiter}</Delimiter><Blobs>{blobs}</Blobs>"
            f"<NextMarker>{escape(page.next_marker)}</NextMarker></EnumerationResults>"
        )
        return web.Response(status=200, headers=_common(), body=text.encode(), content_type="application/xml")

    async def delete_blob(self, exchange: Exchange, target: Target) -> web.StreamResponse:
        await self._find(exchange, target)
        await self._store.delete(target.object)
        return web.Response(status=202, headers=_common())

    async def _find(self, exchange: Exchange, target: Target) -> ObjectInfo:
        headers = exchange.request.headers
        info = await self._store.info(target.object)
        etag = _etag(info)
        if (wanted := headers.get("If-Match")) and wanted not in ("*", etag):
            raise PreconditionFailed(
                "The condition If-Match is not met: the blob has another ETag.", code="ConditionNotMet"
            )
        return info

    async def _page(self, folder: str, prefix: str, delimiter: str, marker: str, most: int) -> _Page:
        entries: list[_Entry] = []
        after = folder + marker if marker else ""
        if _PREFIX.fullmatch(prefix) is None or ".." in prefix or "/." in prefix or "//" in prefix:
            return _Page(entries, "")  # no blob can have such a name
        more = True
        while more:
            more = False
            async for info in self._store.list(folder + prefix, after):
                name = info.name[len(folder) :]
                if len(entries) == most:
                    return _Page(entries, _marker(entries[-1]))
                cut = name.find("/", len(prefix)) if delimiter else -1
                if cut < 0:
                    entries.append(_Entry(name, info))
                    continue
                # jump behind everything below this prefix ('0' follows '/')
                entries.append(_Entry(name[: cut + 1], None))
                after, more = f"{folder}{name[:cut]}0", True
                break
        return _Page(entries, "")


@dataclass(frozen=True, slots=True)
class _Entry:
    """``info`` None: a prefix."""

    name: str
    info: ObjectInfo | None


@dataclass(frozen=True, slots=True)
class _Page:
    entries: list[_Entry]
    next_marker: str


OPERATIONS: Mapping[tuple[str, str, bool], Operation] = {
    ("PUT", "", True): Operation("Put Blob", "cw", BlobService.put_blob),
    ("PUT", "block", True): Operation("Put Block", "cw", BlobService.put_block, frozenset({"blockid"})),
    ("PUT", "blocklist", True): Operation("Put Block List", "cw", BlobService.put_block_list),
    ("GET", "", True): Operation("Get Blob", "r", BlobService.get_blob),
    ("HEAD", "", True): Operation("Get Blob Properties", "r", BlobService.get_properties),
    ("DELETE", "", True): Operation("Delete Blob", "d", BlobService.delete_blob),
    ("GET", "list", False): Operation(
        "List Blobs",
        "l",
        BlobService.list_blobs,
        frozenset({"restype", "prefix", "delimiter", "marker", "maxresults", "include"}),
    ),
}


def _check_name(target: Target) -> None:
    blob = target.blob or ""
    if target.purpose == COMMUNICATION:
        if _LOGGED.fullmatch(blob) is None:
            raise InvalidParameter(
                f"'{blob[:120]}' is no name for a blob of a communication account: jobs/….", code="InvalidResourceName"
            )
    elif _PROTECTED.fullmatch(blob) is None:
        raise InvalidParameter(
            f"'{blob[:120]}' is no name for a blob of a protection container: packs, indexes, manifests or keys, a '/', and 32 "
            "hexadecimal digits.",
            code="InvalidResourceName",
        )


def _check_conditions(headers: Mapping[str, str], none_match: tuple[str, ...]) -> None:
    """A write may carry ``If-None-Match: *``, which holds here anyway."""
    if "If-Match" in headers:
        raise PreconditionFailed("If-Match is not met: a write never replaces a blob.", code="ConditionNotMet")
    value = headers.get("If-None-Match")
    if value is not None and value not in none_match:
        raise CapabilityMissing(
            "If-None-Match with an ETag is not implemented for writing; send *.", target="If-None-Match"
        )


def _check_length(exchange: Exchange) -> None:
    length = exchange.request.content_length
    if length is None:
        raise LengthRequired("The header Content-Length is required for this call.")
    if length > _LARGEST:
        raise TooLarge(
            f"The body has {length} bytes; at most {_LARGEST} are taken at once.", code="RequestBodyTooLarge"
        )


async def _verified(body: AsyncIterator[bytes], expected: tuple[bytes, ...]) -> AsyncIterator[bytes]:
    """Raises after the last piece when the MD5 differs: the store then keeps nothing."""
    digest = hashlib.md5()
    async for piece in body:
        if len(piece) > 1 << 17:
            await asyncio.to_thread(digest.update, piece)
        else:
            digest.update(piece)
        yield piece
    _compare_md5(digest.digest(), expected)


def _compare_md5(found: bytes, expected: tuple[bytes, ...]) -> None:
    for each in expected:
        if each != found:
            raise InvalidInput(
                "The MD5 value specified in the request did not match with the MD5 value calculated by the server: "
                f"{base64.b64encode(each).decode()} and {base64.b64encode(found).decode()}. Send the body again.",
                code="Md5Mismatch",
            )


def _block_id(text: str) -> str:
    """Block ids are up to 64 bytes in base64; in the store their hexadecimal digits."""
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError:
        value = b""
    if not 1 <= len(value) <= 64:
        raise InvalidParameter(
            "blockid must be 1 to 64 bytes in base64.", code="InvalidQueryParameterValue", target="blockid"
        )
    return value.hex()


def _block_list(body: bytes) -> list[str]:
    if b"<!" in body:
        raise InvalidInput("A block list has no document type and no comments.", code="InvalidXmlDocument")
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise InvalidInput(f"The block list is not XML: {error}.", code="InvalidXmlDocument") from error
    if root.tag != "BlockList" or len(root) > _BLOCKS:
        raise InvalidInput(f"A block list is <BlockList> with at most {_BLOCKS} blocks.", code="InvalidXmlDocument")
    found = []
    for each in root:
        if each.tag not in ("Latest", "Uncommitted"):
            # Committed ones belong to a blob that is there already, and that is never rewritten.
            raise InvalidInput(f"A block list of a new blob has no <{each.tag[:40]}>.", code="InvalidBlockList")
        found.append(_block_id((each.text or "").strip()))
    if len(set(found)) < len(found):
        # Azure takes such lists. Here one small request would make a large block fill the disk.
        raise InvalidInput(
            "The specified block list is invalid: it names a block more than once; this service takes each once.",
            code="InvalidBlockList",
        )
    return found


def _most(text: str | None) -> int:
    if text is None:
        return _PAGE
    if not text.isascii() or not text.isdigit() or not int(text[:9]) >= 1:
        raise InvalidParameter("maxresults must be a positive number.", code="OutOfRangeQueryParameterValue")
    return min(int(text[:9]), _PAGE)


def _marker(entry: _Entry) -> str:
    """What the next page begins after; for a prefix that is everything below it."""
    return entry.name if entry.info is not None else f"{entry.name[:-1]}0"


def _etag(info: ObjectInfo) -> str:
    return f'"{info.etag}"'


def _known(exchange: Exchange, info: ObjectInfo) -> bool:
    """The client has these bytes already (RFC 9110, 13.1.2)."""
    return exchange.request.headers.get("If-None-Match") in ("*", _etag(info))


def _common() -> dict[str, str]:
    return {"x-ms-request-server-encrypted": "false"}


def _created(info: ObjectInfo) -> web.Response:
    headers = _common() | {"ETag": _etag(info), "Last-Modified": wire.http_date(info.modified)}
    return web.Response(status=201, headers=headers)


def _properties(info: ObjectInfo) -> dict[str, str]:
    return {
        "ETag": _etag(info),
        "Last-Modified": wire.http_date(info.modified),
        "x-ms-creation-time": wire.http_date(info.modified),
        "x-ms-blob-type": "BlockBlob",
        "x-ms-server-encrypted": "false",
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }


def _listed(entry: _Entry) -> str:
    if entry.info is None:
        return f"<BlobPrefix><Name>{escape(entry.name)}</Name></BlobPrefix>"
    date = wire.http_date(entry.info.modified)
    return (
        f"<Blob><Name>{escape(entry.name)}</Name><Properties><Creation-Time>{date}</Creation-Time><Last-Modified>{date}"
        f"</Last-Modified><Etag>{entry.info.etag}</Etag><Content-Length>{entry.info.size}</Content-Length>"
        "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType><ServerEncrypted>false"
        "</ServerEncrypted></Properties></Blob>"
    )
