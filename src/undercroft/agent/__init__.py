"""The agent: what runs on a protected host. It imports the engine and the leaves, never the server.

Vocabulary: the *identity* is what registration left in the agent's home (container id, its private key, the vault's names
and CA). A *leg* is one attempt to reach a name (resolve, connect, TLS). A *route* is the leg that worked: by the private name
or, when that does not resolve or connect, by the public one. A *grant* is a SAS for the container's blobs. The *depot* is
where the engine's objects go to and come from.

The algorithm of a backup: take the lock; read identity and passphrase; find the route; ask for the container (is it still
registered?); open a backup and wait until its account is ready on this endpoint and its name resolves here; open or make
the key; let the engine send packs, then the index, then the manifest, while a heartbeat renews the lease and reports progress;
commit, sending again what the service says is missing; leave the job's log. Whatever fails is reported to the service
(``/fail``) and loses nothing: what arrived is found again by the next run.
"""
