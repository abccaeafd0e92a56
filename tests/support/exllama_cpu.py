"""The real libraries' Python on a processor: configs, tokenizers, generators, jobs, samplers and filters as they are,
with their forward pass and what they have compiled replaced by a few lines.

`install(folder, python, sources)` writes an interpreter that runs the host so. `python` has torch (any build will do),
tokenizers, safetensors, llguidance and what else the libraries import; `sources` is the folder of the unpacked wheels.
The "model" says `ANSWER`, token by token, whatever it is asked.
"""

from __future__ import annotations

import itertools
import os
import runpy
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

__all__ = ["ANSWER", "install", "write_real_model"]

ANSWER = "Once upon a time there was a prince 🙂 who laughed."
_END = 3
_CORPUS = ["Once upon a time there was a prince who laughed. user assistant system"] * 50
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def install(folder: Path, python: str, sources: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    executable = folder / "python"
    executable.write_text(
        f"#!{python} -I\n"
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        f"from support.exllama_cpu import main\nmain({str(sources)!r})\n"
    )
    executable.chmod(0o755)
    return executable


def write_real_model(folder: Path, python: str) -> Path:
    """A Llama of one layer with a tokenizer of its own, by the libraries of `python`."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
    code += f"from support.exllama_cpu import _write; _write({str(folder)!r})"
    subprocess.run((python, "-I", "-c", code), check=True, timeout=120)
    return folder


def _write(path: str) -> None:
    import json

    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": 0, "eos_token_id": 1,
        "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2,
        "num_hidden_layers": 1, "rms_norm_eps": 1e-5, "vocab_size": size, "max_position_embeddings": 2048,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, _END]}))
    told = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (size, 64), "lm_head.weight": (size, 64), "model.norm.weight": (64,),
        layer + "input_layernorm.weight": (64,), layer + "post_attention_layernorm.weight": (64,),
        layer + "mlp.gate_proj.weight": (128, 64), layer + "mlp.up_proj.weight": (128, 64),
        layer + "mlp.down_proj.weight": (64, 128),
        **{f"{layer}self_attn.{name}_proj.weight": (64, 64) for name in "qkvo"},
    }  # fmt: skip
    tensors = {name: torch.zeros(*shape, dtype=torch.float16) for name, shape in shapes.items()}
    save_file(tensors, str(folder / "model.safetensors"))


# -- in the interpreter


def main(sources: str) -> None:
    words = [word for word in sys.argv[1:] if word not in ("-I", "-u")]
    sys.path[:] = [sources, *(path for path in sys.path if path != str(Path(__file__).parent.parent))]
    os.environ["EXL3_FUSED_SAMPLER"] = "0"
    _pretend_cuda()
    if "exllamav2" in words:
        _prepare_v2()
    elif "exllamav3" in words:
        _prepare_v3()
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def _pretend_cuda() -> None:
    import torch

    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.empty_cache = cuda.synchronize = lambda *_: None
    cuda.memory_reserved = lambda _=0: 2**20

    def unpinned(make: Any) -> Any:
        return lambda *args, **kwargs: make(*args, **{k: v for k, v in kwargs.items() if k != "pin_memory"})

    for name in ("empty", "zeros", "empty_like"):
        setattr(torch, name, unpinned(getattr(torch, name)))


def _compiled(name: str, **functions: Any) -> None:
    """Takes the place of the compiled extension."""
    import importlib.machinery as machinery

    class Missing:
        def __call__(self, *_: Any) -> Any:
            raise NotImplementedError("this is compiled code")

        def __getattr__(self, inner: str) -> Any:
            if inner.startswith("__"):
                raise AttributeError(inner)
            return Missing()

    def missing(wanted: str) -> Any:
        if wanted.startswith("__"):
            raise AttributeError(wanted)
        return Missing()

    module = types.ModuleType(name)
    origin = f"/{name}{machinery.EXTENSION_SUFFIXES[0]}"
    module.__spec__ = machinery.ModuleSpec(name, machinery.ExtensionFileLoader(name, origin), origin=origin)
    module.__getattr__ = missing  # type: ignore[method-assign]
    vars(module).update(partial_strings_match=_match, count_match=lambda *_: 0, **functions)
    sys.modules[name] = module


def _match(text: Any, offsets: Any, strings: Any) -> int:
    """Where a string begins (whole), -2 where the end of the text may become one, else -1."""
    import numpy as np

    held = bytes(text).decode("utf-32-le")
    places = np.frombuffer(bytes(offsets), dtype=np.int32)
    raw = bytes(strings)
    wanted = [raw[a:b].decode("utf-32-le") for a, b in itertools.pairwise(places)]
    for start in range(len(held)):
        for stop in wanted:
            part = held[start : start + len(stop)]
            if part == stop:
                return start
            if stop.startswith(part) and start + len(part) == len(held):
                return -2
    return -1


def _note_prefill(job: Any, results: list[dict[str, Any]], end: int) -> None:
    if job.time_first_prefill is None:
        job.time_first_prefill = time.time()
    results.append({"job": job, "stage": "prefill", "eos": False, "curr_progress": end, "max_progress": end,
                    "serial": job.serial_number, "identifier": job.identifier})  # fmt: skip


def _prepare_v2() -> None:
    import torch

    def sample(logits: Any, temperature: Any, top_k: Any, *rest: Any) -> list[Any]:
        random, tokens, probs, allowed = rest[5], rest[6], rest[7], rest[10]
        row = logits[:, 0, :].clone()
        if allowed.device.type != "meta":
            row[~allowed] = -float("inf")
        if top_k == 1:
            tokens.copy_(row.argmax(-1, keepdim=True))
        else:
            below = torch.softmax(row / temperature, -1).cumsum(-1) < random
            tokens.copy_(below.sum(-1, keepdim=True).clamp(max=row.shape[-1] - 1))
        probs.fill_(1.0)
        return []

    def allow(mask: Any, rows: Any) -> None:
        mask.fill_(False)
        for row, tokens in zip(mask, rows, strict=True):
            row[list(tokens)] = True

    def add(logits: Any, bias: Any) -> None:
        logits += bias

    _compiled(
        "exllamav2_ext",
        sample_basic=sample,
        logit_filter_exclusive=allow,
        fast_fill_cpu_ones_bool=lambda mask: mask.fill_(True),
        fast_fadd_cpu=add,
        apply_rep_penalty=lambda *_: None,
    )
    import exllamav2
    from exllamav2.generator import dynamic

    dynamic.cuda_sync_active = lambda: None

    class Model:
        active: Any = None

        def __init__(self, config: Any) -> None:
            self.config = config
            self.answer = [*exllamav2.ExLlamaV2Tokenizer(config).encode(ANSWER)[0].tolist(), _END]

        def load_autosplit(self, cache: Any, callback: Any = None) -> None:
            callback(1, 1)

        def forward_chunk(self, input_ids: Any, attn_params: Any, **_: Any) -> dict[str, Any]:
            size = -(-self.config.vocab_size // 32) * 32
            out = torch.zeros(1, input_ids.shape[1], size)
            made = attn_params.past_len + 1 - len(Model.active.sequences[0].input_ids)
            out[0, 0, self.answer[made % len(self.answer)]] = 9.0
            return {"logits": out}

    class Cache:
        batch_size = 1

        def __init__(self, model: Any, max_seq_len: int, lazy: bool = False) -> None:
            self.max_seq_len = max_seq_len

    def prefill(job: Any, results: list[dict[str, Any]]) -> None:
        Model.active = job
        for seq in job.sequences:
            if not seq.prefill_complete:
                seq.kv_position, seq.prefill_complete = len(seq.sequence_ids) - 1, True
                _note_prefill(job, results, seq.kv_position)

    exllamav2.ExLlamaV2, exllamav2.ExLlamaV2Cache = Model, Cache
    dynamic.ExLlamaV2DynamicJob.prefill = prefill


def _prepare_v3() -> None:
    import torch

    def noise(given: Any, out: Any, seed: int) -> None:
        uniform = torch.rand(given.shape, generator=torch.Generator().manual_seed(int(seed))).clamp_min(1e-9)
        out.copy_(given.float() - torch.log(-torch.log(uniform)))

    def mask(logits: Any, out: Any, bits: Any) -> None:
        words = bits.view(-1).tolist()
        keep = [n // 32 < len(words) and bool(words[n // 32] >> (n % 32) & 1) for n in range(logits.shape[-1])]
        out.copy_(logits)
        out[:, ~torch.tensor(keep)] = -float("inf")

    def same(given: Any, out: Any, *_: Any) -> None:
        out.copy_(given)

    _compiled(
        "exllamav3_ext",
        generator_stage_decode=lambda *_: None,
        gumbel_noise_f16=noise,
        gumbel_noise_f32=noise,
        gumbel_noise_log=lambda given, out, seed: noise(torch.log(given.clamp_min(1e-30)), out, seed),
        apply_logit_bitmask=mask,
        apply_rep_pens=same,
        apply_pres_freq_pens=same,
    )
    import exllamav3
    from exllamav3.generator import generator, job

    generator.cuda_sync_active = lambda: None

    class Model:
        caps: dict[str, Any] = {}  # noqa: RUF012 - the real one's is a plain dictionary
        loaded_tp = False
        output_device = "cpu"
        generator: Any = None

        def __init__(self, config: Any) -> None:
            self.config = config
            self.answer = [*exllamav3.Tokenizer.from_config(config).encode(ANSWER)[0].tolist(), _END]

        @staticmethod
        def from_config(config: Any) -> Any:
            return Model(config)

        def load(self, *, callback: Any, **_: Any) -> None:
            callback(1, 1)

        def warmup(self, *, callback: Any, **_: Any) -> None:
            callback(1, 1)

        def get_cache_layers(self) -> list[Any]:
            return []

        def prefetch_tokens(self, _: Any) -> None:
            pass

        def forward(self, input_ids: Any, params: Any) -> Any:
            rows = []
            for one in self.generator.active_jobs:
                if one.is_prefill_done():
                    made = len(one.sequences[0].sequence_ids) - len(one.sequences[0].input_ids)
                    row = torch.zeros(1, 1, -(-self.config.vocab_size // 32) * 32, dtype=torch.half)
                    row[0, 0, self.answer[made % len(self.answer)]] = 9.0
                    rows.append(row)
            return torch.cat(rows)

    class Cache:
        initialized = True
        max_history = 0

        def __init__(self, model: Any, max_num_tokens: int, **_: Any) -> None:
            self.max_num_tokens = max_num_tokens

        def copy_page(self, *_: Any) -> None:
            pass

    made = generator.Generator.__init__

    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.model.generator = self

    def prefill(one: Any, results: list[dict[str, Any]], chunk_size: int | None = None) -> None:
        for seq in one.sequences:
            if not seq.prefill_complete:
                end = len(seq.sequence_ids) - 1
                for n, page in enumerate(seq.allocated_pages):
                    page.kv_position = max(page.kv_position, min(256, max(0, end - n * 256)))
                seq.kv_position, seq.prefill_complete = end, True
                _note_prefill(one, results, end)

    exllamav3.Model, exllamav3.Cache = Model, Cache
    generator.Generator.__init__ = make
    job.Job.prefill = prefill
