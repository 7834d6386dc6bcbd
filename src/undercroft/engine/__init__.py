"""The engine: turns trees of files into encrypted, deduplicated objects, and back. Format: ``docs/format.md``.

A *chunk* is a run of bytes cut by content and named by a keyed hash. Chunks are compressed and encrypted together as a
*frame*, the smallest thing that is read, verified or moved. Frames lie back to back in *packs*. An *index* says where
frames are (in public) and which chunks are in them (encrypted). A *manifest* is one snapshot. A *depot* keeps objects by name.

Backup: the reader walks a source, cuts and hashes chunks and drops those the index knows (``backup``); workers compress
and encrypt frames into packs; a sender puts packs, then indexes; last comes the manifest. The caller then commits.
Restore: manifest → tree → the frames that are needed, in the order of packs → verify → write (``restore``).
``check`` does the same without writing, or verifies packs without any key.

Nothing here knows HTTP, vaults or tokens: the agent gives a ``repository.Depot``. Nothing here knows how a kind of data is read
or written: the agent's sources implement ``backup.Source`` and ``restore.Target``.
"""
