"""What becomes of each field of a request, and of each type of block and tool: honoured, emulated, refused, ignored.

What the official package's types name is all here (a test compares), and what is beta there where programs send it.
A field that is in no table is unknown: accepted, not passed on, and named in `X-Oprel-Warning`. For blocks and tools,
`field` is the type.
"""

from __future__ import annotations

from oprel.dialects.rules import LOADING, Endpoint, Rule

__all__ = ["BLOCKS", "COUNT", "ENDPOINTS", "MESSAGES", "REFUSED_BLOCKS", "TOOLS"]

_INT32 = 2**31 - 1
_ON_SERVER = "nothing runs on this server but the model"

COUNT = (
    *LOADING,
    Rule("model", note="a name or an alias; `@ctx=32k` behind it is the same as `num_ctx`"),
    Rule("messages", note="roles `user`, `assistant` and `system`; turns of one role after another are one turn"),
    Rule("system", note="text or text blocks"),
    Rule("tools", note="with an `input_schema`; up to 128", needs="tools", lacking="partly"),
    Rule(
        "tool_choice",
        note="`auto`, `any`, `tool`, `none`; `disable_parallel_tool_use`",
        needs="tools",
        lacking="partly",
    ),
    Rule(
        "thinking",
        note="`enabled` needs a model that thinks, `adaptive` uses one that does; `budget_tokens` is ignored: engines "
        "count `max_tokens` alone; `display: omitted` leaves the text out",
        needs="thinking",
        lacking="partly",
    ),
    Rule(
        "output_config",
        note="`format` holds the answer to a schema; `effort` is for models that think, and named in a warning for "
        "others",
        needs="json_schema",
        lacking="partly",
    ),
    Rule("output_format", note="the older place of `output_config.format`", needs="json_schema"),
    Rule("cache_control", "ignored", note="prompts are cached by their text"),
    Rule("context_management", "ignored", note="nothing is cleared: a prompt that is too long is refused"),
    Rule("mcp_servers", "refused", harmless=([],), note=_ON_SERVER),
    Rule("speed", "ignored", note="there is one speed"),
    Rule("user_profile_id", "ignored", note="nobody is told"),
    Rule("workspace_id", "ignored", note="there is one workspace"),
)

MESSAGES = (
    *COUNT,
    Rule("max_tokens", low=0, high=_INT32, note="0: the prompt is read, and nothing is answered", needs="max_tokens"),
    Rule("stream"),
    Rule("stop_sequences", note="up to 16; empty ones are dropped", needs="stop"),
    Rule("temperature", low=0, high=1, note="default 1, above a model's own parameter", needs="temperature"),
    Rule("top_p", low=0, high=1, needs="top_p"),
    Rule("top_k", low=0, high=_INT32, needs="top_k"),
    Rule("container", "refused", note=_ON_SERVER),
    Rule("diagnostics", "ignored", note="the cache tells no more than its tokens"),
    Rule("inference_geo", "ignored", note="answers are made on this machine"),
    Rule("metadata", "ignored", note="nobody is told"),
    Rule("service_tier", "ignored", note="there is one tier"),
)

BLOCKS = (
    Rule("text", note="`cache_control` and `citations` are ignored"),
    Rule("image", note="in base64, up to 16; a URL or a file is refused: nothing is fetched"),
    Rule("tool_use"),
    Rule(
        "tool_result",
        note="text and images; with `is_error` the model reads `Error: ` before it; images are shown after the results",
    ),
    Rule("thinking", note="given back to the model where its template has a place for it; `signature` isn't checked"),
    Rule("redacted_thinking", "ignored", note="nobody here can read it"),
    Rule("document", note="plain text, with its title and context; a PDF, a URL or a file is refused"),
    Rule("search_result", note="as text, with its title and source"),
    *(
        Rule(name, "refused", note=_ON_SERVER)
        for name in (
            "server_tool_use",
            "web_search_tool_result",
            "web_fetch_tool_result",
            "code_execution_tool_result",
            "bash_code_execution_tool_result",
            "text_editor_code_execution_tool_result",
            "tool_search_tool_result",
            "container_upload",
            "tool_reference",
            "browser_state",
        )
    ),
)
REFUSED_BLOCKS = {rule.field: rule.note for rule in BLOCKS if rule.treatment == "refused"}

# The fields of a tool.
TOOLS = (
    Rule("name"),
    Rule("description"),
    Rule("input_schema", note="within bounds; what goes beyond them is left out, and said, unless `strict`"),
    Rule("strict"),
    Rule("type", note="`custom`; others (web search, bash, text editor, …) are refused"),
    Rule("allowed_callers", "ignored", note="the model is the only caller"),
    Rule("cache_control", "ignored", note="prompts are cached by their text"),
    Rule("defer_loading", "ignored", note="the model sees every tool"),
    Rule("eager_input_streaming", "ignored", note="arguments are streamed as they are made"),
    Rule("input_examples", "ignored", note="templates have no place for them"),
)

# Where a model can be asked, for its record.
ENDPOINTS = (
    Endpoint("/v1/messages", MESSAGES, ("chat",)),
    Endpoint("/v1/messages/count_tokens", COUNT, ("chat",), needs=("tokenize",)),
)
