"""Attention of mixed passes, and on a CPU without copies of what was read before.

Both go through transformers' own function for torch's attention, under a name of ours: models that call
attention through its registry can be given it.

Where several query heads share keys and values, transformers repeats these for a masked block, all of what was
read so far for every few tokens: most of a block's time deep in a long prompt. torch's kernel for the CPU
takes them as they are. (Elsewhere it would fall back to a slow one, which is why transformers repeats them.)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from fastchat_backend_hf.mixed_pass import MixedPass

__all__ = ["use_own_attention"]

_NAME = "fastchat_mixed"


def use_own_attention(model: Any) -> bool:
    """Let `model` call attention here, if it would use torch's; whether it will."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)
    return bool(model.config._attn_implementation == _NAME)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    mixed: MixedPass | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`query` is ``[rows, heads, tokens, width]``, `key` and `value` may have fewer heads.

    The result is ``[rows, tokens, heads, width]``. `mixed` is what the runner gave to a decoding step.
    """
    if mixed is None:
        return _plain_attention(module, query, key, value, attention_mask, **options), None

    def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return _plain_attention(module, query, keys, values, mask, **options)

    return mixed.attend(module.layer_idx, query, key, value, attend), None


def _plain_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> Tensor:
    special = options.get("softcap") is not None or options.get("position_bias") is not None
    repeats = mask is not None and query.shape[2] > 1 and query.shape[1] != key.shape[1]
    if special or not repeats or query.device.type != "cpu":
        found: Tensor = sdpa_attention_forward(module, query, key, value, mask, **options)[0]
        return found
    scale = options.get("scaling")
    return scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True).transpose(1, 2)
