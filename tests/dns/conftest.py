"""The fixture of all DNS tests: servers on loopback sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from tests.dns.loopback import PUBLIC, Serve, Served, sockets
from undercroft.clock import ManualClock
from undercroft.dns.server import NameServer
from undercroft.dns.views import NetworkView, PublicNames, ZoneView


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def serve(clock: ManualClock) -> AsyncIterator[Serve]:
    """``await serve(zone, …)`` makes a server with one network; ``server=`` adds a network to one that runs.

    No test may leave an error in the log.
    """
    servers: list[NameServer] = []

    async def start(
        *zones: ZoneView,
        server: NameServer | None = None,
        network: str = "a",
        public: PublicNames = PUBLIC,
        **options: object,
    ) -> Served:
        if server is None:
            server = NameServer(clock, **options)  # type: ignore[arg-type]
            server.publish_public(public)
            servers.append(server)
        udp, tcp = sockets()
        await server.serve(network, udp, tcp)
        server.publish(network, NetworkView(zones))
        return Served(server, network, udp.getsockname()[1])

    with capture_logs() as logs:
        yield start
        for server in servers:
            await server.close()
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []
