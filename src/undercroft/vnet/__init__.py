"""Rules of the network, without Linux and without HTTP.

A *network* (VNet) has address prefixes and *subnets*; both are exact, never overlapping. A *private endpoint* stands in a
subnet and is bound to one group of one vault. Each *member* of that group (a name the vault answers to) gets an own
*allocation*: one address of the subnet, unique there together with the addresses of network interfaces. A *zone* holds record
sets and is seen by the networks that have a *link* to it; an endpoint's *zone group* names the zones that get its records.

The way of an address: reserved (``allocations.allocate``) -> address, door made in the fabric by the worker -> ``Ready`` and
its records written, in one transaction (``zones.write_records``) -> shown to clients. And back: door closed -> not ready and
records removed -> address given back when the endpoint is deleted. A ``door`` says how a connection came in.
"""
