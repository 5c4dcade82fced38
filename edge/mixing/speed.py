"""How much time a token takes in the products of a choice, on this machine's processor.

Types with few bits are not always fast: some processors take three times as long for an IQ3 weight as for a Q4_K one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ConversionError
from edge.formats.gguf import read_metadata
from edge.llama import ggml
from edge.llama.speed import weights_per_second
from edge.mixing.groups import Group
from edge.system.tables import table

__all__ = ["Speeds"]


@dataclass(frozen=True)
class Speeds:
    """The weights a second of each ggml type, by its name, and the share of a group's weights that a token uses."""

    by_type: Mapping[str, float]
    expert_share: float
    tied: bool
    """Whether the token embeddings are the output matrix too."""

    @classmethod
    def measured(cls, base: Path, groups: Iterable[Group], kinds: Iterable[str], threads: int) -> "Speeds":
        """Measure these types, for the model of an unquantized GGUF. It takes about a second."""
        metadata = read_metadata(base)
        architecture = metadata.get("general.architecture")
        experts = metadata.get(f"{architecture}.expert_count") or 1
        used = metadata.get(f"{architecture}.expert_used_count") or 1
        numbers = {ggml.types()[kind]: kind for kind in kinds}
        found = weights_per_second(numbers, threads)
        tied = not any(group.name == "output" for group in groups)
        return cls({numbers[number]: each for number, each in found.items()}, used / experts, tied)

    def seconds(self, group: Group, kind: str) -> float:
        """The seconds of a token in the products of a group in a type."""
        n_values = group.rows * group.columns
        if group.kind == "experts" and len(group.tensors[0].shape) > 2:
            n_values = round(n_values * self.expert_share)
        elif group.kind == "embedding" and group.name not in ("output", *["token_embd"] * self.tied):
            return 0.0  # a token needs one row
        return n_values / self.by_type[kind]

    def of_types(self, groups: Iterable[Group], types: Mapping[str, int]) -> float:
        """The seconds of a token, with ggml's number of the type of each tensor; others have the model's own."""
        total = 0.0
        for group in groups:
            for tensor in group.tensors:
                kind = ggml.type_name(types.get(tensor.name, ggml.types()[tensor.type.lower()])).lower()
                total += self.seconds(Group(group.name, group.kind, group.pattern, (tensor,)), kind)
        return total

    def to_text(self, groups: Sequence[Group]) -> list[str]:
        """A table of the types for people, the fastest first: the tokens a second if all groups had one type."""
        rows = []
        for kind, each in sorted(self.by_type.items(), key=lambda pair: -pair[1]):
            tokens = 1 / sum(self.seconds(group, kind) for group in groups)
            rows.append((kind, f"{each / 1e9:.1f}", f"{tokens:,.0f}"))
        return table(("type", "10^9 weights a second", "tokens a second"), rows, right=(1, 2))


def checked_types(names: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """The types that are excluded: a name is a type, or the beginning of some, such as iq. Raises ConversionError."""
    found: list[str] = []
    for name in names:
        fitting = [kind for kind in known if name and kind.startswith(name.lower())]
        if not fitting:
            raise ConversionError(
                f"{name or 'an empty name'}: is none of the types that a search chooses from: {', '.join(known)}",
                option="--exclude",
            )
        found += fitting
    return tuple(dict.fromkeys(found))
