"""Names as a virtual network sees them: the server behind 168.63.129.16 of every network.

Vocabulary: a *view* is what is published for a network (its linked private zones) or for the deployment (its public names); a
*handler* is one source of names; the *chain* is the list of handlers in order; an *outcome* is what one handler says about one name;
an *answer* is what the client gets after every CNAME was followed.

Algorithm. A datagram whose bytes (without the id) were answered before is answered from the cache. Otherwise ``message`` reads it, or
refuses it by its rcode; a question that was answered before, however it was spelled, is answered from the cache as well. Else ``chain``
asks the handlers for the name, and for the target of each CNAME again from the first handler on; where the chain says that an
upstream must know, ``forward`` asks it, and only then does a query cost a task; ``message`` and ``packer`` write the answer, cut
with TC where it does not fit. Publishing replaces a chain and empties its cache in one step, so the next query sees it. A network for
which nothing is published yet answers SERVFAIL, never a public address by accident.

Names are bytes in wire form (``labels``): what is ordinary is read and written by hand, what is unusual by dnspython, and a test
holds the two against each other.
"""
