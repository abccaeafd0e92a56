"""What must be true of a store at any moment, whatever was killed."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from oprel.store.manifests import iter_manifests, parse_manifest

__all__ = ["assert_ollamas_shape", "assert_valid_store", "snapshot"]

_BLOB = re.compile(r"sha256-[0-9a-f]{64}")
_PART = re.compile(r"[\w.:-]{1,350}")


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


def snapshot(models_dir: Path) -> dict[str, str]:
    """Each file's digest, by its path in the tree: two that are equal are of trees with the same bytes. Empty folders
    count for nothing."""
    return {
        str(path.relative_to(models_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(models_dir.rglob("*"))
        if path.is_file() or path.is_symlink()
    }


def assert_ollamas_shape(models_dir: Path) -> None:
    """Nothing is in the tree but what Ollama makes itself: blobs named by digests, manifests four levels deep, and
    perhaps empty folders, which it removes at its start."""
    if not models_dir.exists():
        return
    assert {path.name for path in models_dir.iterdir()} <= {"blobs", "manifests"}
    for path in (models_dir / "blobs").glob("*"):
        assert path.is_file() and not path.is_symlink(), path
        assert _BLOB.fullmatch(path.name), path
    for path in (models_dir / "manifests").rglob("*"):
        parts = path.relative_to(models_dir / "manifests").parts
        assert len(parts) <= 4, path
        assert all(_PART.fullmatch(part) for part in parts), path
        assert path.is_file() == (len(parts) == 4), path
        if path.is_file():
            manifest = json.loads(path.read_bytes())
            assert manifest["schemaVersion"] == 2
            assert set(manifest) == {"schemaVersion", "mediaType", "config", "layers"}
            for layer in (manifest["config"], *manifest["layers"]):
                assert {"mediaType", "digest", "size"} <= set(layer) <= {"mediaType", "digest", "size", "from", "name"}
