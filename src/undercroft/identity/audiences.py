"""Which names we answer as, and which audiences mean us.

A token is for one audience. Clients name it in many spellings: the resource manager's URL with and without a slash at the end
(``az`` asks for ``https://host:port//.default``), under every host name of the deployment, or Azure's own URLs (an SDK that is
given only a ``base_url`` asks for ``https://management.azure.com/.default``). All of them are accepted; the port is not
compared, because it is chosen at every start and tokens outlive it.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from undercroft.names import NameSuffixes

__all__ = ["Audiences", "GraphAudience", "ManagementAudience"]

_AZURE_MANAGEMENT = frozenset({"management.azure.com", "management.core.windows.net"})
_AZURE_GRAPH = frozenset({"graph.microsoft.com", "graph.windows.net"})


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    if parts.scheme != "https" or parts.query or parts.fragment or "@" in parts.netloc:
        return None
    return parts


@dataclass(frozen=True, slots=True)
class ManagementAudience:
    """A container of audiences, for ``Tokens.verify``."""

    hosts: frozenset[str]

    def __contains__(self, audience: object) -> bool:
        parts = _split(audience) if isinstance(audience, str) else None
        if parts is None or parts.path not in ("", "/"):
            return False
        return parts.hostname in self.hosts or parts.netloc in _AZURE_MANAGEMENT

    def __str__(self) -> str:
        return "the resource manager"


@dataclass(frozen=True, slots=True)
class GraphAudience:
    hosts: frozenset[str]

    def __contains__(self, audience: object) -> bool:
        parts = _split(audience) if isinstance(audience, str) else None
        if parts is None:
            return False
        if parts.netloc in _AZURE_GRAPH:
            return parts.path in ("", "/")
        return parts.hostname in self.hosts and parts.path.rstrip("/") == "/msgraph"

    def __str__(self) -> str:
        return "the graph"


@dataclass(frozen=True, slots=True)
class Audiences:
    hosts: frozenset[str]
    """Every host name under which login and the resource manager answer."""

    @classmethod
    def of(cls, suffixes: NameSuffixes) -> Audiences:
        return cls(frozenset({"localhost", "127.0.0.1", "::1", suffixes.login, suffixes.management}))

    @property
    def management(self) -> ManagementAudience:
        return ManagementAudience(self.hosts)

    @property
    def graph(self) -> GraphAudience:
        return GraphAudience(self.hosts)

    def path_of(self, url: str) -> tuple[str, ...] | None:
        """The path of a URL that names one of our hosts, split; None when it is somebody else's."""
        parts = _split(url)
        if parts is None or parts.hostname not in self.hosts:
            return None
        return tuple(parts.path.strip("/").split("/"))
