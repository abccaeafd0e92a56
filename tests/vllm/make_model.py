"""Makes the models that vLLM is tested with; run inside the environment that `make_env.sh` makes.

make_model.py tiny  SMOLLM2.gguf FOLDER    a random llama of two layers with SmolLM2's tokenizer, 10 MB
make_model.py smol  SMOLLM2.gguf FOLDER    SmolLM2-135M-Instruct itself, 270 MB, with a template that shows tools
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

# SmolLM2's own template has no place for tools. This one is ours, in the form that the parser `hermes` reads.
TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}
{% endif %}You may call functions. Their signatures, each a JSON object:
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>
To call one, answer with its name and arguments:
<tool_call>
{"name": NAME, "arguments": ARGUMENTS}
</tool_call><|im_end|>
{% elif messages[0].role != 'system' %}<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message.role == 'system') %}<|im_start|>
{{- 'user' if message.role == 'tool' else message.role }}
{% if message.role == 'tool' %}<tool_response>
{{ message.content }}
</tool_response>
{%- else %}{{ message.content or '' }}{% endif %}
{%- for call in message.tool_calls or [] %}
<tool_call>
{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def main() -> None:
    kind, gguf, folder = sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3])
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    {"tiny": _make_tiny, "smol": _make_smol}[kind](gguf, partial)
    partial.rename(folder)


def _make_smol(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    _save_tokenizer(gguf, folder)


def _make_tiny(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _save_tokenizer(gguf, folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def _save_tokenizer(gguf: Path, folder: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    _check_saved(folder)
    return tokenizer


def _check_saved(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if "chat_template" not in config and not (folder / "chat_template.jinja").is_file():
        sys.exit("the chat template was not saved")


if __name__ == "__main__":
    main()
