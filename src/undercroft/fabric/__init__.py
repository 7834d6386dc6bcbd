"""Virtual networks as Linux networking: the one process that holds the privilege, and how others ask it.

Vocabulary: a *network* is a VNet's network namespace; a *host* is a VM: a network and a mount namespace on a routed veth; a *plan*
is what the kernel's tables must hold; a *drift* is one difference that was mended; an *occupant* is a process whose network is
a host's; an *execution* is a command that a client waits for; a *driver* is what builds all this on one kind of machine; a *filter*
is what a security group comes to in one network.

Algorithm. ``probe`` tries what the machine allows and names the driver. ``process`` serves a Unix socket; ``client`` implements
``specification.Fabric`` over it (``messages``). ``apply`` ends the hosts that are wanted no more, makes the missing namespaces and links, reads
the kernel's tables back (``rtnetlink``), compares them with the plan and sends the difference in one batch per namespace. Sockets
are made by a thread inside the namespace and handed out; they work anywhere. Nothing is written down but the inodes of hosts'
namespaces, so that the next process can end what a killed one left; everything else is rebuilt from what it is told.
"""
