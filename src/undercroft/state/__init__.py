"""The control plane's records.

``schema`` has every table, ``database`` the short transactions in which they change (one writer), ``migrations`` the way from one schema to
the next, ``tasks`` what a transaction leaves to be done. State is the record; the world follows it (``workers``).
"""
