"""A store as Ollama leaves it, made by hand: any layers, any damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from oprel.store import ModelName

__all__ = ["OllamaStore"]

_PREFIX = "application/vnd.ollama.image."


class OllamaStore:
    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True, exist_ok=True)

    def blob(self, data: bytes) -> tuple[str, int]:
        digest = hashlib.sha256(data).hexdigest()
        self.blob_path(digest).write_bytes(data)
        return f"sha256:{digest}", len(data)

    def blob_path(self, digest: str) -> Path:
        return self.root / "blobs" / f"sha256-{digest.removeprefix('sha256:')}"

    def add(
        self,
        name: str,
        layers: Sequence[tuple[str, bytes]],
        *,
        config: Mapping[str, object] | None = None,
        origin: str = "",
    ) -> Path:
        """`layers` are (kind, content). Returns the manifest's path."""
        described = []
        for kind, data in layers:
            digest, size = self.blob(data)
            described.append({"mediaType": _PREFIX + kind, "digest": digest, "size": size})
            if kind == "model" and origin:
                described[-1]["from"] = origin
        digest, size = self.blob(json.dumps(config if config is not None else {"model_format": "gguf"}).encode())
        top = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": digest, "size": size}
        return self.manifest(
            name,
            json.dumps(
                {
                    "schemaVersion": 2,
                    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                    "config": top,
                    "layers": described,
                }
            ).encode(),
        )

    def manifest(self, name: str, data: bytes) -> Path:
        path = ModelName.parse(name).manifest_path(self.root)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path
