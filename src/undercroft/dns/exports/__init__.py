"""Configuration files for DNS servers that are not ours: pure functions from requirements to text.

*Forward* mode sends the required domains to Azure DNS (168.63.129.16) or to a resolver that does; it stays right when names are added.
*Records* mode makes the server answer by itself, so its files must be renewed as the vault's names grow: after the first registration,
after the first backup, and later. Every file says when and from which endpoints it was made, how it is applied, and that.

One file per server here, and ``formats`` is the table of them.
"""
