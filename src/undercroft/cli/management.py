"""The command line's client for ARM: the same HTTPS API that ``az`` speaks, and nothing else."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
import urllib.parse
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from undercroft.cli.local import home_of
from undercroft.errors import (
    InvalidInput,
    LocalProblem,
    NotAuthenticated,
    NotAuthorized,
    NotFound,
    PeerMisbehaved,
    Unavailable,
    UndercroftError,
)
from undercroft.names import ResourceId

__all__ = [
    "API_VERSION",
    "Arm",
    "Connection",
    "GroupOption",
    "JsonOption",
    "LocationOption",
    "LoginOption",
    "NetworkOption",
    "SubnetOption",
    "VaultOption",
    "connect",
    "id_or_name",
    "listed",
    "plain",
    "show",
    "table",
]

API_VERSION = "2026-01-01"
_PATIENCE = 300.0

GroupOption = Annotated[str, Parameter(name=["--resource-group", "-g"], help="The resource group.")]
LocationOption = Annotated[
    str | None,
    Parameter(name=["--location", "-l"], help="A region, such as westeurope; the group's if it is left out."),
]
VaultOption = Annotated[str, Parameter(name="--vault", help="Name of a vault in the resource group, or its full id.")]
NetworkOption = Annotated[
    str, Parameter(name="--vnet-name", help="Name of a virtual network in the resource group, or its full id.")
]
SubnetOption = Annotated[str, Parameter(name="--subnet", help="Name of a subnet of that network.")]
JsonOption = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON instead of a table.")]
LoginOption = Annotated[
    Path | None,
    Parameter(
        name="--login",
        env_var="UNDERCROFT_LOGIN",
        help="Act as the principal in this file (from 'principal create --out') instead of the deployment's own.",
    ),
]


class Connection(msgspec.Struct, frozen=True, rename="camel"):
    """``DIR/connection.json``; a stable contract."""

    resource_manager: str
    login_endpoint: str
    tenant_id: str
    subscription_id: str
    client_id: str
    client_secret: str
    ca_bundle: str
    fabric: str


class _Principal(msgspec.Struct, frozen=True, rename="camel"):
    client_id: str
    client_secret: str


class Arm:
    """Calls with a service principal's token. Follows long-running operations to their end, as ``az`` does."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._context = ssl.create_default_context(cafile=connection.ca_bundle)
        self._token: str | None = None

    def id(self, group: str | None = None, *path: str) -> ResourceId:
        """``id("rg", "Microsoft.Network", "virtualNetworks", "v")``."""
        namespace = path[0] if path else None
        return ResourceId(self.connection.subscription_id, group, namespace, path[1::2], path[2::2])

    def get(self, path: ResourceId | str) -> Any:
        return self._call("GET", path)[2]

    def put(self, path: ResourceId | str, body: Any) -> Any:
        return self._finish("PUT", path, body)

    def patch(self, path: ResourceId | str, body: Any) -> Any:
        return self._finish("PATCH", path, body)

    def post(self, path: ResourceId | str, body: Any = None) -> Any:
        """An action that answers at once."""
        return self._call("POST", path, body)[2]

    def delete(self, path: ResourceId | str) -> None:
        self._finish("DELETE", path, None)

    def list(self, path: ResourceId | str, kind: str = "") -> list[dict[str, Any]]:
        """All pages of a collection: ``list(vault_id, "privateEndpointConnections")``."""
        values: list[dict[str, Any]] = []
        page = self.get(f"{path}/{kind}" if kind else path)
        while True:
            values += page["value"]
            if not page.get("nextLink"):
                return values
            page = self.get(page["nextLink"])

    def graph(self, method: str, path: str, body: Any = None) -> Any:
        return self._call(method, path, body, versioned=False)[2]

    def location_of(self, group: str) -> str:
        """Where a resource goes when nobody said: its group's location, as with ``az``."""
        return str(self.get(self.id(group))["location"])

    def _finish(self, method: str, path: ResourceId | str, body: Any) -> Any:
        status, headers, answer = self._call(method, path, body)
        poll = headers.get("azure-asyncoperation") or headers.get("location")
        if status not in (201, 202) or not poll:
            return answer
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            status, headers, answer = self._call("GET", poll)
            state = (answer or {}).get("status") if status == 200 else "InProgress" if status == 202 else "Succeeded"
            if state in (None, "Succeeded"):
                return self.get(path) if method in ("PUT", "PATCH") else answer
            if state in ("Failed", "Canceled"):
                error = (answer or {}).get("error") or {}
                raise UndercroftError(error.get("message", f"The operation {state}."), code=error.get("code"))
            time.sleep(max(1, int(headers.get("retry-after", "1"))))
        raise Unavailable(f"The operation on {path} did not end within {_PATIENCE:.0f} s; it goes on.", code="Timeout")

    def _call(
        self, method: str, path: ResourceId | str, body: Any = None, *, versioned: bool = True
    ) -> tuple[int, dict[str, str], Any]:
        if self._token is None:
            self._token = self._sign_in()
        url = urllib.parse.urlsplit(str(path))
        target = urllib.parse.quote(url.path, safe="/$'()*,;=:@%+")
        query = url.query
        if versioned and "api-version=" not in query:
            query = f"{query}&api-version={API_VERSION}".lstrip("&")
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        text = None
        if body is not None:
            text = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        elif method in ("PUT", "POST"):
            headers["Content-Length"] = "0"
        status, answered, received = self._exchange(method, f"{target}?{query}" if query else target, headers, text)
        answer = json.loads(received) if received.strip() else None
        if status >= 400:
            raise _refusal(status, answer)
        return status, answered, answer

    def _sign_in(self) -> str:
        connection = self.connection
        form = {
            "grant_type": "client_credentials",
            "client_id": connection.client_id,
            "client_secret": connection.client_secret,
            "scope": connection.resource_manager.rstrip("/") + "/.default",
        }
        status, _, received = self._exchange(
            "POST",
            f"/{connection.tenant_id}/oauth2/v2.0/token",
            {"Content-Type": "application/x-www-form-urlencoded"},
            urllib.parse.urlencode(form).encode(),
        )
        answer = json.loads(received)
        if status != 200:
            raise NotAuthenticated(str(answer.get("error_description", "The login was refused.")), code="LoginRefused")
        return str(answer["access_token"])

    def _exchange(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, dict[str, str], bytes]:
        url = urllib.parse.urlsplit(self.connection.resource_manager)
        link = http.client.HTTPSConnection(url.hostname or "", url.port or 443, context=self._context, timeout=120)
        try:
            link.request(method, target, body, headers)
            response = link.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        except ConnectionRefusedError as error:
            raise Unavailable(
                f"Nothing listens at {self.connection.resource_manager}. Start it with 'undercroft up'.",
                code="NotRunning",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise PeerMisbehaved(f"{self.connection.resource_manager}: {error}") from error
        finally:
            link.close()


def connect(home: Path, login: Path | None = None) -> Arm:
    """The ARM of the deployment at ``home``, as its own principal or as the one in the ``login`` file."""
    place = home_of(home)
    try:
        connection = msgspec.json.decode(place.connection_file.read_bytes(), type=Connection)
    except FileNotFoundError:
        raise NotFound(
            f"There is no {place.connection_file}: Undercroft does not run there. Start it with 'undercroft up'.",
            code="NotRunning",
        ) from None
    except PermissionError as error:
        raise LocalProblem(f"No right to read {place.connection_file}.", code="NotYours") from error
    if login is None and os.environ.get("UNDERCROFT_LOGIN"):
        login = Path(os.environ["UNDERCROFT_LOGIN"])  # also for commands that have no --login
    if login is not None:
        try:
            principal = msgspec.json.decode(login.read_bytes(), type=_Principal)
        except (OSError, msgspec.DecodeError) as error:
            raise InvalidInput(f"{login} is not a login file: {error}.", code="InvalidLoginFile") from error
        connection = msgspec.structs.replace(
            connection, client_id=principal.client_id, client_secret=principal.client_secret
        )
    return Arm(connection)


def listed(text: str) -> list[str]:
    """What an option names, separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def id_or_name(arm: Arm, text: str, group: str, namespace: str, kind: str) -> ResourceId:
    """What the user meant by ``text``: a full id, or a name in the group."""
    return ResourceId.parse(text) if text.startswith("/") else arm.id(group, namespace, kind, text)


def show(value: Any) -> None:
    print(json.dumps(value, indent=2))


def table(rows: list[dict[str, Any]], columns: tuple[tuple[str, str], ...]) -> None:
    """Rows of ARM JSON as aligned text; a column is (title, dotted path)."""
    lines = [[title for title, _ in columns]]
    lines += [[_at(row, path) for _, path in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for number, line in enumerate(lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def _at(row: Any, path: str) -> str:
    for part in path.split("."):
        if isinstance(row, list):
            row = row[0] if row else None
        row = row.get(part) if isinstance(row, dict) else None
    if isinstance(row, list):
        return plain(", ".join(str(item) for item in row))
    return "" if row is None else plain(str(row))


def plain(text: str) -> str:
    """For a terminal: hosts say some of it, and a line end or an escape of theirs must not write another host's line."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _refusal(status: int, answer: Any) -> UndercroftError:
    error = (answer or {}).get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return PeerMisbehaved(f"ARM answered {status} without an error body.")
    message, code = str(error.get("message")), str(error.get("code"))
    kinds: dict[int, type[UndercroftError]] = {
        401: NotAuthenticated,
        403: NotAuthorized,
        404: NotFound,
        503: Unavailable,
    }
    return kinds.get(status, UndercroftError)(message, code=code)
