"""Unbound 1.9 and newer.

``local-data`` without a ``local-zone`` is transparent: only the very name is answered here, everybody else's accounts are looked up as ever.
"""

from __future__ import annotations

from undercroft.dns.exports.plan import ConfigurationFile, Plan

__all__ = ["render"]


def render(plan: Plan) -> tuple[ConfigurationFile, ...]:
    apply = (
        "Put it into /etc/unbound/unbound.conf.d/ (or include: it from unbound.conf), then: unbound-control reload",
        "(or send unbound SIGHUP). It names no interface and no access-control: those stay yours.",
    )
    forwarded = plan.required.forwarded() if plan.mode == "forward" else (plan.required.deployment,)
    lines = ["server:\n"]
    for domain in forwarded:
        # Azure DNS does not sign, and it answers with private addresses: neither is an attack here.
        lines += [f'    domain-insecure: "{domain}"\n', f'    private-domain: "{domain}"\n']
    if plan.mode == "records":
        for name in plan.required.names:
            lines += [f'    local-data: "{name.fqdn}. {plan.ttl} IN A {address}"\n' for address in name.addresses]
    for domain in forwarded:
        lines.append(f'forward-zone:\n    name: "{domain}"\n')
        lines += [f"    forward-addr: {address}\n" for address in plan.forward_to]
    return (ConfigurationFile("undercroft.conf", plan.header("#", apply) + "".join(lines)),)
