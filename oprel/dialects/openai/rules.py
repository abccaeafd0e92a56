"""What becomes of each field of a request, as data: honoured, emulated, refused by name, or accepted and ignored.

The published document's fields are all here (a test compares), and Oprel's own. A field that is in no table is
unknown: accepted, not passed on, and named in `X-Oprel-Warning`.
"""

from __future__ import annotations

from oprel.dialects.rules import KEEP_ALIVE, LOADING, Endpoint, Rule, apply

__all__ = [
    "CHAT",
    "COMPLETIONS",
    "DETOKENIZE",
    "EMBEDDINGS",
    "ENDPOINTS",
    "ITEMS",
    "MESSAGES",
    "RERANK",
    "RESPONSES",
    "TOKENIZE",
    "Rule",
    "apply",
]


_INT32 = 2**31 - 1
_INT64 = 2**63 - 1

_TEMPERATURE = (
    Rule("temperature", low=0, high=2, note="default 1, above a model's own parameter", needs="temperature"),
    Rule("top_p", low=0, high=1, note="default 1, above a model's own parameter", needs="top_p"),
)

_CALLING = (
    Rule(
        "tool_choice",
        note="`none`, `auto`, `required`, a function, or a set of allowed functions",
        needs="tools",
        lacking="partly",
    ),
    Rule("parallel_tool_calls", needs="tools", lacking="partly"),
)

_PROMPT_CACHE = (
    Rule("prompt_cache_key", "ignored", note="prompts are cached by their text"),
    Rule("prompt_cache_retention", "ignored", note="prompts are cached by their text"),
    Rule("prompt_cache_options", "ignored", note="prompts are cached by their text"),
)

_GENERATION = (
    *LOADING,
    Rule("model", note="a name or an alias; `@ctx=32k` behind it is the same as `num_ctx`"),
    Rule("stream"),
    Rule("stream_options", note="`include_usage`; `include_obfuscation` is ignored: nothing is padded"),
    Rule(
        "max_tokens",
        low=0,
        high=_INT32,
        note="absent: what is left of the context, and a limit of time",
        needs="max_tokens",
    ),
    *_TEMPERATURE,
    Rule("presence_penalty", low=-2, high=2, needs="presence_penalty"),
    Rule("frequency_penalty", low=-2, high=2, needs="frequency_penalty"),
    Rule("seed", low=-_INT64 - 1, high=_INT64, needs="seed"),
    Rule("stop", note="a string or up to 16; empty ones are dropped", needs="stop"),
    Rule("logit_bias", note="token ids as strings, -100 to 100, up to 1,024", needs="logit_bias"),
    Rule("n", "emulated", low=1, high=128, note="each choice takes a slot of its own"),
    Rule("user", "ignored", note="nobody is told"),
    Rule("top_k", low=-1, high=_INT32, note="Oprel's own; 0 or -1: no limit", needs="top_k"),
    Rule("min_p", low=0, high=1, note="Oprel's own", needs="min_p"),
    Rule("repeat_penalty", low=0, high=10, note="Oprel's own", needs="repeat_penalty"),
    Rule("response_format", note="`text`, `json_object`, `json_schema`; schemas within bounds", needs="json_schema"),
)

CHAT = (
    *_GENERATION,
    Rule("messages"),
    Rule("max_completion_tokens", low=0, high=_INT32, note="the same as `max_tokens`; not both", needs="max_tokens"),
    Rule("logprobs", needs="logprobs"),
    Rule("top_logprobs", low=0, high=20, note="with `logprobs: true`", needs="logprobs"),
    Rule("tools", note="functions; up to 128", needs="tools", lacking="partly"),
    *_CALLING,
    Rule("reasoning_effort", note="`none` turns thinking off; a level needs a model that thinks", needs="thinking"),
    Rule("functions", "refused", harmless=([],), note="use `tools`"),
    Rule("function_call", "refused", harmless=("none",), note="use `tool_choice`"),
    Rule("modalities", "refused", harmless=(["text"], []), note="answers are text"),
    Rule("audio", "refused", note="answers are text"),
    Rule("web_search_options", "refused", note="nothing is fetched from the web"),
    Rule("moderation", "refused", note="nothing is moderated"),
    Rule("verbosity", "refused", harmless=("medium",), note="say it in a message"),
    Rule("store", "ignored", note="answers are not kept"),
    Rule("prediction", "ignored", note="it would only change the speed"),
    Rule("metadata", "ignored", note="answers are not kept"),
    Rule("service_tier", "ignored", note="there is one tier"),
    Rule("safety_identifier", "ignored", note="nobody is told"),
    *_PROMPT_CACHE,
)

COMPLETIONS = (
    *_GENERATION,
    Rule("prompt", note="text, token ids, or a list of either"),
    Rule("logprobs", low=0, high=20, needs="logprobs"),
    Rule("best_of", low=0, high=20, note="more than `n` is refused: choices are not ranked"),
    Rule("echo", "emulated", note="not together with `logprobs`"),
    Rule("suffix", note="needs a model that can fill in", needs="infill"),
)

EMBEDDINGS = (
    Rule("model", note="a name or an alias; `@ctx=32k` behind it is the same as `num_ctx`"),
    Rule("input", note="text, token ids, or a list of up to 2,048 of either"),
    Rule("encoding_format", note="`float` or `base64`"),
    Rule("dimensions", "emulated", low=1, high=65536, note="cut to the first so many, and to unit length again"),
    Rule("user", "ignored", note="nobody is told"),
    *LOADING,
)

RERANK = (
    Rule("model", note="a reranker; `@ctx=32k` behind its name is the same as `num_ctx`"),
    Rule("query"),
    Rule("documents", note="up to 2,048 texts, or objects with a `text`"),
    Rule("top_n", "emulated", low=1, high=_INT32, note="only so many, the best; absent: all"),
    Rule("return_documents", "emulated", note="the documents come back with their scores"),
    *LOADING,
    Rule("user", "ignored", note="nobody is told"),
    Rule("max_tokens_per_doc", "ignored", note="a document that is too long is an error"),
    Rule("priority", "ignored", note="requests are served in turn"),
)

# `/tokenize` and `/detokenize`.
_NAMED = Rule("model", note="needed: several models may be loaded; `@ctx=32k` behind its name is its context")

TOKENIZE = (
    _NAMED,
    Rule("content", note="the text"),
    Rule("prompt", note="the same as `content`"),
    Rule("messages", note="instead of a text: a conversation, in the form that the model reads it"),
    Rule("add_special", note="the tokens that begin a text as well; default false"),
    Rule("add_special_tokens", note="the same as `add_special`"),
    Rule("with_pieces", "refused", harmless=(False,), note="ask for the text of each token"),
    KEEP_ALIVE,
)

DETOKENIZE = (_NAMED, Rule("tokens", note="of `/detokenize`"), KEEP_ALIVE)

RESPONSES = (
    *LOADING,
    Rule("model", note="a name or an alias; `@ctx=32k` behind it is the same as `num_ctx`"),
    Rule("input", note="text, or items; not needed beside `previous_response_id` or `instructions`"),
    Rule("instructions", note="the system message of this response alone"),
    Rule("previous_response_id", "emulated", note="a response that was stored: its conversation comes first"),
    Rule(
        "store", "emulated", note="default true: kept on this machine until it is deleted, too old, or one of too many"
    ),
    Rule("stream"),
    Rule("stream_options", "ignored", note="nothing is padded"),
    Rule(
        "max_output_tokens",
        low=0,
        high=_INT32,
        note="absent: what is left of the context, and a limit of time",
        needs="max_tokens",
    ),
    *_TEMPERATURE,
    Rule(
        "top_logprobs",
        low=0,
        high=20,
        note="more than 0 asks for `message.output_text.logprobs` as well",
        needs="logprobs",
    ),
    Rule("include", note="`message.output_text.logprobs`, `reasoning.encrypted_content`; the others never apply"),
    Rule("tools", note="functions; up to 128; OpenAI's own tools are refused by name", needs="tools", lacking="partly"),
    *_CALLING,
    Rule(
        "text",
        note="`format`: `text`, `json_object`, `json_schema`; `verbosity` is refused but for `medium`",
        needs="json_schema",
        lacking="partly",
    ),
    Rule(
        "reasoning",
        note="`effort` as in chat; with `summary` the thinking is told as its own summary, whole",
        needs="thinking",
        lacking="partly",
    ),
    Rule("truncation", "emulated", note="`auto`: the oldest turns leave first; `disabled`, the default: 400"),
    Rule("metadata", note="up to 16 texts; comes back with the response"),
    Rule("background", "refused", harmless=(False,), note="answers are made while the client waits"),
    Rule("conversation", "refused", note="use `previous_response_id`"),
    Rule("prompt", "refused", note="no templates of prompts are kept here"),
    Rule("moderation", "refused", note="nothing is moderated"),
    Rule("context_management", "refused", harmless=([],), note="use `truncation`"),
    Rule("max_tool_calls", "ignored", note="it limits OpenAI's own tools"),
    Rule("service_tier", "ignored", note="there is one tier"),
    Rule("user", "ignored", note="comes back with the response; nobody is told"),
    Rule("safety_identifier", "ignored", note="comes back with the response; nobody is told"),
    *_PROMPT_CACHE,
)

# The types of the items of a response's input, and of the parts of their content.
ITEMS = (
    Rule("message", note="of any role; `type` may be left out; `phase` and `status` have no effect"),
    Rule("function_call", note="joined to the message before it"),
    Rule("function_call_output", note="text, or parts of text"),
    Rule("reasoning", note="the thinking of the message or call that follows"),
    Rule("item_reference", note="to an item of a response that was stored"),
    Rule("input_text"),
    Rule("input_image", note="data: URLs; `file_id` is refused, `detail` has no effect"),
    Rule("output_text"),
    Rule("refusal", note="read as text"),
    Rule("input_file", "refused", note="send the file's text"),
)

# The fields of a message, of all roles, and of the parts of its content.
MESSAGES = (
    Rule("role", note="`function` is read as `tool`"),
    Rule("content", note="text, or parts: text, image_url (data: URLs), input_audio, refusal; a file is refused"),
    Rule("tool_calls"),
    Rule("tool_call_id"),
    Rule("function_call", note="read as a tool call"),
    Rule("refusal", note="read as the assistant's text where there is no content"),
    Rule("reasoning", note="Oprel's own: the thinking of an earlier answer; also `reasoning_content`"),
    Rule("name", "ignored", note="except for `function` messages: templates have no place for it"),
    Rule("audio", "refused", note="earlier spoken answers are not kept"),
    Rule("annotations", "ignored", note="they come back with earlier answers"),
    Rule("detail", "ignored", note="images are read as the model reads them"),
    Rule("prompt_cache_breakpoint", "ignored", note="prompts are cached by their text"),
)

# Where a model can be asked, for its record.
ENDPOINTS = (
    Endpoint("/v1/chat/completions", CHAT, ("chat",)),
    Endpoint("/v1/responses", RESPONSES, ("chat",)),
    Endpoint("/v1/completions", COMPLETIONS, ("complete",)),
    Endpoint("/v1/embeddings", EMBEDDINGS, ("embed",)),
    Endpoint("/v1/rerank", RERANK, ("rerank",)),
    Endpoint("/tokenize", TOKENIZE, ("tokenize",)),
    Endpoint("/detokenize", DETOKENIZE, ("tokenize",)),
)
