"""What the stand-ins for exllamav2 and exllamav3 have in common: a tokenizer of bytes, a "model" that says what its
script tells it to, and the generator that both libraries have in one form or another.

The rules of the real ones that matter to a caller are kept: one thread only, pages of 256 tokens, assertions at
`enqueue`, text held back while it may become a stop string or is half a character, an exception of `iterate` that
leaves the generator useless.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["SCRIPT", "FakeGenerator", "FakeJob", "FakeTokenizer", "held_text", "load_modules", "note"]

SCRIPT: dict[str, Any] = json.loads(Path(os.environ["FAKE_EXLLAMA_SCRIPT"]).read_text())
PAGE = 256
BOS, EOS, TURN, TURN_END = 256, 257, 258, 259
SPECIALS = {"<s>": BOS, "</s>": EOS, "<|im_start|>": TURN, "<|im_end|>": TURN_END}
VOCABULARY = 260


def note(event: str, **facts: Any) -> None:
    """One line in the file that tests read back."""
    line = json.dumps({"event": event, **facts}) + "\n"
    with Path(os.environ["FAKE_EXLLAMA_SCRIPT"]).with_name("events.jsonl").open("a") as file:
        file.write(line)


def load_modules(callback: Any, *, tokens: int) -> None:
    """Loading, module by module, with its misfortunes."""
    if SCRIPT["load_error"]:
        kind, text = SCRIPT["load_error"]
        raise {"RuntimeError": RuntimeError, "ValueError": ValueError, "AssertionError": AssertionError}[kind](text)
    for done in range(1, 5):
        time.sleep(SCRIPT["load_s"] / 4)
        if SCRIPT["tokens_max"] is not None and tokens > SCRIPT["tokens_max"]:
            raise RuntimeError("Insufficient VRAM for model and cache")
        if callback is not None:
            callback(done, 4)
    while SCRIPT["hangs_in_load"]:
        time.sleep(1)


def held_text(schema: Any) -> bytes:
    """What the model says when it is held to `schema` (None: to a grammar)."""
    if schema is None or not SCRIPT["fits_schemas"]:
        return b'{"ok":1}'
    whole = json.loads(schema) if isinstance(schema, str) else schema
    return json.dumps(_least(whole, whole), separators=(",", ":")).encode()


def _least(schema: dict[str, Any], whole: dict[str, Any]) -> Any:
    """The first value that comes to mind: for schemas as tests write them."""
    if "$ref" in schema:
        found: Any = whole
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return _least(found, whole)
    if "anyOf" in schema:
        return _least(schema["anyOf"][0], whole)
    for key, value in (("const", schema.get("const")), ("enum", schema.get("enum", (None,))[0])):
        if key in schema:
            return value
    if schema.get("type", "object") == "object":
        fields = schema.get("properties", {})
        return {name: _least(fields[name], whole) for name in schema.get("required", ()) if name in fields}
    return {"array": [], "string": "x", "boolean": True, "null": None}.get(schema["type"], 1)


class _Vocabulary:
    """The tokenizers library's object behind both tokenizers."""

    def id_to_token(self, token: int) -> str | None:
        if token < 256:
            return f"<0x{token:02X}>"
        return next((text for text, own in SPECIALS.items() if own == token), None)


class FakeTokenizer:
    bos_token, eos_token = "<s>", "</s>"
    bos_token_id, eos_token_id = BOS, EOS
    pad_token_id = unk_token_id = -1
    actual_vocab_size = VOCABULARY

    def __init__(self) -> None:
        self.vocabulary = _Vocabulary()
        self.extended_id_to_piece = {token: text for text, token in SPECIALS.items()}

    def encode(
        self,
        text: str,
        add_bos: bool = False,
        add_eos: bool = False,
        encode_special_tokens: bool = False,
        return_offsets: bool = False,
        embeddings: Any = None,
    ) -> Any:
        import torch

        ids = [BOS] if add_bos else []
        while text:
            special = (
                next((name for name in SPECIALS if text.startswith(name)), None) if encode_special_tokens else None
            )
            if special is not None:
                ids.append(SPECIALS[special])
                text = text[len(special) :]
            else:
                ids += text[0].encode("utf-8", "replace")
                text = text[1:]
        return torch.tensor([ids], dtype=torch.long)

    def decode(self, ids: Any, decode_special_tokens: bool = False) -> Any:
        values = ids.tolist()
        if values and isinstance(values[0], list):
            return [self._decode(row, decode_special_tokens) for row in values]
        return self._decode(values, decode_special_tokens)

    def _decode(self, ids: list[int], special: bool) -> str:
        out, run = "", bytearray()
        for token in ids:
            if token < 256:
                run.append(token)
                continue
            out += run.decode("utf-8", "replace")
            run.clear()
            out += self.extended_id_to_piece[token] if special else ""
        return out + run.decode("utf-8", "replace")

    def get_id_to_piece_list(self, include_special_tokens: bool = False) -> list[str]:
        # The real ones spell special tokens out in both lists, where they are beyond the base vocabulary.
        plain = [bytes([value]).decode("utf-8", "replace") for value in range(256)]
        return plain + [self.extended_id_to_piece[token] for token in range(256, VOCABULARY)]


class FakeJob:
    """`chooser` gives the next token after those that were made; `drafted` is how many tokens early v2 ends."""

    def __init__(
        self,
        *,
        input_ids: Any,
        max_new_tokens: int,
        seed: int | None,
        stop_conditions: Any,
        decode_special_tokens: bool,
        return_logits: bool,
        identifier: Any,
        filters: Any,
        is_greedy: bool,
        settings: dict[str, Any],
    ) -> None:
        assert input_ids.device.type == "cpu", "input_ids must reside in system memory"
        assert input_ids.shape[-1] > 0, "Input IDs cannot be empty."
        assert input_ids.shape[0] == 1
        assert not decode_special_tokens
        self.prompt: list[int] = input_ids.tolist()[0]
        self.max_new_tokens = max_new_tokens
        self.identifier = identifier
        self.return_logits = return_logits
        self.filters = list(filters or ())
        self.stop_tokens = {stop for stop in stop_conditions or () if isinstance(stop, int)}
        self.stop_strings = [stop for stop in stop_conditions or () if isinstance(stop, str)]
        self.rng = random.Random(seed)  # noqa: S311 - None: any
        self.is_greedy = is_greedy
        self.serial_number = -1
        self.prefilled = 0
        self.made: list[int] = []
        self.held: list[int] = []
        self.held_text = ""
        self.full = ""
        note("job", prompt=bytes(t for t in self.prompt if t < 256).decode("utf-8", "replace"), ids=len(self.prompt),
             max_new_tokens=max_new_tokens, seed=seed, stops=sorted(map(str, stop_conditions or ())),
             settings=settings)  # fmt: skip

    @property
    def pages(self) -> int:
        return -(-(len(self.prompt) + self.max_new_tokens) // PAGE)

    def choose(self) -> int:
        if self.filters:
            return int(self.filters[0].choice(len(self.made)))
        if not self.is_greedy:
            return self.rng.choice(b"abcdefgh ")
        text = SCRIPT["answer"].encode()
        if len(self.made) < len(text) or SCRIPT["endless"]:
            return text[len(self.made) % len(text)]
        return int(SCRIPT["ends_with"])


class FakeGenerator:
    def __init__(self, *, cache_tokens: int, page_size: int, max_batch_size: int, drafted: int, name: str) -> None:
        if SCRIPT["rebuild_fails"] and Path(os.environ["FAKE_EXLLAMA_SCRIPT"]).with_name("failed").exists():
            raise RuntimeError("no second generator")
        self.cache_tokens = cache_tokens
        self.page_size = page_size
        self.max_pages = max(cache_tokens // page_size, 1)
        self.max_batch_size = max_batch_size
        self.drafted = drafted
        self.name = name
        self.pending_jobs: list[FakeJob] = []
        self.active_jobs: list[FakeJob] = []
        self.serial = 0
        self.steps = 0
        self.is_broken = False
        self.thread = threading.get_ident()
        note("generator", name=name, cache_tokens=cache_tokens, max_batch_size=max_batch_size, page_size=page_size)

    def enqueue(self, job: FakeJob) -> int:
        self._check_thread()
        total = -(-(len(job.prompt) + job.max_new_tokens) // self.page_size)
        if SCRIPT["refuses"] and SCRIPT["refuses"].encode() in bytes(token for token in job.prompt if token < 256):
            total = 99
        assert total <= self.max_pages, (
            f"Job requires {total} pages (only {self.max_pages} available) and cannot be enqueued. Total cache "
            f"allocated is {self.max_pages} * {self.page_size} = {self.cache_tokens} tokens"
        )
        job.serial_number = self.serial
        self.serial += 1
        self.pending_jobs.append(job)
        return job.serial_number

    def cancel(self, job: FakeJob) -> None:
        self._check_thread()
        note("cancel", identifier=job.identifier)
        if job in self.pending_jobs:
            self.pending_jobs.remove(job)
        elif job in self.active_jobs:
            self.active_jobs.remove(job)

    def num_remaining_jobs(self) -> int:
        return len(self.pending_jobs) + len(self.active_jobs)

    def iterate(self) -> list[dict[str, Any]]:
        self._check_thread()
        assert not self.is_broken, "a generator that failed was asked again"
        time.sleep(SCRIPT["token_s"])
        self.steps += 1
        self._misfortune()
        results: list[dict[str, Any]] = []
        self._start_jobs(results)
        for job in list(self.active_jobs):
            if job.prefilled < len(job.prompt) - 1:
                job.prefilled = min(len(job.prompt) - 1, job.prefilled + 2048)
                results.append({"job": job, "stage": "prefill", "eos": False, "serial": job.serial_number,
                                "curr_progress": job.prefilled, "max_progress": len(job.prompt) - 1,
                                "identifier": job.identifier})  # fmt: skip
        for job in list(self.active_jobs):
            if job.prefilled >= len(job.prompt) - 1:
                results.append(self._next(job))
                if results[-1]["eos"]:
                    self.active_jobs.remove(job)
        return results

    def _check_thread(self) -> None:
        assert threading.get_ident() == self.thread, "called from another thread than the one that made it"

    def _misfortune(self) -> None:
        """The nth step of the process goes wrong, as scripted."""
        counter = Path(os.environ["FAKE_EXLLAMA_SCRIPT"]).with_name("steps")
        with counter.open("a") as file:
            file.write(".")
        step = counter.stat().st_size
        if step in SCRIPT["fails_at"] or (SCRIPT["fails_from"] is not None and step >= SCRIPT["fails_from"]):
            counter.with_name("failed").touch()
            self.is_broken = True
            if SCRIPT["failure"] == "memory":
                import torch

                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            raise RuntimeError(SCRIPT["failure"])
        if step == SCRIPT["dies_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        while SCRIPT["stalls_at"] is not None and step >= SCRIPT["stalls_at"]:
            time.sleep(1)

    def _start_jobs(self, results: list[dict[str, Any]]) -> None:
        for job in list(self.pending_jobs):
            used = sum(-(-(len(j.prompt) + j.max_new_tokens) // self.page_size) for j in self.active_jobs)
            needed = -(-(len(job.prompt) + job.max_new_tokens) // self.page_size)
            if len(self.active_jobs) >= self.max_batch_size or used + needed > self.max_pages:
                continue
            self.pending_jobs.remove(job)
            marker = SCRIPT["job_error"]
            if marker and marker.encode() in bytes(token for token in job.prompt if token < 256):
                # exllamav3 contains what fails for one job; such results have no identifier
                results.append({"job": job, "serial": job.serial_number, "stage": "error", "eos": True,
                                "error": RuntimeError("this prompt is cursed")})  # fmt: skip
                continue
            self.active_jobs.append(job)
            results.append({"job": job, "stage": "started", "eos": False, "serial": job.serial_number,
                            "identifier": job.identifier})  # fmt: skip

    def _next(self, job: FakeJob) -> dict[str, Any]:
        token = job.choose()
        job.made.append(token)
        job.held.append(token)
        for each in job.filters:
            each.fed(token)
        job.held_text += FakeTokenizer().get_id_to_piece_list()[token]
        if token in job.stop_tokens:
            return self._emit(job, "stop_token", token=token, emits=False)
        if len(job.made) >= job.max_new_tokens - self.drafted:
            return self._emit(job, "max_new_tokens")
        if "\ufffd" in job.held_text:
            text = bytes(t for t in job.held if t < 256).decode("utf-8", "replace")
            if "\ufffd" in text:
                return self._emit(job, None, emits=False)
            job.held_text = text
        for stop in job.stop_strings:
            if (place := job.held_text.find(stop)) >= 0:
                rest, job.held_text = job.held_text[place:], job.held_text[:place]
                return self._emit(job, "stop_string", stop=stop, rest=rest)
        if any(job.held_text.endswith(stop[:n]) for stop in job.stop_strings for n in range(1, len(stop))):
            return self._emit(job, None, emits=False)
        return self._emit(job, None)

    def _emit(
        self,
        job: FakeJob,
        reason: str | None,
        *,
        emits: bool = True,
        token: int | None = None,
        stop: str | None = None,
        rest: str | None = None,
    ) -> dict[str, Any]:
        result: dict[str, Any] = {"job": job, "stage": "streaming", "eos": reason is not None,
                                  "serial": job.serial_number, "identifier": job.identifier}  # fmt: skip
        if emits:
            result |= dict(self._outputs(job))
            job.full += job.held_text
            job.held, job.held_text = [], ""
        if reason is None:
            return result
        if rest is not None:
            job.held_text = rest
        result |= {
            "eos_reason": reason, "full_completion": job.full, "new_tokens": len(job.made),
            "prompt_tokens": len(job.prompt), "time_enqueued": 0.001, "time_prefill": 0.002, "time_generate": 0.01,
            "cached_pages": 0, "cached_tokens": 0,
        }  # fmt: skip
        if token is not None:
            result |= {"eos_triggering_token_id": token, "eos_triggering_token_str": "?"}
        if stop is not None:
            result["eos_triggering_string"] = stop
        if held := dict(self._outputs(job)):
            result["held"] = held
        note("end", identifier=job.identifier, reason=reason)
        return result

    def _outputs(self, job: FakeJob) -> Iterator[tuple[str, Any]]:
        import torch

        if job.held_text:
            yield "text", job.held_text
        if job.held:
            yield "token_ids", torch.tensor([list(job.held)])
            if job.return_logits:
                yield "logits", torch.tensor([[_logits(token) for token in job.held]])


def _logits(token: int) -> list[float]:
    row = [0.0] * VOCABULARY
    row[token] = 6.0
    row[(token + 1) % 256] = 4.0
    row[VOCABULARY - 1] = float("-inf") if token != VOCABULARY - 1 else 6.0
    return row
