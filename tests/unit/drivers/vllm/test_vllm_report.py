"""What vLLM's log says, and which of its parsers a template asks for."""

from __future__ import annotations

import pytest

from oprel.drivers.vllm.parsers import reasoning_parser, tool_parser
from oprel.drivers.vllm.report import LoadReport, classify

CORE = "(EngineCore pid=77) ERROR 11-23 08:44:01 [core.py:100] "
API = "(APIServer pid=7) "
END = f"{API}RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}"

FAILURES: dict[str, tuple[str, str, str]] = {
    "GPU memory": (
        f"{CORE}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "gpu", "not enough free memory",
    ),
    "GPU share": (
        f"{CORE}ValueError: Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 71.3 GiB).", "gpu", "not enough free memory",
    ),
    "no GPU": (f"{API}RuntimeError: No CUDA GPUs are available", "gpu", "can't be used"),
    "no room for the cache": (
        f"{CORE}ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.",
        "memory", "no memory left for the cache",
    ),
    "no room for one context": (
        f"{CORE}ValueError: To serve at least one request with the models's max seq len (8192), 4.0 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (1.0 GiB).", "memory", "one whole context",
    ),
    "too much context": (
        f"{API}  Value error, User-specified max_model_len (999999) is greater than the derived max_model_len",
        "model", "not that much context",
    ),
    "an unknown architecture": (
        f"{API}  Value error, Model architectures ['X'] are not supported for now.", "model", "architecture",
    ),
    "cut weights": (
        f"{CORE}safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
        "model", "weights can't be read",
    ),
    "not its quantization": (
        f"{API}  Value error, Cannot find the config file for awq", "model", "quantization can't be used",
    ),
    "a config that isn't one": (
        f"{API}OSError: It looks like the config file at '/x/config.json' is not a valid JSON file.",
        "model", "can't be read as a model",
    ),
    "an option that it doesn't know": (
        "api_server.py: error: unrecognized arguments: --no-such-flag", "engine", "command line",
    ),
    "a broken environment": (f"{API}ModuleNotFoundError: No module named 'xgrammar'", "engine", "isn't complete"),
    "no Ray": (f"{API}ModuleNotFoundError: No module named 'ray'", "engine", "Ray"),
    "something else": (f"{CORE}KeyError: 'model.layers.0'", "engine", "it says: KeyError: 'model.layers.0'"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "cause", "said"), FAILURES.values(), ids=FAILURES.keys())
def test_the_line_that_tells_is_found(line: str, cause: str, said: str) -> None:
    lines = (f"{CORE}Traceback (most recent call last):", line, f"{CORE}  File x", END)
    found, clause = classify(lines, 1)
    assert (found, said in clause) == (cause, True), clause
    assert "pid=" not in clause and "[core.py" not in clause


def test_a_kill_is_memory() -> None:
    assert classify(("(APIServer pid=7) INFO 11-23 08:43:30 [utils.py:233] args",), -9)[0] == "memory"


def test_a_log_that_tells_nothing() -> None:
    assert classify((), 1) == ("engine", "it said nothing")
    assert classify((END,), 1)[1].startswith("its last line was: RuntimeError")
    assert (
        "its last line was: loading" in classify(("(APIServer pid=7) INFO 11-23 08:43:30 [utils.py:2] loading",), 1)[1]
    )
    assert len(classify(("x" * 5000,), 1)[1]) < 400


def test_the_cache_is_read_from_the_log() -> None:
    report = LoadReport()
    for line in (
        "(EngineCore pid=77) INFO 11-23 08:43:58 [kv_cache_utils.py:2327] CPU KV cache size: 46,592 tokens, Maximum …",
        "nothing",
    ):
        report.read(line)
    assert report.cache_tokens == 46_592


TEMPLATES: dict[str, tuple[str, str | None, str | None]] = {
    "Qwen 2.5": ("{{ tools }}<tool_call>\n{'name'", "hermes", None),
    "Qwen 3": ("{{ tools }}<tool_call> enable_thinking '<think>\\n\\n</think>'", "hermes", "qwen3"),
    "Qwen 3 Coder": ("{{ tools }}<tool_call>\n<function=example>", "qwen3_coder", None),
    "GLM": ("{{ tools }}<tool_call>{name}<arg_key>k</arg_key> <think></think>", "glm45", "glm45"),
    "Mistral": ("{{ tools }}[TOOL_CALLS]", "mistral", None),
    "Llama 3.1": ("{{ tools }}<|python_tag|>", "llama3_json", None),
    "gpt-oss": ("{{ tools }}<|channel|>analysis", "openai", "openai_gptoss"),
    "DeepSeek R1": ("<\uff5cAssistant\uff5c><think>\\n", None, "deepseek_r1"),
    "no tools": ("{{ messages }}<tool_call>", None, None),
    "tools of an unknown kind": ("{{ tools }}", None, None),
    "nothing": ("{{ messages }}", None, None),
}


@pytest.mark.parametrize(("template", "tools", "thinking"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_parsers_by_the_marks_of_a_template(template: str, tools: str | None, thinking: str | None) -> None:
    assert (tool_parser(template), reasoning_parser(template)) == (tools, thinking)
