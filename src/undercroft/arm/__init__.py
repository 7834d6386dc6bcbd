"""The ARM wire. It knows no resource type.

A *call* is one parsed request, a *reply* what a handler answers, a *route* (verb, pattern, right, handler). A provider is a tuple
of routes (``call``). ``application`` is the pipeline every request passes, a visible list of links in order; ``routes`` finds the
handler; ``errors`` is the only place that writes an error body; ``envelope`` and ``paging`` give resources and lists their ARM form;
``operations`` are long-running and survive a restart; ``resources`` is typed access to the rows; ``listener`` serves it all over TLS.

1. limits, correlation, path. 2. pages that need no ARM (metadata, login, graph) answer here. 3. token, api-version, subscription,
route, query, rights. 4. the handler, under the route's own rules. 5. one renderer for replies, one for errors.
"""
