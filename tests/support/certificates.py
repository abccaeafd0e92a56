"""Certificates made by `openssl` when a test needs them: no key lies in the repository."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Certificate", "make_certificate"]


@dataclass(frozen=True)
class Certificate:
    """Self-signed: `file` is what a client that is to trust it names as its authority."""

    file: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file, self.key)
        return context


def make_certificate(folder: Path, *, host: str = "localhost") -> Certificate:
    """For one host, a day long. Skips the test where there is no `openssl` that can."""
    program = shutil.which("openssl") or pytest.skip("there is no openssl program")
    made = Certificate(folder / f"{host}.pem", folder / f"{host}.key")
    subject = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    files = ["-keyout", str(made.key), "-out", str(made.file)]
    done = subprocess.run([program, "req", *kind, *subject, *files], capture_output=True, timeout=30, check=False)
    if done.returncode:
        pytest.skip(f"openssl can't make a certificate here: {done.stderr.decode()[-200:]}")
    return made
