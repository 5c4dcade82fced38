"""How many tokens each expert of a mixture worked on during a calibration, and a table of the ones with few tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge.llama.activations import Activation
from edge.system.tables import table

RARE = 64
"""The command reports an expert that worked on fewer tokens. The mean of the squares of so many normally distributed
values has a standard error of sqrt(2 / 64) = 18 %. Activations have heavier tails, so their error is larger."""


@dataclass(frozen=True)
class LayerExperts:
    """The experts of one layer: `counts[i]` is the number of tokens that expert i worked on."""

    layer: int
    counts: tuple[int, ...]

    @property
    def never(self) -> tuple[int, ...]:
        """The experts that worked on no token."""
        return tuple(i for i, count in enumerate(self.counts) if not count)

    @property
    def rare(self) -> tuple[int, ...]:
        """The experts that worked on at least one token, but on fewer than RARE."""
        return tuple(i for i, count in enumerate(self.counts) if 0 < count < RARE)


def layer_experts(sums: Mapping[str, Activation]) -> tuple[LayerExperts, ...]:
    """The counts of each layer that has experts. All tensors of a layer have the same counts, from one router."""
    layers: dict[int, tuple[int, ...]] = {}
    for name, activation in sums.items():
        parts = name.split(".")
        if len(activation.counts) > 1 and parts[0] == "blk" and parts[1].isdigit():
            layers.setdefault(int(parts[1]), tuple(map(int, activation.counts)))
    return tuple(LayerExperts(layer, layers[layer]) for layer in sorted(layers))


def experts_text(experts: Sequence[LayerExperts]) -> list[str]:
    """Lines for people: one line if every expert worked on enough tokens, else a table. Empty without experts."""
    if not experts:
        return []
    poor = [layer for layer in experts if layer.never or layer.rare]
    if not poor:
        least = min(min(layer.counts) for layer in experts)
        return [f"experts: each one worked on at least {least:,} tokens"]
    never, rare = sum(len(layer.never) for layer in poor), sum(len(layer.rare) for layer in poor)
    total = sum(len(layer.counts) for layer in experts)
    lines = [f"experts: of {total}, {rare} worked on fewer than {RARE} tokens, {never} on none"]
    if never:
        lines.append(
            "All columns of an expert that worked on no token get the same weight, as in llama-quantize. Its tensor is "
            "quantized like the others, and the other experts keep their measured values."
        )
    header = ("layer", "experts", "no tokens", f"under {RARE}", "fewest tokens", "median")
    return [*lines, "", *table(header, [_cells(layer) for layer in poor], right=(0, 1, 4, 5))]


def _cells(layer: LayerExperts) -> list[str]:
    numbers = (str(layer.layer), str(len(layer.counts)))
    lists = (_ranges(layer.never), _ranges(layer.rare))
    return [*numbers, *lists, f"{min(layer.counts):,}", f"{int(np.median(layer.counts)):,}"]


def _ranges(numbers: tuple[int, ...]) -> str:
    """Ascending numbers as text: `0–3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"
