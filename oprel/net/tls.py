"""Certificates: whose to trust when an engine is somewhere else."""

from __future__ import annotations

import ssl
from pathlib import Path

__all__ = ["tls_context"]


def tls_context(*, verify: bool = True, ca_file: Path | None = None) -> ssl.SSLContext:
    """Trusts what `ca_file` holds and nothing else; or the system's certificates and certifi's. `verify` False: any.

    Reads files, so it belongs in a thread. OSError (ssl.SSLError is one) for a file that can't be used.
    """
    context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file is None:
        import certifi

        context.load_verify_locations(certifi.where())
    return context
