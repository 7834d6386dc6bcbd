"""The journey of ``scripts/demo``: from a management call to restored bytes, each step with its proof.

``journey`` is the list of steps in the article's order, ``tree`` makes, changes and compares the files, ``shell`` runs the commands
that a person would type and shows them, ``leftovers`` counts what a run leaves behind. Only the command line is used, never the
package's own modules.
"""
