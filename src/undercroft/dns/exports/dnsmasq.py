"""dnsmasq 2.80 and newer.

``host-record`` answers the very name; ``local`` of the same name keeps dnsmasq from asking elsewhere for other types of it (``address=``
would also take every name below).
"""

from __future__ import annotations

from undercroft.dns.exports.plan import ConfigurationFile, Plan

__all__ = ["render"]


def render(plan: Plan) -> tuple[ConfigurationFile, ...]:
    apply = (
        "Put it into /etc/dnsmasq.d/, then restart dnsmasq: SIGHUP does not read configuration again. (To avoid restarts as names",
        "grow, use --format hosts with addn-hosts=FILE instead, which SIGHUP does read again.)",
        "With dnssec on, nothing more is needed: dnsmasq does not validate what a domain's own server says.",
    )
    forwarded = plan.required.forwarded() if plan.mode == "forward" else (plan.required.deployment,)
    lines = [f"server=/{domain}/{address}\n" for domain in forwarded for address in plan.forward_to]
    # Azure DNS answers with private addresses, which stop-dns-rebind would drop.
    lines.append(f"rebind-domain-ok=/{'/'.join(forwarded)}/\n")
    if plan.mode == "records":
        for name in plan.required.names:
            lines.append(f"local=/{name.fqdn}/\n")
            lines += [f"host-record={name.fqdn},{address},{plan.ttl}\n" for address in name.addresses]
    return (ConfigurationFile("undercroft.conf", plan.header("#", apply) + "".join(lines)),)
