"""Versions of packages in order (PEP 440), as far as choosing the newest one needs it."""

from __future__ import annotations

import re
from typing import TypeAlias

__all__ = ["VersionKey", "is_prerelease", "version_key"]

VersionKey: TypeAlias = tuple[int, tuple[int, ...], tuple[int, int], int, float, str]

_VERSION = re.compile(
    r"v?(?:(?P<epoch>\d{1,9})!)?(?P<release>\d{1,18}(?:\.\d{1,18}){0,30})"
    r"(?:[-_.]?(?P<stage>alpha|beta|preview|pre|a|b|c|rc)[-_.]?(?P<stage_number>\d{0,9}))?"
    r"(?:-(?P<implicit_post>\d{1,9})|[-_.]?(?P<post>post|rev|r)[-_.]?(?P<post_number>\d{0,9}))?"
    r"(?:[-_.]?(?P<dev>dev)[-_.]?(?P<dev_number>\d{0,9}))?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?"
)
_STAGES = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}
_FINAL = (9, 0)
_BEFORE_ALL_STAGES = (-1, 0)


def version_key(text: str) -> VersionKey | None:
    """Sorts like the version; None for what isn't one. Equal versions (`1.0`, `1.0.0`) have equal keys."""
    match = _VERSION.fullmatch(text.strip().lower())
    if match is None:
        return None
    release = [int(part) for part in match["release"].split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    post = -1
    if match["implicit_post"]:
        post = int(match["implicit_post"])
    elif match["post"]:
        post = int(match["post_number"] or 0)
    is_dev = match["dev"] is not None
    if match["stage"]:
        stage = (_STAGES[match["stage"]], int(match["stage_number"] or 0))
    else:
        stage = _BEFORE_ALL_STAGES if is_dev and post < 0 else _FINAL
    dev = float(match["dev_number"] or 0) if is_dev else float("inf")
    return (int(match["epoch"] or 0), tuple(release), stage, post, dev, match["local"] or "")


def is_prerelease(key: VersionKey) -> bool:
    return key[2] != _FINAL or key[4] != float("inf")
