"""The Hugging Face hub, or a mirror of it: models in GGUF, and folders for the drivers that take those.

One path leads out: `net.outside.OutsideClient`. The package `huggingface_hub` knows how the hub's addresses are made,
how its answers are read, and where its token lies; no connection and no cache of its is used, so that limits, checks of
redirects and of addresses hold for every byte. Imported when something is pulled or searched.
"""

from oprel.sources.hub.access import HubAccess, read_hub_access
from oprel.sources.hub.choice import Budget, Choice, choose_weights
from oprel.sources.hub.files import RepoFiles, Weights, sort_files
from oprel.sources.hub.hub import Hub
from oprel.sources.hub.listing import HubFile, Listing, SearchHit

__all__ = [
    "Budget",
    "Choice",
    "Hub",
    "HubAccess",
    "HubFile",
    "Listing",
    "RepoFiles",
    "SearchHit",
    "Weights",
    "choose_weights",
    "read_hub_access",
    "sort_files",
]
