"""A text encoder of random weights as a GGUF file, and what it makes of tokens, worked out with numpy."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

__all__ = ["TinyBert"]

_WIDTH, _HEADS, _INNER, _LAYERS, _POSITIONS = 32, 2, 64, 2, 48
_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁the", "▁fox", "▁lives", "▁near", "▁a", "▁river", "s", "▁.")
_EPSILON = 1e-12

_Array = NDArray[np.float32]


class TinyBert:
    """Two layers, as BERT has them."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def matrix(*shape: int) -> _Array:
            return rng.normal(0, 0.3, shape).astype(np.float32)

        def norm(name: str) -> dict[str, _Array]:
            return {f"{name}.weight": 1 + matrix(_WIDTH), f"{name}.bias": matrix(_WIDTH)}

        def linear(name: str, out: int, into: int) -> dict[str, _Array]:
            return {f"{name}.weight": matrix(out, into), f"{name}.bias": matrix(out)}

        self._tensors = {
            "token_embd.weight": matrix(len(_WORDS), _WIDTH),
            "token_types.weight": matrix(2, _WIDTH),
            "position_embd.weight": matrix(_POSITIONS, _WIDTH),
            **norm("token_embd_norm"),
        }
        for layer in (f"blk.{number}." for number in range(_LAYERS)):
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                self._tensors |= linear(layer + name, _WIDTH, _WIDTH)
            self._tensors |= norm(f"{layer}attn_output_norm") | norm(f"{layer}layer_output_norm")
            self._tensors |= linear(f"{layer}ffn_up", _INNER, _WIDTH) | linear(f"{layer}ffn_down", _WIDTH, _INNER)

    def write(self, file: Path, pooling: gguf.PoolingType) -> None:
        writer = gguf.GGUFWriter(file, "bert")
        writer.add_context_length(_POSITIONS)
        writer.add_embedding_length(_WIDTH)
        writer.add_block_count(_LAYERS)
        writer.add_feed_forward_length(_INNER)
        writer.add_head_count(_HEADS)
        writer.add_layer_norm_eps(_EPSILON)
        writer.add_causal_attention(False)
        writer.add_pooling_type(pooling)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_tokenizer_model("bert")
        writer.add_token_list(list(_WORDS))
        writer.add_token_types([gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * (len(_WORDS) - 5))
        writer.add_token_type_count(2)
        for name, id in (("pad", 0), ("unk", 1), ("bos", 2), ("sep", 3), ("mask", 4)):
            getattr(writer, f"add_{name}_token_id")(id)
        for name, tensor in self._tensors.items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def states(self, tokens: tuple[int, ...]) -> _Array:
        """``[tokens, width]``."""
        found = self._tensors
        rows = found["token_embd.weight"][list(tokens)] + found["position_embd.weight"][: len(tokens)]
        rows = self._norm("token_embd_norm", rows + found["token_types.weight"][0])
        for layer in (f"blk.{number}." for number in range(_LAYERS)):
            rows = self._norm(f"{layer}attn_output_norm", rows + self._attention(layer, rows))
            inner = self._linear(f"{layer}ffn_up", rows)
            inner = inner * 0.5 * (1 + np.tanh(sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
            rows = self._norm(f"{layer}layer_output_norm", rows + self._linear(f"{layer}ffn_down", inner))
        return rows

    def _attention(self, layer: str, rows: _Array) -> _Array:
        queries, keys, values = (
            self._linear(f"{layer}attn_{name}", rows).reshape(len(rows), _HEADS, -1).swapaxes(0, 1) for name in "qkv"
        )
        scores = np.exp(queries @ keys.swapaxes(1, 2) / sqrt(_WIDTH // _HEADS))
        mixed = scores / scores.sum(-1, keepdims=True) @ values
        return self._linear(f"{layer}attn_output", mixed.swapaxes(0, 1).reshape(rows.shape))

    def _linear(self, name: str, rows: _Array) -> _Array:
        return rows @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"]

    def _norm(self, name: str, rows: _Array) -> _Array:
        centred = rows - rows.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + _EPSILON)
        return scaled * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"]
