"""Microsoft.Network/privateDnsZones/{A|AAAA|CNAME|MX|PTR|SOA|SRV|TXT}: record sets, between ARM's JSON and zone-file form."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any

import msgspec
from sqlalchemy import Connection

from undercroft.arm import etags, paging, resources
from undercroft.arm.call import Call, Handler, Reply, Route, parse
from undercroft.arm.etags import quoted
from undercroft.errors import Conflict, InvalidParameter, NotFound
from undercroft.names import ResourceId
from undercroft.providers.collaborators import Collaborators, Echo, answer, enqueue_networks
from undercroft.providers.network.private_dns_zones import PrivateZone
from undercroft.vnet import registration, zones
from undercroft.vnet.zones import RECORD_TYPES, RecordSet

__all__ = ["routes"]

_LARGEST_SET = 20
_LONGEST_TEXT = 1024
_UNPRINTED = re.compile(r'["\\]|[^ -~]')
_ESCAPE = re.compile(r"\\([0-9]{3}|.)")
_HOST = re.compile(r"(?=.{1,253}\.?\Z)[A-Za-z0-9_*-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?\Z")


class Wire(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    pass


class ARecord(Wire, frozen=True):
    ipv4_address: str = msgspec.field(name="ipv4Address")


class AaaaRecord(Wire, frozen=True):
    ipv6_address: str = msgspec.field(name="ipv6Address")


class CnameRecord(Wire, frozen=True):
    cname: str


class MxRecord(Wire, frozen=True):
    preference: int
    exchange: str


class PtrRecord(Wire, frozen=True):
    ptrdname: str


class SoaRecord(Wire, frozen=True):
    host: str | None = None
    email: str | None = None
    serial_number: int | None = None
    refresh_time: int | None = None
    retry_time: int | None = None
    expire_time: int | None = None
    minimum_ttl: int | None = None


class SrvRecord(Wire, frozen=True):
    priority: int
    weight: int
    port: int
    target: str


class TxtRecord(Wire, frozen=True):
    value: tuple[str, ...]


class RecordProperties(Wire, frozen=True):
    ttl: int | None = None
    metadata: dict[str, str] | None = None
    a_records: tuple[ARecord, ...] | None = None
    aaaa_records: tuple[AaaaRecord, ...] | None = None
    cname_record: CnameRecord | None = None
    mx_records: tuple[MxRecord, ...] | None = None
    ptr_records: tuple[PtrRecord, ...] | None = None
    soa_record: SoaRecord | None = None
    srv_records: tuple[SrvRecord, ...] | None = None
    txt_records: tuple[TxtRecord, ...] | None = None
    fqdn: Any = None
    is_auto_registered: Any = None
    provisioning_state: Any = None


class RecordBody(Echo, frozen=True):
    properties: RecordProperties = RecordProperties()


# --- between the wire and zone-file form -----------------------------------------------------------------------------


def _wrong(value: object, what: str) -> InvalidParameter:
    return InvalidParameter(f"'{value}' is not {what}.", code="InvalidRecordData", target="properties")


def _host(text: str) -> str:
    if not _HOST.match(text):
        raise _wrong(text, "a host name")
    return text if text.endswith(".") else f"{text}."


def _number(value: int, largest: int, what: str) -> int:
    if not 0 <= value <= largest:
        raise _wrong(value, f"a {what} (0 to {largest})")
    return value


def _text(record: TxtRecord) -> str:
    if (
        not record.value
        or sum(map(len, record.value)) > _LONGEST_TEXT
        or not all(part.isascii() for part in record.value)
    ):
        raise _wrong(list(record.value), f"a TXT record: strings of ASCII, {_LONGEST_TEXT} characters together")
    pieces = [part[at : at + 255] for part in record.value for at in range(0, max(len(part), 1), 255)]
    return " ".join(f'"{_UNPRINTED.sub(_escaped, piece)}"' for piece in pieces)


def _escaped(found: re.Match[str]) -> str:
    """RFC 1035 section 5.1; a zone file has no line break within quotes."""
    return f"\\{found[0]}" if found[0] in '"\\' else f"\\{ord(found[0]):03}"


def _untext(value: str) -> list[str]:
    return [_ESCAPE.sub(_unescaped, piece) for piece in re.findall(r'"((?:[^"\\]|\\.)*)"', value)]


def _unescaped(found: re.Match[str]) -> str:
    return chr(int(found[1])) if len(found[1]) == 3 else found[1]


def _ipv4(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except AddressValueError as error:
        raise _wrong(text, "an IPv4 address") from error


def _ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except AddressValueError as error:
        raise _wrong(text, "an IPv6 address") from error
    if address.scope_id is not None:
        raise _wrong(text, "an IPv6 address without a zone; a record holds none")
    return str(address)


def _soa(record: SoaRecord, before: str) -> str:
    """What the request leaves out stays; host and serial are the service's."""
    host, email, serial, *times = before.split()
    given = (record.refresh_time, record.retry_time, record.expire_time, record.minimum_ttl)
    names = ("refreshTime", "retryTime", "expireTime", "minimumTtl")
    new = [
        old if value is None else str(_number(value, 2**31 - 1, name))
        for old, value, name in zip(times, given, names, strict=True)
    ]
    return " ".join((host, email if record.email is None else _host(record.email), serial, *new))


def values_of(kind: str, body: RecordProperties, before: RecordSet | None) -> tuple[str, ...] | None:
    """The values in zone-file form; None if the request names none (a PATCH of ttl or metadata)."""
    given: dict[str, Any] = {
        "A": body.a_records,
        "AAAA": body.aaaa_records,
        "CNAME": body.cname_record,
        "MX": body.mx_records,
        "PTR": body.ptr_records,
        "SOA": body.soa_record,
        "SRV": body.srv_records,
        "TXT": body.txt_records,
    }
    foreign = [name for name, value in given.items() if value and name != kind]
    if foreign:
        raise InvalidParameter(
            f"A record set of type {kind} has no records of type {', '.join(foreign)}.", code="InvalidRecordData"
        )
    records = given[kind]
    if records is None:
        return None
    if isinstance(records, SoaRecord):
        return (_soa(records, before.values[0] if before is not None else zones.SOA),)
    if isinstance(records, CnameRecord):
        return (_host(records.cname),)
    write: dict[str, Callable[[Any], str]] = {
        "A": lambda one: _ipv4(one.ipv4_address),
        "AAAA": lambda one: _ipv6(one.ipv6_address),
        "MX": lambda one: f"{_number(one.preference, 65535, 'preference')} {_host(one.exchange)}",
        "PTR": lambda one: _host(one.ptrdname),
        "SRV": lambda one: (
            f"{_number(one.priority, 65535, 'priority')} {_number(one.weight, 65535, 'weight')} "
            f"{_number(one.port, 65535, 'port')} {_host(one.target)}"
        ),
        "TXT": _text,
    }
    values = tuple(dict.fromkeys(write[kind](record) for record in records))
    if len(values) > _LARGEST_SET:
        raise InvalidParameter(f"A record set has at most {_LARGEST_SET} records.", code="RecordSetTooLarge")
    return values


def _records(kind: str, values: tuple[str, ...]) -> tuple[str, Any]:
    fields = [value.split() for value in values]
    if kind == "A":
        return "aRecords", [{"ipv4Address": value} for value in values]
    if kind == "AAAA":
        return "aaaaRecords", [{"ipv6Address": value} for value in values]
    if kind == "CNAME":
        return "cnameRecord", {"cname": values[0].rstrip(".")} if values else None
    if kind == "MX":
        return "mxRecords", [{"preference": int(one[0]), "exchange": one[1].rstrip(".")} for one in fields]
    if kind == "PTR":
        return "ptrRecords", [{"ptrdname": value.rstrip(".")} for value in values]
    if kind == "SRV":
        return "srvRecords", [
            {"priority": int(one[0]), "weight": int(one[1]), "port": int(one[2]), "target": one[3].rstrip(".")}
            for one in fields
        ]
    if kind == "TXT":
        return "txtRecords", [{"value": _untext(value)} for value in values]
    names = ("serialNumber", "refreshTime", "retryTime", "expireTime", "minimumTtl")
    host, email, *numbers = fields[0]
    return "soaRecord", {
        "host": host.rstrip("."),
        "email": email.rstrip("."),
        **{name: int(number) for name, number in zip(names, numbers, strict=True)},
    }


def show(zone: ResourceId, found: RecordSet) -> dict[str, Any]:
    name, records = _records(found.type, found.values)
    fqdn = f"{zone.name}." if found.name == zones.APEX else f"{found.name}.{zone.name}."
    return {
        "id": f"{zone}/{found.type}/{found.name}",
        "name": found.name,
        "type": f"Microsoft.Network/privateDnsZones/{found.type}",
        "etag": quoted(found.etag),
        "properties": {
            "fqdn": fqdn,
            "ttl": found.ttl,
            "metadata": dict(found.metadata),
            "isAutoRegistered": found.registered,
            name: records,
        },
    }


# --- handlers --------------------------------------------------------------------------------------------------------


def _change(parts: Collaborators, kind: str) -> Handler:
    async def change(call: Call) -> Reply:
        body = parse(call.body, RecordBody).properties

        def write(connection: Connection) -> tuple[bool, tuple[str, ...]]:
            zone, name = _zone(connection, call), _name(call)
            before = zones.get_record_set(connection, zone.key, name, kind)
            etags.check(None if before is None else before.etag, call.if_match, call.if_none_match)
            values = values_of(kind, body, before)
            if before is None and (call.method == "PATCH" or kind == "SOA"):
                raise _missing(call, kind)
            if values is None:
                values = () if before is None else before.values
            if kind == "CNAME" and name == zones.APEX:
                raise InvalidParameter("A CNAME cannot stand at the zone's own name.", code="InvalidRecordSetName")
            ttl = body.ttl if body.ttl is not None else (3600 if before is None else before.ttl)
            metadata = before.metadata if body.metadata is None and before else tuple((body.metadata or {}).items())
            wanted = RecordSet(name, kind, _number(ttl, 2**31 - 1, "TTL"), values, metadata, str(uuid.uuid4()))
            if before is None:
                _check_room(connection, zone)
            if kind == "CNAME":
                registration.give_way(connection, zone.key, name)
            zones.put_record_set(connection, zone.key, wanted)
            return before is None, enqueue_networks(parts, connection, [zones.RECORDS])

        created, keys = await parts.database.write(write)
        return await answer(parts, call, keys, status=201 if created else 200, show=lambda c: _read(c, call, kind))

    return change


def _get(parts: Collaborators, kind: str) -> Handler:
    async def get(call: Call) -> Reply:
        return Reply(200, await parts.database.read(lambda connection: _read(connection, call, kind)))

    return get


def _delete(parts: Collaborators, kind: str) -> Handler:
    async def delete(call: Call) -> Reply:
        if kind == "SOA":
            raise Conflict("The SOA record set belongs to its zone and cannot be deleted.", code="CannotDeleteResource")

        def write(connection: Connection) -> tuple[str, ...] | None:
            zone, name = _zone(connection, call), _name(call)
            before = zones.get_record_set(connection, zone.key, name, kind)
            etags.check(None if before is None else before.etag, call.if_match, None)
            if before is not None and before.registered:
                raise Conflict(
                    f"The record set '{name}' is kept by auto-registration for the VM of this name: delete the VM or the link, or "
                    "write a record set of your own in its place.",
                    code="CannotDeleteResource",
                )
            if not zones.delete_record_set(connection, zone.key, name, kind):
                return None
            registration.follow_zones(connection, [zone.key])
            return enqueue_networks(parts, connection, [zones.RECORDS])

        keys = await parts.database.write(write)
        return Reply(204) if keys is None else await answer(parts, call, keys, status=200)

    return delete


def _list(parts: Collaborators, kind: str | None) -> Handler:
    async def every(call: Call) -> Reply:
        limit = paging.size(call)
        last_name, _, last_type = paging.after(call).partition("/")
        suffix = call.query.get("$recordsetnamesuffix", "")

        def read(connection: Connection) -> tuple[RecordSet, ...]:
            resources.require(connection, call.id, PrivateZone)
            after = (last_name, last_type) if last_name else None
            return zones.list_record_sets(connection, call.id.key, kind, suffix, after, limit + 1)

        found = await parts.database.read(read)
        shown = found[:limit]
        last = f"{shown[-1].name}/{shown[-1].type}" if len(found) > limit else None
        return paging.page(call, [show(call.id, one) for one in shown], last)

    return every


def routes(parts: Collaborators) -> tuple[Route, ...]:
    base = "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/privateDnsZones/{zone}"
    action = "Microsoft.Network/privateDnsZones"
    query = frozenset({"$recordsetnamesuffix"})
    found = [Route("GET", f"{base}/ALL", f"{action}/ALL/read", _list(parts, None), query)]
    for kind in RECORD_TYPES:
        found += [
            Route("PUT", f"{base}/{kind}/{{name}}", f"{action}/{kind}/write", _change(parts, kind)),
            Route("PATCH", f"{base}/{kind}/{{name}}", f"{action}/{kind}/write", _change(parts, kind)),
            Route("GET", f"{base}/{kind}/{{name}}", f"{action}/{kind}/read", _get(parts, kind)),
            Route("DELETE", f"{base}/{kind}/{{name}}", f"{action}/{kind}/delete", _delete(parts, kind)),
            Route("GET", f"{base}/{kind}", f"{action}/{kind}/read", _list(parts, kind), query),
        ]
    return tuple(found)


def _check_room(connection: Connection, zone: ResourceId) -> None:
    if zones.count(connection, zone.key).record_sets >= zones.LARGEST_SETS:
        raise Conflict(
            f"The zone '{zone.name}' has {zones.LARGEST_SETS} record sets, and can have no more.",
            code="ResourceLimitExceeded",
        )


def _zone(connection: Connection, call: Call) -> ResourceId:
    assert call.id.parent is not None
    return resources.require(connection, call.id.parent, PrivateZone).id


def _name(call: Call) -> str:
    assert call.id.parent is not None
    return zones.check_relative_name(call.id.name, call.id.parent.name)


def _missing(call: Call, kind: str) -> NotFound:
    return NotFound(f"The record set '{call.id.name}' of type {kind} was not found in this zone.")


def _read(connection: Connection, call: Call, kind: str) -> dict[str, Any]:
    zone = _zone(connection, call)
    found = zones.get_record_set(connection, zone.key, _name(call), kind)
    if found is None:
        raise _missing(call, kind)
    return show(zone, found)
