"""What is in a model's folder: the files that are taken, and what its own JSON files say of the model.

Only data is taken, by kind: weights (safetensors), JSON, vocabularies, templates. What could run code (pickles,
Python) or lead elsewhere (links) makes the folder refused; other files (pictures, READMEs) are left out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from oprel.errors import InvalidRequestError, OprelError
from oprel.schema import Pooling
from oprel.store.disk import translated
from oprel.store.manifests import read_small
from oprel.store.safetensors import SafetensorsHeader, read_safetensors

__all__ = [
    "FolderFile",
    "FolderFacts",
    "check_relative",
    "is_taken",
    "read_facts",
    "scan_folder",
    "why_never_taken",
]

_TAKEN = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})
_CODE = frozenset({".py", ".pyc", ".so", ".dll", ".dylib", ".sh"})
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"})
_MAX_DEPTH = 3
_MAX_FILES = 2000
_MAX_CONFIG_BYTES = 4 << 20
_MAX_TOKENIZER_CONFIG_BYTES = 32 << 20
_MAX_TEMPLATE_BYTES = 1 << 20
_PART = 80

_INDEX = "model.safetensors.index.json"
_GENERATION = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}  # fmt: skip
_POOLING_NAMES: tuple[tuple[str, Pooling], ...] = (
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_lasttoken", "last"),
)


class FolderFile(Struct, frozen=True):
    """`name` is relative to the folder, with `/`; each part is a plain file name."""

    name: str
    size_bytes: int

    @property
    def is_weights(self) -> bool:
        return self.name.lower().endswith(".safetensors")


class FolderFacts(Struct, frozen=True):
    """What the folder's own files say; None or empty where they say nothing. `format` is "safetensors", or the
    quantization that only its own engine reads ("exl2", "exl3"). `quantization` is upper case (`BF16`, `GPTQ`).
    `parameters` are how its publisher would have it sampled, by Ollama's option names. `start_token` begins a text
    of which nothing is given."""

    format: str
    architecture: str
    family: str
    quantization: str
    parameter_count: int
    context_tokens: int | None
    embedding_length: int | None
    layers: int | None
    kv_bytes_per_token: int | None
    pooling: Pooling | None
    chat_template: str | None
    parameters: tuple[tuple[str, object], ...]
    start_token: int | None
    has_own_code: bool
    has_vision: bool
    has_audio: bool

    @property
    def is_embedding(self) -> bool:
        return self.pooling is not None


def scan_folder(folder: Path) -> tuple[tuple[FolderFile, ...], tuple[str, ...]]:
    """The files to take, by name, and the names that are left out. Raises InvalidRequestError for a folder that holds
    what isn't taken in any case, or no model."""
    taken: list[FolderFile] = []
    left_out: list[str] = []
    with translated(f"read {folder.name!r}"):
        for count, (name, status) in enumerate(_walk(folder, "", 0), 1):
            if count > _MAX_FILES:
                raise InvalidRequestError(f"{folder.name!r} has more than {_MAX_FILES} files: it isn't one model.")
            if (why := why_never_taken(name)) is not None:
                raise _refused(folder, name, why)
            if Path(name).suffix.lower() in _TAKEN:
                taken.append(FolderFile(name, status.st_size))
            else:
                left_out.append(name)
    files = _indexed(folder, sorted(taken, key=lambda file: file.name), left_out)
    names = {file.name for file in files}
    if "config.json" not in names:
        raise InvalidRequestError(f"{folder.name!r} isn't a model's folder: it has no config.json.")
    if not any(file.is_weights for file in files):
        raise InvalidRequestError(f"{folder.name!r} has no weights: no .safetensors file is in it.")
    return files, tuple(sorted(left_out))


def why_never_taken(name: str) -> str | None:
    """What is wrong with a file of that name, after "it is"; None: nothing, though it may be of no use."""
    suffix = Path(name).suffix.lower()
    if suffix in _PICKLES:
        return "a pickle, which can run code when it is loaded"
    return "a program, and no model's own code is run" if suffix in _CODE else None


def is_taken(name: str) -> bool:
    """Whether a file of that name is one of those that a model's folder is made of. Its weights may still be left out,
    where an index names others."""
    parts = name.split("/")
    is_plain = len(parts) <= _MAX_DEPTH + 1 and all(_is_plain(part) for part in parts)
    return is_plain and Path(name).suffix.lower() in _TAKEN


def check_relative(name: str) -> str:
    """`name`, if it is a path below a folder that can lead nowhere else; InvalidRequestError otherwise."""
    parts = name.split("/")
    if len(parts) > _MAX_DEPTH + 1 or not all(_is_plain(part) for part in parts):
        raise InvalidRequestError(f"{name[:100]!r} isn't the name of a model's file.")
    return name


def read_facts(folder: Path) -> FolderFacts:
    """Raises InvalidRequestError, whose sentence says what is wrong, or StoreError."""
    config = _json(folder / "config.json", _MAX_CONFIG_BYTES)
    text = _table(config.get("text_config")) or config
    weights = sorted(folder.rglob("*.safetensors"))
    if not weights:
        raise InvalidRequestError("it has no .safetensors file")
    headers = [read_safetensors(path) for path in weights]
    quantization = _table(config.get("quantization_config"))
    method = _word(quantization.get("quant_method")).lower()
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    family = _word(config.get("model_type")) or _word(text.get("model_type"))
    return FolderFacts(
        format=method if method in ("exl2", "exl3") else "safetensors",
        architecture=_word(first),
        family=family,
        quantization=method.upper() if method else _plain_type(headers),
        parameter_count=_parameters(headers, bits=_whole(quantization.get("bits"))),
        context_tokens=_context(folder, text),
        embedding_length=_whole(text.get("hidden_size")) or _whole(text.get("n_embd")) or _whole(text.get("d_model")),
        layers=_layers(text),
        kv_bytes_per_token=_kv_bytes(text),
        pooling=_pooling(folder, _word(first)),
        chat_template=_chat_template(folder),
        parameters=_parameters_of(_optional(folder / "generation_config.json")),
        start_token=_token(text.get("bos_token_id")) or _token(text.get("eos_token_id")),
        has_own_code="auto_map" in config or "auto_map" in _optional(folder / "tokenizer_config.json"),
        has_vision=bool(_table(config.get("vision_config"))),
        has_audio=bool(_table(config.get("audio_config"))),
    )


def _walk(folder: Path, below: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder / below) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        if entry.name.startswith("."):  # .git, .cache, .DS_Store
            continue
        name = f"{below}/{entry.name}" if below else entry.name
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            raise _refused(folder, name, "a link, and only files that lie in the folder are taken")
        if stat.S_ISDIR(status.st_mode):
            if depth < _MAX_DEPTH:
                yield from _walk(folder, name, depth + 1)
            continue
        if not stat.S_ISREG(status.st_mode) or not _is_plain(entry.name):
            raise _refused(folder, name, "not a plain file")
        yield name, status


def _is_plain(part: str) -> bool:
    return bool(part) and not part.startswith(".") and part.isprintable() and "\\" not in part


def _refused(folder: Path, name: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{folder.name!r} can't be taken: {name!r} is {what}. Move it out of the folder and try again."
    )


def _indexed(folder: Path, files: list[FolderFile], left_out: list[str]) -> tuple[FolderFile, ...]:
    """Where an index names the weights, those and no others: some folders hold them twice."""
    if not any(file.name == _INDEX for file in files):
        return tuple(files)
    named = _table(_json(folder / _INDEX, _MAX_TOKENIZER_CONFIG_BYTES).get("weight_map")).values()
    wanted = {name for name in named if isinstance(name, str)}
    if missing := sorted(wanted - {file.name for file in files}):
        raise InvalidRequestError(f"{folder.name!r} isn't complete: {missing[0]!r} is missing.")
    kept = []
    for file in files:
        if file.is_weights and "/" not in file.name and file.name not in wanted:
            left_out.append(file.name)
        else:
            kept.append(file)
    return tuple(kept)


def _json(path: Path, limit_bytes: int) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(read_small(path, limit_bytes))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise InvalidRequestError(f"{path.name} can't be read: {problem}") from None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{path.name} can't be read: it holds no object")
    return value


def _optional(path: Path) -> dict[str, Any]:
    """What isn't there, or can't be read, says nothing; the engine will say more."""
    try:
        return _json(path, _MAX_TOKENIZER_CONFIG_BYTES) if path.is_file() else {}
    except OprelError:
        return {}


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _word(value: object) -> str:
    return value[:_PART] if isinstance(value, str) and value.isprintable() else ""


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40 else None


def _token(value: object) -> int | None:
    """A token's number, or the first of several."""
    return _whole(value[0] if isinstance(value, list) and value else value)


def _plain_type(headers: list[SafetensorsHeader]) -> str:
    sums: dict[str, int] = {}
    for header in headers:
        for dtype, size in header.dtypes.items():
            sums[dtype] = sums.get(dtype, 0) + size
    return max(sums, key=lambda dtype: sums[dtype], default="")


def _parameters(headers: list[SafetensorsHeader], *, bits: int | None) -> int:
    """Packed weights hold several parameters in one 32-bit value."""
    packed = 32 // bits if bits in (2, 3, 4, 8) else 1
    count = 0
    for header in headers:
        for name, tensor in header.tensors.items():
            is_packed = tensor.dtype == "I32" and name.endswith(("qweight", "weight_packed"))
            count += tensor.values * (packed if is_packed else 1)
    return count


def _parameters_of(generation: dict[str, Any]) -> tuple[tuple[str, object], ...]:
    if generation.get("do_sample") is False:
        return ()
    return tuple(
        (name, value)
        for key, name in _GENERATION.items()
        if isinstance(value := generation.get(key), int | float) and not isinstance(value, bool) and 0 <= value < 1e6
    )


def _context(folder: Path, text: dict[str, Any]) -> int | None:
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
    trained = next((found for name in names if (found := _whole(text.get(name))) is not None), None)
    shorter = _whole(_optional(folder / "sentence_bert_config.json").get("max_seq_length"))
    known = [tokens for tokens in (trained, shorter) if tokens is not None]
    return min(known, default=None)


def _layers(text: dict[str, Any]) -> int | None:
    return _whole(text.get("num_hidden_layers")) or _whole(text.get("n_layer")) or _whole(text.get("num_layers"))


def _kv_bytes(text: dict[str, Any]) -> int | None:
    """Keys and values of one token in all layers, two bytes each."""
    layers = _layers(text)
    if layers is None:
        return None
    if (rank := _whole(text.get("kv_lora_rank"))) is not None:  # latent attention keeps one short vector
        return 2 * layers * (rank + (_whole(text.get("qk_rope_head_dim")) or 0))
    heads = _whole(text.get("num_attention_heads")) or _whole(text.get("n_head"))
    width = _whole(text.get("hidden_size")) or _whole(text.get("n_embd"))
    if heads is None or width is None:
        return None
    kv_heads = _whole(text.get("num_key_value_heads")) or heads
    head_width = _whole(text.get("head_dim")) or width // heads
    return 2 * 2 * layers * kv_heads * head_width


def _pooling(folder: Path, architecture: str) -> Pooling | None:
    """How an embedding model pools; None for one that generates."""
    if "ForSequenceClassification" in architecture or "ForTokenClassification" in architecture:
        return "rank"
    stated = _optional(folder / "1_Pooling" / "config.json")
    found = next((pooling for name, pooling in _POOLING_NAMES if stated.get(name) is True), None)
    if found is not None:
        return found
    is_encoder = architecture.endswith("ForMaskedLM") or (
        architecture.endswith("Model") and not architecture.endswith("LMHeadModel")
    )
    return "mean" if stated or (folder / "modules.json").is_file() or is_encoder else None


def _chat_template(folder: Path) -> str | None:
    own = folder / "chat_template.jinja"
    if own.is_file():
        return read_small(own, _MAX_TEMPLATE_BYTES).decode("utf-8", "replace") or None
    for name in ("tokenizer_config.json", "chat_template.json"):
        if (found := _template_of(_optional(folder / name).get("chat_template"))) is not None:
            return found
    return None


def _template_of(value: object) -> str | None:
    """One template, or several by name, of which the default counts."""
    if isinstance(value, str):
        return value if value and len(value) <= _MAX_TEMPLATE_BYTES else None
    if isinstance(value, list):
        named = {_word(_table(entry).get("name")): _table(entry).get("template") for entry in value}
        return _template_of(named.get("default"))
    return None
