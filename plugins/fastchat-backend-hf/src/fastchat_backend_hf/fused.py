"""Decoder layers of the Llama kind in fewer operations, for CPUs.

A decoding step streams all weights through the processor's caches and computes little with each, so every operation
beside the matrix products begins with cold caches, and it is their number that counts. `FusedLayer` has one product for
queries, keys and values and one for the gate and what it lets through, norms in five operations where transformers
takes eight, and calls no modules in between. The key-value cache and the attention function are called as transformers
calls them, so that either can still be exchanged. `packed.py` lays out the matrices.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fastchat_backend_hf.packed import is_plain, pack_head, product

__all__ = ["FusedLayer", "fuse"]

logger = logging.getLogger(__name__)

_LLAMA = ("input_layernorm", None, "post_attention_layernorm", None)
_GEMMA3 = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_NORMS: Final[Mapping[str, tuple[str | None, ...]]] = MappingProxyType(
    {
        "GemmaDecoderLayer": _LLAMA,
        "Gemma3DecoderLayer": _GEMMA3,
        "LlamaDecoderLayer": _LLAMA,
        "MistralDecoderLayer": _LLAMA,
        "MixtralDecoderLayer": _LLAMA,
        "Qwen2DecoderLayer": _LLAMA,
        "Qwen2MoeDecoderLayer": _LLAMA,
        "Qwen3DecoderLayer": _LLAMA,
        "Qwen3MoeDecoderLayer": _LLAMA,
    }
)
"""Of each kind of layer that can be fused, its norms before and after attention, before and after the perceptron."""

_TRIAL_TOKENS = 8


class _Call(NamedTuple):
    """What a layer was given and gave."""

    args: tuple[Any, ...]
    options: dict[str, Any]
    output: Any


@torch.no_grad()
def fuse(model: Any) -> int:
    """Replace the layers of `model` whose fused form does the same in a trial pass; their number.

    One layer at a time is in memory twice. If none can be replaced, nothing is changed.
    """
    layers = {name: module for name, module in model.named_modules() if _can_be_fused(module)}
    if not layers or model.config._attn_implementation != "sdpa":
        return 0
    count = 0
    for name, call in _trial(model, layers).items():
        fused = _fused(layers.pop(name), call)
        if fused is not None:
            model.set_submodule(name, fused)
            count += 1
    if count:
        pack_head(model)
        logger.info("%d decoder layers run fused", count)
    return count


def _can_be_fused(layer: nn.Module) -> bool:
    """Whether this is a layer of a known kind, on the CPU, and neither quantised nor hooked by accelerate."""
    known = type(layer).__name__ in _NORMS and type(layer).__module__.startswith("transformers.models.")
    if not known or any(hasattr(module, "_hf_hook") for module in layer.modules()):
        return False
    return all(is_plain(getattr(layer.self_attn, name, None)) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))


def _trial(model: Any, layers: Mapping[str, nn.Module]) -> dict[str, _Call]:
    """What `layers` do in a short pass, by name; nothing if `model` cannot make it."""
    calls: dict[str, _Call] = {}

    def record(name: str, layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        calls[name] = _Call(args, options, output)

    hooks = [layer.register_forward_hook(partial(record, name), with_kwargs=True) for name, layer in layers.items()]
    tokens = torch.arange(2 * _TRIAL_TOKENS).view(2, -1) % model.get_input_embeddings().num_embeddings
    try:
        model.base_model(input_ids=tokens, use_cache=False)
    except Exception:  # models of other makers are free to need more than tokens
        logger.warning("the trial pass failed; layers stay as they are", exc_info=True)
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _fused(layer: nn.Module, call: _Call) -> FusedLayer | None:
    """The fused form of `layer`; None if it does not add to its input what the layer added, up to rounding."""
    try:
        fused = FusedLayer(layer)
        found = fused(*call.args, **call.options)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # it only looks like those we know
        return None
    if not isinstance(call.output, Tensor):
        return None
    states, expected, got = (tensor.float() for tensor in (call.args[0], call.output, found))
    rounding = torch.finfo(call.output.dtype).eps
    apart = ((got - expected).abs() - rounding * expected.abs()).clamp(min=0)
    same = apart.norm() <= max(1e-4, 3 * rounding) * (expected - states).norm()
    return fused if same else None


class FusedLayer(nn.Module):
    """Computes what another decoder layer does, from weights of its own."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        # What models read of their layers, and attention functions of theirs.
        vars(self).update({name: value for name, value in vars(layer).items() if not name.startswith("_")})
        self.self_attn = copy.copy(layer.self_attn)
        self.self_attn._modules = {}

        attention = layer.self_attn
        self._width: int = attention.head_dim
        self._queries = attention.q_proj.out_features // self._width
        self._keys = attention.k_proj.out_features // self._width
        self._project = product(attention.q_proj, attention.k_proj, attention.v_proj)
        self._output = product(attention.o_proj)
        self._norm_heads = self._joint_norm(attention)
        self._perceptron = _perceptron(layer.mlp)
        self._before_attention, self._after_attention, self._before_perceptron, self._after_perceptron = (
            _norm(getattr(layer, name)) if name is not None else _unchanged for name in _NORMS[type(layer).__name__]
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> Tensor:
        """``[rows, tokens, width]`` to the same; the parameters have the names that models pass, of old and new."""
        assert position_embeddings is not None
        states = self._before_attention(hidden_states)
        cache = past_key_values if cache is None else cache
        states = self._attend(states, attention_mask, position_embeddings, cache, options)
        hidden_states = hidden_states + self._after_attention(states)
        states = self._perceptron(self._before_perceptron(hidden_states))
        return hidden_states + self._after_perceptron(states)

    def _attend(
        self, states: Tensor, mask: Tensor | None, turn: tuple[Tensor, Tensor], cache: Any, options: dict[str, Any]
    ) -> Tensor:
        attention: Any = self.self_attn
        shape = states.shape[:-1]
        heads = self._project(states).view(*shape, -1, self._width).transpose(1, 2)
        turned, value = torch.split(heads, [self._queries + self._keys, self._keys], dim=1)
        if self._norm_heads is not None:
            turned = self._norm_heads(turned)
        cosine, sine = turn
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cosine.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sine.unsqueeze(1)
        query, key = torch.split(turned, [self._queries, self._keys], dim=1)
        if cache is not None:
            key, value = cache.update(key, value, attention.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
        found = attend(attention, query, key, value, mask, dropout=0.0, scaling=attention.scaling, **options)[0]
        return self._output(found.reshape(*shape, -1))

    def _joint_norm(self, attention: Any) -> _RmsNorm | None:
        """The norms of query and key heads in one, if there are any."""
        if not hasattr(attention, "q_norm"):
            return None
        query, key = _gain(attention.q_norm), _gain(attention.k_norm)
        gains = torch.cat((query.expand(self._queries, 1, -1), key.expand(self._keys, 1, -1)))
        return _RmsNorm(gains, _eps(attention.q_norm))


class _RmsNorm:
    """``x / sqrt(mean(x²) + eps) * gain``, as ``x * (gain √n / hypot(|x|, √(n eps)))``: the fewest operations."""

    def __init__(self, gain: Tensor, eps: float) -> None:
        width = gain.shape[-1]
        self._scale = gain * math.sqrt(width)
        self._floor = torch.tensor(math.sqrt(width * eps))

    def __call__(self, states: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
        return (states * (self._scale / torch.hypot(size, self._floor))).to(states.dtype)


def _unchanged(states: Tensor) -> Tensor:
    """Where a kind of layer has no norm."""
    return states


def _norm(module: Any) -> _RmsNorm:
    return _RmsNorm(_gain(module), _eps(module))


def _gain(norm: Any) -> Tensor:
    """What it multiplies with, as float32. Gemma's weights are what is added to one."""
    weight: Tensor = norm.weight.detach().float()
    return weight + 1 if type(norm).__name__.startswith("Gemma") else weight.clone()


def _eps(norm: Any) -> float:
    eps: float = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return eps


def _perceptron(module: Any) -> Callable[[Tensor], Tensor]:
    """A gated perceptron with its first two products in one. Others, as mixtures of experts, as they are."""
    names = ("gate_proj", "up_proj", "down_proj")
    if not type(module).__name__.endswith("MLP") or not all(is_plain(getattr(module, name, None)) for name in names):
        call: Callable[[Tensor], Tensor] = module
        return call
    widen, narrow = product(module.gate_proj, module.up_proj), product(module.down_proj)
    activate: Callable[[Tensor], Tensor] = module.act_fn.forward

    def gated(states: Tensor) -> Tensor:
        gate, passing = widen(states).chunk(2, dim=-1)
        return narrow(activate(gate) * passing)

    return gated
