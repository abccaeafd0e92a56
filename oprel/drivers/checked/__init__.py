"""Drivers of third parties behind a wrapper that holds them to the contract: what breaks it is caught and named, and
the server goes on. Drivers that ship with Oprel aren't wrapped: their hot path pays nothing for this."""
