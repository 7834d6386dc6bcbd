"""The control socket, ``DIR/run/control.sock``: what is local to a node and no business of ARM (DESIGN section 3).

One JSON object a line, one request a connection: ``{"verb": …}`` in, ``{"ok": …}`` or ``{"error": …}`` out. ``execute`` carries the
client's three standard streams as descriptors with the request; hanging up kills the command. The socket's mode (0600 in a
0700 folder) and the peer's user id are the access control.

``client`` is what a command imports, and is quick to import; ``server`` is the node's.
"""
