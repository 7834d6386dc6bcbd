# Undercroft dns export of private endpoints: door (rg)
# written 2026-11-27T03:00:00Z; mode records
# On the DNS server (of an availability group: on the domain controller), as a DNS administrator:   .\undercroft.ps1
# It can be run again at any time.
# NAMES WILL BE ADDED: blob and queue after the first registration, blob after the first backup, more as the
# vault grows. 'undercroft dns watch' keeps this current; 'undercroft dns diff' says what a resolver lacks.
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

$TimeToLive = [TimeSpan]::FromSeconds(10)
Set-Zone 'privatelink.we.backup.windowsazure.com'
Set-Address 'privatelink.we.backup.windowsazure.com' '8726350008099341699-ab-pod01-id1' @('10.20.1.4')
Set-Address 'privatelink.we.backup.windowsazure.com' '8726350008099341699-ab-pod01-rec2' @('10.20.1.5')
Set-Zone '0a1b2c3decs01.blob.core.windows.net'
Set-Address '0a1b2c3decs01.blob.core.windows.net' '@' @('10.20.1.6')
Set-Zone '0a1b2c3decs01.queue.core.windows.net'
Set-Address '0a1b2c3decs01.queue.core.windows.net' '@' @('10.20.1.7')
Set-Forwarder 'undercroft.internal' @('168.63.129.16')
Clear-DnsServerCache -Force
