"""JSON, for tools that write the configuration of a server which is not here."""

from __future__ import annotations

import json

from undercroft.dns.exports.plan import ConfigurationFile, Plan

__all__ = ["render"]


def render(plan: Plan) -> tuple[ConfigurationFile, ...]:
    required = plan.required
    value = {
        "written": plan.moment,
        "endpoints": [
            {"name": source.endpoint, "resourceGroup": source.group, "network": source.network}
            for source in required.sources
        ],
        "names": [
            {"fqdn": name.fqdn, "type": "A", "ttl": plan.ttl, "addresses": [str(address) for address in name.addresses]}
            for name in required.names
        ],
        "zones": [{"name": zone.name, "public": zone.public} for zone in required.zones],
        "ownZones": list(required.owned()),
        "forward": {"domains": list(required.forwarded()), "to": [str(address) for address in plan.forward_to]},
    }
    return (ConfigurationFile("undercroft.json", json.dumps(value, indent=2) + "\n"),)
