"""The search: which types are measured, which are chosen, and how far the sum of the costs is from the real cost."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge.conversion.importance import needs_weights
from edge.conversion.recipe import Recipe
from edge.errors import ConversionError
from edge.formats.gguf import RECIPE, RECIPE_COSTS
from edge.llama import ggml
from edge.mixing.choice import Option, choose_fast_types, choose_types, priced
from edge.mixing.groups import Group
from edge.mixing.probe import Values
from edge.mixing.sizes import Sizes, padded, tensor_bytes
from edge.mixing.speed import Speeds
from edge.mixing.state import Costs, WeightErrors
from edge.system.text import counted, size

TYPES = ("iq2_xs iq2_s q2_k iq3_xxs iq3_s q3_k iq4_xs iq4_nl q4_k q5_k q5_0 q5_1 q6_k q8_0").split()
"""The ggml types that a search chooses from, beside the model's own."""
RARE_ERROR = 0.01
"""A group with an expert that the calibration saw rarely gets no type whose relative squared error in such an expert is
larger: the divergence on calibration rows says little about it. Types with 4 bits are below."""
_ROUNDS = 3  # choices whose unmeasured costs are measured
_SHARE = 0.01  # of the sum; a cost that is expected to be smaller is not measured
_FACTORS = (0.5, 2.0)  # the least and the most that a kind's costs are corrected by
_LONGEST_TYPE, _LONGEST_COST = "iq3_xxs", -1.234e-05

Say = Callable[[str], None]
Types = dict[str, str]
"""A choice: the type of each group, by name."""


@dataclass(frozen=True)
class Search:
    """What a search works with. `divergence`: what each row adds to the divergence of the model in memory, in nats,
    with these ggml types by tensor name.

    `own`: the model's own type.
    """

    groups: tuple[Group, ...]
    sizes: Sizes
    costs: Costs
    divergence: Callable[[Mapping[str, int]], list[float]]
    own: str
    say: Say
    exclude: tuple[str, ...] = ()
    """Types that no group gets."""
    speeds: Speeds | None = None
    """What types take on this machine, if that counts."""
    seconds: float = 0.0
    """The most that a token may take, if `speeds` is given."""

    def options(self, group: Group, factor: float = 1.0) -> list[Option]:
        """The types that a group may have, with their sizes, errors and costs."""
        errors, alone = self.costs.stored["errors"][group.name], self.costs.alone(group.name)

        def option(kind: str, error: float, measured: float | None) -> Option:
            seconds = 0.0 if self.speeds is None else self.speeds.seconds(group, kind)
            return Option(kind, _bytes(group, kind), error, measured, seconds=seconds)

        found = [option(kind, each["weighted"], alone.get(kind)) for kind, each in careful(errors).items()]
        found.append(option(self.own, 0.0, 0.0))
        known = priced(found, factor) if alone else found  # an excluded type can be the one that was measured
        return [each for each in known if each.type not in self.exclude]

    def measure(self, group: Group, kind: str) -> None:
        """Measure what a group alone costs in a type, unless that is known."""
        if kind != self.own and kind not in self.costs.alone(group.name):
            number = ggml.types()[kind]
            self.costs.add_alone(
                group.name, kind, self.divergence({tensor.name: number for tensor in group.tensors})
            )

    def together(self, types: Mapping[str, int], name: Types) -> float:
        """The divergence of a whole choice, measured once. `name`: what it is known by."""
        known = self.costs.joint(name)
        if known is None:
            self.costs.add_joint(name, self.divergence(types))
            return self.together(types, name)
        return known

    def of_choice(self, types: Types) -> float:
        """The divergence of a choice by groups."""
        return self.together(self.numbers(types), types)

    def numbers(self, types: Types) -> dict[str, int]:
        """The ggml type of each tensor that a choice changes."""
        return {
            tensor.name: ggml.types()[types[group.name]]
            for group in self.groups
            if types[group.name] != self.own
            for tensor in group.tensors
        }

    def begin(self, bits: float) -> None:
        """Measure each group without a measurement, in the type whose bits are nearest to `bits`."""
        for i, group in enumerate(self.groups, 1):
            if self.costs.alone(group.name):
                continue
            options = [each for each in self.options(group) if each.error > 0]
            if not options:  # all its types are excluded
                continue
            nearest = min(options, key=lambda each: abs(8 * each.n_bytes / _values(group) - bits))
            self.say(f"{i} of {len(self.groups)}: {group.name} in {nearest.type}")
            self.measure(group, nearest.type)

    def choose(self, n_bytes: int, factors: Mapping[str, float] | None = None) -> dict[str, Option]:
        """The best choice whose data has at most `n_bytes`. Raises ConversionError if every choice is larger."""
        fixed = self.sizes.data(self.numbers({group.name: self.own for group in self.groups}))
        room = n_bytes - fixed + sum(_bytes(group, self.own) for group in self.groups)
        options = {
            group.name: self.options(group, (factors or {}).get(group.kind, 1.0)) for group in self.groups
        }
        if self.speeds is None:
            chosen = choose_types(options, room)
        else:
            chosen = choose_fast_types(options, room, self.seconds)
            if chosen is None and choose_types(options, room) is not None:
                raise ConversionError(
                    "no choice of this size is so fast: give a smaller share", option="--speed"
                )
        if chosen is None:
            least = sum(min(each.n_bytes for each in some) for some in options.values())
            held = sum(
                careful(errors).keys() != errors.keys() for errors in self.costs.stored["errors"].values()
            )
            why = (
                f" ({counted(held, 'group')} with an expert that the calibration rows hardly use keep larger types: "
                "more rows can help)"
            )
            raise ConversionError(
                f"the smallest choice of types has {size(least - room + n_bytes)} of data: give a larger size"
                + (why if held else ""),
                option="--size",
            )
        return chosen

    def plain(self, chosen: Mapping[str, Option]) -> dict[str, Option]:
        """A choice with the costs of each group alone, not corrected."""
        found = {}
        for group in self.groups:
            by_type = {option.type: option for option in self.options(group)}
            found[group.name] = by_type[chosen[group.name].type]
        return found

    def refine(self, n_bytes: int) -> dict[str, Option]:
        """The best choice, after the costs that matter for it were measured."""
        chosen = self.choose(n_bytes)
        for _ in range(_ROUNDS):
            total = sum(option.cost for option in chosen.values())
            wanted = [
                group
                for group in self.groups
                if chosen[group.name].measured is None and chosen[group.name].cost > _SHARE * total
            ]
            if not wanted:
                break
            for group in wanted:
                self.say(f"{group.name} in {chosen[group.name].type}")
                self.measure(group, chosen[group.name].type)
            chosen = self.choose(n_bytes)
        return chosen

    def factors(self, types: Types, chosen: Mapping[str, Option]) -> dict[str, float]:
        """How much each kind of tensors adds to the divergence of a choice, for one nat of its costs.

        The costs are those of a group alone. With the other groups quantized too, it can add more or less.
        """
        whole, found = self.of_choice(types), {}
        for kind in dict.fromkeys(group.kind for group in self.groups):
            inside = [group.name for group in self.groups if group.kind == kind]
            expected = sum(chosen[name].cost for name in inside)
            if expected > 0:
                self.say(f"without {kind}")
                rest = self.of_choice({**types, **dict.fromkeys(inside, self.own)})
                found[kind] = min(max((whole - rest) / expected, _FACTORS[0]), _FACTORS[1])
        return found


def careful(errors: Mapping[str, WeightErrors]) -> Mapping[str, WeightErrors]:
    """The types of a group that are fine enough for its rarely seen experts; all types if none is."""
    return {kind: each for kind, each in errors.items() if each["rare"] <= RARE_ERROR} or errors


def weight_errors(group: Group, values: Values) -> dict[str, WeightErrors]:
    """The errors of a group's weights in each type that it may have."""
    found: dict[str, WeightErrors] = {}
    for kind in TYPES:
        number = ggml.types()[kind]
        if group.columns % ggml.block_size(number) or not _has_weights(group, number, values):
            continue
        if ggml.block_size(number) == 32 and group.columns % 256 == 0 and kind not in ("q8_0", "iq4_nl"):
            continue  # the types with blocks of 256 are better at the same size
        try:
            errors = [values.errors(tensor.name, number) for tensor in group.tensors]
        except ValueError:  # values too large for the type
            continue
        found[kind] = {
            "weighted": sum(each.weighted for each in errors),
            "relative": sum(each.relative for each in errors) / len(errors),
            "rare": max(each.rare for each in errors),
        }
    return found


def recipe_of(groups: Sequence[Group], types: Types, costs: str) -> Recipe:
    """The recipe of a choice, with the table of its costs."""
    return Recipe(tuple((group.pattern, types[group.name]) for group in groups), costs)


def cost_table(chosen: Mapping[str, Option], together: float) -> str:
    """What the metadata says of a choice: the type of each group, and its cost in nats. As JSON."""
    return _table(chosen, sum(option.cost for option in chosen.values()), together)


def _table(chosen: Mapping[str, Option], expected: float, together: float) -> str:
    rows = {name: [option.type, float(f"{option.cost:.3e}")] for name, option in chosen.items()}
    costs = {"expected": float(f"{expected:.3e}"), "together": float(f"{together:.3e}"), "groups": rows}
    return json.dumps(costs, ensure_ascii=False, separators=(",", ":"))


def most_metadata(groups: Sequence[Group]) -> tuple[tuple[str, str], ...]:
    """The longest metadata that a recipe of these groups can have."""
    longest = {group.name: Option(_LONGEST_TYPE, 0, 0.0, cost=_LONGEST_COST) for group in groups}
    recipe = recipe_of(groups, with_types(longest), _table(longest, _LONGEST_COST, _LONGEST_COST))
    return ((RECIPE, recipe.text), (RECIPE_COSTS, recipe.costs))


def with_types(chosen: Mapping[str, Option]) -> Types:
    """The types of a choice."""
    return {name: option.type for name, option in chosen.items()}


def _has_weights(group: Group, number: int, values: Values) -> bool:
    needed = any(needs_weights(tensor.name, number, "Q4_K_M") for tensor in group.tensors)
    return not needed or all(tensor.name in values.weights for tensor in group.tensors)


def _bytes(group: Group, kind: str) -> int:
    number = ggml.types()[kind]
    return sum(padded(tensor_bytes(tensor, number)) for tensor in group.tensors)


def _values(group: Group) -> int:
    return group.rows * group.columns
