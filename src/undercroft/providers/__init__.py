"""Resource providers: thin translations between ARM's JSON and the rules. One package per Azure namespace, one file per type.

A provider parses a body into its own frozen Struct, calls rules of ``vnet`` or ``vault`` inside one transaction, and shows the outcome as
Azure would. It never touches Linux, and imports no other provider. Each package exports ``routes(...)``, a tuple of ``arm.call.Route``;
the composition root joins the tuples.
"""
