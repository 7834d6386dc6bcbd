# Undercroft dns export of private endpoints: door (rg)
# written 2026-11-27T03:00:00Z; mode forward
# On the DNS server (of an availability group: on the domain controller), as a DNS administrator:   .\undercroft.ps1
# It can be run again at any time.
# Names that are added later need nothing here, as long as their zones are linked where this forwards to.
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

Set-Forwarder 'privatelink.we.backup.windowsazure.com' @('168.63.129.16')
Set-Forwarder 'privatelink.queue.core.windows.net' @('168.63.129.16')
Set-Forwarder 'queue.core.windows.net' @('168.63.129.16')
Set-Forwarder 'privatelink.blob.core.windows.net' @('168.63.129.16')
Set-Forwarder 'blob.core.windows.net' @('168.63.129.16')
Set-Forwarder 'privatelink.blob.storage.azure.net' @('168.63.129.16')
Set-Forwarder 'blob.storage.azure.net' @('168.63.129.16')
Set-Forwarder 'undercroft.internal' @('168.63.129.16')
Clear-DnsServerCache -Force
