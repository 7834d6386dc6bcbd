"""What a resolver answers against what the endpoint needs, name by name, and what to do about the difference. No I/O.

Somebody who is woken up by a failed backup reads this; so every difference says who said what, and what puts it right.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from undercroft.dns.observations import HOSTS_FILE, OWN_NAMES, Observation
from undercroft.dns.requirements import AZURE_DNS, RequiredName, Requirements

__all__ = ["Comparison", "State", "Verdict", "advice", "compare"]

State = Literal["ok", "missing", "wrong", "intermittent", "failed", "unreachable"]


@dataclass(frozen=True, slots=True)
class Verdict:
    name: RequiredName
    state: State
    said: str
    """What was answered, in words; empty for ``ok`` without a chain."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One resolver, all names."""

    asked: str
    verdicts: tuple[Verdict, ...]

    @property
    def different(self) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.verdicts if verdict.state not in ("ok", "unreachable"))

    @property
    def unreachable(self) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.verdicts if verdict.state == "unreachable")


def compare(
    names: Sequence[RequiredName],
    observations: Iterable[Observation],
    public: IPv4Network,
    others: Mapping[IPv4Address, str],
) -> tuple[Comparison, ...]:
    """By resolver, in the order asked; a name that a resolver was not asked for is left out. ``public`` is the deployment's public side; ``others`` names the endpoint of an address."""
    asked: dict[str, dict[str, list[Observation]]] = {}
    for observation in observations:
        asked.setdefault(observation.asked, {}).setdefault(observation.name, []).append(observation)
    return tuple(
        Comparison(
            resolver,
            tuple(_verdict(name, by_name[name.fqdn], public, others) for name in names if name.fqdn in by_name),
        )
        for resolver, by_name in asked.items()
    )


def _verdict(
    name: RequiredName, said: Sequence[Observation], public: IPv4Network, others: Mapping[IPv4Address, str]
) -> Verdict:
    wanted = tuple(map(str, name.addresses))
    answers = {(one.outcome, one.addresses) for one in said}
    last = said[-1]
    if len(answers) > 1:
        texts = " then ".join(_answer(one, public, others) for one in said)
        return Verdict(name, "intermittent", f"answers differ from question to question: {texts}")
    text = _answer(last, public, others)
    if last.outcome == "silent":
        return Verdict(name, "unreachable", text)
    if last.outcome == "failed":
        return Verdict(name, "failed", text)
    if last.outcome in ("nxdomain", "nodata"):
        return Verdict(name, "missing", text)
    if wanted and not set(last.addresses) <= set(wanted):
        return Verdict(name, "wrong", text)
    return Verdict(name, "ok", f"by {' > '.join(last.chain)}" if last.chain else "")


def _answer(one: Observation, public: IPv4Network, others: Mapping[IPv4Address, str]) -> str:
    reason = f" ({one.reason})" if one.reason else ""
    if one.outcome == "answered":
        by = f" by {' > '.join(one.chain)}" if one.chain else f", from {one.reason}" if one.reason else ""
        return ", ".join(_kind(IPv4Address(address), public, others) for address in one.addresses) + by
    if one.outcome == "nodata":
        return f"no address{reason}" + ("" if reason else ", although the name exists")
    if one.outcome == "failed":
        validation = "; without DNSSEC validation it has an answer" if one.unvalidated else ""
        return f"{one.reason or 'refused'}{validation}"
    return f"NXDOMAIN{reason}" if one.outcome == "nxdomain" else f"no answer{reason}"


def _kind(address: IPv4Address, public: IPv4Network, others: Mapping[IPv4Address, str]) -> str:
    if address in public:
        return f"{address}, the public side"
    if address in others:
        return f"{address}, an address of private endpoint '{others[address]}'"
    return str(address)


def advice(required: Requirements, comparison: Comparison) -> tuple[str, ...]:
    """Paste-ready lines that put right what differs; empty when nothing does."""
    states = {verdict.state for verdict in comparison.verdicts}
    lines: list[str] = []
    if "unreachable" in states:
        lines.append(_about_silence(comparison.asked))
    if any("DNSSEC" in verdict.said for verdict in comparison.verdicts):
        lines.append(
            "The resolver validates, and Azure DNS does not sign: except these domains from validation "
            "('dns export' writes validate-except for BIND, domain-insecure for unbound)."
        )
    if any(verdict.state == "failed" and "DNSSEC" not in verdict.said for verdict in comparison.verdicts):
        lines.append(
            "The resolver tried and failed: it does not reach whom it asks (does it forward these domains? 'dns export' writes them "
            "all), or it drops private addresses (BIND: deny-answer-addresses whose except-from lacks these domains). Its log says which."
        )
    if any(verdict.state == "missing" and verdict.said.startswith("no address") for verdict in comparison.verdicts):
        lines.append(
            "An empty answer for a name that exists is often rebind protection, which drops private addresses: except these "
            "domains from it ('dns export' writes private-domain for unbound, rebind-domain-ok for dnsmasq)."
        )
    followed = any(verdict.state == "wrong" and " by " in verdict.said for verdict in comparison.verdicts)
    if "intermittent" in states or (followed and comparison.asked != str(AZURE_DNS)):
        lines.append(
            "Forward the public domain (blob.core.windows.net) as well as privatelink.blob.core.windows.net: a server with a "
            "general forwarder takes the whole answer from that, and does not ask for the CNAME's target by itself."
        )
    if any(verdict.said.endswith(HOSTS_FILE) for verdict in comparison.different):
        lines.append("A line of the hosts file wins over every DNS server: correct it, or take it out.")
    differing = [verdict for verdict in comparison.different if verdict.state in ("missing", "wrong", "intermittent")]
    records = [verdict.name for verdict in differing if verdict.name.addresses]
    if records:
        lines += _about_records(required, comparison.asked, records)
    if any(not verdict.name.addresses and "DNSSEC" not in verdict.said for verdict in comparison.different):
        lines.append(
            f"Agents sign in at {required.login.fqdn}: forward {required.deployment} to {AZURE_DNS}, or to a resolver that does "
            "('dns export' includes it)."
        )
    return tuple(lines)


def _about_silence(asked: str) -> str:
    if asked == str(AZURE_DNS):
        return (
            f"{AZURE_DNS} answers only inside a virtual network; from elsewhere, forward to a resolver that is in one."
        )
    if asked == OWN_NAMES:
        return "The resolvers of this host's resolv.conf do not answer: look at the virtual network's DNS servers."
    return (
        f"Nothing answers DNS at {asked}: is the server up, listening on that address, and does it allow this client?"
    )


def _about_records(required: Requirements, asked: str, names: Sequence[RequiredName]) -> list[str]:
    source = required.sources[0]
    chosen = " ".join(f"--endpoint {one.endpoint}" for one in required.sources)
    if asked == str(AZURE_DNS):
        zones = " ".join(
            dict.fromkeys(zone.name for name in names if (zone := required.zone_of(name.fqdn)) is not None)
        )
        network = source.network.rpartition("/")[2]
        return [
            "The private zone lacks the record, or is not linked to the network that asked:",
            f"  undercroft dns zone-create {zones} -g {source.group}",
            f"  undercroft dns link-create {zones} -g {source.group} --vnet-name {network}",
            f"  undercroft dns zone-group-create {' '.join(zone.name for zone in required.zones)} -g {source.group} "
            f"--endpoint-name {source.endpoint}",
        ]
    lines = [
        "Into the hosts file of the host that asked:" if asked == OWN_NAMES else "As records (or in a hosts file):"
    ]
    lines += [f"  {address} {name.fqdn}" for name in names for address in name.addresses]
    lines += [
        "or have the DNS server forward these domains, which also covers names that come later:",
        f"  undercroft dns export {chosen} -g {source.group} --format bind|unbound|dnsmasq|coredns|windows",
    ]
    return lines
