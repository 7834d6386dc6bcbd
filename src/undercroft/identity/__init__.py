"""Who is calling, and what they may do.

A *tenant* has *principals* (service principals, and for the data plane vault credentials and containers). A principal proves
itself to the *login* endpoint with a secret or a signed assertion, and gets a *token*: an RS256 JWT for one *audience*. A *role
definition* is a list of actions with wildcards; a *role assignment* gives a principal a role at a *scope*, and everything below
it. Nothing is allowed that no assignment grants. The *authority* is the deployment's own CA; everything here is answered over TLS
with its certificates. The *deployment* file is what makes a new state database the same tenant as the old one.

1. ``login`` finds the principal, verifies its proof, and asks ``tokens`` for a JWT. 2. ``arm`` hands the JWT back to ``tokens``,
which returns frozen ``Claims``. 3. ``authorization`` turns claims into ``CallerRights``: assignments, by role, by wildcard.
"""
