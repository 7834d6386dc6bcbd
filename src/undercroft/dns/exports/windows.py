"""Windows Server DNS, as a PowerShell script that may be run again: it adds what is missing and corrects what differs."""

from __future__ import annotations

from collections.abc import Iterable

from undercroft.dns.exports.plan import ConfigurationFile, Plan

__all__ = ["render"]

_OPENING = """\
#Requires -Modules DnsServer
[CmdletBinding()]
param(
    # Forest or Domain: zones in Active Directory, replicated to its DNS servers. None: in files of this server only.
    [ValidateSet('Forest', 'Domain', 'None')] [string] $ReplicationScope = 'Forest'
)
$ErrorActionPreference = 'Stop'
$Scope = @{}
if ($ReplicationScope -ne 'None') { $Scope.ReplicationScope = $ReplicationScope }

function Set-Forwarder([string] $Zone, [string[]] $Servers) {
    $Found = Get-DnsServerZone -Name $Zone -ErrorAction SilentlyContinue
    if (-not $Found) {
        Add-DnsServerConditionalForwarderZone -Name $Zone -MasterServers $Servers @Scope
    } elseif ($Found.ZoneType -eq 'Forwarder') {
        Set-DnsServerConditionalForwarderZone -Name $Zone -MasterServers $Servers
    } else {
        throw "$Zone is a zone of type $($Found.ZoneType) here; remove it first, its records would hide Azure's."
    }
}
"""

_RECORDS = """
function Set-Zone([string] $Zone) {
    $Found = Get-DnsServerZone -Name $Zone -ErrorAction SilentlyContinue
    if (-not $Found) {
        $Place = if ($Scope.Count) { $Scope } else { @{ ZoneFile = "$Zone.dns" } }
        Add-DnsServerPrimaryZone -Name $Zone -DynamicUpdate None @Place
    } elseif ($Found.ZoneType -ne 'Primary') {
        throw "$Zone is a zone of type $($Found.ZoneType) here; remove it first."
    }
}

function Set-Address([string] $Zone, [string] $Name, [string[]] $Addresses) {
    $Found = @(Get-DnsServerResourceRecord -ZoneName $Zone -Name $Name -RRType A -Node -ErrorAction SilentlyContinue)
    foreach ($Record in $Found) {
        if ($Addresses -notcontains $Record.RecordData.IPv4Address.IPAddressToString) {
            Remove-DnsServerResourceRecord -ZoneName $Zone -InputObject $Record -Force
        }
    }
    $Kept = @($Found | ForEach-Object { $_.RecordData.IPv4Address.IPAddressToString })
    foreach ($Address in $Addresses) {
        if ($Kept -notcontains $Address) {
            Add-DnsServerResourceRecordA -ZoneName $Zone -Name $Name -IPv4Address $Address -TimeToLive $TimeToLive
        }
    }
}
"""


def render(plan: Plan) -> tuple[ConfigurationFile, ...]:
    apply = (
        "On the DNS server (of an availability group: on the domain controller), as a DNS administrator:   .\\undercroft.ps1",
        "It can be run again at any time.",
    )
    servers = _quoted(map(str, plan.forward_to))
    lines = [plan.header("#", apply), _OPENING]
    if plan.mode == "forward":
        lines.append("\n")
        lines += [f"Set-Forwarder '{domain}' @({servers})\n" for domain in plan.required.forwarded()]
    else:
        lines += [_RECORDS, f"\n$TimeToLive = [TimeSpan]::FromSeconds({plan.ttl})\n"]
        for apex, names in plan.required.owned().items():
            lines.append(f"Set-Zone '{apex}'\n")
            for name in names:
                label = "@" if name.fqdn == apex else name.fqdn.removesuffix(f".{apex}")
                lines.append(f"Set-Address '{apex}' '{label}' @({_quoted(map(str, name.addresses))})\n")
        lines.append(f"Set-Forwarder '{plan.required.deployment}' @({servers})\n")
    lines.append("Clear-DnsServerCache -Force\n")
    return (ConfigurationFile("undercroft.ps1", "".join(lines)),)


def _quoted(texts: Iterable[str]) -> str:
    return ", ".join(f"'{text}'" for text in texts)
