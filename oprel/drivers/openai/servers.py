"""What differs between servers that speak OpenAI's API, as data: one row for each."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from oprel.drivers.upstream import Quirks
from oprel.schema import Capabilities

__all__ = ["SERVERS", "Server", "capabilities_of", "server_by_owner"]

_PLAIN = frozenset(
    {
        "max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop", "logit_bias",
        "time_limit_s",
    }
)  # fmt: skip

_QUIRKS = Quirks(
    chat_path="/chat/completions",
    completion_path="/completions",
    completion_shape="openai",
    infill_path="/completions",
    embedding_path="/embeddings",
    tokenize_path=None,
    detokenize_path=None,
    render_path=None,
    props_path=None,
    unlimited_tokens=None,
    thinking_switch=None,
    normalize_field=None,
    progress_field=None,
    prompt_cache_field=None,
    has_logprobs_with_tools=True,
    has_bias_map=True,
    thinking_field=None,
    is_done_enough=True,
)
_SWITCHED = msgspec.structs.replace(_QUIRKS, thinking_switch="enable_thinking", thinking_field="reasoning_content")


class Server(Struct, frozen=True):
    """`owners`: what its `/models` says in `owned_by`. `sampling`: the parameters that it takes; a server that isn't
    known may refuse what isn't OpenAI's own. `denies`: what it never does."""

    quirks: Quirks
    sampling: frozenset[str] = _PLAIN
    owners: tuple[str, ...] = ()
    denies: tuple[str, ...] = ("grammar", "infill")


SERVERS: dict[str, Server] = {
    "openai": Server(_QUIRKS),
    "openai.com": Server(msgspec.structs.replace(_QUIRKS, chat_limit_field="max_completion_tokens")),
    "oprel": Server(
        msgspec.structs.replace(_QUIRKS, thinking_field="reasoning_content", thinking_off="none"),
        sampling=_PLAIN | {"top_k", "min_p", "repeat_penalty"},
        denies=("grammar",),
    ),
    "llama_server": Server(
        _SWITCHED,
        sampling=_PLAIN | {"top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n"},
        owners=("llamacpp", "llama.cpp"),
        denies=("infill",),
    ),
    "vllm": Server(
        msgspec.structs.replace(_SWITCHED, renamed=(("repeat_penalty", "repetition_penalty"),)),
        sampling=_PLAIN | {"top_k", "min_p", "repeat_penalty"},
        owners=("vllm",),
    ),
    "sglang": Server(
        msgspec.structs.replace(_SWITCHED, renamed=(("repeat_penalty", "repetition_penalty"),)),
        sampling=_PLAIN | {"top_k", "min_p", "repeat_penalty"},
        owners=("sglang",),
    ),
}

# What is let through where nobody said what the model can do: the remote refuses what it can't.
_UNKNOWN = (
    "chat", "complete", "embed", "vision", "audio", "tools", "thinking", "json_schema", "grammar", "logprobs", "infill",
)  # fmt: skip
# From Ollama's words.
_TOLD = {
    "completion": ("chat", "complete", "json_schema", "grammar", "logprobs"),
    "embedding": ("embed",),
    "tools": ("tools",),
    "vision": ("vision",),
    "audio": ("audio",),
    "thinking": ("thinking",),
    "insert": ("infill",),
}


def server_by_owner(owners: Iterable[str]) -> str | None:
    """The kind of server whose models these are; None where that says nothing."""
    told = {owner.lower() for owner in owners}
    return next((name for name, server in SERVERS.items() if told.intersection(server.owners)), None)


def capabilities_of(
    server: Server, *, stated: frozenset[str] | None, told: frozenset[str], context_tokens: int | None
) -> Capabilities:
    """`stated` by the settings (fields of Capabilities) decides; else what the remote told in Ollama's words, if it
    did; else everything that the server doesn't deny."""
    if stated is not None:
        can = set(stated)
    else:
        can = {name for word in told for name in _TOLD.get(word, ())} if told else set(_UNKNOWN)
        can -= set(server.denies)
    fields = {name: True for name in can}
    return Capabilities(**fields, sampling=server.sampling, context_tokens=context_tokens)
