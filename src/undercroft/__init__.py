"""Undercroft: Recovery Services vaults reached only through private endpoints, with real packets and real names."""

__version__ = "0.1.0.dev0"
