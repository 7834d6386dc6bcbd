"""Rules of backup, without HTTP and without bytes.

A *vault* is the unit of retention, network rules and access. It answers to *members* (names); its side of a private endpoint is
a *connection*. A registered host is a *container*; what it protects are *items*, one restorable state of an item is a *point*.
*Accounts* are the storage accounts the service allots to a vault: communication (``ecs``) at the first registration, protection
(``prot``) at the first backup, each bringing new members. *Taint*: something was registered or protected, ever.

The way of a vault: created with eight members -> endpoint (refused after the taint, unless it had one before) -> approved ->
*credentials* downloaded -> a host registers -> accounts -> backups -> points. Functions take a connection, so that rules of
several files meet in one transaction.
"""
