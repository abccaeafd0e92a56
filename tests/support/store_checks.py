"""What must be true of a store at any moment, whatever was killed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from oprel.store.manifests import iter_manifests, parse_manifest

__all__ = ["assert_valid_store"]


def assert_valid_store(models_dir: Path) -> int:
    """Every visible blob holds what its name says, every manifest parses and has all its blobs; returns how many
    manifests there are."""
    blobs = models_dir / "blobs"
    for path in blobs.iterdir() if blobs.is_dir() else ():
        if path.name.startswith("sha256-"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name.removeprefix("sha256-"), path
        else:
            assert path.name.startswith("oprel-"), path
    count = 0
    for entry in iter_manifests(models_dir):
        count += 1
        for blob in parse_manifest(entry.path.read_bytes()).blobs:
            assert blob.digest.blob_path(models_dir).stat().st_size == blob.size_bytes, entry.name
    return count
