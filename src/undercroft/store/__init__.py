"""Bytes by name.

Vocabulary: an *object* is a name and immutable bytes; a *name* is ``/``-separated segments (``names``); a *store* keeps
objects (``store.Store``): ``filesystem`` and ``memory``; ``faulty`` wraps another one and fails on purpose; ``folders``
walks the first segments below a prefix by listing with jumps, so that a million objects below one folder cost one step.

Writing on the filesystem: temporary file, data to disk, hard link to the final name (which fails when the name is taken),
directory to disk. An object is therefore seen whole and durable or not at all; a crash leaves at most a temporary file,
which the next start removes.
"""
