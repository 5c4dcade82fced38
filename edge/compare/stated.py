"""Compare figures that a file states with those that follow from its contents."""

import math
from collections.abc import Mapping


def wrong_figure(
    stated: object, right: object, source: str, *, relative: float, absolute: float, name: str = ""
) -> str | None:
    """The first stated figure that is not the right one, in words; None if all are right.

    Both are JSON values of the same form, and `source` names what the right ones follow from. Numbers may differ by
    `relative` times the larger one, or by `absolute`: another machine can round otherwise.
    """
    pairs: list[tuple[object, object, str]] = []
    if isinstance(right, Mapping) and isinstance(stated, Mapping):
        keys = dict.fromkeys([*right, *stated])
        pairs = [(stated.get(key), right.get(key), f"{name}.{key}" if name else str(key)) for key in keys]
    elif isinstance(right, list | tuple) and isinstance(stated, list | tuple) and len(right) == len(stated):
        pairs = [(told, own, f"{name}[{i}]") for i, (told, own) in enumerate(zip(stated, right, strict=True))]
    elif isinstance(right, float) and isinstance(stated, int | float):
        if math.isclose(stated, right, rel_tol=relative, abs_tol=absolute):
            return None
        return f"{name} is {stated}, but its {source} give {right}"
    elif stated == right:
        return None
    elif any(isinstance(value, Mapping | list | tuple) for value in (stated, right)):
        return f"{name} is not what its {source} give"
    else:
        return f"{name} is {stated}, but its {source} give {right}"
    for told, own, place in pairs:
        wrong = wrong_figure(told, own, source, relative=relative, absolute=absolute, name=place)
        if wrong is not None:
            return wrong
    return None
