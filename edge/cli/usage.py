"""Wrong usage in edge's words: which option or argument, what is wrong, similar names, and where the help is."""

import re
from typing import Any

import typer
from typer.core import TyperGroup

from edge.cli.common import fail
from edge.system.text import did_you_mean

_USAGE: Any = typer.BadParameter.__base__  # typer exports no name for it
# What other programs call it, and what it is here.
_ELSEWHERE = {
    "list": "edge models lists the models",
    "ls": "edge models lists the models",
    "version": "edge --version prints the version",
    "set": "edge config prints the file of settings and how to choose a model",
    "pull": "edge pull NAME downloads a model",
    "download": "edge pull NAME downloads a model",
    "quantize": "edge convert SOURCE --quant TYPE writes a quantized model",
}
_WHOLE, _NUMBER = "a whole number", "a number"
# The kinds of pydantic's errors that a text on the command line can cause, and what the value must be.
_KINDS = {"greater_than_equal": ("at least", "ge"), "less_than_equal": ("at most", "le")}


class Group(TyperGroup):
    """A group of commands that suggests similar names, and whose errors are edge's."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As in typer."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            meant = did_you_mean(args[0], self.commands) or _ELSEWHERE.get(args[0], "the help lists them")
            ctx.fail(f"no command {args[0]}; {meant}")
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """As in typer."""
        try:
            return super().make_context(*args, **extra)
        except _USAGE as error:
            raise _ours(error) from error.__cause__

    def invoke(self, ctx: Any) -> Any:
        """As in typer. The command and its own context are made here."""
        try:
            return super().invoke(ctx)
        except _USAGE as error:
            raise _ours(error) from error.__cause__


def value_words(problem: Any, choices: tuple[str, ...]) -> str:
    """What is wrong with a value, by the first of pydantic's errors. `choices`: the values that fit."""
    value, kind = problem["input"], str(problem["type"])
    if choices:
        meant = did_you_mean(str(value), choices)
        return f"must be one of {', '.join(choices)}, not {value}{'; ' + meant if meant else ''}"
    if kind in _KINDS:
        words, bound = _KINDS[kind]
        return f"must be {words} {problem['ctx'][bound]:,.10g}, not {value}"
    if kind.startswith(("int", "float")):
        return f"must be {_WHOLE if kind.startswith('int') else _NUMBER}, not {value}"
    return str(problem["msg"]).removeprefix("Value error, ")


def _ours(error: Any) -> Any:
    """The same error, which typer shows in edge's words."""
    if type(error).__name__ != "NoArgsIsHelpError":  # its text is the help
        error.show = lambda file=None: _show(error)
    return error


def _show(error: Any) -> None:
    if error.ctx is not None:
        typer.echo(error.ctx.get_usage(), err=True)
        typer.echo(f"Try '{error.ctx.command_path} {error.ctx.help_option_names[0]}' for help.\n", err=True)
    fail(_text(error))


def _text(error: Any) -> str:
    kind, message = type(error).__name__, str(error.message).rstrip(".")
    if kind == "MissingParameter":
        return f"{_named(error)} is missing"
    if kind == "NoSuchOption":
        options = [
            name
            for parameter in error.ctx.command.params
            for name in (*parameter.opts, *parameter.secondary_opts)
        ]
        meant = did_you_mean(error.option_name, [name for name in options if name.startswith("--")], 0.7)
        return f"no option {error.option_name}{'; ' + meant if meant else ''}"
    if kind == "BadOptionUsage":
        return f"{error.option_name}: {'takes no value' if 'not take' in message else 'needs a value'}"
    if extra := re.fullmatch(r"Got unexpected extra argument\S* \((.*)\)", message, re.DOTALL):
        return f"too many arguments: {extra[1]}; a text with blanks needs quotes, a list commas"
    return f"{_named(error)}: {message}" if isinstance(error, typer.BadParameter) else message


def _named(error: Any) -> str:
    """The option or the argument that is wrong, as the user writes it."""
    if error.param_hint is not None:
        return error.param_hint if isinstance(error.param_hint, str) else ", ".join(error.param_hint)
    if error.param is None:
        return "the command line"
    if error.param.param_type_name == "argument":
        return str(error.param.metavar or error.param.name.upper())
    return str(max(error.param.opts, key=len))
