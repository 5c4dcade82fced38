"""The command `edge config`, and the user's settings as defaults of the options of every command."""

import json
import sys
from typing import Annotated, Any

import typer

from edge.cli.command import App
from edge.cli.common import echo_json, show, table
from edge.system.config import VERSION, Held, config_file, settings
from edge.system.store import store_folder
from edge.system.text import printable

_UNTOUCHED = {"config", "help"}  # commands that must work with a broken file of settings

config_app = App(
    help="Show the settings in effect, and where they come from.", rich_markup_mode=None, add_completion=False
)


def apply_settings(context: typer.Context) -> None:
    """Make the user's settings the defaults of the command that runs. Raises ConfigError.

    The setting `model` is not among them: edge.cli.defaults finds the model of a command that names none.
    """
    name = context.invoked_subcommand
    words = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    if not {"-h", "--help"}.isdisjoint(words):
        return  # a help text needs no settings, and shows edge's own defaults
    commands: dict[str, Any] = getattr(context.command, "commands", {})
    if name is None or name in _UNTOUCHED or name not in commands:
        return
    there = {parameter.name for parameter in commands[name].params}
    defaults = {}
    for held in settings().values():
        setting = held.setting
        if held.value is None or setting.name == "model" or name not in (setting.commands or {name}):
            continue
        if setting.name in there:
            defaults[setting.name] = held.value
    context.default_map = {name: defaults}


@config_app.callback(invoke_without_command=True)
def config(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Show the settings in effect, and where they come from.

    An option wins over an environment variable, a variable over the file, the file over the default.
    """
    if context.invoked_subcommand is not None:
        return
    held = settings()
    path, default = config_file(), _default_model(held["model"])
    if as_json:
        found = {
            "version": VERSION,
            "file": str(path),
            "file_exists": path.exists(),
            "store": str(store_folder()),
            "settings": {
                name: {"value": one.value, "source": one.source, "where": one.where or None}
                for name, one in held.items()
            },
            "default_model": default[0],
        }
        echo_json(json.dumps(found, indent=2, ensure_ascii=False))
        return
    show(f"file   {printable(str(path))}{'' if path.exists() else ' (does not exist)'}")
    show(f"store  {printable(str(store_folder()))}\n")
    rows: list[tuple[str, ...]] = [(name, _value(one), _source(one)) for name, one in held.items()]
    table(["setting", "value", "from"], rows)
    show(f"\nmodel: {printable(default[0] or 'none yet')} ({printable(default[1])})")
    if held["model"].value is None:
        show(
            f'to choose one: write model = "NAME" into {printable(str(path))}, or set EDGE_MODEL; names: edge models'
        )


@config_app.command()
def path() -> None:
    """Print the path of the file of settings; it may not exist yet."""
    typer.echo(config_file())


def _value(held: Held) -> str:
    return "-" if held.value is None else printable(str(held.value))


def _source(held: Held) -> str:
    if held.source == "default":
        return f"default: {held.setting.default}"
    return f"variable {held.where}" if held.source == "variable" else "file"


def _default_model(held: Held) -> tuple[str | None, str]:
    """The model of a command that names none, and why."""
    from edge.formats.models import default_choice

    choice = default_choice()
    if choice.path is not None:
        return str(choice.path), choice.why
    if held.value is not None:
        return str(held.value), f"{choice.why}; not in ./models or the model store"
    return (
        None,
        "edge uses the embedded demonstration model, except for edge agent; `edge pull default` fetches a better one",
    )
