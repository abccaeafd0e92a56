"""Turn a sentence-transformers BERT folder into a GGUF file, for tests that need a real embedding model.

Reads `config.json`, `vocab.txt`, `model.safetensors` and `1_Pooling/config.json`; matrices become Q8_0,
the rest stays F32. Tensor and key names are those that llama.cpp documents for the architecture `bert`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open

__all__ = ["convert_bert"]

ARCHITECTURE = "bert"
TOP = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
BLOCK = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
CONTROL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
POOLING = {"pooling_mode_mean_tokens": gguf.PoolingType.MEAN, "pooling_mode_cls_token": gguf.PoolingType.CLS}


def convert_bert(folder: Path, target: Path, *, name: str = "all-MiniLM-L6-v2") -> None:
    """Write `target`, whole or not at all."""
    config = json.loads((folder / "config.json").read_text())
    partial = target.with_name(target.name + ".partial")
    writer = gguf.GGUFWriter(partial, ARCHITECTURE)
    writer.add_name(name)
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    writer.add_pooling_type(_pooling(folder))
    _add_vocabulary(writer, (folder / "vocab.txt").read_text(encoding="utf-8").splitlines(), config)
    _add_tensors(writer, folder / "model.safetensors")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(target)


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)


def _pooling(folder: Path) -> gguf.PoolingType:
    chosen = json.loads((folder / "1_Pooling" / "config.json").read_text())
    return next(kind for key, kind in POOLING.items() if chosen.get(key))


def _add_vocabulary(writer: gguf.GGUFWriter, words: list[str], config: dict[str, Any]) -> None:
    # WordPiece marks the inside of a word (`##ing`), llama.cpp its beginning (`▁ing`).
    tokens, types = [], []
    for word in words:
        is_control = word in CONTROL_TOKENS
        types.append(gguf.TokenType.CONTROL if is_control else gguf.TokenType.NORMAL)
        tokens.append(word if is_control else word[2:] if word.startswith("##") else "\u2581" + word)
    if len(tokens) != config["vocab_size"]:
        raise ValueError(f"vocab.txt has {len(tokens)} words, config.json says {config['vocab_size']}")
    ids = {word: words.index(word) for word in CONTROL_TOKENS}
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_tokenizer_model(ARCHITECTURE)
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_eos_token_id(ids["[SEP]"])
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_mask_token_id(ids["[MASK]"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)
    writer.add_bool("tokenizer.ggml.normalizer.lowercase", True)


def _add_tensors(writer: gguf.GGUFWriter, weights: Path) -> None:
    with safe_open(weights, framework="numpy") as tensors:
        for source in sorted(tensors.keys()):
            target = _tensor_name(source.removeprefix("bert."))
            if target is None:
                continue
            values = np.ascontiguousarray(tensors.get_tensor(source), dtype=np.float32)
            is_small = values.ndim < 2 or target in {"position_embd.weight", "token_types.weight"}
            kind = gguf.GGMLQuantizationType.F32 if is_small else gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quantize(values, kind), raw_dtype=kind)


def _tensor_name(source: str) -> str | None:
    """None for what an embedding doesn't use (the pooler, the stored position ids)."""
    stem, _, suffix = source.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{suffix}"
    if not stem.startswith("encoder.layer."):
        return None
    number, _, part = stem.removeprefix("encoder.layer.").partition(".")
    return f"blk.{number}.{BLOCK[part]}.{suffix}"


if __name__ == "__main__":
    convert_bert(Path(sys.argv[1]), Path(sys.argv[2]))
