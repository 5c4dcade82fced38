"""The commands `edge allow`: try an allowlist, and print the lists of edge."""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli.command import App

allow_app = App(
    help="Check the allowlists of edge agent --allow.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@allow_app.command()
def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Allowlist (TOML), or the name of a list of edge.")
    ],
    command: Annotated[
        str | None, typer.Argument(metavar="COMMAND", help="Shell line to judge, in quotes.")
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Work folder of the agent. Default: the current folder."),
    ] = None,
    sandboxed: Annotated[bool, typer.Option("--sandbox", help="Judge as in the sandbox.")] = False,
) -> None:
    """Check an allowlist and its examples, or say what it decides about a command.

    edge types nothing. The exit code is 0 if edge would type the command without a question, 1 if it would ask or
    refuse.
    """
    from edge.agent.allow import judge, read_allowlist
    from edge.agent.rules import Place
    from edge.cli.common import note, show
    from edge.system.text import counted, printable
    from edge.terminal.check import WORK

    allowlist = read_allowlist(file)
    for warning in allowlist.warnings:
        note(warning)
    if command is None:
        rules = counted(len(allowlist.rules) + len(allowlist.commands), "rule")
        show(f"{printable(str(file))}: {rules}, {counted(allowlist.examples, 'example')}: all as they say")
        return
    place = Place(workdir or Path(), WORK if sandboxed else None)
    verdict = judge(allowlist, command, place)
    if verdict.decision == "refuse" and not command.endswith("\n"):
        verdict = judge(allowlist, command + "\n", place)
    show(printable(f"{verdict.decision}: {verdict.reason}"))
    if verdict.decision != "allow":
        raise typer.Exit(1)


@allow_app.command()
def show(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the list. Default: name the lists.")
    ] = None,
) -> None:
    """Print a list of edge, to read or to copy."""
    from edge.agent.allow import LISTS, shipped_list

    typer.echo("\n".join(LISTS) if name is None else shipped_list(name).rstrip("\n"))
