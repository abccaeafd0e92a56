"""ExLlamaV2 or ExLlamaV3 as a program with an OpenAI-shaped HTTP interface, on a unix socket.

Run by the interpreter of the engine's own environment, as `python -I -u host.py --engine exllamav3 --model DIR
--socket PATH --context N --slots N …`; imports nothing of Oprel, and nothing but the standard library, the engine
(with the torch that it brings) and jinja2 (which torch brings). The key comes by `OPREL_HOST_KEY`.

    --probe     prints what this environment has, in JSON: by metadata, for an import may compile for minutes
    --render    (internal) renders chat templates: a process of its own, which can be bounded and killed

The port is open from the start: `/health` is 503 with `phase` (starting, building, loading, warming; broken, stopping)
until it is 200. A start that fails, and a generator that can't be mended, end the process; one line of JSON on standard
error (`{"oprel_exit": {"code", "cause", "message"}}`) says why, and so does the exit code:

    2 arguments · 3 import or build · 4 no CUDA device · 5 model · 6 memory · 70 dead generator

Threads: the event loop serves HTTP; one thread owns the library (load, generate, cancel), for none of it may be called
from two threads, and a step may take as long as a piece of the prompt does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import hmac
import importlib
import importlib.metadata
import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

__all__: list[str] = []

THIS_FILE = str(Path(__file__).resolve())
PAGE_TOKENS = 256
MAX_HEAD_BYTES = 32 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_TEMPLATE_BYTES = 64 * 1024
MAX_PROMPT_BYTES = 32 * 1024 * 1024
MAX_SCHEMA_BYTES = 256 * 1024
MAX_CONFIG_BYTES = 4 * 1024 * 1024
MAX_UNSENT_BYTES = 64 * 1024
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
MAX_TOP_LOGPROBS = 20
BODY_LIMIT_S = 60.0
SEND_LIMIT_S = 120.0
RENDER_LIMIT_S = 5.0
RENDER_START_LIMIT_S = 30.0
RENDER_MEMORY_BYTES = 768 * 1024 * 1024
FILTER_LIMIT_S = 30.0
STOP_LIMIT_S = 4.0
# So many failed steps, with none between them that worked, and the generator is given up.
MAX_FAILURES = 3

ARGUMENTS, IMPORT, NO_CUDA, MODEL, MEMORY, DEAD = 2, 3, 4, 5, 6, 70
CAUSES = {
    ARGUMENTS: "arguments",
    IMPORT: "import",
    NO_CUDA: "no_cuda",
    MODEL: "model",
    MEMORY: "memory",
    DEAD: "dead_generator",
}


class Fatal(Exception):
    """The process ends with `code`, saying `message`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Refusal(Exception):
    """An answer in OpenAI's error shape; `more` are further fields of its `error`."""

    def __init__(self, status: int, message: str, *, kind: str = "invalid_request_error", **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "code": status, **more}}


def end(code: int, message: str) -> NoReturn:
    """Says why and ends at once: the library's threads would keep an orderly exit waiting."""
    line = {"oprel_exit": {"code": code, "cause": CAUSES.get(code, "unknown"), "message": message[:2000]}}
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.write(json.dumps(line) + "\n")
        sys.stderr.flush()
    os._exit(code)


# -- the model's folder


@dataclasses.dataclass(frozen=True)
class Folder:
    """What a model's small JSON files say."""

    path: Path
    config: dict[str, Any]
    generation: dict[str, Any]
    tokenizer: dict[str, Any]
    tokenizer_adds_bos: bool
    template: str | None

    @classmethod
    def read(cls, path: Path, *, takes: tuple[str, ...]) -> Folder:
        """Raises Fatal(MODEL) for what none of the libraries can load, before minutes are spent on their import.
        `takes` are the quantizations that the engine runs; "fp16" stands for none."""
        if not path.is_dir():
            raise Fatal(MODEL, f"{path} is not a folder")
        if not (path / "config.json").is_file():
            what = (
                "it holds GGUF files, which llama.cpp runs" if any(path.glob("*.gguf")) else "there is no config.json"
            )
            raise Fatal(MODEL, f"{path} is not a model of this engine's: {what}")
        config = _json_file(path / "config.json")
        found = quantization_of(config)
        if found not in takes:
            raise Fatal(MODEL, f"the model's weights are {found}, and this engine takes {', '.join(takes)}")
        if _names_code(config):
            raise Fatal(MODEL, "the model's config.json names Python code of its own (auto_map), which is never run")
        if not any(path.glob("*.safetensors")):
            raise Fatal(MODEL, f"{path} holds no .safetensors files")
        if not (path / "tokenizer.json").is_file():
            raise Fatal(MODEL, f"{path} holds no tokenizer.json, the only kind of tokenizer that these engines read")
        tokenizer = _json_file(path / "tokenizer_config.json", needed=False)
        return cls(
            path=path,
            config=config,
            generation=_json_file(path / "generation_config.json", needed=False),
            tokenizer=tokenizer,
            tokenizer_adds_bos=_adds_bos(path, tokenizer),
            template=_template_of(path, tokenizer),
        )

    def stop_tokens(self) -> set[int]:
        """Every id that ends an answer: generation_config.json knows more of them than config.json."""
        found: set[int] = set()
        text_config = self.config.get("text_config")
        for source in (self.config, text_config if isinstance(text_config, dict) else {}, self.generation):
            value = source.get("eos_token_id")
            found.update(v for v in (value if isinstance(value, list) else [value]) if type(v) is int and v >= 0)
        return found


def quantization_of(config: dict[str, Any]) -> str:
    """ "exl2", "exl3", "gptq", "fp16" (none), or whatever else the file names."""
    section = config.get("quantization_config")
    if section is None and isinstance(config.get("text_config"), dict):
        section = config["text_config"].get("quantization_config")
    if not isinstance(section, dict):
        return "fp16"
    return str(section.get("quant_method", "unknown")).lower()


def _names_code(config: dict[str, Any]) -> bool:
    text_config = config.get("text_config")
    return "auto_map" in config or (isinstance(text_config, dict) and "auto_map" in text_config)


def _json_file(path: Path, *, needed: bool = True) -> dict[str, Any]:
    if not needed and not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it is larger than {MAX_CONFIG_BYTES} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise Fatal(MODEL, f"{path.name} can't be read: {error}") from error
    return value


def _adds_bos(path: Path, tokenizer: dict[str, Any]) -> bool:
    """Whether raw prompts begin with the BOS token: said outright, or by what tokenizer.json does to every text."""
    if isinstance(tokenizer.get("add_bos_token"), bool):
        return bool(tokenizer["add_bos_token"])
    try:
        processor = json.loads((path / "tokenizer.json").read_text(encoding="utf-8")).get("post_processor") or {}
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    steps = [processor, *(processor.get("processors") or [])]
    for step in steps:
        single = step.get("single") if isinstance(step, dict) and step.get("type") == "TemplateProcessing" else None
        if isinstance(single, list) and single and isinstance(single[0], dict) and "SpecialToken" in single[0]:
            return True
    return False


def _template_of(path: Path, tokenizer: dict[str, Any]) -> str | None:
    """The chat template: a file of its own, or in tokenizer_config.json (the one named "default" of several)."""
    file = path / "chat_template.jinja"
    if file.is_file() and file.stat().st_size <= MAX_TEMPLATE_BYTES:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return file.read_text(encoding="utf-8")
    found = tokenizer.get("chat_template")
    if found is None:
        found = _json_file(path / "chat_template.json", needed=False).get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


# -- what is generated


@dataclasses.dataclass
class Sampler:
    """Every value is explicit: the libraries' defaults are not neutral. `logit_bias` maps token ids to biases."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = -1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = dataclasses.field(default_factory=dict)

    @property
    def is_greedy(self) -> bool:
        return self.temperature <= 0 or self.top_k == 1 or self.top_p <= 0

    def penalties(self) -> tuple[float, float, float]:
        """(repetition, frequency, presence), neutral where the range of `repeat_last_n` is empty."""
        if self.repeat_last_n == 0:
            return 1.0, 0.0, 0.0
        return self.repeat_penalty, self.frequency_penalty, self.presence_penalty


@dataclasses.dataclass
class Work:
    """One answer to make. `top_logprobs` None: no logprobs. `filters` are the library's own objects."""

    ticket: int
    ids: list[int]
    max_new_tokens: int
    sampler: Sampler
    stop_strings: list[str]
    stop_tokens: list[int]
    seed: int | None = None
    top_logprobs: int | None = None
    filters: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Row:
    """One token's logprob; `top` are (token, logprob) pairs, likeliest first."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclasses.dataclass
class Step:
    """What one step made for one answer. The last one has a `reason` ("stop" or "length") or an `error`."""

    ticket: int
    text: str = ""
    rows: list[Row] = dataclasses.field(default_factory=list)
    prompt_done: int | None = None
    prompt_total: int = 0
    reason: str | None = None
    stop_string: str | None = None
    new_tokens: int = 0
    cached_tokens: int = 0
    prompt_s: float | None = None
    generate_s: float | None = None
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line."""

    engine: str
    model: Path
    socket: str
    context: int
    slots: int
    cache_type: str = "fp16"
    gpu_split: tuple[float, ...] = ()
    draft: Path | None = None
    draft_tokens: int = 4
    template: Path | None = None
    name: str = "model"

    @property
    def slot_tokens(self) -> int:
        """A slot's part of the cache: whole pages, with room past the context for the token that is under way and
        for what a draft model guesses."""
        margin = 1 + (self.draft_tokens if self.draft is not None else 0)
        return -(-(self.context + margin) // PAGE_TOKENS) * PAGE_TOKENS


class Library(Protocol):
    """An engine library: all that the rest of this program asks of it. Every method is called on the thread that owns
    the library, but for the tokenizer's (`encode`, `decode`, `piece`, `token_bytes`) and `make_filter`."""

    slots: int
    is_paged: bool
    vocabulary: int
    warnings: list[tuple[str, str]]
    formats: frozenset[str]
    sampling: frozenset[str]

    def load(self, settings: Settings, folder: Folder, report: Callable[[str, int, int], None]) -> None: ...
    def enqueue(self, work: Work) -> None: ...
    def cancel(self, ticket: int) -> None: ...
    def step(self) -> list[Step]: ...
    def rebuild(self) -> None: ...
    def encode(self, text: str, *, add_bos: bool) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def piece(self, token: int) -> str: ...
    def token_bytes(self, token: int) -> list[int]: ...
    def make_filter(self, kind: str, text: str) -> Any: ...
    def special_texts(self) -> tuple[str, str]: ...
    def memory(self) -> dict[str, int]: ...


# -- the libraries


_SAMPLING = frozenset(
    {
        "max_tokens", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repeat_last_n", "presence_penalty",
        "frequency_penalty", "seed", "stop", "logit_bias", "time_limit_s",
    }
)  # fmt: skip
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Exllama:
    """What the two libraries have in common: their synchronous generators take the same kind of job and answer with
    the same dictionaries. (Their asynchronous wrappers run `iterate` on the event loop, and end for good when it
    fails, so they are not used.)"""

    package = ""
    takes: tuple[str, ...] = ()
    formats: frozenset[str] = frozenset()
    sampling = _SAMPLING

    def __init__(self) -> None:
        self.slots = 1
        self.is_paged = True
        self.vocabulary = 0
        self.warnings: list[tuple[str, str]] = []
        self._pieces: list[str] = []
        self._special_pieces: list[str] = []
        self._jobs: dict[int, Any] = {}
        self._works: dict[int, Work] = {}
        self._text_lock = threading.Lock()
        self._filter_lock = threading.Lock()
        self.torch: Any = None
        self.config: Any = None
        self.tokenizer: Any = None
        self.generator: Any = None

    # Loading

    def load(self, settings: Settings, folder: Folder, report: Callable[[str, int, int], None]) -> None:
        self.settings = settings
        self.torch = _import_torch()
        report("building", 0, 0)
        with _build_lock(os.environ.get("TORCH_EXTENSIONS_DIR")):
            self._import()
        report("loading", 0, 0)
        try:
            self._load(settings, report)
            self.rebuild()
            # Fills the tables of pieces, which takes a second or so with a large vocabulary.
            self._pieces = self.tokenizer.get_id_to_piece_list(False)
            self._special_pieces = self.tokenizer.get_id_to_piece_list(True)
            self.vocabulary = len(self._special_pieces)
        except Fatal:
            raise
        except BaseException as error:
            raise _load_failure(error) from error

    def _import(self) -> None:
        raise NotImplementedError

    def _load(self, settings: Settings, report: Callable[[str, int, int], None]) -> None:
        raise NotImplementedError

    def rebuild(self) -> None:
        """A new generator over the same model and cache: the old one's state is unknown after it failed."""
        self._jobs.clear()
        self._works.clear()
        self._collect()
        self.generator = self._make_generator()

    def _make_generator(self) -> Any:
        raise NotImplementedError

    def _collect(self) -> None:
        import gc

        gc.collect()
        if self.torch is not None and self.torch.cuda.is_available():
            self.torch.cuda.empty_cache()

    # Generating

    def enqueue(self, work: Work) -> None:
        job = self._make_job(work)
        self.generator.enqueue(job)
        self._jobs[work.ticket] = job
        self._works[work.ticket] = work

    def _make_job(self, work: Work) -> Any:
        raise NotImplementedError

    def _job_options(self, work: Work) -> dict[str, Any]:
        """The arguments that both libraries' jobs take."""
        return {
            "input_ids": self.torch.tensor([work.ids], dtype=self.torch.long),
            "seed": work.seed,
            "stop_conditions": [*work.stop_tokens, *work.stop_strings],
            "decode_special_tokens": False,
            # Its own probabilities are those after truncation (1.0 for every greedy token): not what logprobs means.
            "return_logits": work.top_logprobs is not None,
            "identifier": work.ticket,
        }

    def cancel(self, ticket: int) -> None:
        self._works.pop(ticket, None)
        if (job := self._jobs.pop(ticket, None)) is not None:
            self.generator.cancel(job)

    def step(self) -> list[Step]:
        steps = []
        for result in self.generator.iterate():
            ticket = result.get("identifier")
            if ticket is None:  # results of stage "error" have none
                ticket = getattr(result.get("job"), "identifier", None)
            work = self._works.get(ticket)
            if work is None or (step := self._read(work, result)) is None:
                continue
            steps.append(step)
            if step.reason is not None or step.error is not None:
                self._works.pop(step.ticket, None)
                self._jobs.pop(step.ticket, None)
        return steps

    def _read(self, work: Work, result: dict[str, Any]) -> Step | None:
        stage = result.get("stage")
        if stage == "error":
            error = result.get("error")
            return Step(work.ticket, error=f"the engine failed on this request: {type(error).__name__}: {error}")
        if stage == "prefill":
            return Step(work.ticket, prompt_done=result["curr_progress"], prompt_total=result["max_progress"])
        if stage != "streaming":
            return None
        step = Step(work.ticket, text=result.get("text", ""), rows=self._rows(work, result))
        if result["eos"]:
            self._read_end(work, result, step)
        return step

    def _read_end(self, work: Work, result: dict[str, Any], step: Step) -> None:
        reason = result.get("eos_reason")
        if reason == "stop_token":
            # What was held back in case it would become a stop string is text after all, but for the token itself.
            held = result.get("held") or {}
            own = self._pieces[result["eos_triggering_token_id"]]
            text = held.get("text", "")
            step.text += text[: -len(own)] if own and text.endswith(own) else text
            step.rows += self._rows(work, held)[:-1]
        elif reason == "max_new_tokens":
            step.text = step.text.rstrip("\ufffd")  # a character that the limit cut in two
        step.reason = "length" if reason == "max_new_tokens" else "stop"
        step.stop_string = result.get("eos_triggering_string")
        step.new_tokens = result.get("new_tokens", 0)
        step.cached_tokens = min(result.get("cached_tokens", 0), len(work.ids))
        step.prompt_s = result.get("time_prefill")
        step.generate_s = result.get("time_generate")

    def _rows(self, work: Work, part: dict[str, Any]) -> list[Row]:
        if work.top_logprobs is None or "logits" not in part or "token_ids" not in part:
            return []
        table = self.torch.log_softmax(part["logits"][0].float(), dim=-1)
        ids = part["token_ids"][0].tolist()
        best: list[list[tuple[int, float]]] = [[] for _ in ids]
        if work.top_logprobs > 0:
            values, places = self.torch.topk(table, work.top_logprobs, dim=-1)
            best = [list(zip(*pair, strict=True)) for pair in zip(places.tolist(), values.tolist(), strict=True)]
        return [Row(token, float(table[n, token]), best[n]) for n, token in enumerate(ids)]

    # The tokenizer

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        # One lock: a mode of the tokenizer behind it is switched by each call.
        with self._text_lock:
            ids = self.tokenizer.encode(text, add_bos=add_bos, encode_special_tokens=True)
        return [int(token) for token in ids[0].tolist()]

    def decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        with self._text_lock:
            text = self.tokenizer.decode(self.torch.tensor(ids, dtype=self.torch.long), decode_special_tokens=True)
        return text if isinstance(text, str) else str(text[0])

    def piece(self, token: int) -> str:
        return str(self._special_pieces[token]) if 0 <= token < len(self._special_pieces) else ""

    def token_bytes(self, token: int) -> list[int]:
        """A token's own bytes, half characters included."""
        text = self.piece(token)
        if "\ufffd" in text and (raw := self._raw_piece(token)) is not None:
            if found := _BYTE_TOKEN.fullmatch(raw):
                return [int(found[1], 16)]
            values = [_byte_values().get(character) for character in raw]
            if raw and None not in values:
                return [value for value in values if value is not None]
        return list(text.encode("utf-8", "replace"))

    def _raw_piece(self, token: int) -> str | None:
        return None

    def special_texts(self) -> tuple[str, str]:
        return self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""

    # The rest

    def make_filter(self, kind: str, text: str) -> Any:
        raise NotImplementedError

    def memory(self) -> dict[str, int]:
        """What torch holds on each device, now."""
        cuda = self.torch.cuda
        sizes = {f"CUDA{n}": int(cuda.memory_reserved(n)) for n in range(cuda.device_count())}
        return {name: size for name, size in sizes.items() if size}


class ExllamaV2(Exllama):
    package = "exllamav2"
    takes = ("exl2", "gptq", "fp16")
    sampling = _SAMPLING | {"typical_p"}

    def _import(self) -> None:
        self.lib = _import_library("exllamav2")
        self.gen = _import_library("exllamav2.generator")

    def _load(self, settings: Settings, report: Callable[[str, int, int], None]) -> None:
        lib = self.lib
        self.config = self._config(settings.model)
        why_not = self._why_unpaged()
        self.is_paged = why_not is None
        self.slots = settings.slots if self.is_paged else 1
        if why_not is not None:
            self.warnings.append(("unpaged", f"one request at a time: {why_not}"))
        tokens = self.slots * settings.slot_tokens
        self.draft_model = self.draft_cache = None
        if settings.draft is not None:
            self.draft_model = lib.ExLlamaV2(self._config(settings.draft))
            self.draft_cache = lib.ExLlamaV2Cache(self.draft_model, max_seq_len=tokens, lazy=True)
            self.draft_model.load_autosplit(self.draft_cache)
        self.model = lib.ExLlamaV2(self.config)
        kind = getattr(lib, _V2_CACHES[settings.cache_type])

        def progress(done: int, total: int) -> None:
            report("loading", done, total)

        if settings.gpu_split:
            self.model.load(list(settings.gpu_split), callback=progress)
            self.cache = kind(self.model, max_seq_len=tokens)
        else:
            self.cache = kind(self.model, max_seq_len=tokens, lazy=True)
            self.model.load_autosplit(self.cache, callback=progress)
        self.tokenizer = lib.ExLlamaV2Tokenizer(self.config)
        if _version("lm-format-enforcer"):
            self.formats = frozenset({"json_schema"})

    def _config(self, folder: Path) -> Any:
        config = self.lib.ExLlamaV2Config(str(folder))
        config.arch_compat_overrides()
        config.max_seq_len = self.settings.slot_tokens
        return config

    def _why_unpaged(self) -> str | None:
        """Paged generation, and with it more than one job at a time, is flash-attn's."""
        try:
            importlib.import_module("exllamav2.attn").assert_paged_attn()
        except AssertionError as error:
            return f"{error} (pip install flash-attn, on an Ampere GPU or a newer one)"
        return "this model can't use flash-attn" if self.config.no_flash_attn else None

    def _make_generator(self) -> Any:
        options: dict[str, Any] = {}
        if self.draft_model is not None:
            options = {
                "draft_model": self.draft_model,
                "draft_cache": self.draft_cache,
                "num_draft_tokens": self.settings.draft_tokens,
            }
        return self.gen.ExLlamaV2DynamicGenerator(
            model=self.model,
            cache=self.cache,
            tokenizer=self.tokenizer,
            max_batch_size=self.slots,
            paged=self.is_paged,
            **options,
        )

    def _make_job(self, work: Work) -> Any:
        # It ends an answer as many tokens early as a draft may have, so that the draft never runs past the limit.
        drafted = self.settings.draft_tokens if self.draft_model is not None else 0
        return self.gen.ExLlamaV2DynamicJob(
            max_new_tokens=work.max_new_tokens + drafted,
            gen_settings=self._settings_of(work.sampler),
            filters=work.filters,
            **self._job_options(work),
        )

    def _settings_of(self, sampler: Sampler) -> Any:
        repetition, frequency, presence = sampler.penalties()
        values: dict[str, Any] = {
            "token_repetition_penalty": repetition,
            "token_repetition_range": sampler.repeat_last_n,
            "token_repetition_decay": 0,
            "token_frequency_penalty": frequency,
            "token_presence_penalty": presence,
            "temperature": sampler.temperature,
            "top_k": sampler.top_k,
            "top_p": sampler.top_p,
            "top_a": 0.0,
            "min_p": sampler.min_p,
            "tfs": 0.0,
            "typical": 0.0 if sampler.typical_p >= 1 else sampler.typical_p,
            "mirostat": False,
            "dry_multiplier": 0.0,
            "xtc_probability": 0.0,
        }
        if sampler.is_greedy:
            values |= {"temperature": 1.0, "top_k": 1, "top_p": 0.0, "min_p": 0.0, "typical": 0.0}
        if sampler.logit_bias:
            size = self.config.vocab_size
            bias = self.torch.zeros((size + -size % 32,), dtype=self.torch.float)
            for token, value in sampler.logit_bias.items():
                if token < size:
                    bias[token] = value
            values["token_bias"] = bias
        return self.gen.ExLlamaV2Sampler.Settings(**values)

    def _raw_piece(self, token: int) -> str | None:
        found = self.tokenizer.tokenizer_model.hf_tokenizer.id_to_token(token)
        return found if isinstance(found, str) else None

    def make_filter(self, kind: str, text: str) -> Any:
        with self._filter_lock:
            return self._schema_filter(text)

    def _schema_filter(self, text: str) -> Any:
        """lm-format-enforcer's own integration is written for an older interface of filters: this is one for 0.3."""
        enforcer = importlib.import_module("lmformatenforcer")
        integration = importlib.import_module("lmformatenforcer.integrations.exllamav2")
        base = importlib.import_module("exllamav2.generator.filters").ExLlamaV2Filter
        if not hasattr(self, "_enforcer_data"):
            self._enforcer_data = integration.build_token_enforcer_tokenizer_data(self.tokenizer)
        state = enforcer.TokenEnforcer(self._enforcer_data, enforcer.JsonSchemaParser(json.loads(text)))
        eos = self.tokenizer.eos_token_id

        class SchemaFilter(base):  # type: ignore[misc, valid-type]
            def begin(self, prefix_str: str) -> None:
                self.ids: list[int] = []

            def feed(self, token: Any) -> None:
                self.ids.append(int(token[0][0]))

            def next(self) -> tuple[set[int], set[int]]:
                return set(state.get_allowed_tokens(self.ids).allowed_tokens), {eos}

            def use_background_worker(self) -> bool:
                return True

        return SchemaFilter(self.model, self.tokenizer)


class ExllamaV3(Exllama):
    package = "exllamav3"
    takes = ("exl3", "fp16")

    def _import(self) -> None:
        self.lib = _import_library("exllamav3")

    def _load(self, settings: Settings, report: Callable[[str, int, int], None]) -> None:
        lib = self.lib
        self.slots = settings.slots
        split = list(settings.gpu_split) or None
        self.draft_model = self.draft_cache = None
        if settings.draft is not None:
            self.draft_model = lib.Model.from_config(lib.Config.from_directory(str(settings.draft)))
            self.draft_cache = self._make_cache(self.draft_model, settings)
            self.draft_model.load(use_per_device=split)
        self.config = lib.Config.from_directory(str(settings.model))
        self.model = lib.Model.from_config(self.config)
        self.cache = self._make_cache(self.model, settings)  # before the load, which allocates it

        def progress(done: int, total: int) -> None:
            report("loading", done, total)

        options = {} if self.draft_model is None else {"draft_model": self.draft_model}
        self.model.load(use_per_device=split, max_batch_size=self.slots, callback=progress, **options)
        # Kernels are compiled and tuned when they are first used: better now than in a client's time.
        self.model.warmup(cache=self.cache, callback=lambda done, total: report("warming", done, total))
        self.tokenizer = lib.Tokenizer.from_config(self.config)
        guidance = importlib.import_module("exllamav3.generator.filter.llguidance")
        if guidance.llguidance_available:
            self.formats = frozenset({"json_schema", "grammar"})

    def _make_cache(self, model: Any, settings: Settings) -> Any:
        lib = self.lib
        options: dict[str, Any] = {"layer_type": lib.CacheLayer_fp16}
        if settings.cache_type != "fp16":
            bits = int(settings.cache_type[1:])
            options = {"layer_type": lib.CacheLayer_quant, "k_bits": bits, "v_bits": bits}
        return lib.Cache(
            model,
            max_num_tokens=self.slots * settings.slot_tokens,
            max_batch_size=self.slots,
            max_history=settings.draft_tokens if settings.draft is not None else 0,
            **options,
        )

    def _make_generator(self) -> Any:
        options: dict[str, Any] = {}
        if self.draft_model is not None:
            options = {
                "draft_model": self.draft_model,
                "draft_cache": self.draft_cache,
                "num_draft_tokens": self.settings.draft_tokens,
            }
        return self.lib.Generator(
            model=self.model,
            cache=self.cache,
            tokenizer=self.tokenizer,
            max_batch_size=self.slots,
            **options,
        )

    def _make_job(self, work: Work) -> Any:
        return self.lib.Job(
            max_new_tokens=work.max_new_tokens,
            sampler=self._sampler_of(work.sampler),
            filters=work.filters or None,
            **self._job_options(work),
        )

    def _sampler_of(self, sampler: Sampler) -> Any:
        repetition, frequency, presence = sampler.penalties()
        return self.lib.ComboSampler(
            rep_p=repetition,
            freq_p=frequency,
            pres_p=presence,
            rep_sustain_range=sampler.repeat_last_n if sampler.repeat_last_n > 0 else 10**8,
            rep_decay_range=0,
            temperature=0.0 if sampler.is_greedy else sampler.temperature,
            min_p=sampler.min_p,
            top_k=sampler.top_k,
            top_p=sampler.top_p,
            logit_bias=sampler.logit_bias or None,
        )

    def _raw_piece(self, token: int) -> str | None:
        found = self.tokenizer.tokenizer.id_to_token(token)
        return found if isinstance(found, str) else None

    def make_filter(self, kind: str, text: str) -> Any:
        with self._filter_lock:
            source = {"json_schema": text} if kind == "json_schema" else {"gbnf_grammar": text}
            return self.lib.LLGuidanceFilter(self.tokenizer, eos_after_completed=True, **source)


_V2_CACHES = {
    "fp16": "ExLlamaV2Cache",
    "q8": "ExLlamaV2Cache_Q8",
    "q6": "ExLlamaV2Cache_Q6",
    "q4": "ExLlamaV2Cache_Q4",
}
LIBRARIES: dict[str, type[Exllama]] = {"exllamav2": ExllamaV2, "exllamav3": ExllamaV3}


def _byte_values() -> dict[str, int]:
    """From the characters that byte-level BPE writes bytes as (printable ones as they are, the rest from U+0100 on)."""
    if not _BYTES:
        plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [value for value in range(256) if value not in plain]
        _BYTES.update({chr(value): value for value in plain})
        _BYTES.update({chr(0x100 + n): value for n, value in enumerate(others)})
    return _BYTES


_BYTES: dict[str, int] = {}


def _import_torch() -> Any:
    """torch, with a CUDA device: looked at first, because without one the engine's import fails in strange ways."""
    torch = _import_library("torch")
    if not torch.cuda.is_available() or torch.cuda.device_count() == 0:
        version = getattr(torch, "__version__", "?")
        raise Fatal(
            NO_CUDA,
            f"torch {version} finds no CUDA device: check nvidia-smi, and that this torch is a build for CUDA",
        )
    return torch


def _import_library(name: str) -> Any:
    """Whatever goes wrong is an import failure: exllamav2 raises OSError without CUDA_HOME, RuntimeError when it can't
    be compiled, and the loader ImportError when it was built for another torch."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = f" (pip install {(error.name or name).partition('.')[0]})"
        elif "undefined symbol" in text:
            hint = " (it was built for another version of torch: install a matching build)"
        elif "CUDA_HOME" in text or "nvcc" in text or "ninja" in text.lower():
            hint = " (its kernels are compiled at the first import: install the CUDA toolkit with nvcc, and ninja)"
        raise Fatal(IMPORT, f"{name} can't be imported: {text}{hint}") from error


@contextlib.contextmanager
def _build_lock(path: str | None) -> Iterator[None]:
    """Keeps two hosts from compiling into one folder, and clears what a killed compilation left: torch waits for ever
    for a lock file whose owner is gone. The folder is Oprel's own: under our lock every other lock in it is stale."""
    if not path:
        yield
        return
    import fcntl

    folder = Path(path)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "oprel.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for stale in (*folder.glob("*/lock"), *folder.glob("*/*/lock")):
            with contextlib.suppress(OSError):
                stale.unlink()
        yield


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return (
        type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, MemoryError)
        or "out of memory" in text.lower()
        or "Insufficient VRAM" in text
        or "Insufficient space in device allocation" in text
    )


def _load_failure(error: BaseException) -> Fatal:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if _is_out_of_memory(error):
        return Fatal(MEMORY, f"there is not enough GPU memory for the model and its cache ({text})")
    if "No CUDA GPUs" in text or "no CUDA-capable device" in text or "Cannot access accelerator" in text:
        return Fatal(NO_CUDA, text)
    if isinstance(error, ImportError):
        return Fatal(IMPORT, text)
    return Fatal(MODEL, f"the model can't be loaded ({text})")


# -- the thread that owns the library


@dataclasses.dataclass(eq=False)
class Ticket:
    """An answer under way, as the event loop sees it. Its queue gets lists of Steps, an Exception, or GONE."""

    work: Work
    queue: asyncio.Queue[Any] = dataclasses.field(default_factory=asyncio.Queue)


ACCEPTED = object()
GONE = object()


class Runner(threading.Thread):
    """Loads the library and then does all that is done with it; others leave commands. The event loop is told through
    `call_soon_threadsafe`, once for each step, whatever the number of answers in it."""

    def __init__(self, library: Library, loop: asyncio.AbstractEventLoop, host: Host) -> None:
        super().__init__(name="engine", daemon=True)
        self._library = library
        self._loop = loop
        self._host = host
        self._wake = threading.Condition()
        self._commands: list[Callable[[], None]] = []
        self._live: dict[int, Ticket] = {}
        self._failures = 0
        self.last_step = time.monotonic()

    @property
    def busy(self) -> int:
        return len(self._live)

    # Called on the event loop

    def submit(self, ticket: Ticket) -> None:
        self._leave(lambda: self._begin(ticket))

    def cancel(self, ticket: Ticket) -> None:
        self._leave(lambda: self._drop(ticket))

    def _leave(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    # On the thread

    def run(self) -> None:
        try:
            self._host.load()
        except Fatal as error:
            self._tell(self._host.failed, error)
            return
        except BaseException as error:
            self._tell(self._host.failed, Fatal(MODEL, f"the start failed: {type(error).__name__}: {error}"))
            return
        self._tell(self._host.loaded)
        while True:
            for command in self._next_commands():
                command()
            if self._live:
                self._step()

    def _next_commands(self) -> list[Callable[[], None]]:
        with self._wake:
            while not self._commands and not self._live:
                self._wake.wait()
            commands, self._commands = self._commands, []
        return commands

    def _begin(self, ticket: Ticket) -> None:
        if not self._live:
            self.last_step = time.monotonic()
        try:
            self._library.enqueue(ticket.work)
        except Exception as error:
            text = f"the engine refused the request: {type(error).__name__}: {error}"
            self._tell(ticket.queue.put_nowait, Refusal(400, text))
            return
        self._live[ticket.work.ticket] = ticket
        self._tell(ticket.queue.put_nowait, ACCEPTED)

    def _drop(self, ticket: Ticket) -> None:
        # It may have ended meanwhile: nothing is wrong with that.
        if self._live.pop(ticket.work.ticket, None) is None:
            return
        try:
            self._library.cancel(ticket.work.ticket)
        except Exception as error:
            self._mend(error)

    def _step(self) -> None:
        try:
            steps = self._library.step()
        except Exception as error:
            self._mend(error)
            return
        self.last_step = time.monotonic()
        if not steps:
            return
        self._failures = 0
        news: dict[int, tuple[Ticket, list[Step]]] = {}
        for step in steps:
            if (ticket := self._live.get(step.ticket)) is None:
                continue
            news.setdefault(step.ticket, (ticket, []))[1].append(step)
            if step.reason is not None or step.error is not None:
                del self._live[step.ticket]
        if news:
            self._tell(_deliver, list(news.values()))

    def _mend(self, error: Exception) -> None:
        """The generator failed, so nothing that was in it can go on; a new one takes its place, if it can."""
        self._failures += 1
        what = f"{type(error).__name__}: {error}"
        sys.stderr.write(f"the generator failed: {what}\n")
        out_of_memory = _is_out_of_memory(error)
        told = "the GPU ran out of memory while it generated" if out_of_memory else f"the generator failed: {what}"
        for ticket in self._live.values():
            self._tell(ticket.queue.put_nowait, Refusal(500, told, kind="server_error"))
        self._live.clear()
        # After such an error every further call on the device fails in this process.
        is_lost = "CUDA error" in str(error) and not out_of_memory
        if not is_lost and self._failures < MAX_FAILURES:
            try:
                self._library.rebuild()
            except Exception as second:
                what = f"{what}; and its rebuilding: {type(second).__name__}: {second}"
            else:
                return
        self._tell(self._host.failed, Fatal(DEAD, f"the generator is dead: {what}"))
        with self._wake:
            while True:  # nothing more is done here: the process is about to end
                self._wake.wait()

    def _tell(self, call: Callable[..., Any], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(call, *arguments)


def _deliver(news: list[tuple[Ticket, list[Step]]]) -> None:
    for ticket, steps in news:
        ticket.queue.put_nowait(steps)


# -- chat templates, in a process of their own


class Renderer:
    """Renders one template in a child: bounded in memory, killed when it takes too long, started again when needed."""

    def __init__(self, template: str, bos: str, eos: str) -> None:
        self._head = _line({"template": template, "bos_token": bos, "eos_token": eos})
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def render(self, variables: dict[str, Any]) -> str:
        """Raises Refusal(400) with what the template said."""
        question = _line(variables)
        async with self._lock:
            try:
                answer = await self._ask(question)
            except BaseException:
                self.kill()
                raise
        if "error" in answer:
            raise Refusal(400, f"chat template: {answer['error']}")
        return str(answer["prompt"])

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _ask(self, question: bytes) -> dict[str, Any]:
        try:
            process = await asyncio.wait_for(self._started(), RENDER_START_LIMIT_S)
            answer = await asyncio.wait_for(_exchange(process, question), RENDER_LIMIT_S)
        except asyncio.TimeoutError:  # noqa: UP041 - in 3.10 it isn't the built-in one
            raise Refusal(400, f"chat template: it isn't done after {RENDER_LIMIT_S:g} s") from None
        except (OSError, ValueError, EOFError) as error:
            said = str(error) or type(error).__name__
            raise Refusal(400, f"chat template: it exceeds its memory, or can't be used ({said})") from None
        return answer

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            THIS_FILE,
            "--render",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            limit=MAX_PROMPT_BYTES * 2,
        )
        ready = await _exchange(process, self._head)
        if "error" in ready:
            self.kill()
            raise Refusal(400, f"chat template: {ready['error']}")
        return process


async def _exchange(process: asyncio.subprocess.Process, line: bytes) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None  # noqa: S101 - both are pipes
    process.stdin.write(line)
    await process.stdin.drain()
    answer = await process.stdout.readline()
    if not answer:
        raise EOFError("the renderer ended")
    found: dict[str, Any] = json.loads(answer)
    return found


def _line(value: dict[str, Any]) -> bytes:
    """One line of JSON; half characters (lone surrogates) come through."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def render_loop() -> None:
    """The child's side: a line with the template, then one line for each prompt."""
    import resource

    _die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (RENDER_MEMORY_BYTES, RENDER_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    head = json.loads(source.readline())
    try:
        template = compile_template(head["template"])
        answer: dict[str, Any] = {"ready": True}
    except BaseException as error:
        answer = {"error": _template_error(error)}
    sink.write(_line(answer))
    sink.flush()
    if "error" in answer:
        return
    fixed = {"bos_token": head["bos_token"], "eos_token": head["eos_token"]}
    while line := source.readline():
        try:
            answer = {"prompt": rendered(template, {**fixed, **json.loads(line)})}
        except (Exception, MemoryError) as error:
            answer = {"error": _template_error(error)}
        sink.write(_line(answer))
        sink.flush()


def compile_template(text: str) -> Any:
    """The template in a sandbox: no attributes that lead out of it, nothing that can be changed."""
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if len(text.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"it is longer than {MAX_TEMPLATE_BYTES} bytes")

    class Generation(Extension):
        """`{% generation %}` marks an answer for training; its body is all that counts here."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        extensions=["jinja2.ext.loopcontrols", Generation],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = time.strftime
    return environment.from_string(text)


def rendered(template: Any, variables: dict[str, Any]) -> str:
    pieces = []
    size = 0
    for piece in template.generate(variables):
        size += len(piece)
        if size > MAX_PROMPT_BYTES:
            raise ValueError(f"the prompt is longer than {MAX_PROMPT_BYTES} characters")
        pieces.append(piece)
    return "".join(pieces)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """Prompts are no HTML: nothing is escaped."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise ValueError(message)


def _template_error(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed beside the engine (pip install {error.name})"
    return f"{type(error).__name__}: {error}"[:500] if str(error) else type(error).__name__


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


# -- requests


@dataclasses.dataclass
class Asked:
    """A request for a completion that was read."""

    work: Work
    is_chat: bool
    is_streamed: bool
    has_usage: bool
    has_progress: bool


def _number(body: dict[str, Any], name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise Refusal(400, f"{name!r} must be a number", param=name)
    if not low <= value <= high:
        raise Refusal(400, f"{name!r} must be from {low:g} to {high:g}, not {value!r}", param=name)
    return float(value)


def _whole(body: dict[str, Any], name: str, low: int, high: int) -> int | None:
    value = _number(body, name, low, high)
    if value is None:
        return None
    if value != int(value):
        raise Refusal(400, f"{name!r} must be a whole number", param=name)
    return int(value)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def read_sampler(body: dict[str, Any]) -> Sampler:
    top_k = _or(_whole(body, "top_k", -1, 2**31), 0)
    return Sampler(
        temperature=_or(_number(body, "temperature", 0, 1000), 1.0),
        top_p=_or(_number(body, "top_p", 0, 1), 1.0),
        top_k=max(0, top_k),
        min_p=_or(_number(body, "min_p", 0, 1), 0.0),
        typical_p=_or(_number(body, "typical_p", 0, 1), 1.0),
        repeat_penalty=_or(_number(body, "repeat_penalty", 0.01, 100), 1.0),
        repeat_last_n=_or(_whole(body, "repeat_last_n", -1, 2**31), -1),
        presence_penalty=_or(_number(body, "presence_penalty", -100, 100), 0.0),
        frequency_penalty=_or(_number(body, "frequency_penalty", -100, 100), 0.0),
        logit_bias=_read_bias(body.get("logit_bias")),
    )


def _read_bias(value: Any) -> dict[int, float]:
    """OpenAI's object with ids as its names, or pairs as llama-server takes them."""
    if not value:
        return {}
    pairs = list(value.items()) if isinstance(value, dict) else value
    try:
        read = {int(token): float(bias) for token, bias in pairs}
    except (TypeError, ValueError):
        raise Refusal(400, "'logit_bias' must map token ids to numbers", param="logit_bias") from None
    if any(token < 0 or not math.isfinite(bias) for token, bias in read.items()) or len(read) > 1024:
        raise Refusal(400, "'logit_bias' takes up to 1024 token ids with finite biases", param="logit_bias")
    return read


def read_stop(value: Any) -> list[str]:
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise Refusal(400, "'stop' must be a string or a list of strings", param="stop")
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise Refusal(400, f"'stop' takes up to {MAX_STOPS} strings of {MAX_STOP_CHARACTERS} characters", param="stop")
    return [stop for stop in stops if stop]


def read_logprobs(body: dict[str, Any], *, is_chat: bool) -> int | None:
    if not is_chat:
        return _whole(body, "logprobs", 0, MAX_TOP_LOGPROBS)
    if not body.get("logprobs"):
        return None
    return _whole(body, "top_logprobs", 0, MAX_TOP_LOGPROBS) or 0


def read_format(body: dict[str, Any]) -> tuple[str, str] | None:
    """("json_schema" or "grammar", text)."""
    if isinstance(grammar := body.get("grammar"), str) and grammar:
        return "grammar", grammar
    wanted = body.get("response_format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return "json_schema", '{"type": "object"}'
    if kind == "json_schema":
        inner = wanted.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else wanted.get("schema")
        if isinstance(schema, (dict, bool)):
            return "json_schema", json.dumps(schema)
    raise Refusal(
        400, "'response_format' must be text, json_object or json_schema with a schema", param="response_format"
    )


def template_messages(value: Any) -> list[dict[str, Any]]:
    """Messages as templates know them: text as one string, arguments of tool calls as objects."""
    if not isinstance(value, list) or not value:
        raise Refusal(400, "'messages' must be a list with at least one message", param="messages")
    return [_template_message(message, n) for n, message in enumerate(value)]


def _template_message(message: Any, n: int) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Refusal(400, f"messages[{n}] must be an object with a role", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise Refusal(400, f"messages[{n}]: this engine takes text only", param="messages")
        content = "".join(part["text"] for part in content)
    elif content is not None and not isinstance(content, str):
        raise Refusal(400, f"messages[{n}]: content must be text", param="messages")
    fields = {**message, "content": content or ""}
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        fields["tool_calls"] = [_template_call(call) for call in calls if isinstance(call, dict)]
    return fields


def _template_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


# -- answers


class Answer:
    """Makes the JSON of one completion, streamed or whole."""

    def __init__(self, asked: Asked, library: Library, model: str) -> None:
        self._asked = asked
        self._library = library
        self._prompt_tokens = len(asked.work.ids)
        prefix = "chatcmpl" if asked.is_chat else "cmpl"
        kind = "chat.completion" if asked.is_chat else "text_completion"
        suffix = ".chunk" if asked.is_chat and asked.is_streamed else ""
        self._base = {
            "id": f"{prefix}-{os.urandom(12).hex()}",
            "object": kind + suffix,
            "created": int(time.time()),
            "model": model,
        }
        self._texts: list[str] = []
        self._rows: list[Row] = []

    def first(self) -> bytes:
        """The event that opens a chat's stream."""
        return self._event([self._choice("", role="assistant")]) if self._asked.is_chat else b""

    def events(self, steps: list[Step]) -> bytes:
        """All that one step brought, for one write."""
        return b"".join(self._events_of(step) for step in steps)

    def _events_of(self, step: Step) -> bytes:
        if step.prompt_done is not None:
            if not self._asked.has_progress:
                return b""
            progress = {
                "total": self._prompt_tokens,
                "cache": 0,
                "processed": min(step.prompt_done, self._prompt_tokens),
            }
            return _sse({**self._base, "choices": [], "prompt_progress": progress})
        out = b""
        if step.text or step.rows:
            out = self._event([self._choice(step.text, rows=step.rows)])
        if step.reason is not None:
            out += self._event([self._choice("", reason=step.reason, stop=step.stop_string)])
            if self._asked.has_usage:
                out += _sse({**self._base, "choices": [], "usage": self._usage(step), "timings": self._timings(step)})
            out += b"data: [DONE]\n\n"
        return out

    def add(self, steps: list[Step]) -> None:
        for step in steps:
            self._texts.append(step.text)
            self._rows += step.rows

    def whole(self, last: Step) -> dict[str, Any]:
        choice = self._choice(
            "".join(self._texts), role="assistant", rows=self._rows, reason=last.reason, stop=last.stop_string
        )
        if self._asked.is_chat:
            choice["message"] = choice.pop("delta")
        return {**self._base, "choices": [choice], "usage": self._usage(last), "timings": self._timings(last)}

    def _event(self, choices: list[dict[str, Any]]) -> bytes:
        return _sse({**self._base, "choices": choices})

    def _choice(
        self,
        text: str,
        *,
        role: str | None = None,
        rows: list[Row] | None = None,
        reason: str | None = None,
        stop: str | None = None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0}
        if not self._asked.is_chat:
            choice["text"] = text
        elif reason is None or role is not None:
            choice["delta"] = {"role": role, "content": text} if role is not None else {"content": text}
        else:
            choice["delta"] = {}
        choice["logprobs"] = self._logprobs(rows) if rows else None
        choice["finish_reason"] = reason
        if stop is not None:
            choice["stop_reason"] = stop
        return choice

    def _logprobs(self, rows: list[Row]) -> dict[str, Any]:
        """Chat's `content`; completions have their older fields beside it."""
        content = [
            {**self._told(row.token, row.logprob), "top_logprobs": [self._told(*top) for top in row.top]}
            for row in rows
        ]
        if self._asked.is_chat:
            return {"content": content}
        return {
            "content": content,
            "tokens": [entry["token"] for entry in content],
            "token_logprobs": [entry["logprob"] for entry in content],
            "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in content],
        }

    def _told(self, token: int, logprob: float) -> dict[str, Any]:
        # JSON has no minus infinity.
        value = min(0.0, logprob) if math.isfinite(logprob) else None
        return {"token": self._library.piece(token), "logprob": value, "bytes": self._library.token_bytes(token)}

    def _usage(self, step: Step) -> dict[str, Any]:
        prompt, made = self._prompt_tokens, step.new_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": step.cached_tokens},
        }

    def _timings(self, step: Step) -> dict[str, Any]:
        return {
            "cache_n": step.cached_tokens,
            "prompt_n": self._prompt_tokens - step.cached_tokens,
            "prompt_ms": None if step.prompt_s is None else step.prompt_s * 1000,
            "predicted_n": step.new_tokens,
            "predicted_ms": None if step.generate_s is None else step.generate_s * 1000,
        }


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


# -- the host


class Host:
    """What is served, and in which phase it is."""

    def __init__(self, settings: Settings, library: Library, folder: Folder, key: str) -> None:
        self.settings = settings
        self.library = library
        self.folder = folder
        self.key = key
        self.phase = "starting"
        self.done = 0
        self.total = 0
        self.ended = asyncio.Event()
        self.fatal: Fatal | None = None
        self.renderer: Renderer | None = None
        self.runner = Runner(library, asyncio.get_running_loop(), self)
        self.stop_tokens: list[int] = []
        self.working: set[asyncio.Task[Any]] = set()
        self._preparing: asyncio.Future[None] | None = None
        self._tickets: set[Ticket] = set()
        self._next_ticket = 0
        self._template_problem: str | None = "the model has no chat template"

    # Told by the thread that owns the library

    def load(self) -> None:
        self.library.load(self.settings, self.folder, self._report)

    def _report(self, phase: str, done: int, total: int) -> None:
        if phase != self.phase or done == total or done % 8 == 0:
            sys.stderr.write(f"phase {phase} {done}/{total}\n")
        self.phase, self.done, self.total = phase, done, total

    def loaded(self) -> None:
        self._preparing = asyncio.ensure_future(self._prepare())
        self._preparing.add_done_callback(self._note_prepared)

    def _note_prepared(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(Fatal(MODEL, f"the start failed: {type(error).__name__}: {error}"))

    async def _prepare(self) -> None:
        """The last steps before requests are taken: the template is tried, for a broken one must not look usable."""
        self.stop_tokens = sorted(self.folder.stop_tokens() | self._own_stop_tokens())
        template = self.folder.template
        if self.settings.template is not None:
            template = await asyncio.to_thread(self.settings.template.read_text, encoding="utf-8")
        if template is not None:
            renderer = Renderer(template, *self.library.special_texts())
            try:
                await renderer.render({"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": True})
                self.renderer, self._template_problem = renderer, None
            except Refusal as refusal:
                renderer.kill()
                self._template_problem = str(refusal)
                self.library.warnings.append(("template", f"the model can't chat: {refusal}"))
        sys.stderr.write(
            f"ready: {self.settings.engine}, {self.library.slots} slots of {self.settings.context} tokens\n"
        )
        self.phase = "ready"

    def _own_stop_tokens(self) -> set[int]:
        own = getattr(getattr(self.library, "tokenizer", None), "eos_token_id", None)
        return {own} if type(own) is int and own >= 0 else set()

    def failed(self, error: Fatal) -> None:
        """The process ends with the error's code, once those who wait have been told."""
        self.phase = "broken"
        self.fatal = self.fatal or error
        self._tell_all(Refusal(500, error.message, kind="server_error"))
        self.ended.set()

    def stop(self) -> None:
        """On SIGTERM: no new requests, running ones end with an error event, then the process ends."""
        self.phase = "stopping"
        for ticket in self._tickets:
            self.runner.cancel(ticket)
        self._tell_all(Refusal(503, "the engine is stopping", kind="unavailable_error"))
        self.ended.set()

    def _tell_all(self, refusal: Refusal) -> None:
        for ticket in self._tickets:
            ticket.queue.put_nowait(refusal)

    # What it tells

    def health(self) -> tuple[int, dict[str, Any]]:
        if self.phase == "ready":
            busy = self.runner.busy
            idle_s = time.monotonic() - self.runner.last_step if busy else 0.0
            told = {"status": "ok", "phase": "ready", "slots": self.library.slots, "busy": busy}
            return 200, {**told, "since_step_s": round(idle_s, 3)}
        told = {"status": "unavailable", "phase": self.phase, "done": self.done, "total": self.total}
        if self.fatal is not None:
            told |= {"error": self.fatal.message}
        return 503, told

    def props(self) -> dict[str, Any]:
        """What became of the plan, and what it can do."""
        return {
            "engine": self.settings.engine,
            "version": _version(self.settings.engine),
            "total_slots": self.library.slots,
            "context_tokens": self.settings.context,
            "cache_type": self.settings.cache_type,
            "is_paged": self.library.is_paged,
            "memory": self.library.memory(),
            "warnings": self.library.warnings,
            "capabilities": {
                "chat": self.renderer is not None,
                "complete": True,
                "json_schema": "json_schema" in self.library.formats,
                "grammar": "grammar" in self.library.formats,
                "logprobs": True,
                "tokenize": True,
                "sampling": sorted(self.library.sampling),
            },
        }

    # Requests

    async def read_completion(self, body: dict[str, Any], *, is_chat: bool) -> Asked:
        self._check_supported(body)
        sampler = read_sampler(body)
        if sampler.typical_p < 1 and "typical_p" not in self.library.sampling:
            raise Refusal(400, f"'typical_p' is not supported by {self.settings.engine}", param="typical_p")
        stop = read_stop(body.get("stop"))
        logprobs = read_logprobs(body, is_chat=is_chat)
        seed = _whole(body, "seed", -(2**63), 2**64)
        limit = None
        for name in ("max_completion_tokens", "max_tokens"):
            limit = _whole(body, name, -1, 2**31) if limit is None else limit
        wanted = read_format(body)
        ids = await self._prompt(body, is_chat=is_chat)
        filters = [await self._filter(*wanted)] if wanted is not None else []
        options = body.get("stream_options")
        work = Work(
            ticket=self._take_number(),
            ids=ids,
            max_new_tokens=self._room(len(ids), limit),
            sampler=sampler,
            stop_strings=stop,
            stop_tokens=self.stop_tokens,
            seed=None if seed is None or seed < 0 else seed,
            top_logprobs=logprobs,
            filters=filters,
        )
        return Asked(
            work=work,
            is_chat=is_chat,
            is_streamed=bool(body.get("stream")),
            has_usage=isinstance(options, dict) and bool(options.get("include_usage")),
            has_progress=bool(body.get("return_progress")),
        )

    def _check_supported(self, body: dict[str, Any]) -> None:
        if body.get("tools") or body.get("functions"):
            raise Refusal(400, f"{self.settings.engine} has no tools", param="tools")
        if body.get("n") not in (None, 1):
            raise Refusal(400, "'n' must be 1: ask as many times as there shall be answers", param="n")
        for name in ("suffix", "echo"):
            if body.get(name):
                raise Refusal(400, f"{name!r} is not supported by {self.settings.engine}", param=name)
        if (wanted := read_format(body)) is not None and wanted[0] not in self.library.formats:
            needs = "llguidance" if self.settings.engine == "exllamav3" else "lm-format-enforcer"
            name = "grammar" if wanted[0] == "grammar" else "response_format"
            raise Refusal(400, f"{name!r} needs a filter library that isn't installed ({needs})", param=name)

    def _take_number(self) -> int:
        self._next_ticket += 1
        return self._next_ticket

    def _room(self, prompt: int, limit: int | None) -> int:
        """How many tokens may be made; decided here, for the library would only fail an assertion."""
        if prompt == 0:
            raise Refusal(400, "the prompt is empty", param="prompt")
        room = self.settings.context - prompt
        if room < 1:
            raise Refusal(
                400,
                f"request ({prompt} tokens) exceeds the available context size ({self.settings.context} tokens)",
                kind="exceed_context_size_error",
                n_prompt_tokens=prompt,
                n_ctx=self.settings.context,
            )
        return room if limit is None or limit < 0 else min(room, max(1, limit))

    async def _prompt(self, body: dict[str, Any], *, is_chat: bool) -> list[int]:
        if is_chat:
            return await self.encode(await self.render(body), add_bos=False)
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return await self.encode(prompt, add_bos=self.folder.tokenizer_adds_bos)
        if isinstance(prompt, list) and all(type(token) is int for token in prompt):
            if not all(0 <= token < self.library.vocabulary for token in prompt):
                raise Refusal(400, "prompt contains invalid tokens", param="prompt")
            return list(prompt)
        raise Refusal(400, "'prompt' must be one text, or one list of token ids", param="prompt")

    async def render(self, body: dict[str, Any]) -> str:
        if self.renderer is None:
            raise Refusal(400, f"this model can't chat: {self._template_problem}", param="messages")
        kwargs = body.get("chat_template_kwargs")
        variables = dict(kwargs) if isinstance(kwargs, dict) else {}
        variables |= {"messages": template_messages(body.get("messages")), "add_generation_prompt": True}
        if isinstance(body.get("reasoning_effort"), str):
            variables["reasoning_effort"] = body["reasoning_effort"]
        return await self.renderer.render(variables)

    async def encode(self, text: str, *, add_bos: bool) -> list[int]:
        return await asyncio.to_thread(self.library.encode, text, add_bos=add_bos)

    async def _filter(self, kind: str, text: str) -> Any:
        if len(text) > MAX_SCHEMA_BYTES:
            raise Refusal(400, f"the {kind} is longer than {MAX_SCHEMA_BYTES} bytes", param="response_format")
        try:
            return await asyncio.wait_for(asyncio.to_thread(self.library.make_filter, kind, text), FILTER_LIMIT_S)
        except asyncio.TimeoutError:  # noqa: UP041 - in 3.10 it isn't the built-in one
            raise Refusal(400, f"the {kind} takes too long to compile", param="response_format") from None
        except Exception as error:
            raise Refusal(400, f"grammar error: {type(error).__name__}: {error}", param="response_format") from error

    async def steps(self, asked: Asked, reader: asyncio.StreamReader) -> AsyncGenerator[list[Step], None]:
        """What the library makes, as it comes; first an empty list, once it has taken the request. Left early, or when
        the client goes away (ConnectionError), the work is cancelled."""
        if self.ended.is_set():
            raise Refusal(503, "the engine is stopping", kind="unavailable_error")
        ticket = Ticket(asked.work)
        self._tickets.add(ticket)
        gone = asyncio.ensure_future(reader.read(1))
        gone.add_done_callback(lambda _: ticket.queue.put_nowait(GONE))
        self.runner.submit(ticket)
        is_over = False
        try:
            while not is_over:
                news = await ticket.queue.get()
                if news is GONE:
                    raise ConnectionResetError("the client has gone")
                if isinstance(news, Exception):
                    raise news
                if news is ACCEPTED:
                    yield []
                    continue
                failed = next((step.error for step in news if step.error is not None), None)
                if failed is not None:
                    is_over = True
                    raise Refusal(500, failed, kind="server_error")
                is_over = news[-1].reason is not None
                yield news
        finally:
            self._tickets.discard(ticket)
            if not is_over:
                self.runner.cancel(ticket)
            gone.cancel()
            await asyncio.wait([gone])  # only one may read at a time


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


# -- HTTP


@dataclasses.dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"the body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise Refusal(400, "the body must be a JSON object")
        return value


class Connection:
    """HTTP/1.1, as far as Oprel speaks it: whole bodies in, whole or chunked bodies out, connections kept."""

    def __init__(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host = host
        self._reader = reader
        self._writer = writer
        self._has_begun = False

    async def serve(self) -> None:
        try:
            while (request := await self._read()) is not None:
                await self._answer(request)
                if self._host.ended.is_set():
                    return
        except (OSError, EOFError, ValueError, asyncio.TimeoutError, asyncio.LimitOverrunError):  # noqa: UP041
            pass  # the client went away, or doesn't speak HTTP
        finally:
            self._writer.close()

    async def _read(self) -> Request | None:
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        length = int(headers.get("content-length") or 0)
        if length > MAX_BODY_BYTES or length < 0 or "transfer-encoding" in headers:
            await self._send(413, Refusal(413, f"a body may have {MAX_BODY_BYTES} bytes at most").body)
            return None
        body = await asyncio.wait_for(self._reader.readexactly(length), BODY_LIMIT_S) if length else b""
        return Request(method, path.partition("?")[0], headers, body)

    async def _answer(self, request: Request) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is one
        self._host.working.add(task)
        self._has_begun = False
        try:
            await self._route(request)
        except Refusal as refusal:
            await self._send(refusal.status, refusal.body)
        except (OSError, EOFError, asyncio.TimeoutError):  # noqa: UP041 - in 3.10 it isn't the built-in one
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            sys.stderr.write(f"{request.method} {request.path} failed: {text}\n")
            if self._has_begun:
                raise ConnectionResetError(text) from error
            await self._send(500, Refusal(500, text, kind="server_error").body)
        finally:
            self._host.working.discard(task)

    async def _route(self, request: Request) -> None:
        host = self._host
        if (request.method, request.path) == ("GET", "/health"):
            await self._send(*host.health())
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if host.key and not hmac.compare_digest(given, host.key.encode()):
            raise Refusal(401, "the key is missing or wrong", kind="authentication_error")
        handler = ROUTES.get((request.method, request.path))
        if handler is None:
            raise Refusal(404, f"{request.method} {request.path} is not served by this engine", kind="not_found_error")
        if host.phase != "ready":
            raise Refusal(503, f"the engine is not ready ({host.phase})", kind="unavailable_error")
        await handler(self, request)

    async def models(self, _: Request) -> None:
        entry = {
            "id": self._host.settings.name,
            "object": "model",
            "created": 0,
            "owned_by": self._host.settings.engine,
        }
        await self._send(200, {"object": "list", "data": [entry]})

    async def props(self, _: Request) -> None:
        await self._send(200, self._host.props())

    async def tokenize(self, request: Request) -> None:
        body = request.json()
        if not isinstance(text := body.get("content"), str):
            raise Refusal(400, "'content' must be a text", param="content")
        add_bos = bool(body.get("add_special")) and self._host.folder.tokenizer_adds_bos
        await self._send(200, {"tokens": await self._host.encode(text, add_bos=add_bos)})

    async def detokenize(self, request: Request) -> None:
        tokens = request.json().get("tokens")
        if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
            raise Refusal(400, "'tokens' must be a list of token ids", param="tokens")
        try:
            text = await asyncio.to_thread(self._host.library.decode, tokens)
        except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
            raise Refusal(400, f"'tokens' can't be read: {error}", param="tokens") from None
        await self._send(200, {"content": text})

    async def apply_template(self, request: Request) -> None:
        await self._send(200, {"prompt": await self._host.render(request.json())})

    async def chat(self, request: Request) -> None:
        await self._complete(request, is_chat=True)

    async def completions(self, request: Request) -> None:
        await self._complete(request, is_chat=False)

    async def _complete(self, request: Request, *, is_chat: bool) -> None:
        asked = await self._host.read_completion(request.json(), is_chat=is_chat)
        answer = Answer(asked, self._host.library, self._host.settings.name)
        async with contextlib.aclosing(self._host.steps(asked, self._reader)) as steps:
            if asked.is_streamed:
                await self._stream(answer, steps)
                return
            last = None
            async for batch in steps:
                answer.add(batch)
                last = batch[-1] if batch else last
        if last is None:
            raise Refusal(500, "the engine made nothing", kind="server_error")
        await self._send(200, answer.whole(last))

    async def _stream(self, answer: Answer, steps: AsyncGenerator[list[Step], None]) -> None:
        await anext(steps)  # taken by the library: from here on it is a stream
        self._has_begun = True
        self._writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        try:
            await self._send_chunk(answer.first())
            async for batch in steps:
                await self._send_chunk(answer.events(batch))
        except Refusal as refusal:
            await self._send_chunk(_sse(refusal.body))
        self._writer.write(b"0\r\n\r\n")
        await self._drain()

    async def _send_chunk(self, data: bytes) -> None:
        if data:
            self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await self._drain()

    async def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self._writer.write(head.encode() + data)
        await self._drain()

    async def _drain(self) -> None:
        """Waits for a slow reader, but not for ever; a quick one costs nothing."""
        transport = self._writer.transport
        if transport.is_closing():
            raise ConnectionResetError("the client has gone")
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            await asyncio.wait_for(self._writer.drain(), SEND_LIMIT_S)


Handler = Callable[[Connection, Request], Any]

ROUTES: dict[tuple[str, str], Handler] = {
    ("GET", "/v1/models"): Connection.models,
    ("GET", "/props"): Connection.props,
    ("POST", "/tokenize"): Connection.tokenize,
    ("POST", "/detokenize"): Connection.detokenize,
    ("POST", "/apply-template"): Connection.apply_template,
    ("POST", "/v1/chat/completions"): Connection.chat,
    ("POST", "/v1/completions"): Connection.completions,
}


# -- the program


async def serve(settings: Settings, library: Exllama) -> None:
    try:
        folder = Folder.read(settings.model, takes=library.takes)
        if settings.draft is not None:
            Folder.read(settings.draft, takes=library.takes)
    except Fatal as error:
        end(error.code, error.message)
    host = Host(settings, library, folder, os.environ.pop("OPREL_HOST_KEY", ""))
    loop = asyncio.get_running_loop()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(host, reader, writer).serve()

    server = await asyncio.start_unix_server(connected, settings.socket, limit=MAX_HEAD_BYTES)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, host.stop)
    host.runner.start()
    await host.ended.wait()
    # The thread may be in the middle of something long; nothing waits for it.
    server.close()
    if host.working:
        await asyncio.wait(set(host.working), timeout=STOP_LIMIT_S)
    if host.renderer is not None:
        host.renderer.kill()
    with contextlib.suppress(OSError):
        os.unlink(settings.socket)  # noqa: PTH108 - nothing else goes on by now
    if host.fatal is not None:
        end(host.fatal.code, host.fatal.message)
    os._exit(0)


def probe() -> dict[str, Any]:
    """By metadata alone."""
    names = (
        "exllamav2",
        "exllamav3",
        "torch",
        "flash-attn",
        "tokenizers",
        "jinja2",
        "llguidance",
        "lm-format-enforcer",
    )
    packages = {name: _version(name) for name in names}
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": {name: version for name, version in packages.items() if version},
    }


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        end(ARGUMENTS, message)


def read_arguments(words: list[str]) -> Settings:
    parser = Parser(prog="host.py", allow_abbrev=False)
    add = parser.add_argument
    add("--engine", required=True, choices=sorted(LIBRARIES))
    add("--model", required=True, type=Path)
    add("--socket", required=True)
    add("--context", required=True, type=int)
    add("--slots", type=int, default=1)
    add("--cache-type", choices=("fp16", "q8", "q6", "q4"), default="fp16")
    add("--gpu-split", default="")
    add("--draft", type=Path)
    add("--draft-tokens", type=int, default=4)
    add("--template", type=Path)
    add("--name", default="model")
    found = vars(parser.parse_args(words))
    try:
        split = tuple(float(part) for part in found["gpu_split"].split(",") if part.strip())
    except ValueError:
        parser.error("--gpu-split takes numbers of GB, separated by commas")
    settings = Settings(**{**found, "gpu_split": split})
    if settings.context < 1 or settings.slots < 1 or not 0 <= settings.draft_tokens <= 8:
        parser.error("--context and --slots must be 1 or more, --draft-tokens from 0 to 8")
    if settings.template is not None and not settings.template.is_file():
        parser.error(f"--template: there is no file {settings.template}")
    return settings


def main() -> None:
    words = sys.argv[1:]
    if words == ["--probe"]:
        print(json.dumps(probe()))
        return
    if words == ["--render"]:
        render_loop()
        return
    settings = read_arguments(words)
    os.umask(0o077)
    if sys.flags.optimize:
        end(ARGUMENTS, "run it without -O: the libraries' checks are assertions")
    asyncio.run(serve(settings, LIBRARIES[settings.engine]()))


if __name__ == "__main__":
    main()
