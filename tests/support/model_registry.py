"""A registry of models on loopback that speaks as Ollama's does (redirects, tokens), with faults to order."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from support.file_server import FileHandler, FileServer, running_files

__all__ = ["ModelRegistry", "blob_of", "running_registry"]

_UPLOADS = re.compile(r"/v2/(?P<repository>[^?]+)/blobs/uploads/(?P<id>[0-9]*)")


def blob_of(data: bytes, media: str) -> dict[str, object]:
    return {"mediaType": media, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}


class ModelRegistry:
    """`elsewhere` gets redirected blobs and parts. With `password`, requests need a token that `realm` gives for it;
    with `accounts`, one that it gives for a signature by one of these public keys, as Ollama's own registry does.
    `is_public`: reading needs none. `knows_nobody`: without a login there is a token, too, but for reading only,
    and not even for that without `nobody_may_read`. `host` is what names begin with."""

    def __init__(self, server: FileServer) -> None:
        self.server = server
        self.elsewhere: FileServer | None = None
        self.redirects_uploads = False
        self.needs_token = False
        self.password: str | None = None
        self.realm = f"{server.origin}/token"
        self.accounts: set[str] | None = None
        self.is_public = False
        self.knows_nobody = False
        self.nobody_may_read = True
        self.tokens_given = 0
        self.nonces: set[str] = set()
        self.token_requests: list[dict[str, list[str]]] = []
        self.uploads: dict[str, bytearray] = {}
        self.uploads_begun = 0
        self.part_bytes = 0
        self.tells_progress = True
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
        elif self._is_refused(handler):
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

    def _is_refused(self, handler: FileHandler) -> bool:
        is_reading = handler.command in ("GET", "HEAD")
        given = handler.headers.get("Authorization")
        is_enough = self.is_public or (self.nobody_may_read and given == "Bearer nobody")
        if not self.needs_token or (is_reading and is_enough):
            return False
        return given != f"Bearer token-{self.tokens_given}"

    def _token(self, handler: FileHandler) -> None:
        self.token_requests.append(parse_qs(urlsplit(handler.path).query))
        given = handler.headers.get("Authorization", "")
        if not given and self.knows_nobody:
            handler.answer(200, b'{"token": "nobody"}')
        elif self._is_known(handler, given):
            self.tokens_given += 1
            handler.answer(200, json.dumps({"token": f"token-{self.tokens_given}"}).encode())
        else:
            handler.answer(401)

    def _is_known(self, handler: FileHandler, given: str) -> bool:
        if self.accounts is not None:
            return given != "" and self._is_signed(handler.path, given)
        login = base64.b64decode(given.removeprefix("Basic ")).decode()
        return self.password is None or login.partition(":")[2] == self.password

    def _is_signed(self, path: str, given: str) -> bool:
        """By one of the accounts, over this very URL, now, and for the first time."""
        public, _, signature = given.partition(":")
        query = parse_qs(urlsplit(path).query)
        (nonce,), (ts,) = query["nonce"], query["ts"]
        if public not in (self.accounts or ()) or nonce in self.nonces or abs(time.time() - int(ts)) > 60:
            return False
        self.nonces.add(nonce)
        nothing = base64.b64encode(hashlib.sha256(b"").hexdigest().encode()).decode()
        kind, raw = base64.b64decode(public, validate=True)[:-36], base64.b64decode(public)[-32:]
        assert kind == b"\0\0\0\x0bssh-ed25519"
        try:
            Ed25519PublicKey.from_public_bytes(raw).verify(
                base64.b64decode(signature, validate=True), f"GET,{self.server.origin}{path},{nothing}".encode()
            )
        except InvalidSignature:
            return False
        return True

    def _upload(self, handler: FileHandler, repository: str, upload: str) -> None:
        if handler.command == "POST":
            self.uploads_begun += 1
            number = str(self.uploads_begun)
            self.uploads[number] = bytearray()
            handler.answer(202, b"", {"Location": f"/v2/{repository}/blobs/uploads/{number}?state=a%2Fb"})
        elif upload not in self.uploads:
            handler.answer(404, b'{"errors": [{"code": "BLOB_UPLOAD_UNKNOWN"}]}')
        elif handler.command == "GET":
            last = len(self.uploads[upload]) - 1
            known = {"Location": handler.path, "Range": f"0-{max(last, 0)}"}
            handler.answer(204 if self.tells_progress else 405, b"", known)
        elif handler.command == "PATCH" and self.redirects_uploads and self.elsewhere is not None:
            first = handler.headers["Content-Range"].partition("-")[0]
            target = f"{self.elsewhere.origin}/parts/{upload}/{first}"
            headers = {"Location": target, "Docker-Upload-Location": handler.path}
            handler.answer(307, b"", headers)
        elif handler.command == "PATCH":
            self.uploads[upload] += handler.body
            self.part_bytes += len(handler.body)
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
