"""The Python of an ExLlama environment, with stand-ins for the libraries and scripted misfortune.

`install(folder, …)` writes an executable `python` into `folder`: an interpreter like any other, but for what is on its
path. `jobs`, `events` and `runs` read back what was asked of the stand-ins.
"""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

__all__ = ["ANSWER", "TURN_END", "Script", "events", "install", "jobs", "runs", "write_model"]

ANSWER = "Once upon a time there was a prince 🙂 who laughed."
TURN_END = 259
"""The token that ends a turn of the stand-ins' tokenizer."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_STAND_INS = Path(__file__).parent / "fake_exllama"


@dataclasses.dataclass(frozen=True)
class Script:
    """What the stand-ins do. Times in seconds; steps count from 1, over the life of the folder.

    `packages`: what is installed. `answer` is what the model says, over and over if `endless`, else followed by the
    token `ends_with`. `tokens_max`: a larger cache runs out of memory. `failure` is the text of what `iterate` raises
    at the steps `fails_at`, or at every one from `fails_from` on ("memory": out of GPU memory). `job_error`: prompts
    with this text fail alone, as only exllamav3 can; with `refuses` they trip an assertion at `enqueue`. What is held
    to a JSON Schema is `{"ok":1}`, or with `fits_schemas` the least that the schema allows.
    """

    packages: tuple[str, ...] = ("torch", "exllamav2", "exllamav3")
    answer: str = ANSWER
    endless: bool = False
    ends_with: int = TURN_END
    token_s: float = 0.0
    gpus: int = 1
    torch_error: str = ""
    import_error: str = ""
    build_s: float = 0.0
    load_s: float = 0.0
    load_error: tuple[str, str] | None = None
    hangs_in_load: bool = False
    tokens_max: int | None = None
    unpaged: bool = False
    no_flash_attn: bool = False
    llguidance: bool = True
    fails_at: tuple[int, ...] = ()
    fails_from: int | None = None
    failure: str = "a kernel went wrong"
    rebuild_fails: bool = False
    dies_at: int | None = None
    stalls_at: int | None = None
    job_error: str = ""
    refuses: str = ""
    fits_schemas: bool = False
    python_error: str = ""


def install(folder: Path, **script: Any) -> Path:
    """The path of an interpreter in `folder` whose libraries do what `Script(**script)` says."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "script.json").write_text(json.dumps(dataclasses.asdict(Script(**script))))
    for name in ("steps", "failed", "events.jsonl", "runs.jsonl"):
        (folder / name).unlink(missing_ok=True)
    executable = folder / "python"
    executable.write_text(
        f"#!{sys.executable} -I\n"
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        f"from support.exllama_python import main\nmain({str(folder)!r})\n"
    )
    executable.chmod(0o755)
    return executable


def write_model(folder: Path, *, quantization: str | None = "exl3", **config: Any) -> Path:
    """A model's folder with all that a host looks at, and no weights to speak of; its weights file."""
    folder.mkdir(parents=True, exist_ok=True)
    template = config.pop("template", TEMPLATE)
    tokenizer = config.pop("tokenizer", {})
    values: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 256,
        "eos_token_id": 257,
        "max_position_embeddings": 4096,
        **config,
    }
    if quantization is not None:
        values["quantization_config"] = {"quant_method": quantization, "bits": 4.0}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, TURN_END]}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, **tokenizer}))
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(64))
    return weights


def events(folder: Path, name: str | None = None) -> list[dict[str, Any]]:
    """What the stand-ins noted, in order; only those called `name`."""
    return [event for event in _lines(folder / "events.jsonl") if name in (None, event["event"])]


def jobs(folder: Path) -> list[dict[str, Any]]:
    return events(folder, "job")


def runs(folder: Path) -> list[dict[str, Any]]:
    """Every start with a model: its pid, argv and environment."""
    return _lines(folder / "runs.jsonl")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(folder: str) -> None:
    """Runs the script that it is given, as an interpreter does."""
    words = [word for word in sys.argv[1:] if word not in ("-I", "-u", "-s", "-E")]
    script = json.loads((Path(folder) / "script.json").read_text())
    if script["python_error"]:
        sys.exit(script["python_error"])
    sys.path.remove(str(Path(__file__).parent.parent))
    sys.path[:0] = [str(_STAND_INS / name) for name in ("common", *script["packages"])]
    if "--model" in words:
        run = {"pid": os.getpid(), "argv": words, "environment": dict(os.environ)}
        with (Path(folder) / "runs.jsonl").open("a") as file:
            file.write(json.dumps(run) + "\n")
    os.environ["FAKE_EXLLAMA_SCRIPT"] = str(Path(folder) / "script.json")
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")
