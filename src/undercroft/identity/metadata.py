"""``/metadata/endpoints``: what ``az cloud register`` and the SDKs read to learn where a cloud answers.

Two shapes of one document, told apart by api-version as Azure's own service does: 2022-09-01 and later answer one object
(``az cloud register``), the versions before it a list of clouds (what ``ARM_CLOUD_METADATA_URL`` needs).
"""

from __future__ import annotations

import re
from typing import Any

from undercroft.errors import InvalidParameter, MethodNotAllowed
from undercroft.identity.wire import WebReply, WebRequest
from undercroft.names import NameSuffixes

__all__ = ["Metadata"]

_OBJECT_SINCE = "2022-09-01"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")


class Metadata:
    """A surface (``identity.wire``) without authentication: it is read before anyone can log in."""

    def __init__(self, suffixes: NameSuffixes, name: str = "Undercroft") -> None:
        self._suffixes = suffixes
        self._name = name

    def serves(self, segments: tuple[str, ...]) -> bool:
        return tuple(segment.lower() for segment in segments) == ("metadata", "endpoints")

    async def answer(self, request: WebRequest) -> WebReply:
        if request.method != "GET":
            raise MethodNotAllowed(f"The cloud's metadata can only be read, not {request.method}.")
        version = request.query.get("api-version", "")
        if not _DATE.fullmatch(version):
            raise InvalidParameter(
                "The api-version query parameter (?api-version=2022-09-01) is required.",
                code="MissingApiVersionParameter",
                target="api-version",
            )
        cloud = self._cloud(request.base_url)
        return WebReply(200, cloud if version[:10] >= _OBJECT_SINCE else [cloud])

    def _cloud(self, base: str) -> dict[str, Any]:
        # The clients build scopes from audiences[0] and want every key of this object to be there.
        return {
            "name": self._name,
            "portal": base,
            "authentication": {
                "loginEndpoint": base,
                "audiences": [f"{base}/", "https://management.azure.com/", "https://management.core.windows.net/"],
                "tenant": "common",
                "identityProvider": "AAD",
            },
            "resourceManager": base,
            "graph": f"{base}/msgraph/",
            "graphAudience": f"{base}/msgraph/",
            "microsoftGraphResourceId": f"{base}/msgraph/",
            "media": base,
            "gallery": base,
            "batch": base,
            "sqlManagement": base,
            "vmImageAliasDoc": base,
            "suffixes": {
                "storage": self._suffixes.storage,
                "keyVaultDns": f"vault.{self._suffixes.deployment}",
                "sqlServerHostname": f"database.{self._suffixes.deployment}",
                "acrLoginServer": f"registry.{self._suffixes.deployment}",
            },
        }
