"""What differs between engines that speak OpenAI's HTTP, as data."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

__all__ = ["LLAMA_SERVER", "Quirks"]


class Quirks(Struct, frozen=True):
    """Paths (None: the engine has no such thing; all are below the client's address), field names and habits. The
    defaults are llama-server's.

    `completion_shape`: "native" is llama-server's own (`content`, exact counts in every event), "openai" has choices.
    `model` is sent where an engine insists on a name. `unlimited_tokens` says "what is left of the context" (None:
    leave the field out). `renamed` maps fields of `schema.Sampling` to the engine's names where they differ.
    `efforts` maps thinking efforts that the engine doesn't know to ones that it does. `thinking_switch` is the
    template argument that turns thinking on and off; `normalize_field` the one of embeddings that turns L2
    normalization on and off. `progress_field` asks for progress of the prompt, `prompt_cache_field` for
    reuse of a common prefix. `has_logprobs_with_tools`: both may be asked of one request.

    Where servers that are OpenAI's in earnest differ: `chat_limit_field` is max_tokens in a chat; `has_bias_map`:
    `logit_bias` is an object and not pairs; `thinking_field` is where a message of the conversation holds its thinking
    (None: it isn't sent back); `thinking_off` is the effort that turns thinking off; `is_done_enough`: `[DONE]` ends an
    answer that told no reason. `normalize_values` are on and off in `normalize_field`'s words. `more_top_logprobs`: how
    many more are asked for, where the chosen token takes the place of one of the likeliest. `tells_stop_word`:
    asked for it, an engine tells in a chat which stop string ended an answer. `start_token` stands for an empty prompt
    where an engine refuses one: a text that begins is what the model knows as one.
    """

    chat_path: str = "/v1/chat/completions"
    completion_path: str = "/completion"
    completion_shape: Literal["native", "openai"] = "native"
    infill_path: str | None = "/infill"
    embedding_path: str = "/v1/embeddings"
    rerank_path: str | None = "/v1/rerank"
    tokenize_path: str | None = "/tokenize"
    detokenize_path: str | None = "/detokenize"
    render_path: str | None = "/apply-template"
    props_path: str | None = "/props"
    model: str | None = None
    unlimited_tokens: int | None = -1
    renamed: tuple[tuple[str, str], ...] = ()
    efforts: tuple[tuple[str, str], ...] = (("minimal", "low"), ("max", "high"))
    thinking_switch: str | None = "enable_thinking"
    normalize_field: str | None = "embd_normalize"
    normalize_values: tuple[int, int] | tuple[bool, bool] = (2, -1)
    progress_field: str | None = "return_progress"
    prompt_cache_field: str | None = "cache_prompt"
    has_logprobs_with_tools: bool = False
    embedding_batch: int = 64
    chat_limit_field: str | None = None
    has_bias_map: bool = False
    thinking_field: str | None = "reasoning_content"
    thinking_off: str | None = None
    is_done_enough: bool = False
    more_top_logprobs: int = 0
    tells_stop_word: bool = False
    start_token: int | None = None


LLAMA_SERVER = Quirks(tells_stop_word=True)
