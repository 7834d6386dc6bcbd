"""BIND 9.16 and newer.

Storage names become zones of one name each. A response policy zone would need one file only, but a server has a single list of policies
(it may have one already), it does not rewrite answers for clients that ask for DNSSEC, and it asks the internet first.
"""

from __future__ import annotations

from undercroft.dns.exports.plan import ConfigurationFile, Plan

__all__ = ["render"]


def render(plan: Plan) -> tuple[ConfigurationFile, ...]:
    include = (
        f'In named.conf, outside of any block:   include "{plan.folder}/undercroft.conf";',
        f'and inside options {{ ... }}:            include "{plan.folder}/undercroft.options";',
        "Apply with: rndc reconfig && rndc reload   (or restart named). named must be able to read this folder.",
    )
    files = [_options(plan, include)]
    if plan.mode == "forward":
        zones = [_forwarded(domain, plan) for domain in plan.required.forwarded()]
    else:
        owned = plan.required.owned()
        zones = [f'zone "{apex}" {{ type primary; file "{plan.folder}/db.{apex}"; notify no; }};\n' for apex in owned]
        zones.append(_forwarded(plan.required.deployment, plan))
        files += [ConfigurationFile(f"db.{apex}", _zone(plan, apex)) for apex in owned]
    return (ConfigurationFile("undercroft.conf", plan.header("//", include) + "".join(zones)), *files)


def _forwarded(domain: str, plan: Plan) -> str:
    servers = " ".join(f"{address};" for address in plan.forward_to)
    return f'zone "{domain}" {{ type forward; forward only; forwarders {{ {servers} }}; }};\n'


def _options(plan: Plan, include: tuple[str, ...]) -> ConfigurationFile:
    """Azure DNS does not sign. A validating server that sees a signed parent deny these domains would answer SERVFAIL."""
    domains = plan.required.forwarded() if plan.mode == "forward" else (plan.required.deployment,)
    listed = "".join(f'    "{domain}";\n' for domain in domains)
    quoted = " ".join(f'"{domain}";' for domain in domains)
    rebind = (
        "// If your options have deny-answer-addresses (rebind protection), its except-from must list these domains as well:\n"
        f"//   except-from {{ {quoted} }};\n"
    )
    text = plan.header("//", include) + f"validate-except {{\n{listed}}};\n" + rebind
    return ConfigurationFile("undercroft.options", text)


def _zone(plan: Plan, apex: str) -> str:
    lines = [
        f"$TTL {plan.ttl}\n",
        f"@ IN SOA localhost. hostmaster.localhost. ( {plan.serial} 3600 300 2419200 {plan.ttl} )\n",
        "@ IN NS localhost.\n",
    ]
    for name in plan.required.owned()[apex]:
        label = "@" if name.fqdn == apex else name.fqdn.removesuffix(f".{apex}")
        lines += [f"{label} IN A {address}\n" for address in name.addresses]
    return plan.header(";", ("Included by undercroft.conf.",)) + "".join(lines)
