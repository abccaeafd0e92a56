"""A real model that says what a test wants, so that thinking and calls of tools come from an engine and not a stand-in.

It is a llama of one layer whose attention and feed-forward weights are zero: what comes next depends on the last token
alone, by the table below. Its chat template is in the form that engines know from models that think and call tools. It
thinks unless it is told not to, and then calls a tool, whether there are any or not; held to a schema, it says what the
schema lets it say. 100 kB, loaded in an instant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.parity import ANSWER, CALL, THOUGHT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

__all__ = ["CALL_TEXT", "CONTEXT_TOKENS", "write_speaking_folder", "write_speaking_gguf"]

CONTEXT_TOKENS = 4096
CALL_TEXT = '{"name": "weather", "arguments": {"city": "Rome"}}'
assert (CALL[0], CALL[1]["city"], ANSWER, THOUGHT) == ("weather", "Rome", '{"sky":"blue"}', "Let me see")

TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}
{% endif %}<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>
To call one, answer <tool_call>{"name": NAME, "arguments": ARGUMENTS}</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message.role == 'system') %}<|im_start|>
{{- 'user' if message.role == 'tool' else message.role }}
{% if message.role == 'tool' %}<tool_response>{{ message.content }}</tool_response>
{%- else %}
{%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] -%}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor %}{% endif %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"""

_END = "<|im_end|>"
_CONTROL = ("<|endoftext|>", "<|im_start|>", _END)
# After a token, the likeliest first. Every token that is said is one of the vocabulary's own, so that it says alone
# what comes next; engines find the marks of thinking and calls as single tokens, as they do in models of this form.
_NEXT: dict[str, tuple[str, ...]] = {
    "\n": ("<think>",),
    "<think>": ("Let",),
    "Let": (" me",),
    " me": (" see",),
    " see": ("</think>",),
    "</think>": ("<tool_call>", '{"sky":', '{"name": "weather", "arguments": {"city": '),
    '{"sky":': ('"blue"',),
    '"blue"': ("}",),
    "}": (_END,),
    "<tool_call>": ('{"name": "weather", "arguments": {"city": ', '{"name": "clock", "arguments": {'),
    '{"name": "clock", "arguments": {': ("}}",),
    '{"name": "weather", "arguments": {"city": ': ('"Rome"',),
    '"Rome"': ("}}",),
    "}}": ("</tool_call>", _END),
    "</tool_call>": (_END,),
}
_WIDTH = 64
_SURE, _LESS = 10.0, 2.0


def _byte_letters() -> list[str]:
    """What stands for each byte in a vocabulary of bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


_LETTERS = _byte_letters()
_SINGLE = {text for text in _NEXT if len(text) == 1}
_OWN = [text for text in dict.fromkeys((*_NEXT, *(text for many in _NEXT.values() for text in many)))
        if text not in _SINGLE and text not in _CONTROL]  # fmt: skip
_VOCABULARY = (*_LETTERS, *_CONTROL, *_OWN)


def _id(text: str) -> int:
    return _VOCABULARY.index(_LETTERS[ord(text)] if text in _SINGLE else text)


def _weights() -> Iterator[tuple[str, Matrix]]:
    """By llama.cpp's names, as PyTorch lays them out."""
    import numpy as np

    embedding = np.zeros((len(_VOCABULARY), _WIDTH), np.float32)
    output = np.zeros((len(_VOCABULARY), _WIDTH), np.float32)
    embedding[:, 0] = 1
    output[_id(_END), 0] = _SURE
    for place, (text, following) in enumerate(_NEXT.items(), 1):
        embedding[_id(text)] = np.eye(_WIDTH, dtype=np.float32)[place]
        for rank, other in enumerate(following):
            output[_id(other), place] = _SURE - _LESS * rank
    yield "token_embd", embedding
    yield "output", output
    yield "output_norm", np.ones(_WIDTH, np.float32)
    for name in ("attn_norm", "ffn_norm"):
        yield f"blk.0.{name}", np.ones(_WIDTH, np.float32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        yield f"blk.0.{name}", np.zeros((_WIDTH, _WIDTH), np.float32)


def write_speaking_gguf(path: Path) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_WIDTH)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(_WIDTH)
    writer.add_vocab_size(len(_VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(_VOCABULARY)
    kinds = (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)
    counts = (len(_LETTERS), len(_CONTROL), len(_OWN))
    writer.add_token_types([kind for kind, count in zip(kinds, counts, strict=True) for _ in range(count)])
    writer.add_token_merges(["Ġ Ġ"])  # of no effect; there must be one
    writer.add_bos_token_id(_id(_CONTROL[0]))
    writer.add_eos_token_id(_id(_END))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, values in _weights():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_speaking_folder(folder: Path, **config: Any) -> Path:
    """The same model as its publisher would lay it out; `config` goes into its config.json."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    tensors = {f"{_hf_name(name)}.weight": values for name, values in _weights()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    whole = {**_config(), **config}
    files = {
        "config.json": whole,
        "generation_config.json": {"bos_token_id": whole["bos_token_id"], "eos_token_id": whole["eos_token_id"]},
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": _tokenizer_config(),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def _hf_name(name: str) -> str:
    *block, last = name.split(".")
    return f"model.layers.0.{_HF_NAMES[last]}" if block else _HF_NAMES[last]


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _WIDTH,
        "intermediate_size": _WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": _WIDTH,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-6,
        "vocab_size": len(_VOCABULARY),
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": _id(_CONTROL[0]),
        "eos_token_id": _id(_END),
    }


def _tokenizer() -> dict[str, Any]:
    """For the `tokenizers` library: bytes, and whole tokens that are cut out before."""
    added = [
        {
            "id": _id(text),
            "content": text,
            "special": text in _CONTROL,
            "normalized": False,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
        }
        for text in (*_CONTROL, *_OWN)
    ]
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {letter: at for at, letter in enumerate(_LETTERS)},
        "merges": [],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": by_bytes,
        "post_processor": None,
        "decoder": by_bytes,
        "model": model,
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _CONTROL[0],
        "eos_token": _END,
        "model_max_length": CONTEXT_TOKENS,
        "chat_template": TEMPLATE,
    }
