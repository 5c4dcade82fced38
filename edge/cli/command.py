"""What every command does with its options: paths, empty values, numbers, the words of help and errors."""

import inspect
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from edge.cli.usage import Group, value_words

Function = TypeVar("Function", bound=Callable[..., Any])
# Options that are text because they take a path or a name.
_ALSO_PATHS = {"model", "source", "out", "base", "reference", "file", "python", "lora"}
_VALUES = {int: "N", float: "X", str: "TEXT", Path: "FILE"}


class Command(TyperCommand):
    """A command whose path options know `~`, and whose errors and help use plain words."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        hints = get_type_hints(inspect.unwrap(self.callback)) if self.callback is not None else {}
        for parameter in self.params:
            _improve(parameter, list(_parts(hints.get(str(parameter.name), str))))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line. Typer writes `{FILE}` for an argument that is required."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]


class App(typer.Typer):
    """A group of commands, each of them a `Command`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"cls": Group, **kwargs})

    def command(self, *args: Any, **kwargs: Any) -> Callable[[Function], Function]:
        """As `typer.Typer.command`."""
        return super().command(*args, **{"cls": Command, **kwargs})


def _parts(hint: Any) -> Iterator[Any]:
    """A type hint and all types in it."""
    yield hint
    if get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from _parts(part)


def _improve(parameter: Any, types: list[Any]) -> None:
    is_path = Path in types or parameter.name in _ALSO_PATHS
    choices = [get_args(part) for part in types if get_origin(part) is Literal]
    if parameter.metavar is None and bool not in types:
        known = [word for kind, word in _VALUES.items() if kind in types]
        parameter.metavar = "|".join(choices[0]) if choices else known[0] if known else None
    if (
        parameter.param_type_name == "argument"
    ):  # its metavar says enough; typer would add <str> or <list[Path]>
        parameter.display_type = parameter.display_type_rich = lambda ctx: ""
    process = parameter.process_value

    def processed(context: Any, value: Any) -> Any:
        if is_path:
            value = [_at_home(one) for one in value] if isinstance(value, list | tuple) else _at_home(value)
        try:
            result = process(context, value)
        except typer.BadParameter as error:
            errors = getattr(error.__cause__, "errors", None)  # of pydantic, in its words
            if errors is not None:
                error.message = value_words(errors()[0], choices[0] if choices else ())
            raise
        if isinstance(result, float) and not math.isfinite(result):
            raise typer.BadParameter("must be a finite number")
        return result

    parameter.process_value = processed


def _at_home(value: Any) -> Any:
    """A path with `~` replaced: a shell does not replace it in quotes or after `=`."""
    if value == "":
        raise typer.BadParameter("is empty; give a name")
    return os.path.expanduser(value) if isinstance(value, str) else value
