"""What a repository of the hub holds, and what a search finds: the hub's answers, read within limits and checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from oprel.errors import OprelError, SourceError
from oprel.net.outside import NotThereError, OutsideClient, RefusedError, TransientSourceError
from oprel.sources.hub.access import HubAccess
from oprel.sources.retries import retried
from oprel.store import Digest, HubReference

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["HubFile", "Listing", "SearchHit", "file_url", "list_repo", "read_file", "search", "told"]

MAX_ANSWER_BYTES = 32 << 20
MAX_FILES = 20_000
MAX_FILE_BYTES = 1 << 44
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_GIT_ID = re.compile(r"[0-9a-f]{40}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


class HubFile(Struct, frozen=True):
    """`name` is the hub's, and hostile until it was checked. `sha256` is there for large files, `git_id` for all."""

    name: str
    size_bytes: int
    sha256: Digest | None = None
    git_id: str | None = None


class Listing(Struct, frozen=True):
    """A repository at one commit. `parameters` as the hub counted them, `license` its name for it."""

    owner: str
    repo: str
    commit: str
    files: tuple[HubFile, ...]
    parameters: int | None = None
    license: str | None = None

    @property
    def id(self) -> str:
        return f"{self.owner}/{self.repo}"


class SearchHit(Struct, frozen=True):
    id: str
    downloads: int = 0
    likes: int = 0
    formats: tuple[str, ...] = ()


async def list_repo(client: OutsideClient, access: HubAccess, reference: HubReference, revision: str) -> Listing:
    """All files with sizes and digests, at the commit that `revision`, a branch or a commit, stands for now. Raises
    SourceError."""
    repo = f"{reference.owner}/{reference.repo}"
    url = f"{access.endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
    with told(access, repo):
        answer = await retried(lambda: client.read(url, max_bytes=MAX_ANSWER_BYTES, headers=access.headers))
    found = _model_info(answer.data, repo)
    commit = found.sha
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise SourceError(f"The hub doesn't say which commit of {repo!r} it shows; try again.")
    siblings = found.siblings or []
    if len(siblings) > MAX_FILES:
        raise SourceError(f"The repository {repo!r} has {len(siblings)} files, more than {MAX_FILES}.")
    gguf = found.gguf if isinstance(found.gguf, dict) else {}
    card: Any = found.card_data or {}
    license_name = card.get("license")
    return Listing(
        owner=reference.owner,
        repo=reference.repo,
        commit=commit,
        files=tuple(_file(repo, sibling) for sibling in siblings),
        parameters=_count(gguf.get("total")),
        license=license_name[:200] if isinstance(license_name, str) and license_name.isprintable() else None,
    )


async def read_file(client: OutsideClient, access: HubAccess, listing: Listing, file: HubFile, limit: int) -> bytes:
    """A small file, whole and checked against what the listing says. Raises SourceError."""
    if file.size_bytes > limit:
        raise SourceError(f"{file.name[:100]!r} of {listing.id!r} has {file.size_bytes} bytes, more than {limit}.")
    with told(access, listing.id, is_listed=True):
        url = file_url(access, listing, file)
        answer = await retried(lambda: client.read(url, max_bytes=file.size_bytes, headers=access.headers))
    if not is_whole(file, answer.data):
        raise SourceError(f"{file.name[:100]!r} of {listing.id!r} isn't what the hub's listing says; pull again.")
    return answer.data


def is_whole(file: HubFile, data: bytes) -> bool:
    """By SHA-256 where the hub gives one, else by git's own digest of a file."""
    if len(data) != file.size_bytes:
        return False
    if file.sha256 is not None:
        return hashlib.sha256(data).hexdigest() == file.sha256.hex
    return file.git_id is not None and git_id_of(data) == file.git_id


def git_id_of(data: bytes) -> str:
    """https://git-scm.com/book/en/v2/Git-Internals-Git-Objects"""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


async def search(client: OutsideClient, access: HubAccess, query: str, *, limit: int) -> tuple[SearchHit, ...]:
    """Repositories that hold GGUF files and are called like that, the most downloaded first."""
    asked = urlencode({"search": query[:200], "filter": "gguf", "sort": "downloads", "direction": -1, "limit": limit})
    url = f"{access.endpoint}/api/models?{asked}"
    with told(access, query):  # somebody waits for it
        answer = await retried(lambda: client.read(url, max_bytes=MAX_ANSWER_BYTES, headers=access.headers), tries=2)
    try:
        entries = msgspec.json.decode(answer.data, type=list[dict[str, Any]])
    except (msgspec.MsgspecError, RecursionError, ValueError) as problem:
        raise SourceError("The hub's answer to a search can't be read.") from problem
    return tuple(hit for entry in entries[:limit] if (hit := _hit(entry)) is not None)


def file_url(access: HubAccess, listing: Listing, file: HubFile) -> str:
    """At the listing's commit, so that what is fetched is what was listed."""
    from huggingface_hub import hf_hub_url  # `list_repo` has imported the package, in a thread

    url: str = hf_hub_url(listing.id, file.name, revision=listing.commit, endpoint=access.endpoint)
    return url


@contextmanager
def told(access: HubAccess, what: str, *, is_listed: bool = False) -> Iterator[None]:
    """What the hub refuses, in sentences for those who asked. `is_listed`: it was there a moment ago."""
    try:
        yield
    except RefusedError as problem:
        raise _refused(access, what, problem.answered, is_listed=is_listed) from problem
    except NotThereError as problem:
        if is_listed:
            raise SourceError(f"{what!r} has changed while it was fetched; pull it again.") from problem
        raise NotThereError(f"{what!r} isn't on the hub; look for it with: oprel search NAME") from problem
    except TransientSourceError as problem:
        if problem.answered != 429:
            raise
        raise TransientSourceError(
            "The hub has had too many requests from here; wait a few minutes, or set HF_TOKEN to be allowed more.",
            retry_after_s=problem.retry_after_s,
            answered=429,
        ) from problem


def _refused(access: HubAccess, what: str, status: int, *, is_listed: bool) -> SourceError:
    """The hub says 401 of what isn't there and of what is private, and lists what is gated."""
    if status == 401 and not is_listed:
        if access.token is not None:
            return SourceError(
                f"The hub doesn't take the token for {what!r}, or has no such repository: check the name and HF_TOKEN."
            )
        return SourceError(f"{what!r} isn't on the hub, or isn't open to all: check the name, or set HF_TOKEN.")
    how = "with the account that the token is of" if access.token is not None else "and set HF_TOKEN"
    return SourceError(f"{what!r} is gated: ask for access on its page at {access.endpoint}/{what}, {how}.")


def _model_info(data: bytes, repo: str) -> ModelInfo:
    from huggingface_hub.hf_api import ModelInfo

    try:
        return ModelInfo(**msgspec.json.decode(data, type=dict[str, Any]))  # type: ignore[no-untyped-call]  # it has none
    except (msgspec.MsgspecError, RecursionError, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise SourceError(f"The hub's answer about {repo!r} can't be read.") from problem


def _file(repo: str, sibling: Any) -> HubFile:
    """The library passes on what the hub says, of whatever type."""
    name, size = sibling.rfilename, _count(sibling.size)
    if not isinstance(name, str) or size is None:
        raise SourceError(f"The hub's list of files of {repo!r} can't be read.")
    digest = getattr(sibling.lfs, "sha256", None)
    try:
        sha256 = Digest(digest) if isinstance(digest, str) else None
    except OprelError as problem:
        raise SourceError(f"The hub gives no digest that can be read for {name[:100]!r} of {repo!r}.") from problem
    git_id = sibling.blob_id
    is_id = isinstance(git_id, str) and _GIT_ID.fullmatch(git_id) is not None
    return HubFile(name, size, sha256, git_id if is_id else None)


def _count(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_FILE_BYTES
    return value if is_count else None  # type: ignore[return-value]  # the line above says that it is one


def _hit(entry: dict[str, Any]) -> SearchHit | None:
    name = entry.get("id")
    if not isinstance(name, str) or not _REPO.fullmatch(name):
        return None
    tags = entry.get("tags")
    formats = tuple(kind for kind in ("gguf", "safetensors") if isinstance(tags, list) and kind in tags)
    return SearchHit(name, _count(entry.get("downloads")) or 0, _count(entry.get("likes")) or 0, formats)
