"""The data plane: what comes in by a door is admitted or refused, and then served.

Vocabulary: a *door* is (network, local address) seen as (endpoint, member) or public; a *connection* keeps the door and the
TLS server name it came with; an *exchange* is one request on it; a *caller* is who the token or SAS says; a *grant* is a SAS
that the service gives a container.

An accepted socket whose local address is nobody's door is reset before TLS (``listener``). On each request: server name, Host
and door must agree (``hosts``, ``admission``), then the caller is known (``sas``, or a bearer token), then caller, vault and
network rule are compared, and only then may a byte of the body reach a handler (``application``). ``backup`` serves ``/v1``,
``blob`` and ``queue`` the storage wires; ``wire`` renders the latter's errors. Doors that vanish close their connections.
"""
