"""LoRA adapters beside shared weights: one pass for many, and each token goes through its own.

An adapted layer has the matrices of all adapters, stacked. A pass multiplies with those of the adapters that are in
it, side by side, and clears what is not a token's own: two products more, however many rows and adapters there are.
To a token without adapter exactly nothing is added, and a pass without adapters makes none of this. `lora.py` reads
the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastchat_backend_hf.devices import execution_device
from fastchat_backend_hf.lora import LoraMatrices, read_lora
from fastchat_serve import StartupError

__all__ = ["AdaptedLinear", "Adapters", "adapt", "unadapted", "with_adapters"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Choice:
    """Which adapters the pass under way uses. One for all layers of a model.

    Attributes:
        numbers: Those in the pass, in their order.
        foreign: ``[rows, tokens, numbers]``: which of them are not a token's own. None: the only one is everybody's.
    """

    __slots__ = ("foreign", "numbers")

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.foreign: Tensor | None = None

    def foreign_for(self, states: Tensor) -> Tensor | None:
        """`foreign` in the form of `states`, which some models flatten."""
        if self.foreign is None:
            return None
        foreign = self.foreign.to(states.device)
        if states.dim() == 2:
            return foreign.flatten(0, 1)
        return foreign[:, : states.shape[1]]  # a head may be given the first tokens only


class Adapters:
    """A model's adapters, by name."""

    def __init__(self, names: Sequence[str] = (), choice: _Choice | None = None) -> None:
        self.names = tuple(names)
        self._numbers = {name: number for number, name in enumerate(names)}
        self._choice = choice or _Choice()

    @contextmanager
    def chosen(self, rows: Sequence[Sequence[str | None]], device: torch.device) -> Iterator[None]:
        """Passes in here are made of `rows` of tokens that go through these adapters, None being the model alone.

        If it is the same one for all, any number stands for all.
        """
        used = {name for row in rows for name in row} if self.names else {None}
        if used == {None}:
            yield
            return
        numbers = sorted(self._numbers[name] for name in used if name is not None)
        if len(used) > 1:
            own = torch.tensor([[-1 if name is None else self._numbers[name] for name in row] for row in rows])
            self._choice.foreign = (own[..., None] != torch.tensor(numbers)).to(device)
        self._choice.numbers = numbers
        try:
            yield
        finally:
            self._choice.numbers, self._choice.foreign = [], None


class _LowRank:
    """What the adapters add to one product."""

    def __init__(self, choice: _Choice, down: Tensor, up: Tensor) -> None:
        """`down` is ``[adapters, rank, in]``, `up` ``[adapters, rank, out]``; lower ranks are filled up with zeros."""
        self._choice, self._down, self._up = choice, down, up

    @classmethod
    def stacked(
        cls, choice: _Choice, matrices: Sequence[LoraMatrices | None], like: Tensor, sizes: tuple[int, int]
    ) -> Self:
        """Of a layer with these `sizes`, in and out; None: the adapter leaves it alone."""
        rank = max(len(one.down) for one in matrices if one is not None)
        down, up = (like.new_zeros(len(matrices), rank, size) for size in sizes)
        for number, one in enumerate(matrices):
            if one is not None:
                down[number, : len(one.down)] = one.down
                up[number, : len(one.down)] = one.up.T
        return cls(choice, down, up)

    @classmethod
    def side_by_side(cls, parts: Sequence[tuple[_LowRank | None, int]]) -> _LowRank | None:
        """Of one product for several layers; each has so many outputs."""
        adapted = [part for part, _ in parts if part is not None]
        if not adapted:
            return None
        ups, before, total = [], 0, sum(size for _, size in parts)
        for part, size in parts:
            if part is not None:
                up = part._up.new_zeros(*part._up.shape[:2], total)
                up[..., before : before + size] = part._up
                ups.append(up)
            before += size
        return cls(adapted[0]._choice, torch.cat([part._down for part in adapted], 1), torch.cat(ups, 1))

    def add(self, found: Tensor, states: Tensor) -> Tensor:
        """`found`, which the product made of `states`, with what the adapters chosen add."""
        numbers = self._choice.numbers
        if not numbers:
            return found
        down, up = self._of(numbers, self._down), self._of(numbers, self._up)
        narrow = linear(states.to(down.dtype), down)
        foreign = self._choice.foreign_for(states)
        if foreign is not None:
            apart = narrow.view(*narrow.shape[:-1], len(numbers), -1)
            narrow = apart.masked_fill(foreign[..., None], 0).view(narrow.shape)
        return found + (narrow @ up).to(found.dtype)

    def _of(self, numbers: list[int], stack: Tensor) -> Tensor:
        """The matrices of these adapters in one, rank by rank."""
        if len(numbers) == 1:
            return stack[numbers[0]]
        return (stack if len(numbers) == len(stack) else stack[numbers]).flatten(0, 1)


class AdaptedLinear(nn.Module):
    """A linear layer of any kind, quantised ones included, and what adapters add to its output."""

    def __init__(self, base: nn.Module, low_rank: _LowRank, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.base, self.low_rank = base, low_rank
        self.in_features, self.out_features = sizes

    @property
    def weight(self) -> Any:
        """Some models look at the type of a layer's weights."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        return self.base.bias

    def forward(self, states: Tensor) -> Tensor:
        return self.low_rank.add(self.base(states), states)


def unadapted(module: object) -> Any:
    """The layer itself."""
    return module.base if isinstance(module, AdaptedLinear) else module


def with_adapters(product: Callable[[Tensor], Tensor], *layers: Any) -> Callable[[Tensor], Tensor]:
    """`product`, which gives the outputs of `layers` side by side, with what their adapters add."""
    parts = [(layer.low_rank if isinstance(layer, AdaptedLinear) else None, layer.out_features) for layer in layers]
    joint = _LowRank.side_by_side(parts)
    if joint is None:
        return product
    return lambda states: joint.add(product(states), states)


def adapt(model: Any, folders: Mapping[str, Path]) -> Adapters:
    """Put the adapters in these folders beside the layers of `model`. Raises `StartupError`."""
    choice = _Choice()
    matrices: dict[str, list[LoraMatrices | None]] = {}
    for number, (name, folder) in enumerate(folders.items()):
        try:
            for layer, found in read_lora(folder).items():
                _check_fit(model, layer, found)
                matrices.setdefault(layer, [None] * len(folders))[number] = found
        except StartupError as error:
            raise StartupError(f"the adapter {name!r} cannot be used: {error}") from error
    for layer, of_adapters in matrices.items():
        base = model.get_submodule(layer)
        sizes = _sizes(base)
        assert sizes is not None
        low_rank = _LowRank.stacked(choice, of_adapters, _like(model, base), sizes)
        model.set_submodule(layer, AdaptedLinear(base, low_rank, sizes))
    return Adapters(tuple(folders), choice)


def _check_fit(model: Any, layer: str, matrices: LoraMatrices) -> None:
    if ".experts." in layer:  # which are given tokens in an order of their own
        raise StartupError(f"{layer} is part of a mixture of experts; `lora` may merge it")
    try:
        sizes = _sizes(model.get_submodule(layer))
    except AttributeError:
        sizes = None
    if sizes is None:
        raise StartupError(f"the model has no linear layer {layer}")
    found = (matrices.down.shape[1], len(matrices.up))
    if found != sizes:
        raise StartupError(
            f"{layer} takes {sizes[0]} numbers and gives {sizes[1]}, the adapter's {found[0]} and {found[1]}"
        )


def _sizes(layer: nn.Module) -> tuple[int, int] | None:
    """How many numbers a linear layer takes and gives; None: it is another kind of layer. GPT-2 has one of its own."""
    if type(layer).__name__ == "Conv1D":
        return layer.nx, layer.nf  # type: ignore[return-value]
    sizes = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    return sizes if None not in sizes else None  # type: ignore[return-value]


def _like(model: Any, base: nn.Module) -> Tensor:
    """An empty tensor of the type and on the device in which an adapter of `base` computes."""
    weight = getattr(base, "weight", None)
    dtype = weight.dtype if weight is not None and weight.dtype in _DTYPES else model.dtype
    return torch.empty(0, dtype=dtype, device=execution_device(base))
