"""Kinds of data that the agent reads and writes, one module each.

A *source* implements ``engine.backup.Source``: it walks its data and hands contents and directories to the engine's sink. A
*target* implements ``engine.restore.Target``: it makes room, takes verified contents in any order, and finishes. What a kind
cannot do on this machine is a problem that it lists, never silence.
"""
