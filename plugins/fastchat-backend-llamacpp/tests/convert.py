"""A Llama of Hugging Face as a GGUF file in float32, as llama.cpp's own converter would write it.

The demonstration model cuts text by a rule of its own before merging. ``gpt-2``'s rule is coarser, which comes to the
same but for some letters and symbols beyond Latin. ``python tests/convert.py FILE`` writes that model to `FILE`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

__all__ = ["convert", "read_tensors", "write_adapter"]

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def convert(
    folder: Path,
    file: Path,
    *,
    pre: str = "gpt-2",
    pooling: gguf.PoolingType | None = None,
    changes: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Write the model of `folder` to `file`.

    `pre` is the rule for cutting text; with `pooling`, it is meant for embeddings; `changes` are added to its tensors.
    """
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("test")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    if pooling is not None:
        writer.add_pooling_type(pooling)
    _add_tokenizer(writer, folder, config, pre)
    for name, tensor in read_tensors(folder / "model.safetensors").items():
        changed = tensor + (changes or {}).get(name, np.float32(0))
        writer.add_tensor(_gguf_name(name), _as_llama_cpp(name, changed, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_adapter(file: Path, factors: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]) -> None:
    """Write a LoRA adapter that adds ``b @ a`` for ``factors[name] = (a, b)``; of tensors that are not rotated."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(next(iter(factors.values()))[0].shape[0]))
    for name, (a, b) in factors.items():
        writer.add_tensor(f"{_gguf_name(name)}.lora_a", a)
        writer.add_tensor(f"{_gguf_name(name)}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_tensors(file: Path) -> dict[str, NDArray[np.float32]]:
    """The tensors of a safetensors file, float32 or bfloat16, as float32."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        low, high = entry["data_offsets"]
        raw = data[start + low : start + high]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            assert entry["dtype"] == "F32"
            values = np.frombuffer(raw, np.float32)
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any], pre: str) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = {id: token for token, id in tokenizer["model"]["vocab"].items()}
    kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    ids = range(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokens.get(id, f"[unused{id}]") for id in ids])
    writer.add_token_types([kinds.get(id, gguf.TokenType.UNUSED) for id in ids])
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    )
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def _gguf_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    layer, _, part = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER_NAMES[part.removesuffix('.weight')]}.weight"


def _as_llama_cpp(name: str, tensor: NDArray[np.float32], config: dict[str, Any]) -> NDArray[np.float32]:
    """llama.cpp rotates neighbouring values of a head, transformers those half a head apart."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    if heads is None:
        return np.ascontiguousarray(tensor)
    shape = (config[heads], 2, tensor.shape[0] // config[heads] // 2, *tensor.shape[1:])
    return np.ascontiguousarray(tensor.reshape(shape).swapaxes(1, 2).reshape(tensor.shape))


if __name__ == "__main__":  # python tests/convert.py demo.gguf
    import sys
    from importlib.resources import files

    convert(Path(str(files("fastchat_model_demo") / "weights")), Path(sys.argv[1]))
