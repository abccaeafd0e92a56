"""From the names of a repository's files to what they are: weights by quantization, their parts, projectors, a licence.

A name is the repository owner's, so it is never used as a path: weights become blobs, and a folder's files are checked
by `store.folders.check_relative` before they get a name on disk. A name that could lead elsewhere, and one that looks
like another (control and formatting characters), makes its repository refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from msgspec import Struct

from oprel.errors import SourceError
from oprel.sources.hub.listing import HubFile, Listing
from oprel.store.names import DEFAULT_TAG, as_name_part

__all__ = ["RepoFiles", "Weights", "check_name", "label_of", "sort_files"]

_GGUF = ".gguf"
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.IGNORECASE)
_LABEL = re.compile(
    r"(?<![A-Za-z0-9])(?P<label>(?:UD-)?(?:I?Q[1-8]|TQ[12])(?:_[A-Z0-9]+)*|B?F16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4)"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_SAME = {"FP16": "F16", "FP32": "F32"}
_LICENSES = ("LICENSE", "LICENSE.TXT", "LICENSE.MD", "LICENCE", "LICENCE.TXT", "LICENCE.MD", "USE_POLICY.MD")
_MAX_NAME = 1000
_MAX_PARTS = 999
# Largest sensible precision first: F16 is what projectors are made in, and F32 only doubles them.
_PROJECTORS = ("F16", "BF16", "F32", "Q8_0")


class Weights(Struct, frozen=True):
    """One model in one quantization: a file, or all parts of a split one in order. `label` is upper case (`Q4_K_M`),
    empty where the name says nothing. `stem` is the file's name without ending and number."""

    label: str
    stem: str
    parts: tuple[HubFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)

    @property
    def tag(self) -> str:
        """What the stored model's tag is when nobody named one."""
        return as_name_part(self.label, fallback=DEFAULT_TAG)

    def is_called(self, asked: str) -> bool:
        """By its label, or its file's name with or without ending, in any case."""
        asked = asked.lower()
        asked = _SAME.get(asked.upper(), asked).lower()
        names = {self.label.lower(), self.stem.lower(), f"{self.stem}{_GGUF}".lower()}
        return bool(asked) and asked in names


class RepoFiles(Struct, frozen=True):
    """`safetensors` says that the repository is a folder of weights for other engines."""

    weights: tuple[Weights, ...]
    projector: HubFile | None
    licenses: tuple[HubFile, ...]
    safetensors: bool


def sort_files(listing: Listing) -> RepoFiles:
    """Raises SourceError for a repository with names that can't be honest, or split files that aren't all there."""
    for file in listing.files:
        check_name(listing, file.name)
    models: list[HubFile] = []
    projectors: list[HubFile] = []
    for file in listing.files:
        if not file.name.lower().endswith(_GGUF):
            continue
        base = _base(file).lower()
        if "mmproj" in base:
            projectors.append(file)
        elif not ("imatrix" in base and not label_of(base)):  # what quantizing was steered by: no model
            models.append(file)
    return RepoFiles(
        weights=_weights(listing, models),
        projector=min(projectors, key=_projector_rank, default=None),
        licenses=tuple(file for file in listing.files if file.name.upper() in _LICENSES),
        safetensors=any(file.name.lower().endswith(".safetensors") for file in listing.files),
    )


def check_name(listing: Listing, name: str) -> str:
    """Raises SourceError for an absolute path, `..`, backslashes, and characters that don't show."""
    parts = name.split("/")
    is_shown = all(unicodedata.category(character)[0] not in "CZ" or character == " " for character in name)
    if not (0 < len(name) <= _MAX_NAME) or "\\" in name or not is_shown or any(p in ("", ".", "..") for p in parts):
        raise SourceError(
            f"The repository {listing.id!r} has a file called {name[:100]!r}, which isn't a name that a file may have; "
            "nothing is taken from it."
        )
    return name


def label_of(stem: str) -> str:
    """The last quantization in a name, in upper case; empty where it has none."""
    found = [match["label"].upper() for match in _LABEL.finditer(stem)]
    return _SAME.get(found[-1], found[-1]) if found else ""


def _weights(listing: Listing, files: Iterable[HubFile]) -> tuple[Weights, ...]:
    whole: list[Weights] = []
    split: defaultdict[tuple[str, int], dict[int, HubFile]] = defaultdict(dict)
    for file in files:
        path = file.name[: -len(_GGUF)]
        if match := _SPLIT.fullmatch(path):
            split[match["stem"], int(match["count"])][int(match["number"])] = file
        else:
            whole.append(_named(path, (file,)))
    for (path, count), parts in split.items():
        if not 0 < count <= _MAX_PARTS or sorted(parts) != list(range(1, count + 1)):
            shown = path.rpartition("/")[2][:100]
            raise SourceError(f"The repository {listing.id!r} doesn't have all {count} parts of {shown!r}.")
        whole.append(_named(path, tuple(parts[number] for number in sorted(parts))))
    return _distinct(whole)


def _named(path: str, parts: tuple[HubFile, ...]) -> Weights:
    """The file's own name says its quantization, or the folder that it lies in."""
    folder, _, stem = path.rpartition("/")
    return Weights(label_of(stem) or label_of(folder), stem, parts)


def _distinct(found: Sequence[Weights]) -> tuple[Weights, ...]:
    """By label; where several have one, only the one with the shortest path keeps it: the others go by file name."""
    taken: set[str] = set()
    distinct: list[Weights] = []
    for weights in sorted(found, key=lambda each: (each.parts[0].name.count("/"), len(each.stem), each.parts[0].name)):
        if weights.label and weights.label in taken:
            weights = Weights("", weights.stem, weights.parts)
        taken.add(weights.label)
        distinct.append(weights)
    return tuple(distinct)


def _projector_rank(file: HubFile) -> tuple[int, str]:
    label = label_of(_base(file)[: -len(_GGUF)])
    return (_PROJECTORS.index(label) if label in _PROJECTORS else len(_PROJECTORS), file.name)


def _base(file: HubFile) -> str:
    return file.name.rpartition("/")[2]
