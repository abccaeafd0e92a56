"""Oprel: a local model server for every OpenAI and Ollama client, on any engine.

The rooms, top to bottom; each imports only what stands below it (checked by import-linter):

    testing, cli    the contract as a pytest plugin; what a person types
    sdk             what a program imports
    server          the Litestar app: wiring, keys, origins, limits, health
    dialects        openai/ ollama/: wire forms to and from schema/
    scheduler       leases, queue, residency, memory budget, keep-alive
    drivers         the contract, the registry, child processes, and the engines that ship
    sources         where models come from
    store           models on disk, in Ollama's layout
    hardware, net   what this machine has; HTTP clients
    schema          requests, events, capabilities, plans: plain immutable data
    config, errors  settings; one tree of errors
"""

__version__ = "1.0.0"
