"""Models on disk, in Ollama's layout: names, blobs, manifests, GGUF metadata, aliases, folders,
and the catalog over them."""

from oprel.store.aliases import Alias, Aliases
from oprel.store.blobs import BlobRef, BlobWriter, hash_file
from oprel.store.catalog import Catalog
from oprel.store.gguf import GgufMetadata, GgufTensor, GgufValue, SkippedArray, parameter_size, read_gguf
from oprel.store.names import Digest, ModelName
from oprel.store.quantizations import is_low_quality, with_quantization
from oprel.store.references import HubReference, PackageReference, Reference, parse_reference
from oprel.store.resumable import ResumableBlob
from oprel.store.store import Installed, Store
from oprel.store.trees import ImportedTree, Trees

__all__ = [
    "Alias",
    "Aliases",
    "BlobRef",
    "BlobWriter",
    "Catalog",
    "Digest",
    "GgufMetadata",
    "GgufTensor",
    "GgufValue",
    "HubReference",
    "ImportedTree",
    "Installed",
    "ModelName",
    "PackageReference",
    "Reference",
    "ResumableBlob",
    "SkippedArray",
    "Store",
    "Trees",
    "hash_file",
    "is_low_quality",
    "parameter_size",
    "parse_reference",
    "read_gguf",
    "with_quantization",
]
