"""Groups of tensors that share a type: one role in a band of layers.

A role is the name of a tensor without its layer, such as attn_q, ffn_down_exps or token_embd. The layers that have a
role form at most six bands: the first, the last, and four equal ones between.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from edge.formats.gguf import TensorInfo

_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")
_MIDDLE = 4  # bands between the first and the last layer


@dataclass(frozen=True)
class Group:
    """Tensors that share a type. `kind`: embedding, attention, convolution, dense, experts or other."""

    name: str
    kind: str
    pattern: str
    """The regular expression of its line in a recipe."""
    tensors: tuple[TensorInfo, ...]

    @property
    def columns(self) -> int:
        """Values in a row, the same in all its tensors."""
        return self.tensors[0].shape[0]

    @property
    def rows(self) -> int:
        """Rows of all its tensors together."""
        return sum(prod(tensor.shape[1:]) for tensor in self.tensors)


def make_groups(tensors: Iterable[TensorInfo]) -> list[Group]:
    """The groups of these tensors, in their order. Tensors of other widths form a group of their own."""
    by_role: dict[tuple[str, int], list[tuple[int, TensorInfo]]] = {}
    found = []
    for tensor in tensors:
        match = _LAYER.fullmatch(tensor.name)
        if match is None:
            name = tensor.name.removesuffix(".weight")
            found.append(Group(name, _kind(name), f"^{_escaped(tensor.name)}$", (tensor,)))
        else:
            by_role.setdefault((match[2], tensor.shape[0]), []).append((int(match[1]), tensor))
    for (role, _), layers in by_role.items():
        layers.sort(key=lambda pair: pair[0])
        found += [_band(role, part) for part in _bands(layers)]
    return found


def _band(role: str, layers: Sequence[tuple[int, TensorInfo]]) -> Group:
    numbers = [number for number, _ in layers]
    several = len(numbers) > 1
    chosen = f"({'|'.join(map(str, numbers))})" if several else str(numbers[0])
    name = f"{role} {numbers[0]}–{numbers[-1]}" if several else f"{role} {numbers[0]}"
    pattern = rf"^blk\.{chosen}\.{_escaped(role)}\.weight$"
    return Group(name, _kind(role), pattern, tuple(tensor for _, tensor in layers))


def _bands(layers: Sequence[tuple[int, TensorInfo]]) -> list[Sequence[tuple[int, TensorInfo]]]:
    if len(layers) <= _MIDDLE + 2:
        return [[layer] for layer in layers]
    inner = layers[1:-1]
    ends = [round(i * len(inner) / _MIDDLE) for i in range(_MIDDLE + 1)]
    return [layers[:1], *(inner[a:b] for a, b in pairwise(ends)), layers[-1:]]


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")


def _kind(role: str) -> str:
    if role in ("token_embd", "output", "per_layer_token_embd"):
        return "embedding"
    if role.startswith("attn"):
        return "attention"
    if role.startswith(("shortconv", "ssm")):
        return "convolution"
    if "_exps" in role or "_shexp" in role:
        return "experts"
    return "dense" if role.startswith("ffn") else "other"
