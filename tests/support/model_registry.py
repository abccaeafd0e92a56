"""A registry of models on loopback that speaks as Ollama's does (redirects, tokens), with faults to order."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

from support.file_server import FileHandler, FileServer, running_files

__all__ = ["ModelRegistry", "blob_of", "running_registry"]

_UPLOADS = re.compile(r"/v2/(?P<repository>[^?]+)/blobs/uploads/(?P<id>[0-9]*)")


def blob_of(data: bytes, media: str) -> dict[str, object]:
    return {"mediaType": media, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}


class ModelRegistry:
    """`elsewhere` gets redirected blobs and parts. With `password`, requests need a token that `realm` gives for it;
    `anonymous` tokens need none. `host` is what names begin with."""

    def __init__(self, server: FileServer) -> None:
        self.server = server
        self.elsewhere: FileServer | None = None
        self.redirects_uploads = False
        self.needs_token = False
        self.password: str | None = None
        self.realm = f"{server.origin}/token"
        self.tokens_given = 0
        self.token_requests: list[dict[str, list[str]]] = []
        self.uploads: dict[str, bytearray] = {}
        self.etags: list[str] = []
        server.specials.append(self._respond)

    @property
    def host(self) -> str:
        return self.server.origin.removeprefix("http://")

    def add(self, name: str, layers: list[tuple[bytes, str]], config: bytes = b"{}") -> bytes:
        """`name` is `ns/model:tag`. Returns the manifest."""
        repository, _, tag = name.partition(":")
        for data in (config, *(data for data, _ in layers)):
            self.put_blob(repository, data)
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": blob_of(config, "application/vnd.docker.container.image.v1+json"),
            "layers": [blob_of(data, f"application/vnd.ollama.image.{kind}") for data, kind in layers],
        }
        return self.put_manifest(repository, tag, json.dumps(manifest).encode())

    def put_blob(self, repository: str, data: bytes) -> None:
        self.server.files[f"/v2/{repository}/blobs/sha256:{hashlib.sha256(data).hexdigest()}"] = data

    def put_manifest(self, repository: str, tag: str, data: bytes) -> bytes:
        self.server.files[f"/v2/{repository}/manifests/{tag}"] = data
        return data

    def _respond(self, handler: FileHandler) -> bool:
        if handler.path.startswith("/token"):
            self._token(handler)
        elif self.needs_token and handler.headers.get("Authorization") != f"Bearer token-{self.tokens_given}":
            scope = "repository:a/b:pull,push repository:c/d:pull"
            challenge = f'Bearer realm="{self.realm}",service="models",scope="{scope}"'
            handler.answer(401, b"{}", {"WWW-Authenticate": challenge})
        elif (match := _UPLOADS.match(handler.path)) is not None:
            self._upload(handler, match["repository"], match["id"])
        elif handler.command == "PUT" and "/manifests/" in handler.path:
            self.server.files[handler.path] = handler.body
            handler.answer(201)
        elif self.elsewhere is not None and "/blobs/" in handler.path and handler.command == "GET":
            data = self.server.files[handler.path]
            self.elsewhere.files[handler.path] = data
            handler.answer(307, b"", {"Location": self.elsewhere.origin + handler.path})
        else:
            return False
        return True

    def _token(self, handler: FileHandler) -> None:
        self.token_requests.append(parse_qs(urlsplit(handler.path).query))
        given = handler.headers.get("Authorization", "").removeprefix("Basic ")
        if self.password is not None and base64.b64decode(given).decode().partition(":")[2] != self.password:
            handler.answer(401)
            return
        self.tokens_given += 1
        handler.answer(200, json.dumps({"token": f"token-{self.tokens_given}"}).encode())

    def _upload(self, handler: FileHandler, repository: str, upload: str) -> None:
        if handler.command == "POST":
            number = str(len(self.uploads) + 1)
            self.uploads[number] = bytearray()
            handler.answer(202, b"", {"Location": f"/v2/{repository}/blobs/uploads/{number}?state=a%2Fb"})
        elif handler.command == "PATCH" and self.redirects_uploads and self.elsewhere is not None:
            first = handler.headers["Content-Range"].partition("-")[0]
            target = f"{self.elsewhere.origin}/parts/{upload}/{first}"
            headers = {"Location": target, "Docker-Upload-Location": handler.path}
            handler.answer(307, b"", headers)
        elif handler.command == "PATCH":
            self.uploads[upload] += handler.body
            handler.answer(202, b"", {"Location": handler.path})
        else:
            self._complete(handler, repository, bytes(self.uploads[upload]))

    def _complete(self, handler: FileHandler, repository: str, data: bytes) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        self.etags += query.get("etag", [])
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if query["digest"] != [digest] and not self.redirects_uploads:
            problem = {"errors": [{"code": "DIGEST_INVALID", "message": "provided digest did not match"}]}
            handler.answer(400, json.dumps(problem).encode())
            return
        self.server.files[f"/v2/{repository}/blobs/{query['digest'][0]}"] = data
        handler.answer(201)


@contextmanager
def running_registry() -> Iterator[ModelRegistry]:
    with running_files() as server:
        yield ModelRegistry(server)
