"""The benchmark: Undercroft through its private endpoint (TLS included) beside restic and borg on a local disk.

A *data set* is a tree that swaps between two versions; a *peer* is a backup program; a *phase* is one of first backup, again after
a change, again unchanged, and restore (its content compared). A *run* of a peer over a data set starts from nothing: peers take
turns, in turned order every second time, and the median of the repetitions counts. ``measure`` runs one command and tells
wall clock, CPU and peak PSS of its whole process tree; the same wrapper is around every peer. ``service`` starts a deployment and
times what only Undercroft has: start, DNS, connection, idle memory. Nothing is asserted about speed.

``names`` sets the name server beside dnsmasq and unbound. ``networks`` measures what networks cost: ``latency`` beside a backup,
``throughput`` through an endpoint beside loopback, ``creation``, and ``scale`` (a thousand endpoints).
"""
