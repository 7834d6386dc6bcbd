"""CoreDNS: a server block for the domains, with ``forward``, or with ``hosts`` falling through for names that are not ours."""

from __future__ import annotations

from undercroft.dns.exports.plan import ConfigurationFile, Plan

__all__ = ["render"]


def render(plan: Plan) -> tuple[ConfigurationFile, ...]:
    apply = (
        "In the Corefile, outside of any block:   import /etc/coredns/undercroft.conf",
        "Apply with: SIGUSR1 to coredns (or its reload plugin). A domain may stand in one block only: remove older blocks for these.",
    )
    forward = f"    forward . {' '.join(map(str, plan.forward_to))}\n"
    if plan.mode == "forward":
        blocks = [_block(plan.required.forwarded(), [f"    cache {plan.ttl}\n", forward])]
    else:
        lines = [f"        {address} {name.fqdn}\n" for name in plan.required.names for address in name.addresses]
        hosts = ["    hosts {\n", *lines, f"        ttl {plan.ttl}\n        no_reverse\n    }}\n"]
        blocks = [
            _block(tuple(plan.required.owned()), hosts),
            _block((plan.required.deployment,), [f"    cache {plan.ttl}\n", forward]),
        ]
    return (ConfigurationFile("undercroft.conf", plan.header("#", apply) + "\n".join(blocks)),)


def _block(domains: tuple[str, ...], lines: list[str]) -> str:
    return ",\n".join(domains) + " {\n    errors\n" + "".join(lines) + "}\n"
